"""What one worker tells the others, kept as text: only what changed since the last time is written anew."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.metrics.export import NumberDataPoint

from otel_perf.telemetry import labels, told
from otel_perf.telemetry.aggregation import Cell, LastValue, Point, Value
from otel_perf.telemetry.instrument import Instrument, Observed
from otel_perf.telemetry.series import Collected, Series, default_cell
from otel_perf.telemetry.summing import Figures
from otel_perf.telemetry.told import Scope
from otel_perf.telemetry.windowed import Windowed

__all__ = ["Cells", "Publication", "Told"]


class Publication:
    """The newest document of one worker.

    Rows are known by their points: a cell that was not fed gives the very same point again.
    """

    __slots__ = ("_changed", "_observed", "_rows", "_windows", "document")

    def __init__(self) -> None:
        #: What is told; empty before the first time.
        self.document = b""
        self._rows: dict[int, tuple[Point, Any, str]] = {}
        self._observed: dict[tuple[Instrument, labels.Key], Point] = {}
        self._windows: list[str] = []
        self._changed = False

    def renew(
        self, started_ns: int, collected: Iterable[tuple[str, Sequence[Collected]]], windows: Sequence[str]
    ) -> bytes:
        """The document of what was collected for each reader and of what insight keeps."""
        known, self._rows = self._rows, {}
        observed, self._observed = self._observed, {}
        earlier, self._windows = self._windows, list(windows)
        self._changed = not self.document or self._windows != earlier
        families = [
            entry
            for reader, listed in collected
            for each in listed
            for entry in self._entries(each, reader, known, observed)
        ]
        # With nothing new and no row less it is what it was.
        if self._changed or len(known) != len(self._rows):
            self.document = told.document(
                started_ns=str(started_ns), ended="0", families=_listed(families), windows=_listed(self._windows)
            )
        return self.document

    def says(self, observed: Iterable[tuple[Instrument, Observed]]) -> bool:
        """Whether it has what callbacks say now."""
        asked = [(instrument, value, given) for instrument, pairs in observed for value, given in pairs]
        if not self.document or len(asked) != len(self._observed):
            return False
        known = [(value, self._observed.get((instrument, labels.key(given)))) for instrument, value, given in asked]
        return all(isinstance(point, NumberDataPoint) and _same(value, point.value) for value, point in known)

    def _entries(
        self, of: Collected, reader: str, known: Mapping[int, Any], observed: Mapping[Any, Point]
    ) -> list[str]:
        by_bounds: dict[Any, list[str]] = {}
        instrument = of.instrument
        points = self._known(instrument, of.points, observed) if instrument.observers else of.points
        rows = self._rows
        for point in points:
            at = id(point)
            row = known.get(at) or self._row(point)
            if row is not None:
                rows[at] = row
                by_bounds.setdefault(row[1], []).append(row[2])
        if not by_bounds:
            return []
        about = Figures(instrument.metric, Scope.of(instrument.scope), bool(instrument.observers), reader=reader).about
        return [
            f"{told.encode([*about, bounds])[:-1]},{_listed(listed)}]" for bounds, listed in by_bounds.items()
        ]  # fmt: skip

    def _known(self, instrument: Instrument, points: Sequence[Point], earlier: Mapping[Any, Point]) -> list[Point]:
        """The points with those of the last time in the place of new ones that say the same."""
        same: list[Point] = []
        for each in points:
            key = (instrument, labels.key(each.attributes or {}))
            before = earlier.get(key)
            point = before if before is not None and _says_the_same(before, each) else each
            self._observed[key] = point
            same.append(point)
        return same

    def _row(self, point: Point) -> tuple[Point, Any, str] | None:
        self._changed = True
        try:
            bounds, row = told.row(told.exact(point))
            return point, bounds, told.encode(row)
        except (TypeError, ValueError):  # recorded past the API, and no number: it must not cost the others
            return None


def _says_the_same(one: Point, other: Point) -> bool:
    if not isinstance(one, NumberDataPoint) or not isinstance(other, NumberDataPoint):
        return one is other
    return _same(one.value, other.value)


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


def _listed(texts: Iterable[str]) -> str:
    return f"[{','.join(texts)}]"


class Told(Windowed):
    """What insight keeps of one series, with the text of it."""

    __slots__ = ("_about", "_text")

    def __init__(self, series: Series, clock: Any = time.time) -> None:
        super().__init__(clock)
        self._about = told.encode([series.instrument.metric.name, series.attributes])[:-1]
        self._text = ""

    def feed(self, batch: Sequence[Value]) -> None:
        """Adds recorded values."""
        self._text = ""
        super().feed(batch)

    def reset(self) -> None:
        """Starts anew."""
        self._text = ""
        super().reset()

    def text(self) -> str:
        """What is told of it: values of the last minute may be older than that by now, and readers see by when."""
        if not self._text:
            self._text = f"{self._about},{told.encode(self.dump())[1:]}"
        return self._text


class Cells:
    """Makes the usual cells, as ones that give the same point until they are fed."""

    __slots__ = ("fed",)

    def __init__(self) -> None:
        #: Whether one was fed; whoever reads them all says that none was.
        self.fed = False

    def __call__(self, series: Series) -> Cell:
        """The cell of a series."""
        kind = series.instrument.metric.kind
        return _Kept(self, _Dated() if kind == "gauge" else default_cell(series) or LastValue())


class _Kept:
    __slots__ = ("_cell", "_of", "_point")

    def __init__(self, of: Cells, cell: Cell) -> None:
        self._of = of
        self._cell = cell
        self._point: Point | None = None

    def feed(self, batch: Sequence[Value]) -> None:
        self._of.fed = True
        self._point = None
        self._cell.feed(batch)

    def point(self, attributes: Mapping[str, Any], start_ns: int, now_ns: int) -> Point | None:
        if self._point is None:
            self._point = self._cell.point(attributes, start_ns, now_ns)
        return self._point

    def reset(self) -> None:
        self._point = None
        self._cell.reset()


class _Dated(LastValue):
    """A gauge that knows when it was set: of several workers' the one that was set last counts."""

    __slots__ = ("_set_ns",)

    def feed(self, batch: Sequence[Value]) -> None:
        super().feed(batch)
        self._set_ns = time.time_ns()

    def point(self, attributes: Mapping[str, Any], start_ns: int, now_ns: int) -> Point | None:  # noqa: ARG002
        return None if self.value is None else super().point(attributes, start_ns, self._set_ns)
