"""A cursor: one reader's view of the registry, with its own temporality, aggregation and starting point."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.sdk.metrics.export import NumberDataPoint

from otel_perf import guard
from otel_perf.conventions import InstrumentKind
from otel_perf.telemetry import labels
from otel_perf.telemetry.aggregation import Cell, Exampled, Explicit, LastValue, Number, Point, Sum, Value
from otel_perf.telemetry.instrument import Instrument, Observed, Series

if TYPE_CHECKING:
    from otel_perf.telemetry.series import Registry

__all__ = ["Collected", "Cursor", "IsDelta", "MakeCell", "cumulative", "default_cell"]

# The SDK's default bounds, for instruments that declare none.
DEFAULT_BOUNDS = (
    0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 7500.0, 10000.0,
)  # fmt: skip

#: Makes the cell of a series for one reader; None drops the series for it.
MakeCell = Callable[[Series], "Cell | None"]
#: Whether a kind of instrument, told by callbacks or not, is read as the change since the last point.
IsDelta = Callable[[InstrumentKind, bool], bool]


@dataclass(frozen=True, slots=True)
class Collected:
    """One instrument's points of one collect."""

    instrument: Instrument
    points: Sequence[Point]
    delta: bool


def default_cell(series: Series) -> Cell | None:
    """The usual aggregation: sums, last values, explicit buckets."""
    metric = series.instrument.metric
    kind = metric.kind
    if kind == "histogram":
        return Explicit(DEFAULT_BOUNDS if metric.buckets is None else metric.buckets)
    return LastValue() if kind == "gauge" else Sum()


def cumulative(_kind: InstrumentKind, _observed: bool) -> bool:
    """No kind is read as the change since the last point."""
    return False


class Cursor:
    """One reader's view of the registry; made by `Registry.cursor`.

    A raw one sees the instruments as they record, the others what views make of them. Exemplars belong to the time
    since the last point, unless the reader wants them kept.
    """

    __slots__ = ("_cells", "_delta", "_keep_exemplars", "_last", "_make", "_registry", "_since_ns", "_start_ns", "raw")

    def __init__(
        self, registry: Registry, make: MakeCell, delta: IsDelta, *, raw: bool = False, keep_exemplars: bool = False
    ) -> None:
        self.raw = raw
        self._registry = registry
        self._make = make
        self._delta = delta
        self._keep_exemplars = keep_exemplars
        self._cells: dict[Series, Cell | None] = {}
        # What callbacks told last, for the attribute sets that they still tell.
        self._last: dict[Instrument, dict[labels.Key, Number]] = {}
        self._start_ns = self._since_ns = time.time_ns()

    def feed(self, series: Series, batch: Sequence[Value]) -> None:
        """Adds a folded batch; called under the fold lock."""
        try:
            if series not in self._cells:
                self._cells[series] = (series.instrument.make_cell or self._make)(series)
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
            # An instrument has both where we count and callbacks tell: then readers may want changes of one only.
            points = self._recorded_points(now_ns)
            for instrument, pairs in observed:
                delta = self._delta(instrument.source_kind, True)
                made = self._observed_points(instrument, pairs, delta, now_ns)
                if made:
                    points.setdefault((instrument, delta), []).extend(made)
            collected = [Collected(instrument, made, delta) for (instrument, delta), made in points.items()]
            self._since_ns = now_ns
            return collected

    def _recorded_points(self, now_ns: int) -> dict[tuple[Instrument, bool], list[Point]]:
        points: dict[tuple[Instrument, bool], list[Point]] = {}
        for series, cell in self._cells.items():
            if cell is None:
                continue
            delta = self._delta(series.instrument.source_kind, False)
            # Totals start with the series, or with the reader where that came later.
            start_ns = self._since_ns if delta else max(self._start_ns, series.since_ns)
            point = cell.point(series.attributes, start_ns, now_ns)
            if point is not None:
                points.setdefault((series.instrument, delta), []).append(point)
            if delta:
                cell.reset()
            elif not self._keep_exemplars and isinstance(cell, Exampled):
                cell.forget_exemplars()
        return points

    def observe(self) -> list[tuple[Instrument, Observed]]:
        """What all callbacks say now, by instrument."""
        # Callbacks are user code: they run before the lock is taken.
        asked = [(each, each.observed()) for each in self._registry.instruments() if each.observers]
        told = [(instrument, pairs) for instrument, pairs in asked if pairs]
        return told if self.raw else self._registry.viewed(told)

    def _observed_points(self, instrument: Instrument, pairs: Observed, delta: bool, now_ns: int) -> list[Point]:
        gauge = instrument.metric.kind == "gauge"
        if gauge or not delta:
            start_ns = 0 if gauge else self._start_ns
            return [NumberDataPoint(dict(told), start_ns, now_ns, total, []) for total, told in pairs]
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
