"""Sending: a bounded queue of ended spans with truthful accounting, and the same accounting for metrics.

Encoding and transport are the stock OTLP exporters' for now (see `transport`). What is ours: nothing blocks the
application, a full queue and a failed export are counted, flush and shutdown keep their deadline.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from opentelemetry import context
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_perf import guard
from otel_perf.telemetry import sdk
from otel_perf.telemetry.meter import metrics_data
from otel_perf.telemetry.pipeline import Ticker
from otel_perf.telemetry.series import Cursor, Registry

__all__ = ["MetricSender", "SpanSender", "Tally", "quieten"]

_BATCH = 512
_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.common",
    "opentelemetry.exporter.otlp.common.http",
    "urllib3.connectionpool",
)

_sending: ContextVar[bool] = ContextVar("otel_perf_sending", default=False)


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


def quieten() -> None:
    """Limits what the stock exporters log about an endpoint that is not there."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_quiet)  # adding the same filter twice changes nothing


@contextmanager
def _unobserved() -> Generator[None, None, None]:
    """Keeps instrumentation away from what we send, and the exporters' log short."""
    token = context.attach(context.set_value(sdk.SUPPRESS_KEY, True))
    quiet = _sending.set(True)
    try:
        yield
    finally:
        _sending.reset(quiet)
        context.detach(token)


class Tally(NamedTuple):
    """What became of all spans, at one moment: `made` is the sum of the others."""

    made: int
    delivered: int
    lost: int
    queued: int


class SpanSender(SpanProcessor):
    """Queues ended spans and sends them in batches: made = delivered + lost + queued, always."""

    def __init__(self, make_exporter: Callable[[], SpanExporter], queue_size: int, interval_s: float) -> None:
        self._make_exporter = make_exporter
        self._capacity = queue_size
        self._batch = min(_BATCH, max(1, queue_size // 2))
        self._interval_s = interval_s
        self._closed = False
        self.lost: dict[str, int] = {}
        self._start()

    def _start(self) -> None:
        self._exporter = self._make_exporter()
        self._queue: deque[ReadableSpan] = deque()
        # Re-entrant: while it is held, garbage collection may end a span of the same thread.
        self._changed = threading.Condition(threading.RLock())
        self._sending = 0
        self._urgent = False
        self._taken = 0  # spans that were ever queued, and how many of those are done with, one way or the other
        self._done = 0
        self._failed = 0
        self.made = 0
        self.delivered = 0
        self.lost.clear()
        self._thread = threading.Thread(target=self._run, name="otel_perf-spans", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Spans that wait or are on their way."""
        return len(self._queue) + self._sending

    @property
    def capacity(self) -> int:
        """Spans that the queue can hold."""
        return self._capacity

    def tally(self) -> Tally:
        """All counts at one moment."""
        with self._changed:
            return Tally(self.made, self.delivered, sum(self.lost.values()), self.queued)

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        """Nothing is done when a span starts."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queues a sampled span, or counts it as lost when there is no room."""
        span_context = span.get_span_context()
        if span_context is None or not span_context.trace_flags.sampled:
            return
        with self._changed:
            self.made += 1
            if self._closed:
                self._lose(1, "closed")
            elif len(self._queue) >= self._capacity:
                self._lose(1, "queue_full")
            else:
                self._queue.append(span)
                self._taken += 1
                if len(self._queue) == self._batch:
                    self._changed.notify_all()

    def _lose(self, count: int, reason: str) -> None:
        self.lost[reason] = self.lost.get(reason, 0) + count

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._urgent and len(self._queue) < self._batch and not self._closed:
                    self._changed.wait(self._interval_s)
                batch = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
                self._sending = len(batch)
                if not batch:
                    self._urgent = False
                    if self._closed:
                        return
                    continue
            sent = self._send(batch)
            with self._changed:
                self._sending = 0
                self._done += len(batch)
                if sent:
                    self.delivered += len(batch)
                else:
                    self._failed += len(batch)
                    self._lose(len(batch), "export_failed")
                self._changed.notify_all()

    def _send(self, batch: list[ReadableSpan]) -> bool:
        try:
            with _unobserved():
                return self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception:
            guard.note("sending spans")
            return False

    def flush(self, timeout_s: float) -> bool:
        """Sends what is queued now, within the time; True when all of it was delivered."""
        with self._changed:
            taken, failed = self._taken, self._failed
            self._urgent = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._done >= taken, timeout_s)
            return done and self._failed == failed

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """`flush`, under the SDK's name."""
        return self.flush(timeout_millis / 1000)

    def shutdown(self, timeout_s: float = 5.0) -> bool:  # type: ignore[override]  # the SDK's answers nothing
        """Flushes and stops; what could not be sent within the time is counted as lost."""
        if self._closed:
            return True
        deadline = time.monotonic() + timeout_s
        # Whoever refuses now gets no second chance: exit does not wait for it.
        sdk.stop_retrying(self._exporter)
        flushed = self.flush(timeout_s)
        with self._changed:
            self._closed = True
            if self._queue:
                flushed = False
                self._done += len(self._queue)
                self._lose(len(self._queue), "shutdown")
                self._queue.clear()
            self._changed.notify_all()
        # Ends the waits between retries, so that the thread comes back.
        self._exporter.shutdown()
        self._thread.join(max(0.1, deadline - time.monotonic()))
        return flushed

    def after_fork(self) -> None:
        """The child sends its own spans over its own connection; the parent keeps what it had."""
        if self._closed:
            self._changed = threading.Condition(threading.RLock())  # spans still end, and are counted
        else:
            self._start()


class MetricSender:
    """Reads the registry at a steady interval and sends what it read; what could not be delivered is counted."""

    def __init__(
        self, make_exporter: Callable[[], MetricExporter], registry: Registry, resource: Callable[[], Resource],
        interval_s: float,
    ) -> None:  # fmt: skip
        self._make_exporter = make_exporter
        self._resource = resource
        self._exporter: Any = make_exporter()  # the SDK leaves its types partly unknown
        wants = sdk.exporter_preferences(self._exporter)
        self._cursor: Cursor = registry.cursor(wants.cell, wants.delta)
        self._lock = threading.Lock()  # the exporter takes one call at a time
        self._last_ok = True
        #: Points that no endpoint took. Totals are sent again with the next export: what is lost is a reading.
        self.lost = 0
        self._ticker = Ticker("metrics", interval_s, self._send)

    def _send(self) -> None:
        with self._lock:
            collected = self._cursor.collect()
            data = metrics_data(collected, self._resource())
            if data is None:
                self._last_ok = True
                return
            self._last_ok = self._export(data)
            if not self._last_ok:
                self.lost += sum(len(each.points) for each in collected)

    def _export(self, data: MetricsData) -> bool:
        try:
            with _unobserved():
                return self._exporter.export(data) is MetricExportResult.SUCCESS
        except Exception:
            guard.note("sending metrics")
            return False

    def after_fork(self) -> None:
        """The child reads its own counts and sends them over its own connection."""
        self._exporter = self._make_exporter()
        self._lock = threading.Lock()
        self._last_ok = True
        self.lost = 0
        self._ticker.after_fork()

    def flush(self, timeout_s: float) -> bool:
        """Reads and sends now; True when it was delivered."""
        return self._ticker.flush(timeout_s) and self._last_ok

    def shutdown(self, timeout_s: float) -> bool:
        """Reads and sends a last time, and stops."""
        sdk.stop_retrying(self._exporter)
        stopped = self._ticker.shutdown(timeout_s)
        self._exporter.shutdown()
        return stopped and self._last_ok
