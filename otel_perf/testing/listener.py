"""The HTTP side of a fake collector: connections on a port of loopback, each in a thread, all gone at the end."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, cast

__all__ = ["Connection", "Listener"]

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing sends a reset
_POLL_S = 0.02


class Listener:
    """Takes connections until it is closed; the port itself can be closed for a while."""

    def __init__(self, handle: Callable[[Connection, str, bytes], None], context: ssl.SSLContext | None) -> None:
        self._handle = handle
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address: tuple[str, int] = self._socket.getsockname()
        self._changed = threading.Condition()
        self._open_wanted = self._open = True
        self._closed = False
        self._live: dict[threading.Thread, socket.socket] = {}
        self._thread = threading.Thread(target=self._run, name="otel_perf-testing-accept", daemon=True)
        self._thread.start()

    def open_port(self, wanted: bool) -> None:
        """Opens or closes the port; closing it resets the live connections. Comes back when it is so."""
        with self._changed:
            self._open_wanted = wanted
            self._changed.wait_for(lambda: self._open == wanted or self._closed, 5)
        if not wanted:
            self._drop(reset=True)

    def close(self) -> None:
        """Closes the port and all connections, and waits for their threads."""
        with self._changed:
            self._closed = True
        self._thread.join()
        self._drop(reset=False)
        for thread in self._threads():
            thread.join(5)
        self._socket.close()

    def _run(self) -> None:
        # This thread alone touches the listening socket, so that nobody closes it under an `accept`.
        self._socket.settimeout(_POLL_S)
        while not self._closed:
            if self._open_wanted != self._open:
                self._switch()
            if not self._open:
                time.sleep(_POLL_S)
                continue
            try:
                accepted, _ = self._socket.accept()
            except OSError:
                continue
            self._serve(accepted)

    def _switch(self) -> None:
        if self._open_wanted:
            self._socket.listen(128)
        else:
            # Bound and not listening: clients are refused, and nobody else gets the port meanwhile.
            self._socket.close()
            self._socket = socket.socket()
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(self.address)
            self._socket.settimeout(_POLL_S)
        with self._changed:
            self._open = self._open_wanted
            self._changed.notify_all()

    def _serve(self, accepted: socket.socket) -> None:
        thread = threading.Thread(target=self._talk, args=(accepted,), name="otel_perf-testing-http", daemon=True)
        with self._changed:
            self._live[thread] = accepted
        thread.start()

    def _talk(self, plain: socket.socket) -> None:
        try:
            plain.settimeout(10 if self._context else None)  # for the handshake only
            wire = self._context.wrap_socket(plain, server_side=True) if self._context else plain
            wire.settimeout(None)
            with self._changed:
                self._live[threading.current_thread()] = wire
            try:
                Connection(wire, self.address, cast("Any", _Server(self._handle)))
            finally:
                wire.close()
        except OSError:
            plain.close()  # a client that left, or one that speaks no TLS
        finally:
            with self._changed:
                self._live.pop(threading.current_thread(), None)

    def _threads(self) -> list[threading.Thread]:
        with self._changed:
            return list(self._live)

    def _drop(self, *, reset: bool) -> None:
        with self._changed:
            for wire in self._live.values():
                with contextlib.suppress(OSError):
                    if reset:
                        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    socket.socket.shutdown(wire, socket.SHUT_RDWR)  # wakes its thread, which closes it


class _Server:
    """The little that a request handler asks of its server."""

    def __init__(self, handle: Callable[[Connection, str, bytes], None]) -> None:
        self.handle = handle


class Connection(BaseHTTPRequestHandler):
    """One connection of a client, over all its requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Any

    def do_POST(self) -> None:
        """Reads a request and hands it over, unless its client left within."""
        length = self.headers.get("content-length")
        if "chunked" in self.headers.get("transfer-encoding", ""):
            body = b"".join(self._chunks())
        elif length is None:
            self.close_connection = True  # its headers were cut off
            return
        else:
            body = self.rfile.read(int(length))
            if len(body) < int(length):
                self.close_connection = True
                return
        self.server.handle(self, self.path, body)

    do_PUT = do_GET = do_POST  # noqa: N815  # the names are those of the base class

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class calls it so
        """Writes nothing."""

    def client_left(self, within_s: float | None) -> bool:
        """Waits so long, or for ever, and says whether the client left meanwhile, or all is being closed."""
        return bool(select.select([self.connection], [], [], within_s)[0])

    def reset(self) -> None:
        """Ends the connection with a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close_connection = True

    def answer(
        self, status: int, content_type: str, body: bytes, *, headers: tuple[tuple[str, str], ...] = (),
        drip_s: float | None = None,
    ) -> bool:  # fmt: skip
        """Sends an answer, byte by byte if wanted; False when the client left before its end."""
        lines = [f"HTTP/1.1 {status} {self.responses.get(status, ('Unknown',))[0]}", f"content-type: {content_type}"]
        lines += [f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in headers)]
        if drip_s is not None:
            lines.append("x-drip: " + 1800 * "-")
        data = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        try:
            for piece in [data] if drip_s is None else (data[at : at + 1] for at in range(len(data))):
                if drip_s and self.client_left(drip_s):
                    raise ConnectionResetError
                self.wfile.write(piece)
        except OSError:
            self.close_connection = True
            return False
        return True
