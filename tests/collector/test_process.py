"""How one server is run as a plain process."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector import process

_SLEEPS = "import time; time.sleep(600)"
_STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""
_PARENT = """
import subprocess, sys, time, signal
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(child.pid, flush=True)
time.sleep(600)
"""


def _python(code: str, log: Path, **options: object) -> process.Process:
    return process.start("sample", [sys.executable, "-c", code], log_path=log, **options)  # type: ignore[arg-type]


def _log_holds(log: Path, text: str) -> process.HealthCheck:
    return lambda: text in log.read_text(encoding="utf-8")


def test_a_process_is_healthy_when_its_check_says_so(tmp_path: Path) -> None:
    """Start returns once the check is true, with the process running and its output in the log."""
    log = tmp_path / "log"
    with _python(f"print('up', flush=True); {_SLEEPS}", log, healthy=_log_holds(log, "up")) as started:
        assert started.alive
        assert started.log_tail() == "up"
    assert not started.alive
    assert started.exit_code == -signal.SIGTERM


def test_early_death_is_told_with_the_end_of_the_log(tmp_path: Path) -> None:
    """A process that ends before it is healthy gives an error with its exit code and its last words."""
    with pytest.raises(process.StartError, match=r"exit code 3(?s:.*)no such database"):
        _python("import sys; print('no such database'); sys.exit(3)", tmp_path / "log", healthy=lambda: False)


def test_a_deadline_ends_the_wait_and_the_process(tmp_path: Path) -> None:
    """A process that is never healthy is an error, and does not stay behind."""
    log = tmp_path / "log"
    code = f"import os; print(os.getpid(), flush=True); {_SLEEPS}"
    with pytest.raises(process.StartError, match="not healthy within"):
        _python(code, log, healthy=lambda: False, deadline_s=1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text(encoding="utf-8")), 0)


def test_a_program_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    """A missing program is told by name instead of by a bare OSError."""
    with pytest.raises(process.StartError, match="ghost could not be started"):
        process.start("ghost", [str(tmp_path / "ghost")], log_path=tmp_path / "log")


def test_what_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    """After the grace period a deaf process is ended all the same."""
    log = tmp_path / "log"
    started = _python(_STUBBORN, log, healthy=_log_holds(log, "deaf"))
    assert started.stop(grace_s=0.2) == -signal.SIGKILL


def test_a_killed_process_takes_its_children_along(tmp_path: Path) -> None:
    """What a deaf process had started does not outlive it."""
    log = tmp_path / "log"
    started = _python(_PARENT, log, healthy=_log_holds(log, "\n"))
    child = int(log.read_text(encoding="utf-8"))
    started.stop(grace_s=0.2)
    # The child belongs to nobody who waits for it, so it may stay as a zombie for a moment: dead is what counts.
    assert _state(child) in ("gone", "Z")


def _state(pid: int) -> str:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return "gone"
        if state == "Z":
            return state
        threading.Event().wait(0.05)
    return state


def test_stopping_twice_is_harmless(tmp_path: Path) -> None:
    """A second stop answers with the same exit code and signals nobody."""
    started = _python(_SLEEPS, tmp_path / "log")
    assert started.stop() == started.stop() == -signal.SIGTERM


def test_the_environment_is_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process sees what it is given and what its parent has."""
    monkeypatch.setenv("FROM_PARENT", "a")
    log = tmp_path / "log"
    code = "import os; print(os.environ['FROM_PARENT'] + os.environ['GIVEN'])"
    _python(code, log, env={"GIVEN": "b"}).wait()
    assert log.read_text(encoding="utf-8") == "ab\n"


def test_a_process_has_a_session_of_its_own(tmp_path: Path) -> None:
    """A Ctrl-C in the terminal reaches only the program that started the servers."""
    with _python(_SLEEPS, tmp_path / "log") as started:
        assert os.getsid(started.pid) == started.pid != os.getsid(0)


def test_free_ports_are_different_and_free() -> None:
    """Several ports taken at once do not meet each other."""
    ports = process.free_ports(20)
    assert len(set(ports)) == 20
    assert not any(process.port_in_use(port) for port in ports)


def test_a_taken_port_is_seen() -> None:
    """A port that somebody listens on is in use, and takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert process.port_in_use(port)
        assert process.tcp_open(port)()
    assert not process.tcp_open(port)()


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def answering() -> Iterator[str]:
    """A server that is ready at /ready only."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_only_a_success_is_healthy(answering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 503 and silence are not healthy, and no proxy of the environment is asked."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert process.http_ok(f"{answering}/ready")()
    assert not process.http_ok(f"{answering}/starting")()
    assert not process.http_ok(f"http://127.0.0.1:{process.free_port()}/")()


def test_healthy_twice() -> None:
    """A check that wants it twice is not content with once, and begins anew after a no."""
    answers = iter([True, False, True, True, True])
    check = process.twice(lambda: next(answers))
    assert [check() for _ in range(5)] == [False, False, False, True, True]
