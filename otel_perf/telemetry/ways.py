"""How batches leave: encoded by us and sent over HTTP, or by the stock exporters over gRPC."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeAlias, TypeVar

from opentelemetry import context
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_perf import guard, redaction
from otel_perf.telemetry import foreign, sdk
from otel_perf.telemetry.delivery import LOST, Answer, Delivery, Payload, packed, partial_success, say
from otel_perf.telemetry.otlp import spans_request
from otel_perf.telemetry.otlp_logs import LogItem, logs_request
from otel_perf.telemetry.otlp_metrics import Part, parts

__all__ = [
    "LARGEST_REQUEST_BYTES", "HttpLogs", "HttpMetrics", "HttpSpans", "LogWay", "MetricWay", "SpanWay", "StockMetrics",
    "StockSpans", "Way", "is_ours", "unobserved",
]  # fmt: skip

#: Receivers take 4 MiB at least.
LARGEST_REQUEST_BYTES = 2 * 1024 * 1024

_sending: ContextVar[bool] = ContextVar("otel_perf_sending", default=False)
_T_contra = TypeVar("_T_contra", contravariant=True)

#: Whether what happens now is of our own making.
is_ours = _sending.get


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


class Way(Protocol[_T_contra]):
    """A way for batches of items."""

    def encode(self, items: Sequence[_T_contra], /) -> tuple[Any, int]:
        """A part of what is sent, and about the bytes that it takes."""
        ...

    def join(self, parts: Sequence[Any]) -> tuple[Any, int]:
        """What is sent for these parts, and the bytes that it takes while it waits."""
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


SpanWay: TypeAlias = Way[ReadableSpan]
LogWay: TypeAlias = Way[LogItem]


class MetricWay(Protocol):
    """A way for what was read from the registry."""

    @property
    def wants(self) -> sdk.Preferences:
        """What is to be read: changes or totals, and which buckets."""
        ...

    @property
    def held_s(self) -> float:
        """For how long the endpoint asked to be left alone, from now on."""
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


# HTTP ----------------------------------------------------------------------------------------------------------------


class _Http:
    def __init__(self, delivery: Delivery, gzip: bool) -> None:
        self._delivery = delivery
        self._gzip = gzip
        self.stop = delivery.stop
        self.abort = delivery.abort
        self.close = delivery.close


class _HttpBatches(_Http):
    """Requests that are one request when they are put behind each other."""

    def join(self, parts: Sequence[bytes]) -> tuple[Payload, int]:
        payload = packed(parts[0] if len(parts) == 1 else b"".join(parts), self._gzip)
        return payload, payload.size_bytes

    def send(self, encoded: Payload) -> Answer:
        return self._delivery.send(encoded, patient=True)


class HttpSpans(_HttpBatches):
    """Spans, encoded by us."""

    def encode(self, spans: Sequence[ReadableSpan], /) -> tuple[bytes, int]:
        body = spans_request(spans)
        return body, len(body)


class HttpLogs(_HttpBatches):
    """Log records, encoded by us; they are of the resource that is in force when this is done."""

    def __init__(self, delivery: Delivery, gzip: bool, resource: Callable[[], Resource]) -> None:
        super().__init__(delivery, gzip)
        self._resource = resource

    def encode(self, items: Sequence[LogItem], /) -> tuple[bytes, int]:
        body = logs_request(items, self._resource())
        return body, len(body)


class HttpMetrics(_Http):
    """Metrics, encoded by us."""

    def __init__(self, delivery: Delivery, gzip: bool, wants: sdk.Preferences) -> None:
        super().__init__(delivery, gzip)
        self.wants = wants

    @property
    def held_s(self) -> float:
        return self._delivery.held_s

    def send(self, data: MetricsData, within_s: float = math.inf) -> Answer:
        def send(part: Part, left_s: float) -> Answer:
            return self._delivery.send(packed(part.request, self._gzip), left_s)

        return _in_parts(data, send, min(within_s, self._delivery.timeout_s))


def _in_parts(data: MetricsData, send: Callable[[Part, float], Answer], within_s: float) -> Answer:
    """Sends metrics in as many requests as are needed, all of them within the time of one."""
    deadline = time.monotonic() + within_s
    delivered, rejected, failed = False, 0, 0
    for part in parts(data, LARGEST_REQUEST_BYTES):
        left_s = deadline - time.monotonic()
        answer = LOST if failed and left_s <= 0 else send(part, left_s)
        delivered = delivered or answer.delivered
        rejected += min(answer.rejected, part.points)
        failed += 0 if answer.delivered else part.points
    return Answer(True, rejected, failed) if delivered else LOST


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

    def encode(self, spans: Sequence[ReadableSpan], /) -> tuple[tuple[list[ReadableSpan], int], int]:
        # They wait as objects: what they say, and about 1 KiB for each.
        size_bytes = len(spans_request(spans)) + 1024 * len(spans)
        return (foreign.readable(spans), size_bytes), size_bytes

    def join(self, parts: Sequence[tuple[list[ReadableSpan], int]]) -> tuple[list[ReadableSpan], int]:
        return [span for spans, _ in parts for span in spans], sum(size_bytes for _, size_bytes in parts)

    def send(self, encoded: Any) -> Answer:
        return self._answer(self._exporter.export(encoded) is SpanExportResult.SUCCESS)


class StockMetrics(_Stock):
    """Metrics, by a stock exporter."""

    #: It waits by itself for as long as it was asked to.
    held_s = 0.0

    def __init__(self, exporter: MetricExporter, timeout_s: float = math.inf) -> None:
        super().__init__(exporter, "metrics")
        self._timeout_s = timeout_s
        self.wants = sdk.exporter_preferences(exporter)

    def send(self, data: MetricsData, within_s: float = math.inf) -> Answer:
        def send(part: Part, _: float) -> Answer:  # it has its own limit for each
            return self._answer(self._exporter.export(part.data) is MetricExportResult.SUCCESS)

        return _in_parts(data, send, min(within_s, self._timeout_s))
