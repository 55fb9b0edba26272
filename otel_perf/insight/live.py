"""What insight reads: all series since the start and of the last minute, of every worker that belongs together.

Durations are kept as base-2 exponential histograms of a fixed scale; percentiles are computed when somebody asks.
`snapshot` in `otel_perf.insight.snapshot` makes a document of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.metrics.export import NumberDataPoint

from otel_perf.telemetry.aggregation import Cell, Point
from otel_perf.telemetry.publication import Told
from otel_perf.telemetry.runtime import Runtime
from otel_perf.telemetry.series import Registry, Series
from otel_perf.telemetry.summing import Tally, Window, put
from otel_perf.telemetry.windowed import WINDOW_S, Windowed
from otel_perf.telemetry.workers import Exchange

__all__ = ["Live", "Reading", "attach", "of"]


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything up to now, whatever scope recorded it."""

    #: Metric name, attributes and value of all that is no distribution.
    numbers: list[tuple[str, Mapping[str, Any], float]]
    #: Metric name, attributes and values of the distributions.
    windows: list[tuple[str, Mapping[str, Any], Windowed]]
    uptime_s: float
    #: Workers that live, and those whose figures are in it after their end.
    living: int = 1
    ended: int = 0

    @property
    def window_s(self) -> float:
        """How many seconds the recent values cover: a minute, less right after the start."""
        return max(1.0, min(float(WINDOW_S), self.uptime_s))


class Live:
    """The reader of one runtime."""

    __slots__ = ("_clock", "_cursor", "_exchange")

    def __init__(self, registry: Registry, exchange: Exchange, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._exchange = exchange
        self._cursor = registry.cursor(self._cell, raw=True)
        exchange.windows = self._windows
        exchange.window_texts = self._texts

    def _cell(self, series: Series) -> Cell | None:
        return Told(series, self._clock) if series.instrument.metric.kind == "histogram" else None

    def _windows(self) -> list[Window]:
        with self._cursor.held() as cells:
            return [
                Window(series.instrument.metric.name, series.attributes, cell.copy())
                for series, cell in cells
                if isinstance(cell, Windowed)
            ]

    def _texts(self) -> list[str]:
        with self._cursor.held() as cells:
            return [cell.text() for _, cell in cells if isinstance(cell, Told)]

    def read(self) -> Reading:
        """The figures of all workers, as `/metrics` has them."""
        tally = self._exchange.read()
        numbers = _numbers(tally)
        windows = [(w.name, w.attributes, w.cell) for windows in tally.windows.values() for w in windows.values()]
        uptime_s = max(0.0, self._clock() - tally.started_ns / 1e9)
        return Reading(numbers, windows, uptime_s, tally.living, tally.ended)


def _numbers(tally: Tally) -> list[tuple[str, Mapping[str, Any], float]]:
    """Each number once, whatever scope and version told it, and whatever the types of its labels."""
    summed: dict[tuple[str, str], dict[frozenset[tuple[str, str]], Point]] = {}
    for figures in tally.of_reader("insight"):
        mine = summed.setdefault((figures.metric.name, figures.metric.kind), {})
        for point in figures.points.values():
            if isinstance(point, NumberDataPoint):
                shown = frozenset((name, str(value)) for name, value in (point.attributes or {}).items())
                put(mine, shown, point, figures)
    return [
        (name, point.attributes or {}, point.value)
        for (name, _), points in summed.items()
        for point in points.values()
        if isinstance(point, NumberDataPoint)
    ]


_live: dict[int, Live] = {}


def attach(runtime: Runtime) -> None:
    """Starts reading a runtime that `configure()` made; an earlier one is forgotten."""
    _live.clear()
    _live[id(runtime)] = Live(runtime.registry, runtime.exchange)


def of(runtime: Runtime) -> Live:
    """The reader of this runtime."""
    return _live[id(runtime)]
