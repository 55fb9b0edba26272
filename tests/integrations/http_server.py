"""An HTTP server on loopback whose paths say how it answers, and the libraries that call it, each in one way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import aiohttp
import httpx
import requests

from otel_perf import instrument

__all__ = ["LIBRARIES", "Server", "library", "unused_port"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listening

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Answers as the path says: /ok, /status/N, /redirect?to=URL, /slow, /flaky, /part and /reset."""
        self.server.seen.append((self.path, [(key.lower(), value) for key, value in self.headers.items()]))
        length = int(self.headers.get("content-length", 0))
        self.rfile.read(length)
        parts = urlsplit(self.path)
        if parts.path == "/redirect":
            self._answer(302, location=parse_qs(parts.query)["to"][0])
        elif parts.path.startswith("/status/"):
            self._answer(int(parts.path.rpartition("/")[2]))
        elif parts.path == "/slow":
            self.server.ending.wait(5)
            self.close_connection = True
        elif parts.path == "/flaky":  # 503 at first
            self._answer(503 if [path for path, _ in self.server.seen].count(self.path) == 1 else 200)
        elif parts.path in {"/part", "/reset"}:
            self._break_off(hang=parts.path == "/part")
        else:
            self._answer(200)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_BREW = do_GET  # noqa: N815 -- the names that the class wants

    def _answer(self, status: int, **headers: str) -> None:
        body = b"" if self.command == "HEAD" else b"one,two"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "7")
        self.end_headers()
        self.wfile.write(body)

    def _break_off(self, *, hang: bool) -> None:
        self.send_response(200)
        self.send_header("content-length", "100")
        self.end_headers()
        self.wfile.write(b"one,")
        self.wfile.flush()
        self.close_connection = True
        if hang:
            self.server.ending.wait(5)
        else:
            self.server.broken.wait(0.05)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Listening(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[str, list[tuple[str, str]]]] = []
        self.ending = threading.Event()
        self.broken = threading.Event()
        self.open: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.append(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        """Ends what is still open: a failed test holds on to its connections, and threads would wait for them."""
        self.ending.set()
        for each in self.open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: Any) -> None:
        """A client that left is no fault."""

    def shutdown_request(self, request: Any) -> None:
        request.close()


class Server:
    """The server, its address and what it was asked."""

    def __init__(self, listening: _Listening) -> None:
        self._listening = listening
        self.port: int = listening.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        #: The same server under another name.
        self.other = f"http://localhost:{self.port}"

    def forget(self) -> None:
        """Forgets what it was asked."""
        self._listening.seen.clear()

    @property
    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [path for path, _ in self._listening.seen]

    def sent(self, name: str) -> list[list[str]]:
        """The values of a header, request by request."""
        return [[value for key, value in headers if key == name] for _, headers in self._listening.seen]

    @classmethod
    @contextlib.contextmanager
    def run(cls) -> Iterator[Server]:
        """Serves until the block ends."""
        with _Listening() as listening:
            thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield cls(listening)
            finally:
                listening.shutdown()
                thread.join()
                listening.hang_up()


def unused_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class SyncHTTPX:
    """httpx.Client."""

    name = "httpx"
    asynchronous = False

    def calls(self, method: str, *urls: str, timeout: float = 5, **options: Any) -> list[Any]:
        """Calls each with one measured client; answers statuses, and what was raised in place of one."""
        with httpx.Client(timeout=timeout, follow_redirects=True, trust_env=False) as client, instrument(client):
            return [_outcome(lambda url=url: client.request(method, url, **options).status_code) for url in urls]  # type: ignore[misc]


class AsyncHTTPX:
    """httpx.AsyncClient."""

    name = "httpx"
    asynchronous = True

    def calls(self, method: str, *urls: str, timeout: float = 5, **options: Any) -> list[Any]:
        """The same, one after the other."""

        async def main() -> list[Any]:
            async with httpx.AsyncClient(timeout=timeout, follow_redirects=True, trust_env=False) as client:
                with instrument(client):
                    return [await _outcome_of(self.one(client, method, url, **options)) for url in urls]

        return asyncio.run(main())

    @staticmethod
    def session() -> Any:
        """A client to be closed by `async with`."""
        return httpx.AsyncClient(timeout=5, trust_env=False)

    @staticmethod
    async def one(client: Any, method: str, url: str, **options: Any) -> int:
        """One call, its body read."""
        return int((await client.request(method, url, **options)).status_code)


class Requests:
    """requests.Session."""

    name = "requests"
    asynchronous = False

    def calls(self, method: str, *urls: str, timeout: float = 5, **options: Any) -> list[Any]:
        """The same."""
        with requests.Session() as session, instrument(session):
            session.trust_env = False
            return [
                _outcome(lambda url=url: session.request(method, url, timeout=timeout, **options).status_code)  # type: ignore[misc]
                for url in urls
            ]


class Aiohttp:
    """aiohttp.ClientSession."""

    name = "aiohttp"
    asynchronous = True
    #: What each session is made with.
    trace_configs: ClassVar[list[aiohttp.TraceConfig]] = []

    def calls(self, method: str, *urls: str, timeout: float = 5, **options: Any) -> list[Any]:
        """The same, one after the other."""

        async def main() -> list[Any]:
            limit = aiohttp.ClientTimeout(total=timeout)
            async with aiohttp.ClientSession(timeout=limit, trace_configs=self.trace_configs) as session:
                with instrument(session):
                    return [await _outcome_of(self.one(session, method, url, **options)) for url in urls]

        return asyncio.run(main())

    @staticmethod
    def session() -> Any:
        """A session to be closed by `async with`."""
        return aiohttp.ClientSession()

    @staticmethod
    async def one(session: Any, method: str, url: str, **options: Any) -> int:
        """One call, its body read."""
        async with session.request(method, url, **options) as answer:
            await answer.read()
            return int(answer.status)


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return error


async def _outcome_of(call: Any) -> Any:
    try:
        return await call
    except Exception as error:
        return error


LIBRARIES: list[Any] = [SyncHTTPX(), AsyncHTTPX(), Requests(), Aiohttp()]


def library(each: Any) -> str:
    """The id of a test."""
    return type(each).__name__
