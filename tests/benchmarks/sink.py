"""A loopback endpoint that takes what every scenario exports, and counts it: OTLP, Sentry, Elastic APM, Datadog.

It is a process of its own, so its CPU is nobody's cost: `python -m tests.benchmarks.sink CORE` prints its port.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Sink", "span_count"]


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a protobuf message: (number, body)."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        tag = varint()
        kind = tag & 7
        if kind == 2:
            size = varint()
            yield tag >> 3, data[at : at + size]
            at += size
        elif kind == 0:
            varint()
        else:
            at += 8 if kind == 1 else 4


def span_count(body: bytes) -> int:
    """How many spans an OTLP export holds, counted without making messages of them."""
    found = 0
    for number, resource in _fields(memoryview(body)):
        if number == 1:
            for inner, scope in _fields(resource):
                if inner == 2:
                    found += sum(1 for field, _ in _fields(scope) if field == 2)
    return found


class Sink:
    """The endpoint in threads of this process, on a free loopback port."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.spans: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]

    def serve(self) -> None:
        """Answers until `close`."""
        self._server.serve_forever(0.1)

    def close(self) -> None:
        """Stops; exporters that still hold a connection see it closed."""
        self._server.shutdown()
        self._server.server_close()

    def take(self, path: str, body: bytes, encoding: str) -> None:
        """Counts one export. The first part of the path is the scenario's name, so that each has its own figures."""
        who, _, what = path.lstrip("/").partition("/")
        spans = 0
        if what == "v1/traces":
            spans = span_count(gzip.decompress(body) if encoding == "gzip" else body)
        who = "ddtrace" if who.startswith("v0.") else who  # its agent has no path of its own
        with self._lock:
            self.requests[who] += 1
            self.bytes[who] += len(body)
            self.spans[who] += spans

    def counts(self) -> dict[str, dict[str, int]]:
        """What came so far, by scenario."""
        with self._lock:
            return {
                who: {"exports": self.requests[who], "bytes": self.bytes[who], "spans": self.spans[who]}
                for who in self.requests
            }


def _handler(sink: Sink) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path == "/counts":
                self._answer(200, json.dumps(sink.counts()).encode())
            elif self.path.endswith("/info"):  # the Datadog agent says what it takes
                self._answer(200, b'{"version":"7.60.0","endpoints":["/v0.4/traces","/v0.5/traces"]}')
            else:  # the Elastic APM server says its version
                self._answer(200, b'{"version":"8.15.0"}')

        def do_POST(self) -> None:
            body = self._body()
            sink.take(self.path, body, self.headers.get("content-encoding", ""))
            if "/v1/" in self.path:  # OTLP: an empty protobuf message is full success
                self._answer(200, b"", "application/x-protobuf")
            elif self.path.endswith("/traces"):  # Datadog
                self._answer(200, b'{"rate_by_service":{}}')
            elif "/intake/" in self.path:  # Elastic APM
                self._answer(202, b"")
            else:  # Sentry
                self._answer(200, b"{}")

        do_PUT = do_POST  # noqa: N815 -- the name that http.server wants

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("transfer-encoding", ""):
                return self.rfile.read(int(self.headers.get("content-length", 0)))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Says nothing for each request."""

    return Handler


def main() -> None:
    """Serves until standard input closes, so that it cannot outlive whoever started it."""
    if len(sys.argv) > 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(sys.argv[1])})
    sink = Sink()
    threading.Thread(target=sink.serve, daemon=True).start()
    print(sink.port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
