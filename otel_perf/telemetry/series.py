"""The registry: every value that is recorded, once, for all readers.

Each attribute set of an instrument has a pending list; recording is one `list.append`. A fold (on collect, each
second, or at 512 values) moves the pending values into one cell per cursor. A cursor is one reader's view: its own
temporality and aggregation. OTLP, Prometheus, the page and stock readers are cursors on the same registry.

There is no lock on the hot path: recording only *tries* the fold lock, and a fork renews it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.metrics.export import NumberDataPoint
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf import guard
from otel_perf.conventions import SCOPE, InstrumentKind, Metric
from otel_perf.telemetry.aggregation import Cell, Explicit, LastValue, Point, Sum, Value

__all__ = ["Collected", "Cursor", "Instrument", "Observe", "Registry", "Series"]

FOLD_AT = 512
OVERFLOW = "otel.metric.overflow"
# The SDK's default bounds, for instruments that declare none.
DEFAULT_BOUNDS = (
    0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 7500.0, 10000.0,
)  # fmt: skip

_log = logging.getLogger("otel_perf")

#: Called at collect time; answers (value, attributes) pairs.
Observe = Callable[[], Iterable[tuple["int | float", Mapping[str, Any]]]]


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
        self._lock = threading.Lock()

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
        key = _key(attributes)
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
            series = self.series[key] = Series(self, dict(attributes))
            return series
        if self._overflow is None:
            self._overflow = Series(self, {OVERFLOW: True})
            self.series[_key(self._overflow.attributes)] = self._overflow
            _log.warning(
                "otel_perf: metric %s reached %d series; more go into one overflow series. The label with most values "
                "is %r: bound it, or raise OTEL_PERF_CARDINALITY_LIMIT",
                self.metric.name,
                self.registry.cardinality_limit,
                _widest_label(self.series.values()),
            )
        return self._overflow

    def forget(self) -> None:
        """Drops all series and gives the lock anew: a forked child starts from zero."""
        self._lock = threading.Lock()
        self._overflow = None
        self._by_values.clear()
        # Handles hold series objects across the fork, so the objects stay and only their values go.
        for series in self.series.values():
            series.pending.clear()


def _key(attributes: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    try:
        return frozenset(attributes.items())
    except TypeError:  # a list value cannot be hashed
        return frozenset((k, tuple(v) if isinstance(v, list) else v) for k, v in attributes.items())


def _widest_label(series: Iterable[Series]) -> str:
    values: dict[str, set[str]] = {}
    for each in series:
        for key, value in each.attributes.items():
            values.setdefault(key, set()).add(str(value))
    return max(values, key=lambda key: len(values[key]), default="")


@dataclass(frozen=True, slots=True)
class Collected:
    """One instrument's points of one collect."""

    instrument: Instrument
    points: Sequence[Point]
    delta: bool


#: Makes the cell of a series for one reader; None drops the series for it.
MakeCell = Callable[[Series], "Cell | None"]
IsDelta = Callable[[InstrumentKind], bool]


def default_cell(series: Series) -> Cell | None:
    """The usual aggregation: sums, last values, explicit buckets."""
    metric = series.instrument.metric
    kind = metric.kind
    if kind == "histogram":
        return Explicit(metric.buckets or DEFAULT_BOUNDS)
    return LastValue() if kind == "gauge" else Sum()


def cumulative(kind: InstrumentKind) -> bool:
    """No kind is read as the change since the last point."""
    return False


