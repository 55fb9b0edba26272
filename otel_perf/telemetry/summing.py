"""The figures of several workers added up.

| kind | of the living | of those that ended |
|---|---|---|
| counter, histogram | added | added: they never go down |
| up-down counter | added | gone with the worker |
| gauge that is set | the one that changed last; `background.job.last_success`: the largest | the same |
| gauge that is observed | the largest; `otel_perf.*`: added | gone with the worker |

Histograms of one series with other bounds are added over the bounds that they share, which is exact, and said once.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import ExponentialHistogramDataPoint, HistogramDataPoint, NumberDataPoint

from otel_perf.conventions import JOB_LAST_SUCCESS, Metric
from otel_perf.telemetry import labels, told
from otel_perf.telemetry.aggregation import Point
from otel_perf.telemetry.instrument import OVERFLOW
from otel_perf.telemetry.labels import Key
from otel_perf.telemetry.numbers import plain
from otel_perf.telemetry.series import Collected
from otel_perf.telemetry.told import Scope, exponential, exponential_point
from otel_perf.telemetry.windowed import Windowed, combine

__all__ = ["Figures", "Tally", "Window", "put"]

_FamilyKey: TypeAlias = "tuple[Scope, str, str, str, str]"

_OVERFLOW_KEY = labels.key({OVERFLOW: True})

_log = logging.getLogger("otel_perf")
_said: set[str] = set()


@dataclass(slots=True)
class Figures:
    """One metric of one scope with its points, by their labels."""

    metric: Metric
    scope: Scope
    observed: bool
    points: dict[Key, Point] = field(default_factory=dict[Key, Point])
    #: Who reads it: "all", or, where an application's views change what others see, "metrics" or "insight".
    reader: str = "all"

    @property
    def about(self) -> list[Any]:
        """What is told of it before its points."""
        metric = self.metric
        scope = self.scope.dump()
        return [scope, metric.name, metric.unit, metric.kind, metric.about, self.observed, self.reader]

    @property
    def outlives_its_worker(self) -> bool:
        """Whether what a worker told stays when it ends."""
        kind = self.metric.kind
        return kind in {"counter", "histogram"} or (kind == "gauge" and not self.observed)


@dataclass(slots=True)
class Window:
    """What insight keeps of one series."""

    name: str
    attributes: Mapping[str, Any]
    cell: Windowed


@dataclass(slots=True)
class Tally:
    """All figures of one worker, or of several."""

    started_ns: int
    living: int = 1
    ended: int = 0
    families: dict[_FamilyKey, Figures] = field(default_factory=dict[_FamilyKey, Figures])
    windows: dict[str, dict[Key, Window]] = field(default_factory=dict[str, dict[Key, Window]])
    #: Series per metric; what is beyond goes into the overflow series.
    limit: int | None = None

    def take(self, collected: Iterable[Collected], reader: str = "all") -> None:
        """Puts in what was collected for a reader."""
        for each in collected:
            of = each.instrument
            points = self._family(Figures(of.metric, Scope.of(of.scope), bool(of.observers), reader=reader)).points
            exact = map(told.exact, each.points)
            points.update((labels.key(point.attributes or {}), point) for point in exact)

    def take_windows(self, windows: Iterable[Window]) -> None:
        """Puts in what insight keeps."""
        for window in windows:
            self._take_window(window)

    def of_reader(self, reader: str) -> Iterator[Figures]:
        """What is for this reader."""
        return (figures for figures in self.families.values() if figures.reader in {"all", reader})

    def add(self, other: Tally, *, living: bool = True) -> None:
        """Adds another's figures; of a worker that ended only what outlives it. The other is used up."""
        self.started_ns = min(self.started_ns, other.started_ns)
        self.living += other.living if living else 0
        self.ended += other.ended + (0 if living else other.living)
        for figures in other.families.values():
            if living or figures.outlives_its_worker:
                mine = self._family(figures).points
                for key, point in figures.points.items():
                    put(mine, *self._place(mine, key, point), figures)
        for windows in other.windows.values():
            for window in windows.values():
                self._take_window(window)

    def _family(self, like: Figures) -> Figures:
        metric = like.metric
        key = (like.scope, metric.name, metric.unit, metric.kind, like.reader)
        return self.families.setdefault(key, replace(like, points={}))

    def _place(self, points: Mapping[Key, Point], key: Key, point: Point) -> tuple[Key, Point]:
        if not self._is_full(points, key):
            return key, point
        return _OVERFLOW_KEY, replace(point, attributes={OVERFLOW: True})

    def _is_full(self, known: Mapping[Key, object], key: Key) -> bool:
        return self.limit is not None and key not in known and len(known) >= self.limit - 1

    def _take_window(self, window: Window) -> None:
        known, key = self.windows.setdefault(window.name, {}), labels.key(window.attributes)
        if self._is_full(known, key):
            key, window = _OVERFLOW_KEY, Window(window.name, {OVERFLOW: True}, window.cell)
        if key in known:
            known[key].cell.merge(window.cell)
        else:
            known[key] = window

    def dump(self) -> dict[str, str]:
        """The parts of `told.document`, which `load` takes back."""
        families = [entry for figures in self.families.values() for entry in _dumped(figures)]
        listed = [window for windows in self.windows.values() for window in windows.values()]
        windows = [[each.name, dict(each.attributes), *each.cell.dump()] for each in listed]
        parts = {"started_ns": self.started_ns, "ended": self.ended, "families": families, "windows": windows}
        return {name: told.encode(part) for name, part in parts.items()}

    @classmethod
    def load(cls, read: Mapping[str, Any], *, windows: bool = True) -> Tally:
        """What another worker's file told, with or without what insight keeps.

        Raises:
            one of told.MALFORMED: for anything else.
        """
        made = cls(int(read["started_ns"]), ended=int(read["ended"]))
        for scope, name, unit, kind, about, observed, reader, bounds, rows in read["families"]:
            metric = told.metric_of(name, unit, kind, about)
            family = made._family(Figures(metric, Scope.load(scope), bool(observed), reader=reader))
            for attributes, *rest in rows:
                clean = told.attributes_of(attributes)
                family.points[labels.key(clean)] = told.point_of(clean, kind, bounds, rest)
        for name, attributes, *cell in read["windows"] if windows else ():
            made._take_window(Window(name, told.attributes_of(attributes), Windowed.load(cell)))
        return made


