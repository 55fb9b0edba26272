"""One HTTP/1.1 connection that is kept alive, and whose every step ends at a deadline.

A socket's own timeout holds for each read alone, so that a server which answers a byte a second could hold us for
ever; here each step gets what is left until the deadline. Answers are parsed by `http.client`.
"""

from __future__ import annotations

import base64
import io
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from typing import Any, NamedTuple, cast
from urllib.parse import quote, unquote, urlsplit

__all__ = ["MAX_ANSWER_BYTES", "Connection", "Failed", "Proxy", "Response"]

MAX_ANSWER_BYTES = 65_536
_IN_PATH = "/%:@!$&'()*+,;=~"
_IN_QUERY = f"{_IN_PATH}?"


class Failed(Exception):  # noqa: N818  # it says what happened
    """No answer came; the message says why."""


class Response(NamedTuple):
    """What a server answered; `body` is None where it is longer than it may be."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that is spoken to by plain HTTP."""

    host: str
    port: int
    authorization: str | None = None

    @classmethod
    def at(cls, address: str) -> Proxy | None:
        """The proxy of an address such as `http://user:password@proxy:3128`; None where it is of another kind."""
        try:
            parts = urlsplit(address if "://" in address else f"http://{address}")
            host, port = parts.hostname, parts.port
        except ValueError:
            return None
        if parts.scheme != "http" or not host:
            return None
        secret = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            secret = "Basic " + base64.b64encode(pair.encode()).decode()
        return cls(host, port or 80, secret)