class Cursor:
    """One reader's view of the registry."""

    __slots__ = ("_cells", "_delta", "_last", "_make", "_registry", "_since_ns", "_start_ns")

    def __init__(self, registry: Registry, make: MakeCell, delta: IsDelta) -> None:
        self._registry = registry
        self._make = make
        self._delta = delta
        self._cells: dict[Series, Cell | None] = {}
        self._last: dict[tuple[Instrument, frozenset[tuple[str, Any]]], int | float] = {}
        self._start_ns = self._since_ns = time.time_ns()

    def feed(self, series: Series, batch: Sequence[Value]) -> None:
        """Adds a folded batch; called under the fold lock."""
        try:
            cell = self._cells[series]
        except KeyError:
            cell = self._cells[series] = self._make(series)
        if cell is not None:
            cell.feed(batch)

    @contextmanager
    def held(self) -> Generator[list[tuple[Series, Cell]], None, None]:
        """All cells, folded up to now and still for the length of the block: for readers that add up many series.

        Recording goes on meanwhile; only folding waits.
        """
        with self._registry.fold_lock:
            self._registry.fold_held()
            yield [(series, cell) for series, cell in self._cells.items() if cell is not None]

    def collect(self) -> list[Collected]:
        """All points up to now; readers of changes start anew."""
        observed = self.observe()
        with self._registry.fold_lock:
            self._registry.fold_held()
            now_ns = time.time_ns()
            points: dict[Instrument, list[Point]] = {}
            for series, cell in self._cells.items():
                if cell is None:
                    continue
                delta = self._delta(series.instrument.metric.kind)
                point = cell.point(series.attributes, self._since_ns if delta else self._start_ns, now_ns)
                if point is not None:
                    points.setdefault(series.instrument, []).append(point)
                if delta:
                    cell.reset()
            for instrument, pairs in observed:
                made = self._observed_points(instrument, pairs, now_ns)
                if made:
                    points.setdefault(instrument, []).extend(made)
            collected = [Collected(i, p, self._delta(i.metric.kind)) for i, p in points.items()]
            self._since_ns = now_ns
            return collected

    def observe(self) -> list[tuple[Instrument, list[tuple[int | float, Mapping[str, Any]]]]]:
        # Callbacks are user code: they run before the lock is taken, and one that fails costs only itself.
        observed = []
        for instrument in self._registry.instruments():
            for observer in instrument.observers:
                try:
                    observed.append((instrument, list(observer())))
                except Exception:
                    guard.note(f"the callback of metric {instrument.metric.name}")
        return observed

    def _observed_points(
        self, instrument: Instrument, pairs: list[tuple[int | float, Mapping[str, Any]]], now_ns: int
    ) -> list[Point]:
        points: list[Point] = []
        delta = self._delta(instrument.metric.kind) and instrument.metric.kind != "gauge"
        start_ns = self._since_ns if delta else self._start_ns
        for total, attributes in pairs[: self._registry.cardinality_limit]:
            value = total
            if delta:
                key = (instrument, _key(attributes))
                value, self._last[key] = total - self._last.get(key, 0), total
            points.append(NumberDataPoint(dict(attributes), start_ns, now_ns, value, []))
        return points

    def forget(self) -> None:
        """Starts from zero: after a fork the child must not repeat what the parent counts."""
        self._cells.clear()
        self._last.clear()
        self._start_ns = self._since_ns = time.time_ns()


class Registry:
    """All instruments and cursors of this process."""

    def __init__(self, cardinality_limit: int = 2000) -> None:
        self.cardinality_limit = cardinality_limit
        self.fold_lock = threading.Lock()
        self._instruments: dict[tuple[InstrumentationScope, str], Instrument] = {}
        self._cursors: list[Cursor] = []
        self._lock = threading.Lock()

    def instrument(self, metric: Metric, scope: InstrumentationScope) -> Instrument:
        """The instrument of this metric and scope, made on first use."""
        found = self._instruments.get((scope, metric.name.lower()))
        if found is None:
            with self._lock:
                found = self._instruments.setdefault((scope, metric.name.lower()), Instrument(self, metric, scope))
        return found

    def instruments(self) -> list[Instrument]:
        """All instruments, in the order in which they were made."""
        return list(self._instruments.values())

    def cursor(self, make: MakeCell = default_cell, delta: IsDelta = cumulative) -> Cursor:
        """A new reader's view; it sees what is recorded from now on."""
        cursor = Cursor(self, make, delta)
        with self.fold_lock:
            self.fold_held()  # what came before belongs to the others
            self._cursors.append(cursor)
        return cursor

    def remove(self, cursor: Cursor) -> None:
        """Forgets a reader; removing one that is gone already is no error."""
        with self.fold_lock:
            if cursor in self._cursors:
                self._cursors.remove(cursor)

    def clear_cursors(self) -> None:
        """Forgets all readers and our own observers: `configure` starts with new ones."""
        with self.fold_lock:
            self._cursors.clear()
        for instrument in self.instruments():
            if instrument.scope.name == SCOPE:
                instrument.observers.clear()

    def fold(self, series: Series) -> None:
        """Moves one series' pending values into the cells, unless somebody folds right now."""
        if self.fold_lock.acquire(blocking=False):
            try:
                self._fold(series)
            finally:
                self.fold_lock.release()

    def fold_all(self) -> None:
        """Moves all pending values into the cells."""
        with self.fold_lock:
            self.fold_held()

    def fold_held(self) -> None:
        """`fold_all` for a caller that holds the fold lock."""
        for instrument in self.instruments():
            for series in list(instrument.series.values()):
                self._fold(series)

    def _fold(self, series: Series) -> None:
        pending = series.pending
        size = len(pending)
        if not size:
            return
        # Two steps that are safe beside appends: nobody but the holder of the fold lock removes.
        batch = pending[:size]
        del pending[:size]
        for cursor in self._cursors:
            try:
                cursor.feed(series, batch)
            except Exception:
                guard.note(f"adding up metric {series.instrument.metric.name}")

    def reset(self) -> None:
        """Starts from zero with locks that nobody holds: in a forked child, and when `configure` is called again."""
        self.fold_lock = threading.Lock()
        self._lock = threading.Lock()
        for instrument in self.instruments():
            instrument.forget()
        for cursor in self._cursors:
            cursor.forget()
