"""Instruments and their series: where a value goes when it is recorded."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf import guard
from otel_perf.conventions import Metric
from otel_perf.telemetry import labels
from otel_perf.telemetry.aggregation import Number, Value
from otel_perf.telemetry.numbers import plain

if TYPE_CHECKING:
    from otel_perf.telemetry.series import Registry

__all__ = ["Instrument", "Observe", "Series"]

FOLD_AT = 512
OVERFLOW = "otel.metric.overflow"

_log = logging.getLogger("otel_perf")

#: Called at collect time; answers (value, attributes) pairs.
Observe = Callable[[], Iterable[tuple["Number", Mapping[str, Any]]]]


class Series:
    """One attribute set of one instrument. `record` is the hot path: one append."""

    __slots__ = ("attributes", "instrument", "pending")

    def __init__(self, instrument: Instrument, attributes: dict[str, Any]) -> None:
        self.instrument = instrument
        self.attributes = attributes
        self.pending: list[Value] = []

    def record(self, value: Value) -> None:
        """Records a number, or a number with its trace: (value, trace id, span id, unix ns)."""
        pending = self.pending
        pending.append(value)
        if len(pending) >= FOLD_AT:
            self.instrument.registry.fold(self)


class Instrument:
    """One metric of one scope, with its series. `at` finds a series by values in the metric's own label order."""

    __slots__ = ("_by_values", "_lock", "_overflow", "metric", "monotonic", "observers", "registry", "scope", "series")

    def __init__(self, registry: Registry, metric: Metric, scope: InstrumentationScope) -> None:
        self.registry = registry
        self.metric = metric
        self.scope = scope
        self.monotonic = metric.kind == "counter"
        self.series: dict[frozenset[tuple[str, Any]], Series] = {}
        self.observers: list[Observe] = []
        self._by_values: dict[tuple[Any, ...], Series] = {}
        self._overflow: Series | None = None
        # Re-entrant: while it is held, garbage collection may end an operation of the same thread.
        self._lock = threading.RLock()

    def at(self, values: tuple[Any, ...]) -> Series:
        """The series of these label values, in the order of `metric.attributes`; None leaves a label out."""
        found = self._by_values.get(values)
        if found is not None:
            return found
        attributes = {k: v for k, v in zip(self.metric.attributes, values, strict=True) if v is not None}
        found = self.of(attributes)
        if found is not self._overflow:  # hostile values must not fill this dict either
            self._by_values[values] = found
        return found

    def of(self, attributes: Mapping[str, Any]) -> Series:
        """The series of an attribute mapping, as the OpenTelemetry API hands it over."""
        key = labels.key(attributes)
        found = self.series.get(key)
        if found is None:
            with self._lock:
                found = self.series.get(key)
                if found is None:
                    found = self._add(key, attributes)
        return found

    def _add(self, key: frozenset[tuple[str, Any]], attributes: Mapping[str, Any]) -> Series:
        # The overflow series counts towards the limit, as the specification wants it.
        if len(self.series) < self.registry.cardinality_limit - 1:
            clean = labels.clean(attributes)
            # Two that are the same once they are clean are one series.
            series = self.series.get(labels.key(clean)) or Series(self, clean)
            self.series[key] = self.series[labels.key(clean)] = series
            return series
        if self._overflow is None:
            self._overflow = Series(self, {OVERFLOW: True})
            self.series[labels.key(self._overflow.attributes)] = self._overflow
            _log.warning(
                "otel_perf: metric %s reached %d series; more go into one overflow series. The label with most values "
                "is %r: bound it, or raise OTEL_PERF_CARDINALITY_LIMIT",
                self.metric.name,
                self.registry.cardinality_limit,
                labels.widest(each.attributes for each in self.series.values()),
            )
        return self._overflow

    def observed(self) -> list[tuple[Number, Mapping[str, Any]]]:
        """What its callbacks say now: one value for each attribute set, the last one told."""
        told: dict[frozenset[tuple[str, Any]], tuple[Number, Mapping[str, Any]]] = {}
        for observer in list(self.observers):
            self._ask(observer, told)
        return list(told.values())

    def _ask(self, observer: Observe, told: dict[frozenset[tuple[str, Any]], tuple[Number, Mapping[str, Any]]]) -> None:
        try:
            for value, attributes in observer():
                clean = labels.clean(attributes)
                key = labels.key(clean)
                value = plain(value)  # noqa: PLW2901 -- raises for what is no number, which no exporter could write
                if not math.isnan(value) and (key in told or len(told) < self.registry.cardinality_limit):
                    told[key] = (value, clean)
        except Exception:  # callbacks are the application's: one that fails costs only itself
            guard.note(f"the callback of metric {self.metric.name}")

    def after_fork(self) -> None:
        """Starts from zero in a forked child, with a lock that nobody holds."""
        self._lock = threading.RLock()
        # Whoever holds a series goes on with it, so the objects stay and only their values go.
        for series in self.series.values():
            series.pending.clear()

    def forget(self) -> None:
        """Drops all series, so that those of an earlier configuration do not count towards the limit."""
        with self._lock:
            self._by_values.clear()
            self.series.clear()
            self._overflow = None
