"""A small OTLP/HTTP endpoint on loopback: it decodes what arrives, counts it, and keeps nothing.

`python -m examples.sink --port 4318` prints a line each time something arrived.
"""

from __future__ import annotations

import argparse
import gzip
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

__all__ = ["Sink", "port_number"]


class Sink:
    """An OTLP endpoint in a thread of this process; `spans` counts decoded spans by service."""

    def __init__(self, port: int = 0, *, verbose: bool = False) -> None:
        self.spans: Counter[str] = Counter()
        self.metric_points = 0
        self.verbose = verbose
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="sink", daemon=True)

    @property
    def url(self) -> str:
        """The address to give as OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Sink:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, path: str, body: bytes) -> Message | None:
        """Decode one export and count it; None for a path that is not OTLP's. Raises `DecodeError`."""
        if path == "/v1/traces":
            traces = ExportTraceServiceRequest.FromString(body)
            with self._lock:
                for resource in traces.resource_spans:
                    count = sum(len(scope.spans) for scope in resource.scope_spans)
                    self.spans[_service(resource.resource.attributes)] += count
            self._say(f"spans so far: {dict(self.spans)}")
            return ExportTraceServiceResponse()
        if path == "/v1/metrics":
            metrics = ExportMetricsServiceRequest.FromString(body)
            names = [m.name for r in metrics.resource_metrics for s in r.scope_metrics for m in s.metrics]
            with self._lock:
                self.metric_points += len(names)
            self._say(f"metrics: {', '.join(names)}")
            return ExportMetricsServiceResponse()
        return None

    def _say(self, line: str) -> None:
        if self.verbose:
            print(line, flush=True)


def _service(attributes: object) -> str:
    for each in attributes:  # type: ignore[attr-defined]  # a repeated field of protobuf
        if each.key == "service.name":
            return str(each.value.string_value)
    return "unknown"


def _handler(sink: Sink) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            try:
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = sink.take(self.path, body)
            except (DecodeError, OSError, EOFError):
                self._reply(400, b"")
                return
            self._reply(404, b"") if answer is None else self._reply(200, answer.SerializeToString())

        def _reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing for each request."""

    return Handler


def port_number(value: str) -> int:
    """Parse a port for argparse."""
    if not value.isdecimal() or int(value) > 65_535:
        raise argparse.ArgumentTypeError(f"{value!r} is no port: use 0 to 65535")
    return int(value)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.sink", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=port_number, default=4318, help="where to listen on 127.0.0.1 (default 4318)")
    with Sink(parser.parse_args().port, verbose=True) as sink:
        print(f"OTLP/HTTP sink: {sink.url}  (Ctrl-C stops it)", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    _main()