def _dumped(figures: Figures) -> list[list[Any]]:
    """One entry, or one for each set of bounds."""
    entries: dict[Any, list[Any]] = {}
    for point in figures.points.values():
        try:
            bounds, row = told.row(point)
        except (TypeError, ValueError):  # recorded past the API, and no number: it must not cost the others
            continue
        entries.setdefault(bounds, [*figures.about, bounds, []])[-1].append(row)
    return list(entries.values())


# Two points of one series ---------------------------------------------------------------------------------------------


def put(points: dict[Any, Point], key: Any, point: Point, figures: Figures) -> None:
    """Adds a point to the one that has this key already, by the rule of its metric."""
    known = points.get(key)
    if known is None:
        points[key] = point
    elif type(known) is type(point):
        points[key] = _adder(figures)(known, point)
    else:
        _say(f"a series came as {type(known).__name__} and as {type(point).__name__}: the first is kept")


def _adder(figures: Figures) -> Callable[[Any, Any], Point]:
    metric = figures.metric
    if metric.kind == "histogram":
        return lambda one, other: _histograms(metric.name, one, other)
    if metric.kind != "gauge" or (figures.observed and metric.name.startswith("otel_perf.")):
        return lambda one, other: _numbers(one, other, one.value + other.value)
    if figures.observed or metric.name == JOB_LAST_SUCCESS.name:
        return lambda one, other: one if one.value >= other.value else other
    return lambda one, other: max(one, other, key=lambda point: (point.time_unix_nano, point.value))


def _numbers(one: NumberDataPoint, other: NumberDataPoint, value: float) -> NumberDataPoint:
    newest = max([*one.exemplars, *other.exemplars], key=lambda each: each.time_unix_nano, default=None)
    return NumberDataPoint(
        one.attributes, min(one.start_time_unix_nano, other.start_time_unix_nano),
        max(one.time_unix_nano, other.time_unix_nano), plain(value), [newest] if newest else [],
    )  # fmt: skip


def _histograms(name: str, one: Any, other: Any) -> Point:
    if isinstance(one, ExponentialHistogramDataPoint):
        return _exponentials(one, other)
    if one.explicit_bounds != other.explicit_bounds:
        _say(f"workers count metric {name} in other buckets: it is shown in those that they share")
        shared = tuple(sorted(set(one.explicit_bounds) & set(other.explicit_bounds)))
        one, other = _rebucketed(one, shared), _rebucketed(other, shared)
    bounds = one.explicit_bounds
    counts = tuple(map(sum, zip(one.bucket_counts, other.bucket_counts, strict=True)))
    newest: dict[int, Exemplar] = {}
    for each in sorted([*one.exemplars, *other.exemplars], key=lambda each: each.time_unix_nano):
        newest[bisect_left(bounds, each.value)] = each
    return HistogramDataPoint(
        one.attributes, min(one.start_time_unix_nano, other.start_time_unix_nano),
        max(one.time_unix_nano, other.time_unix_nano), one.count + other.count, one.sum + other.sum, counts, bounds,
        min(one.min, other.min), max(one.max, other.max), [newest[index] for index in sorted(newest)],
    )  # fmt: skip


def _rebucketed(point: HistogramDataPoint, bounds: tuple[float, ...]) -> HistogramDataPoint:
    counts = [0] * (len(bounds) + 1)
    for index, count in enumerate(point.bucket_counts):
        upper = point.explicit_bounds[index] if index < len(point.explicit_bounds) else float("inf")
        counts[bisect_left(bounds, upper)] += count
    return replace(point, bucket_counts=tuple(counts), explicit_bounds=bounds)


def _exponentials(one: ExponentialHistogramDataPoint, other: ExponentialHistogramDataPoint) -> Point:
    whole = exponential(one)
    combine(whole, exponential(other))
    start_ns = min(one.start_time_unix_nano, other.start_time_unix_nano)
    newest = max([*one.exemplars, *other.exemplars], key=lambda each: each.time_unix_nano, default=None)
    now_ns = max(one.time_unix_nano, other.time_unix_nano)
    return exponential_point(whole, one.attributes, start_ns, now_ns, [newest] if newest else [])


def _say(what: str) -> None:
    if what not in _said:
        _said.add(what)
        _log.warning("otel_perf: %s", what)
