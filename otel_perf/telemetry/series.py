"""The registry: every value that is recorded, once, for all readers.

Each attribute set of an instrument has a pending list; recording is one `list.append`. A fold (on collect, each
second, or at 512 values) moves the pending values into one cell per cursor. A cursor is one reader's view: its own
temporality and aggregation. OTLP, Prometheus, the page and stock readers are cursors on the same registry.

There is no lock on the hot path: recording only *tries* the fold lock, and a fork renews it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.metrics.export import NumberDataPoint
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf import guard
from otel_perf.conventions import SCOPE, InstrumentKind, Metric
from otel_perf.telemetry import labels
from otel_perf.telemetry.aggregation import Cell, Explicit, LastValue, Number, Point, Sum, Value
from otel_perf.telemetry.instrument import Instrument, Observe, Series

__all__ = ["Collected", "Cursor", "Instrument", "Observe", "Registry", "Series"]

# The SDK's default bounds, for instruments that declare none.
DEFAULT_BOUNDS = (
    0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 7500.0, 10000.0,
)  # fmt: skip


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


def cumulative(_: InstrumentKind) -> bool:
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
        # What callbacks told last, for the attribute sets that they still tell.
        self._last: dict[Instrument, dict[frozenset[tuple[str, Any]], Number]] = {}
        self._start_ns = self._since_ns = time.time_ns()

    def feed(self, series: Series, batch: Sequence[Value]) -> None:
        """Adds a folded batch; called under the fold lock."""
        try:
            if series not in self._cells:
                self._cells[series] = self._make(series)
            cell = self._cells[series]
            if cell is not None:
                cell.feed(batch)
        except Exception:  # another reader must still get the batch
            guard.note(f"adding up metric {series.instrument.metric.name}")

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

    def observe(self) -> list[tuple[Instrument, list[tuple[Number, Mapping[str, Any]]]]]:
        """What all callbacks say now, by instrument."""
        # Callbacks are user code: they run before the lock is taken.
        asked = [(each, each.observed()) for each in self._registry.instruments() if each.observers]
        return [(instrument, pairs) for instrument, pairs in asked if pairs]

    def _observed_points(
        self, instrument: Instrument, pairs: list[tuple[Number, Mapping[str, Any]]], now_ns: int
    ) -> list[Point]:
        delta = self._delta(instrument.metric.kind) and instrument.metric.kind != "gauge"
        if not delta:
            return [NumberDataPoint(dict(told), self._start_ns, now_ns, total, []) for total, told in pairs]
        earlier = self._last.get(instrument, {})
        self._last[instrument] = {labels.key(told): total for total, told in pairs}
        return [
            NumberDataPoint(dict(told), self._since_ns, now_ns, total - earlier.get(labels.key(told), 0), [])
            for total, told in pairs
        ]

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
        self._instruments: dict[tuple[InstrumentationScope, str, InstrumentKind], Instrument] = {}
        self._cursors: list[Cursor] = []
        self._lock = threading.RLock()  # re-entrant for the reason given in Instrument

    def instrument(self, metric: Metric, scope: InstrumentationScope) -> Instrument:
        """The instrument of this metric and scope, made on first use."""
        # The kind belongs to the identity: a gauge cannot be kept in the series of a counter that has its name.
        key = (scope, metric.name.lower(), metric.kind)
        found = self._instruments.get(key)
        if found is None:
            with self._lock:
                found = self._instruments.setdefault(key, Instrument(self, metric, scope))
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
            cursor.feed(series, batch)

    def reset(self) -> None:
        """Starts from zero with other readers: `configure` is called again."""
        with self.fold_lock:
            self._cursors.clear()
            for instrument in self.instruments():
                instrument.forget()
                if instrument.scope.name == SCOPE:
                    instrument.observers.clear()

    def after_fork(self) -> None:
        """Starts from zero with the same readers in a forked child, with locks that nobody holds."""
        self.fold_lock = threading.Lock()
        self._lock = threading.RLock()
        for instrument in self.instruments():
            instrument.after_fork()
        for cursor in self._cursors:
            cursor.forget()
