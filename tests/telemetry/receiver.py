"""A small OTLP/HTTP endpoint that decodes what it gets, one that never answers, one that is not there."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

__all__ = ["Receiver", "attributes", "dead", "receiver", "silent"]


class Receiver:
    """What arrived, decoded."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.spans: list[tuple[dict[str, Any], Any]] = []
        self.metrics: list[tuple[dict[str, Any], Any]] = []
        self._lock = threading.Lock()

    def take_traces(self, request: ExportTraceServiceRequest) -> None:
        """Keeps spans, each with its resource."""
        with self._lock:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self.spans += [(attributes(resource.resource), span) for span in scope.spans]

    def take_metrics(self, request: ExportMetricsServiceRequest) -> None:
        """Keeps metrics, each with its resource."""
        with self._lock:
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    self.metrics += [(attributes(resource.resource), metric) for metric in scope.metrics]

    def metric(self, name: str) -> Any:
        """The newest metric of this name."""
        return [metric for _, metric in self.metrics if metric.name == name][-1]

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        """One request; answers the status."""
        with self._lock:
            self.requests.append((path, headers))
        if self.status != 200:
            return self.status
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if path.endswith("/v1/traces"):
            self.take_traces(ExportTraceServiceRequest.FromString(body))
        else:
            self.take_metrics(ExportMetricsServiceRequest.FromString(body))
        return 200


def attributes(holder: Any) -> dict[str, Any]:
    """Protobuf attributes as a dictionary."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in holder.attributes}


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """A real server on a free loopback port, for the length of the block."""
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = kept.take(self.path, {key.lower(): value for key, value in self.headers.items()}, body)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    kept.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def dead() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"
