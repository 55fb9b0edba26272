"""Runs otel_perf on an SDK in which one private name has another: as a later SDK may have.

Deleting a name would break the SDK itself. Here its modules are read with the name replaced in all of them, so that it
works as before and only we do not find the name. Each name has a process of its own, forked from one that has imported
everything else, so that many take little time.
"""

from __future__ import annotations

import gc
import gzip
import importlib
import importlib.abc
import importlib.machinery
import json
import logging
import os
import re
import sys
import tempfile
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class Loader(importlib.machinery.SourceFileLoader):
    """Reads a module with the name replaced; one that does not have it is loaded as ever."""

    pattern: re.Pattern[bytes]

    def get_code(self, fullname: str) -> Any:
        source = self.get_data(self.path)
        renamed = self.pattern.sub(rb"\g<0>_of_old", source)
        return super().get_code(fullname) if renamed == source else compile(renamed, self.path, "exec")


class Finder(importlib.abc.MetaPathFinder):
    """Finds OpenTelemetry's modules for the loader above."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if not fullname.startswith("opentelemetry"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def rename(name: str) -> None:
    """From now on OpenTelemetry's modules have another name for this."""
    # A module of the same name keeps it.
    Loader.pattern = re.compile(rf"(?<!\bopentelemetry\.)(?<!\bsdk\.)(?<!\btrace\.)\b{name}\b".encode())
    sys.meta_path.insert(0, Finder())


class Kept(logging.Handler):
    """What was logged, and what that came from."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(
            record.getMessage() + ("".join(traceback.format_exception(*record.exc_info)) if record.exc_info else "")
        )


class Sink(BaseHTTPRequestHandler):
    """Takes everything, as an OTLP endpoint does."""

    received: ClassVar[dict[str, bytes]] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.received[self.path] = self.received.get(self.path, b"") + body
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing is said of requests."""


def views() -> list[Any]:
    """Two views, of which the first changes a name."""
    from opentelemetry.sdk.metrics import view

    explicit = view.ExplicitBucketHistogramAggregation([1.0, 2.0])
    exponential = view.ExponentialBucketHistogramAggregation(max_size=8)
    return [
        view.View(instrument_name="recorded", name="viewed", aggregation=explicit),
        view.View(instrument_name="grown", aggregation=exponential),
    ]


def record() -> None:
    """Records into what the views are for."""
    from opentelemetry import metrics

    for name in ("recorded", "grown"):
        metrics.get_meter("app").create_histogram(name).record(1.5)


def use(directory: str) -> dict[str, Any]:
    """Configures, makes spans and measures, and says what became of it."""
    kept = Kept()
    logging.getLogger().addHandler(kept)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    import otel_perf
    from otel_perf.telemetry import provider, runtime
    from otel_perf.telemetry.span import LeanSpan

    endpoint = f"http://127.0.0.1:{server.server_port}"
    otel_perf.configure(service_name="renamed", endpoint=endpoint, strict=True, workers_dir=directory, views=views())
    record()
    exporter = InMemorySpanExporter()
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))  # type: ignore[attr-defined]
    tracer = trace.get_tracer("app")
    with tracer.start_as_current_span("above", attributes={"a": 1}) as above:
        below = tracer.start_span("below", links=[trace.Link(above.get_span_context(), {"l": 1})])
        below.set_attribute("b", [1, 2])
        below.add_event("happened", {"e": True})
        below.set_status(trace.StatusCode.ERROR, "bad")
        below.end()
    with otel_perf.measure("measured"):
        pass
    joined = TracerProvider(ParentBased(TraceIdRatioBased(1.0)), shutdown_on_exit=False)
    joined.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.over(joined, "joined").start_as_current_span("joined"):
        pass
    spans = {span.name: span for span in exporter.get_finished_spans()}
    found = spans["below"]
    assert found.parent == above.get_span_context(), found.parent
    assert found.attributes == {"b": (1, 2)}, found.attributes
    assert found.events[0].attributes == {"e": True}
    assert found.links[0].attributes == {"l": 1}
    assert found.status.description == "bad"
    assert json.loads(found.to_json())["parent_id"]
    assert spans.keys() == {"above", "below", "measured", "joined"}, spans.keys()
    assert otel_perf.flush(5)
    in_force = runtime.current
    assert in_force is not None
    otel_perf.shutdown(5)
    server.shutdown()
    server.server_close()
    for path, wanted in {
        "/v1/traces": (b"below", b"measured"),
        "/v1/metrics": (b"operation.duration", b"grown"),
    }.items():
        assert all(each in Sink.received.get(path, b"") for each in wanted), (path, Sink.received)
    viewed = b"viewed" in Sink.received["/v1/metrics"]
    assert viewed != (b"recorded" in Sink.received["/v1/metrics"])
    return {"lean": isinstance(above, LeanSpan), "viewed": viewed, "said": kept.said}


def in_child(name: str) -> int:
    """A process that uses otel_perf with the name replaced; what it answers can be read."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        return reading
    os.close(reading)
    gc.disable()
    try:
        rename(name)
        with tempfile.TemporaryDirectory() as directory:
            answer = use(directory)
    except BaseException:
        answer = {"error": traceback.format_exc()}
    with os.fdopen(writing, "w") as out:
        json.dump({"name": name, **answer}, out)
    os._exit(0)


def main(names: list[str]) -> None:
    """Two at a time, one line of JSON for each."""
    # What otel_perf and OpenTelemetry import beside themselves, before they are.
    for module in (
        "asyncio", "dis", "google.protobuf.json_format", "http.client", "inspect", "psutil", "requests", "ssl",
        "typing_extensions", "uuid", "email.mime.text", "multiprocessing.util", "concurrent.futures.thread",
        "importlib.metadata", "sqlite3", "tomllib" if sys.version_info >= (3, 11) else "tomli",
    ):  # fmt: skip
        importlib.import_module(module)
    assert not [each for each in sys.modules if each.startswith(("opentelemetry", "otel_perf"))]
    waiting: list[int] = []
    for name in [*names, ""]:
        if name:
            waiting.append(in_child(name))
        while waiting and (len(waiting) == 2 or not name):
            with os.fdopen(waiting.pop(0)) as answer:
                sys.stdout.write(answer.read() + "\n")
            os.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
