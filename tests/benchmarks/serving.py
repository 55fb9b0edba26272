"""One uvicorn worker with a measured app, and the load that is put on it from another core."""

from __future__ import annotations

import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.asgi import PLAIN

__all__ = ["Load", "load", "serve"]

_CONNECTIONS = 16


def serve(app: Any, answer: Callable[[float], None]) -> None:
    """Serves until standard input closes; it tells its port first, and for each line that comes its CPU time so far."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, access_log=False, log_level="warning"))

    def watch() -> None:
        while not server.started:
            time.sleep(0.01)
        answer(server.servers[0].sockets[0].getsockname()[1])
        for _ in sys.stdin:
            answer(time.process_time())
        server.should_exit = True

    threading.Thread(target=watch, daemon=True).start()
    server.run()


@dataclass(frozen=True, slots=True)
class Load:
    """What came of one stretch of load."""

    requests: int
    seconds: float
    cpu_us: float
    #: The share of a core that the server used; well below 1 means that something else was the bottleneck.
    busy: float

    @property
    def per_s(self) -> float:
        """Requests in a second, as the clients saw them."""
        return self.requests / self.seconds

    @property
    def per_core_s(self) -> float:
        """Requests for each second of a core that the server got: the same, unless others took that core meanwhile."""
        return 1e6 / self.cpu_us


def _request() -> bytes:
    lines = [b"GET /items/42?page=2 HTTP/1.1", *(key + b": " + value for key, value in PLAIN)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def load(port: int, seconds: float, cpu_s: Callable[[], float]) -> Load:
    """Sends one request after another on each of 16 connections for so long, and counts the right answers.

    Args:
        port: where the server listens on loopback.
        seconds: how long; a warm-up comes before it.
        cpu_s: tells the CPU time that the server used so far.

    Raises:
        ConnectionError: when the server closes a connection or gives another answer than it should.
    """
    request = _request()
    ready = selectors.DefaultSelector()
    there: dict[int, socket.socket] = {}
    for _ in range(_CONNECTIONS):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there[connection.fileno()] = connection
        ready.register(connection, selectors.EVENT_READ)
    try:
        _drive(ready, there, request, min(0.5, seconds / 3))
        cpu_before, started = cpu_s(), time.perf_counter()
        answered = _drive(ready, there, request, seconds)
        took, cpu_after = time.perf_counter() - started, cpu_s()
    finally:
        ready.close()
        for connection in there.values():
            connection.close()
    used = cpu_after - cpu_before
    return Load(answered, took, used / answered * 1e6, used / took)


def _drive(ready: Any, there: dict[int, socket.socket], request: bytes, seconds: float) -> int:
    partial: dict[int, bytes] = {}
    answered = 0
    until = time.perf_counter() + seconds
    for connection in there.values():
        connection.sendall(request)
    waiting = len(there)
    while waiting:
        going_on = time.perf_counter() < until
        for key, _ in ready.select(5) or _silent():
            number = key.fd
            data = partial.pop(number, b"") + there[number].recv(65_536)
            if not data.endswith(b'{"ok":true}'):
                if not data or b"\r\n\r\n{" in data:
                    raise ConnectionError(f"the server answered {data[:200]!r}")
                partial[number] = data
                continue
            if not data.startswith(b"HTTP/1.1 200 "):
                raise ConnectionError(f"the server answered {data[:200]!r}")
            answered += 1
            if going_on:
                there[number].sendall(request)
            else:
                waiting -= 1
    return answered


def _silent() -> Any:
    raise ConnectionError("the server did not answer within 5 seconds")
