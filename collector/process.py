"""Run one server as a plain process: start it, wait until it is healthy, stop it.

A process gets a session of its own, so that a Ctrl-C in the terminal reaches only the program that started it and
that program decides the order in which its servers go down.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "HealthCheck",
    "Process",
    "StartError",
    "free_port",
    "free_ports",
    "http_ok",
    "interrupted_by_signals",
    "port_in_use",
    "start",
    "tcp_open",
    "twice",
    "undisturbed",
]

HealthCheck = Callable[[], bool]

_POLL_S = 0.05
_TAIL_LINES = 25
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What still runs, by process id: the last resort when the program ends without having stopped its servers.
_running: dict[int, subprocess.Popen[bytes]] = {}
# A health check goes to this machine, never through a proxy that the environment names.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class StartError(RuntimeError):
    """A server ended before it was healthy, or was not healthy in time; the text holds the tail of its log."""


def interrupted_by_signals() -> None:
    """Make SIGTERM, and SIGHUP of a terminal that closes, do what Ctrl-C does: take everything down in order."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Who ignores SIGHUP already (nohup) means to stay.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and its like while something goes down: a second one must not leave half of it behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's, and so are their handlers
        return
    # None stands for a handler that was not set from Python, which cannot be put back by it.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in _ENDING}
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_ports(count: int) -> list[int]:
    """Return `count` different TCP ports that nothing on loopback listens on."""
    with ExitStack() as held:
        ports: list[int] = []
        for _ in range(count):
            sock = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            sock.bind(("127.0.0.1", 0))
            ports.append(int(sock.getsockname()[1]))
        return ports


def free_port() -> int:
    """Return a TCP port that nothing on loopback listens on."""
    return free_ports(1)[0]


def port_in_use(port: int, host: str = "127.0.0.1") -> bool:
    """Tell whether a server could not listen on the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        # As servers do: a port whose last connections are only waiting to be forgotten is free.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return True
        return False


def http_ok(url: str, *, timeout_s: float = 2.0) -> HealthCheck:
    """Return a check that is true once the address answers with a 2xx status."""

    def check() -> bool:
        try:
            with _direct.open(url, timeout=timeout_s) as answer:
                return 200 <= int(answer.status) < 300
        except (OSError, ValueError):  # URLError and timeouts are OSErrors; a half-written answer is a ValueError
            return False

    return check


def twice(check: HealthCheck) -> HealthCheck:
    """Return a check that is true once another one was true two times in a row.

    A Collector says that it is healthy a moment before it takes signals; one that came in that moment would end it at
    once, with all that it holds.
    """
    seen = 0

    def checked() -> bool:
        nonlocal seen
        seen = seen + 1 if check() else 0
        return seen > 1

    return checked


def tcp_open(port: int, host: str = "127.0.0.1", *, timeout_s: float = 1.0) -> HealthCheck:
    """Return a check that is true once the port takes a connection."""

    def check() -> bool:
        try:
            with socket.create_connection((host, port), timeout=timeout_s):
                return True
        except OSError:
            return False

    return check


@dataclass(slots=True)
class Process:
    """One process that `start` began, with its log."""

    name: str
    log_path: Path
    _popen: subprocess.Popen[bytes] = field(repr=False)
    _stop_signal: signal.Signals = signal.SIGTERM
    _grace_s: float = 10.0

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None while the process runs."""
        return self._popen.poll()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._popen.poll() is None

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """Return the last lines of the log."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def wait_healthy(self, check: HealthCheck, *, deadline_s: float) -> None:
        """Wait until the check is true; raise StartError when the process dies first or time runs out."""
        give_up_at = time.monotonic() + deadline_s
        while True:
            code = self.exit_code
            if code is not None:
                raise StartError(self._report(f"ended with exit code {code} before it was healthy"))
            if check():
                return
            if time.monotonic() >= give_up_at:
                raise StartError(self._report(f"was not healthy within {deadline_s:g} s"))
            time.sleep(_POLL_S)

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end of the process and return its exit code."""
        return self._popen.wait(timeout_s)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        if self.alive:
            self._popen.send_signal(number)

    def stop(self, *, grace_s: float | None = None) -> int:
        """Ask the process to end; after the grace period (by default that of its start) end all that it started."""
        if self.alive:
            self._popen.send_signal(self._stop_signal)
            try:
                self._popen.wait(self._grace_s if grace_s is None else grace_s)
            except subprocess.TimeoutExpired:
                # Its session is its process group; the leader still runs, so the number cannot be someone else's.
                os.killpg(self._popen.pid, signal.SIGKILL)
        code = self._popen.wait()
        _running.pop(self._popen.pid, None)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _report(self, what: str) -> str:
        tail = self.log_tail()
        shown = f"the end of {self.log_path}:\n{tail}" if tail else f"{self.log_path} is empty"
        return f"{self.name} {what}; {shown}"


def start(
    name: str,
    command: Sequence[str | os.PathLike[str]],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    directory: Path | None = None,
    user: str | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
    healthy: HealthCheck | None = None,
    deadline_s: float = 30.0,
    grace_s: float = 10.0,
) -> Process:
    """Start a server, wait until it is healthy, and return it; on failure nothing stays behind.

    `env` is added to the environment of this process. `user` runs it as that user (only root can ask for it). `grace_s`
    is how long it may take to stop.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        try:
            popen = subprocess.Popen(
                _tied_to_us([os.fspath(part) for part in command], stop_signal),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, **(env or {})},
                user=user,
                group=_group_of(user),
                extra_groups=[] if user is not None else None,
                start_new_session=True,
            )
        except OSError as error:
            raise StartError(f"{name} could not be started: {error}") from error
    _running[popen.pid] = popen
    process = Process(name=name, log_path=log_path, _popen=popen, _stop_signal=stop_signal, _grace_s=grace_s)
    if healthy is not None:
        try:
            process.wait_healthy(healthy, deadline_s=deadline_s)
        except BaseException:
            with undisturbed():
                process.stop(grace_s=2.0)
            raise
    return process


def _tied_to_us(command: list[str], stop_signal: signal.Signals) -> list[str]:
    """Have the kernel stop the server when we are killed and can't; without util-linux's setpriv it would live on.

    Not by `preexec_fn`, which is unsafe beside the threads of gRPC.
    """
    setpriv = shutil.which("setpriv")
    # What is not there is left to Popen, which says so better.
    if setpriv is None or shutil.which(command[0]) is None:
        return command
    return [setpriv, "--pdeathsig", stop_signal.name, *command]


@atexit.register
def _end_all() -> None:
    for popen in list(_running.values()):
        if popen.poll() is None:
            os.killpg(popen.pid, signal.SIGKILL)


def _group_of(user: str | None) -> int | None:
    if user is None:
        return None
    import pwd

    return pwd.getpwnam(user).pw_gid