class _Reader(io.RawIOBase):
    """What an answer is read from."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._wire.limited().recv_into(buffer)
        self._wire.ended = not count
        return count


class _Wire:
    """A socket and the deadline of what is done with it now."""

    def __init__(self, plain: socket.socket, deadline: float) -> None:
        self.socket = plain
        self.deadline = deadline
        self.ended = False
        self._reading: io.BufferedReader | None = None

    def limited(self) -> socket.socket:
        """The socket with what is left of the time."""
        self.socket.settimeout(_left(self.deadline))
        return self.socket

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.limited().send(view) :]

    def answer(self, method: str) -> HTTPResponse:
        self._reading = io.BufferedReader(_Reader(self))
        response = HTTPResponse(cast("Any", self), method=method)
        try:
            response.begin()
            while 100 <= response.status < 200 and response.status != HTTPStatus.SWITCHING_PROTOCOLS:
                # `http.client` passes over 100 alone. It must not close what the next answer is read from.
                cast("Any", response).fp = None
                response = HTTPResponse(cast("Any", self), method=method)
                response.begin()
        except BaseException:
            response.close()  # before what it reads from is, by a garbage collection
            raise
        finally:
            self._reading = None  # no cycle
        if self.ended:  # `http.client` takes a head that is cut off for a whole one
            response.close()
            raise ConnectionError("the answer was cut off")
        return response

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        """What `HTTPResponse` asks a socket for."""
        assert self._reading is not None  # made for each answer
        return self._reading

    def is_stale(self) -> bool:
        """Whether the other side closed it, or sent what nobody asked for."""
        if hasattr(select, "poll"):
            waiting = select.poll()
            waiting.register(self.socket, select.POLLIN)
            return bool(waiting.poll(0))
        return bool(select.select([self.socket], [], [], 0)[0])


class Connection:
    """POSTs to one address over a connection that is opened when it is first needed. One thread uses it at a time."""

    def __init__(
        self, address: str, headers: Mapping[str, str], context: ssl.SSLContext | None = None,
        proxy: Proxy | None = None,
    ) -> None:  # fmt: skip
        parts = urlsplit(address)
        secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if secure else 80)
        self._context = (context or ssl.create_default_context()) if secure else None
        self._proxy = proxy
        host = f"[{self._host}]" if ":" in self._host else self._host.encode("idna").decode()
        self._authority = f"{host}:{self._port}"
        path = quote(parts.path or "/", safe=_IN_PATH) + (
            f"?{quote(parts.query, safe=_IN_QUERY)}" if parts.query else ""
        )
        lines = {"host": host if parts.port is None else self._authority, **headers}
        if proxy is not None and not secure:
            path = f"http://{self._authority}{path}"
            lines |= _authorization(proxy)
        self._head = _head(f"POST {path} HTTP/1.1", lines)
        self._wire: _Wire | None = None
        self._lock = threading.Lock()  # only for `abort`, which comes from another thread
        self._aborted = False

    def post(self, body: bytes, headers: Mapping[str, str], deadline: float) -> Response:
        """Sends a body and reads the answer, all of it before the deadline (of `time.monotonic`).

        Raises:
            Failed: where no answer came.
        """
        request = self._head + _head("", {**headers, "content-length": str(len(body))})[2:] + b"\r\n" + body
        try:
            if self._wire is not None and not self._wire.is_stale():
                try:
                    return self._exchange(self._wire, request, deadline)
                except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                    pass  # closed by the server just when it was used again: once more, over a new one
            self.close()
            return self._exchange(self._open(deadline), request, deadline)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: what is no HTTP at all
            self.close()
            raise Failed(_why(error)) from error

    def _exchange(self, wire: _Wire, request: bytes, deadline: float) -> Response:
        wire.deadline = deadline
        wire.write(request)
        with closing(wire.answer("POST")) as answer:
            body = answer.read(MAX_ANSWER_BYTES + 1)
        whole = len(body) <= MAX_ANSWER_BYTES
        if whole and answer.length:
            raise ConnectionError("the answer was cut off")
        if answer.will_close or not whole:
            self.close()
        return Response(answer.status, cast("Mapping[str, str]", answer.headers), body if whole else None)

    def _open(self, deadline: float) -> _Wire:
        at = self._proxy or self
        host, port = (at.host, at.port) if isinstance(at, Proxy) else (self._host, self._port)
        wire = self._hold(_Wire(_connected(host, port, deadline), deadline))
        if self._context is None:
            return wire
        if self._proxy is not None:
            lines = {"host": self._authority, **_authorization(self._proxy)}
            wire.write(_head(f"CONNECT {self._authority} HTTP/1.1", lines) + b"\r\n")
            status = wire.answer("CONNECT").status
            if status != 200:
                raise ConnectionError(f"the proxy answered {status}")
        secured = self._context.wrap_socket(wire.limited(), server_hostname=self._host)
        return self._hold(_Wire(secured, deadline))

    def _hold(self, wire: _Wire) -> _Wire:
        with self._lock:
            self._wire = wire
            if self._aborted:
                raise ConnectionError("it was given up")
        return wire

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        with self._lock:
            wire, self._wire = self._wire, None
        if wire is not None:
            wire.socket.close()

    def abort(self) -> None:
        """Ends for good what another thread is doing with it."""
        with self._lock:
            self._aborted = True
            if self._wire is not None:
                with suppress(OSError):  # it was not connected any more
                    # Not that of an SSLSocket, which would pull TLS away under the other thread.
                    socket.socket.shutdown(self._wire.socket, socket.SHUT_RDWR)


def _head(first: str, lines: Mapping[str, str]) -> bytes:
    return "".join([first, "\r\n", *(f"{name}: {value}\r\n" for name, value in lines.items())]).encode("latin-1")


def _authorization(proxy: Proxy) -> dict[str, str]:
    return {} if proxy.authorization is None else {"proxy-authorization": proxy.authorization}


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time was over")
    return left


def _connected(host: str, port: int, deadline: float) -> socket.socket:
    """A connection to the first address that takes one; each gets its share of the time."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, address) in enumerate(found):
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(_left(deadline) / (len(found) - number))
            made.connect(address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            made.close()
            if number == len(found) - 1:
                raise
        else:
            return made
    raise OSError(f"{host} has no address")


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {getattr(error, 'verify_message', '') or error.reason or 'no TLS on the other side'}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"{type(error).__name__}: {str(error)[:100]}" if isinstance(error, OSError) else "the answer is no HTTP"
