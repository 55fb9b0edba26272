"""Sending: a bounded queue of ended spans with truthful accounting, and the same accounting for metrics.

Encoding and transport are the stock OTLP exporters' for now (see `transport`). What is ours: nothing blocks the application, a full
queue and a failed export are counted, flush and shutdown keep their deadline.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from opentelemetry import context
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_perf import guard
from otel_perf.telemetry import sdk

__all__ = ["CountedMetrics", "MetricReaderPart", "SpanSender", "quieten"]

_BATCH = 512


class _OncePerMinute(logging.Filter):
    """Lets one record a minute of a logger through: a dead endpoint must not flood the application's log."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + 60
        return True


_quiet = _OncePerMinute()


def quieten() -> None:
    """Limits what the stock exporters log about an endpoint that is not there."""
    for name in (
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "opentelemetry.exporter.otlp.proto.http.metric_exporter",
        "opentelemetry.exporter.otlp.proto.grpc.exporter",
        "opentelemetry.exporter.otlp.common",
        "urllib3.connectionpool",
    ):
        logging.getLogger(name).addFilter(_quiet)  # adding the same filter twice changes nothing


class SpanSender(SpanProcessor):
    """Queues ended spans and sends them in batches: made = delivered + lost + queued, always."""

    def __init__(self, make_exporter: Callable[[], SpanExporter], queue_size: int, interval_s: float) -> None:
        self._make_exporter = make_exporter
        self._capacity = queue_size
        self._interval_s = interval_s
        self._closed = False
        self.lost: dict[str, int] = {}
        self._start()

    def _start(self) -> None:
        self._exporter = self._make_exporter()
        self._queue: deque[ReadableSpan] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._sending = 0
        self._urgent = False
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
                if len(self._queue) == _BATCH:
                    self._changed.notify_all()

    def _lose(self, count: int, reason: str) -> None:
        self.lost[reason] = self.lost.get(reason, 0) + count

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._urgent and len(self._queue) < _BATCH and not self._closed:
                    self._changed.wait(self._interval_s)
                batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
                self._sending = len(batch)
                if not batch:
                    self._urgent = False
                    self._changed.notify_all()
                    if self._closed:
                        return
                    continue
            sent = self._send(batch)
            with self._changed:
                self._sending = 0
                if sent:
                    self.delivered += len(batch)
                else:
                    self._lose(len(batch), "export_failed")
                self._changed.notify_all()

    def _send(self, batch: list[ReadableSpan]) -> bool:
        token = context.attach(context.set_value(sdk.SUPPRESS_KEY, True))
        try:
            return self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception:
            guard.note("sending spans")
            return False
        finally:
            context.detach(token)

    def _drained(self) -> bool:
        return not self._queue and not self._sending

    def flush(self, timeout_s: float) -> bool:
        """Sends what is queued now, within the time; True when all of it was delivered."""
        with self._changed:
            lost = sum(self.lost.values())
            self._urgent = True
            self._changed.notify_all()
            done = self._changed.wait_for(self._drained, timeout_s)
            return done and sum(self.lost.values()) == lost

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """`flush`, under the SDK's name."""
        return self.flush(timeout_millis / 1000)

    def shutdown(self, timeout_s: float = 5.0) -> bool:  # type: ignore[override]  # the SDK's answers nothing
        """Flushes and stops; what could not be sent within the time is counted as lost."""
        if self._closed:
            return True
        flushed = self.flush(timeout_s)
        with self._changed:
            self._closed = True
            if self._queue:
                self._lose(len(self._queue), "shutdown")
                self._queue.clear()
            self._changed.notify_all()
        # Ends the waits between retries, so that the thread comes back.
        self._exporter.shutdown()
        self._thread.join(0.5 if not flushed else timeout_s)
        return flushed

    def after_fork(self) -> None:
        """The child sends its own spans over its own connection; the parent keeps what it had."""
        if not self._closed:
            self._start()


class CountedMetrics(MetricExporter):
    """A metric exporter that counts what it could not deliver."""

    def __init__(self, exporter: Any) -> None:
        super().__init__(*sdk.exporter_preferences(exporter))
        self._exporter = exporter
        self.lost_points = 0
        self.last_ok = True

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        result: MetricExportResult = self._exporter.export(metrics_data, timeout_millis=timeout_millis, **kwargs)
        self.last_ok = result is MetricExportResult.SUCCESS
        if not self.last_ok:
            # Cumulative points are sent again with the next export: what is lost is this reading, not the count.
            self.lost_points += sum(
                len(metric.data.data_points)
                for resource in metrics_data.resource_metrics
                for scope in resource.scope_metrics
                for metric in scope.metrics
            )
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return bool(self._exporter.force_flush(timeout_millis))

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._exporter.shutdown()


class MetricReaderPart:
    """A periodic reader as a part of the pipeline."""

    def __init__(self, reader: PeriodicExportingMetricReader, exporter: CountedMetrics) -> None:
        self._reader = reader
        self._exporter = exporter

    def after_fork(self) -> None:
        """The stock reader restarts its own thread."""

    def flush(self, timeout_s: float) -> bool:
        return bool(self._reader.force_flush(timeout_s * 1000)) and self._exporter.last_ok

    def shutdown(self, timeout_s: float) -> bool:
        # The stock reader collects and sends a last time when it stops.
        self._reader.shutdown(timeout_millis=timeout_s * 1000)
        return self._exporter.last_ok
