"""Sending metrics: the registry is read at a steady interval, and what no endpoint took is counted."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource

from otel_perf import guard
from otel_perf.telemetry.delivery import LOST, Answer
from otel_perf.telemetry.meter import metrics_data
from otel_perf.telemetry.series import Cursor, Registry
from otel_perf.telemetry.ways import MetricWay, unobserved

__all__ = ["MetricSender"]


class MetricSender:
    """Reads the registry at a steady interval and sends what it read; what could not be delivered is counted."""

    def __init__(
        self, make_way: Callable[[], MetricWay], registry: Registry, resource: Callable[[], Resource],
        interval_s: float,
    ) -> None:  # fmt: skip
        self._make_way = make_way
        self._resource = resource
        self._interval_s = interval_s
        self._closed = False
        self._way = make_way()
        self._cursor: Cursor = registry.cursor(self._way.wants.cell, self._way.wants.delta)
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()  # a way takes one call at a time
        #: Points that no endpoint took, by the reason. Totals are sent again with the next export: what is lost then
        #: is a reading.
        self.lost: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name="otel_perf-metrics", daemon=True)
        self._thread.start()

    def _run(self, stop: threading.Event) -> None:
        # Nothing is read that could not be sent: changes stay in the registry until the endpoint may be asked again.
        while not stop.wait(self._interval_s) and not stop.wait(self._way.held_s):
            with self._lock:
                self._export(math.inf)

    def _export(self, within_s: float) -> bool:
        if self._way.held_s > within_s:
            return False
        try:
            collected = self._cursor.collect()
            data = metrics_data(collected, self._resource())
        except Exception:
            guard.note("reading metrics")
            return False
        if data is None:
            return True
        points = sum(len(each.points) for each in collected)
        answer = self._sent(data, within_s)
        if not answer.delivered:
            self._lose(points, "export_failed")
            return False
        self._lose(min(points, answer.failed), "export_failed")
        self._lose(min(points, answer.rejected), "rejected")
        return not answer.failed and not answer.rejected

    def _sent(self, data: MetricsData, within_s: float) -> Answer:
        try:
            with unobserved():
                return self._way.send(data, within_s)
        except Exception:
            guard.note("sending metrics")
            return LOST

    def _lose(self, points: int, reason: str) -> None:
        if points:
            self.lost[reason] = self.lost.get(reason, 0) + points

    def flush(self, timeout_s: float) -> bool:
        """Reads and sends now, within the time; True when it was delivered."""
        deadline = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=max(0.0, timeout_s)):
            return False
        try:
            return self._export(deadline - time.monotonic())
        finally:
            self._lock.release()

    def shutdown(self, timeout_s: float) -> bool:
        """Reads and sends a last time, and stops."""
        if self._closed:
            return True
        self._closed = True
        deadline = time.monotonic() + timeout_s
        self._stop.set()
        self._way.stop(deadline)
        done = self.flush(timeout_s - min(0.1, timeout_s / 10))  # a little is left for the thread to end in
        if not done:
            self._way.abort()
        self._thread.join(max(0.1, deadline - time.monotonic()))
        self._way.close()
        return done

    def after_fork(self) -> None:
        """The child reads its own counts and sends them over its own connection."""
        if not self._closed:
            self._way = self._make_way()
            self._start()
