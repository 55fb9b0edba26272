"""What a fake collector received, decoded."""

from __future__ import annotations

import gzip
import importlib
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Inbox",
    "ReceivedLog",
    "ReceivedMetric",
    "ReceivedRequest",
    "ReceivedSpan",
    "attributes",
    "decoded",
    "messages",
    "success",
]

_REMEDY = "FakeCollector decodes with opentelemetry-proto, which is not installed: pip install 'otel-perf[testing]'"
_UNPACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}
# Signal -> request type, response type, the three nested lists, and the field of a partial success.
_SIGNALS: dict[str, tuple[str, str, str, str]] = {
    "traces": ("trace.v1.trace_service", "ExportTraceService", "spans", "rejected_spans"),
    "metrics": ("metrics.v1.metrics_service", "ExportMetricsService", "metrics", "rejected_data_points"),
    "logs": ("logs.v1.logs_service", "ExportLogsService", "log_records", "rejected_log_records"),
}


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request as it came in, whatever became of it; header names are in small letters."""

    path: str
    headers: Mapping[str, str]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Received:
    """One item with the resource and the scope it belongs to; `data` is the protobuf message."""

    data: Any
    resource: dict[str, Any]
    scope: str

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.data.name)


@dataclass(frozen=True, slots=True)
class ReceivedSpan(_Received):
    """A span that a client was told is taken."""

    @property
    def attributes(self) -> dict[str, Any]:
        """Its attributes."""
        return attributes(self.data)

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return str(self.data.trace_id.hex())

    @property
    def span_id(self) -> str:
        """16 hexadecimal digits."""
        return str(self.data.span_id.hex())

    @property
    def parent_id(self) -> str:
        """The same of its parent; empty for a root."""
        return str(self.data.parent_span_id.hex())


@dataclass(frozen=True, slots=True)
class ReceivedMetric(_Received):
    """One export of one metric that a client was told is taken."""

    @property
    def kind(self) -> str:
        """`sum`, `gauge`, `histogram` or `exponential_histogram`."""
        return str(self.data.WhichOneof("data"))

    @property
    def points(self) -> list[Any]:
        """Its points, as protobuf messages; `attributes(point)` reads their labels."""
        return list(getattr(self.data, self.kind).data_points)


@dataclass(frozen=True, slots=True)
class ReceivedLog(_Received):
    """A log record that a client was told is taken."""

    @property
    def name(self) -> str:
        """Its text."""
        return str(_plain(self.data.body))

    @property
    def attributes(self) -> dict[str, Any]:
        """Its attributes."""
        return attributes(self.data)


def attributes(holder: Any) -> dict[str, Any]:
    """The attributes of a protobuf message (resource, span, point, event, link) as a dictionary."""
    return {each.key: _plain(each.value) for each in holder.attributes}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    found: Any = getattr(value, kind)
    if kind == "array_value":
        return [_plain(each) for each in found.values]
    if kind == "kvlist_value":
        return {each.key: _plain(each.value) for each in found.values}
    return found


def messages(signal: str) -> tuple[Any, Any]:
    """The types of a signal's request and of its answer.

    Raises:
        ImportError: without opentelemetry-proto; the message says how to get it.
    """
    module, name, _, _ = _SIGNALS[signal]
    try:
        found: Any = importlib.import_module(f"opentelemetry.proto.collector.{module}_pb2")
    except ImportError as error:
        raise ImportError(_REMEDY) from error
    return getattr(found, f"{name}Request"), getattr(found, f"{name}Response")


def decoded(signal: str, body: bytes, headers: Mapping[str, str]) -> Any:
    """The request in a body.

    Raises:
        ValueError: for a body that is not what its headers say.
    """
    from google.protobuf.message import DecodeError

    content_type = headers.get("content-type", "").partition(";")[0]
    if content_type != "application/x-protobuf":
        raise ValueError(f"content-type {content_type!r} is not application/x-protobuf")
    encoding = headers.get("content-encoding", "identity")
    try:
        if encoding != "identity":
            body = _UNPACK[encoding](body)
        return messages(signal)[0].FromString(body)
    except (DecodeError, EOFError, KeyError, OSError, zlib.error) as error:
        raise ValueError(f"a body does not decode: {error!r}") from error


def success(signal: str, rejected: int, message: str) -> Any:
    """The answer to a request that was taken, but for so many items."""
    made = messages(signal)[1]()
    if rejected or message:
        setattr(made.partial_success, _SIGNALS[signal][3], rejected)
        made.partial_success.error_message = message
    return made


class Inbox:
    """Everything that came in, under one lock that others can wait for."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.spans: list[ReceivedSpan] = []
        self.metrics: list[ReceivedMetric] = []
        self.logs: list[ReceivedLog] = []
        self.requests: list[ReceivedRequest] = []
        self.errors: list[str] = []

    def note(self, request: ReceivedRequest) -> None:
        """Keeps that a request came in."""
        with self.changed:
            self.requests.append(request)
            self.changed.notify_all()

    def complain(self, error: str) -> None:
        """Keeps that something could not be understood."""
        with self.changed:
            self.errors.append(error)
            self.changed.notify_all()

    def take(self, signal: str, request: Any, rejected: int) -> None:
        """Keeps what a request holds, but for the last so many items."""
        make: Any = {"traces": ReceivedSpan, "metrics": ReceivedMetric, "logs": ReceivedLog}[signal]
        nested = "metrics" if signal == "metrics" else _SIGNALS[signal][2]
        outer = {"traces": "spans", "metrics": "metrics", "logs": "logs"}[signal]
        items = [
            make(each, attributes(resource.resource), scope.scope.name)
            for resource in getattr(request, f"resource_{outer}")
            for scope in getattr(resource, f"scope_{outer}")
            for each in getattr(scope, nested)
        ]
        with self.changed:
            getattr(self, outer).extend(items[: max(0, len(items) - rejected)])
            self.changed.notify_all()

    def clear(self) -> None:
        """Forgets all of it."""
        with self.changed:
            for each in (self.spans, self.metrics, self.logs, self.requests, self.errors):
                each.clear()

    def wait_for(self, wanted: Callable[[], str | None], timeout_s: float) -> str | None:
        """Waits until nothing is missing any more; the answer is what still is when the time is over."""
        deadline = time.monotonic() + timeout_s
        with self.changed:
            while (missing := wanted()) is not None and (left_s := deadline - time.monotonic()) > 0:
                self.changed.wait(left_s)
            return missing
