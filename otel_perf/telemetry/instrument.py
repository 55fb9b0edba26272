"""Instruments and their series: where a value goes when it is recorded."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf import guard
from otel_perf.conventions import InstrumentKind, Metric
from otel_perf.telemetry import labels
from otel_perf.telemetry.batch import Number, Value
from otel_perf.telemetry.numbers import plain

if TYPE_CHECKING:
    from otel_perf.telemetry.aggregation import Cell
    from otel_perf.telemetry.series import Registry

__all__ = ["FOLD_AT", "OVERFLOW", "Instrument", "Observe", "Observed", "Series"]

FOLD_AT = 512
OVERFLOW = "otel.metric.overflow"

_log = logging.getLogger("otel_perf")

#: Called at collect time; answers (value, attributes) pairs.
Observe = Callable[[], Iterable[tuple["Number", Mapping[str, Any]]]]
#: What callbacks said: one value for each attribute set.
Observed: TypeAlias = "list[tuple[Number, Mapping[str, Any]]]"


class Series:
    """One attribute set of one instrument. `record` is the hot path: one append."""

    __slots__ = ("attributes", "instrument", "pending", "since_ns")

    def __init__(self, instrument: Instrument, attributes: dict[str, Any]) -> None:
        self.instrument = instrument
        self.attributes = attributes
        self.pending: list[Value] = []
        #: When it was made, which is just before its first value.
        self.since_ns = time.time_ns()

    def record(self, value: Value) -> None:
        """Records a number, or a number with its trace: (value, trace id, span id, unix ns)."""
        pending = self.pending
        pending.append(value)
        if len(pending) >= FOLD_AT:
            self.instrument.registry.fold(self)


class Instrument:
    """One metric of one scope, with its series. `at` finds a series by values in the metric's own label order."""

    __slots__ = (
        "_bound", "_by_items", "_lock", "_overflow", "by_values", "keys", "limit", "make_cell", "metric", "monotonic",
        "observers", "registry", "scope", "series", "source_kind",
    )  # fmt: skip

    def __init__(self, registry: Registry, metric: Metric, scope: InstrumentationScope) -> None:
        self.registry = registry
        self.metric = metric
        self.scope = scope
        self.monotonic = metric.kind == "counter"
        #: The kind by which readers choose between totals and changes; a view may change the metric's own.
        self.source_kind: InstrumentKind = metric.kind
        #: Makes the cells of all readers, where a view says how to add up.
        self.make_cell: Callable[[Series], Cell | None] | None = None
        #: The only attributes that are kept, where views say so.
        self.keys: frozenset[str] | None = None
        #: How many series there may be, where it is not the registry's limit.
        self.limit: int | None = None
        self.series: dict[labels.Key, Series] = {}
        self.observers: list[Observe] = []
        #: Series by label values, in the order of `metric.attributes`: what `at` has found before. Hot paths may look
        #: here themselves, and call `at` for what is missing.
        self.by_values: dict[tuple[Any, ...], Series] = {}
        # The same by attributes as they were handed over, since to make a key of them takes longer.
        self._by_items: dict[tuple[Any, ...], Series] = {}
        self._bound: dict[labels.Key, Series] = {}
        self._overflow: Series | None = None
        # Re-entrant: while it is held, garbage collection may end an operation of the same thread.
        self._lock = threading.RLock()

    def at(self, values: tuple[Any, ...]) -> Series:
        """The series of these label values, in the order of `metric.attributes`; None leaves a label out."""
        found = self.by_values.get(values)
        if found is not None:
            return found
        attributes = {k: v for k, v in zip(self.metric.attributes, values, strict=True) if v is not None}
        found = self.of(attributes)
        # Hostile values must not fill this dict either.
        if found is not self._overflow and self.keys is None:
            self.by_values[values] = found
        return found

    def of(self, attributes: Mapping[str, Any]) -> Series:
        """The series of an attribute mapping, as the OpenTelemetry API hands it over."""
        try:
            values = attributes.values()
            quick = (*attributes, *values, *map(type, values))
            found = self._by_items.get(quick)
        except TypeError:  # a list cannot be hashed
            return self._of(attributes)
        except AttributeError:  # no mapping: as in the SDK the value counts without attributes
            return self._of({})
        if found is None:
            found = self._of(attributes)
            # Callers that hand labels over in another order each time must not fill this dict either.
            if labels.is_plain(values) and len(self._by_items) < 2 * self._most() and found is not self._overflow:
                self._by_items[quick] = found
        return found

    def _of(self, attributes: Mapping[str, Any]) -> Series:
        if self.keys is not None:
            attributes = {name: value for name, value in attributes.items() if name in self.keys}
        key = labels.key(attributes)
        found = self.series.get(key)
        if found is None:
            with self._lock:
                found = self.series.get(key)
                if found is None:
                    found = self._add(key, attributes)
        return found

    def narrow(self, keys: frozenset[str] | None) -> None:
        """Keeps only these attributes from now on, or all."""
        self.keys = keys
        self.by_values.clear()
        self._by_items.clear()

    def _most(self) -> int:
        return self.limit or self.registry.cardinality_limit

    def bind(self, attributes: Mapping[str, Any]) -> Series:
        """`of` for a caller that keeps the series: it stays the one of these attributes for ever."""
        with self._lock:
            series = self.of(attributes)
            self._bound[labels.key(series.attributes)] = series
            return series

    def _add(self, key: labels.Key, attributes: Mapping[str, Any]) -> Series:
        limit = self._most()
        # The overflow series counts towards the limit, as the specification wants it.
        if len(self.series) < limit - 1:
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
                limit,
                labels.widest(each.attributes for each in self.series.values()),
            )
        return self._overflow

    def observed(self) -> Observed:
        """What its callbacks say now, up to where one raises: one value for each attribute set, the last one told."""
        told: dict[labels.Key, tuple[Number, Mapping[str, Any]]] = {}
        for observer in list(self.observers):
            self._ask(observer, told)
        return list(told.values())

    def _ask(self, observer: Observe, told: dict[labels.Key, tuple[Number, Mapping[str, Any]]]) -> None:
        limit = self._most()
        try:
            for value, attributes in observer():
                clean = labels.clean(attributes)
                key = labels.key(clean)
                value = plain(value)  # noqa: PLW2901 -- raises for what is no number, which no exporter could write
                if not math.isnan(value) and (key in told or len(told) < limit):
                    told.pop(key, None)  # to the end: where views drop attributes the last one told counts
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
        """Drops all series, so that those of an earlier configuration do not count towards the limit.

        Bound ones stay, since somebody goes on recording into them, and begin anew.
        """
        with self._lock:
            self.by_values.clear()
            self._by_items.clear()
            self.series.clear()
            self.series.update(self._bound)
            if self._overflow not in self._bound.values():
                self._overflow = None
            for series in self._bound.values():
                series.pending.clear()
