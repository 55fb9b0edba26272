"""How batches leave: encoded by us and sent over HTTP, or by the stock exporters over gRPC."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from opentelemetry import context
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_perf import guard, redaction
from otel_perf.telemetry import foreign, sdk
from otel_perf.telemetry.delivery import LOST, Answer, Delivery, packed, partial_success, say
from otel_perf.telemetry.otlp import spans_request
from otel_perf.telemetry.otlp_metrics import metrics_request

__all__ = [
    "Batch", "HttpMetrics", "HttpSpans", "MetricWay", "SpanWay", "StockMetrics", "StockSpans", "batches", "unobserved",
]  # fmt: skip

_sending: ContextVar[bool] = ContextVar("otel_perf_sending", default=False)


@contextmanager
def unobserved() -> Generator[None, None, None]:
    """Keeps instrumentation away from what we send, and the stock exporters' log short."""
    token = context.attach(context.set_value(sdk.SUPPRESS_KEY, True))
    quiet = _sending.set(True)
    try:
        yield
    finally:
        _sending.reset(quiet)
        context.detach(token)


class SpanWay(Protocol):
    """A way for batches of spans."""

    def encode(self, spans: Sequence[ReadableSpan]) -> tuple[Any, int, int]:
        """What is sent for these spans, the bytes that it takes while it waits, and about those that they took."""
        ...

    def send(self, encoded: Any) -> Answer:
        """Sends it; one thread does so at a time."""
        ...

    def stop(self, deadline: float) -> None:
        """One attempt for each batch from now on, and none after the deadline."""

    def abort(self) -> None:
        """Gives up what is on its way."""

    def close(self) -> None:
        """Lets go of the connection."""


class MetricWay(Protocol):
    """A way for what was read from the registry."""

    @property
    def wants(self) -> sdk.Preferences:
        """What is to be read: changes or totals, and which buckets."""
        ...

    def send(self, data: MetricsData, within_s: float = math.inf) -> Answer:
        """Sends what was read; one thread does so at a time."""
        ...

    def stop(self, deadline: float) -> None:
        """One attempt for each export from now on, and none after the deadline."""

    def abort(self) -> None:
        """Gives up what is on its way."""

    def close(self) -> None:
        """Lets go of the connection."""


class Batch(NamedTuple):
    """Spans that are sent together; `encoded` is None where that could not be done."""

    encoded: Any
    spans: int
    size_bytes: int
    spans_bytes: int


def batches(way: SpanWay, spans: Sequence[ReadableSpan], largest_bytes: int) -> list[Batch]:
    """The spans as one batch, or as more where one would be too large or a span cannot be encoded."""
    try:
        encoded, size_bytes, spans_bytes = way.encode(spans)
    except Exception:
        if len(spans) == 1:
            guard.note("encoding a span")
            return [Batch(None, 1, 0, 0)]
        encoded, size_bytes, spans_bytes = None, 0, 0
    if len(spans) > 1 and (encoded is None or size_bytes > largest_bytes):
        half = len(spans) // 2
        return [*batches(way, spans[:half], largest_bytes), *batches(way, spans[half:], largest_bytes)]
    return [Batch(encoded, len(spans), size_bytes, spans_bytes)]


# HTTP ----------------------------------------------------------------------------------------------------------------


class _Http:
    def __init__(self, delivery: Delivery, gzip: bool) -> None:
        self._delivery = delivery
        self._gzip = gzip
        self.stop = delivery.stop
        self.abort = delivery.abort
        self.close = delivery.close


def _memory(spans: Sequence[ReadableSpan], body: bytes) -> int:
    """About the bytes that spans take as objects: what they say, and about 1 KiB for each."""
    return len(body) + 1024 * len(spans)


class HttpSpans(_Http):
    """Spans, encoded by us."""

    def encode(self, spans: Sequence[ReadableSpan]) -> tuple[Any, int, int]:
        body = spans_request(spans)
        payload = packed(body, self._gzip)
        return payload, payload.size_bytes, _memory(spans, body)

    def send(self, encoded: Any) -> Answer:
        return self._delivery.send(encoded)


class HttpMetrics(_Http):
    """Metrics, encoded by us."""

    def __init__(self, delivery: Delivery, gzip: bool, wants: sdk.Preferences) -> None:
        super().__init__(delivery, gzip)
        self.wants = wants

    def send(self, data: MetricsData, within_s: float = math.inf) -> Answer:
        return self._delivery.send(packed(metrics_request(data), self._gzip), within_s)


# gRPC ----------------------------------------------------------------------------------------------------------------

_LOGGERS = ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.exporter.otlp.common")


class _OncePerMinute(logging.Filter):
    """Lets one record a minute through of what is logged while we send; all others are not its business."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002  # every record counts the same
        if not _sending.get():
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + 60
        return True


_quiet = _OncePerMinute()


class _Stock:
    """The stock exporter retries by itself; it does not say how large a batch is, and what was rejected we hear."""

    def __init__(self, exporter: Any, signal: str) -> None:
        self._exporter = exporter
        self._signal = signal
        self._rejected = 0
        self._closed = False
        sdk.heed_answers(exporter, self._heed)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_quiet)  # adding the same filter twice changes nothing

    def _heed(self, answer: Any) -> None:
        try:
            self._rejected, message = partial_success(answer.SerializeToString())
            if self._rejected or message:
                told = (
                    f"the gRPC endpoint rejected {self._rejected} of the {self._signal}: {redaction.message(message)}"
                )
                say("rejected", f"gRPC {self._signal}", told)
        except Exception:  # the stock exporter would take it for a failure of its own
            guard.note("reading an answer over gRPC")

    def _answer(self, taken: bool) -> Answer:
        rejected, self._rejected = self._rejected, 0
        return Answer(True, rejected) if taken else LOST

    def stop(self, deadline: float) -> None:  # noqa: ARG002  # whoever refuses now gets no second chance
        sdk.stop_retrying(self._exporter)

    def abort(self) -> None:
        self.close()  # which cancels its call

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()


class StockSpans(_Stock):
    """Spans, by a stock exporter: read-only copies, those of other libraries redacted."""

    def __init__(self, exporter: SpanExporter) -> None:
        super().__init__(exporter, "spans")

    def encode(self, spans: Sequence[ReadableSpan]) -> tuple[Any, int, int]:
        size_bytes = _memory(spans, spans_request(spans))
        return foreign.readable(spans), size_bytes, size_bytes

    def send(self, encoded: Any) -> Answer:
        return self._answer(self._exporter.export(encoded) is SpanExportResult.SUCCESS)


class StockMetrics(_Stock):
    """Metrics, by a stock exporter."""

    def __init__(self, exporter: MetricExporter) -> None:
        super().__init__(exporter, "metrics")
        self.wants = sdk.exporter_preferences(exporter)

    def send(self, data: MetricsData, within_s: float = math.inf) -> Answer:  # noqa: ARG002  # it has its own limit
        return self._answer(self._exporter.export(data) is MetricExportResult.SUCCESS)
