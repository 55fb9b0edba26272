"""The in-process reader: one cursor on the registry, kept as base-2 exponential histograms of a fixed scale.

For each series it keeps all values since the start and those of the last minute, in twelve slots of five seconds.
Percentiles are computed when somebody asks. `snapshot` in `otel_perf.insight.snapshot` makes a document of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from otel_perf.telemetry.aggregation import Cell, Exponential, LastValue, Point, Sum, Value
from otel_perf.telemetry.runtime import Runtime
from otel_perf.telemetry.series import Registry, Series

__all__ = ["SLOTS", "SLOT_S", "WINDOW_S", "Live", "Windowed", "attach", "of"]

SLOT_S = 5
SLOTS = 12
WINDOW_S = SLOT_S * SLOTS


class Windowed:
    """A cell that keeps all values, and those of the last minute apart."""

    __slots__ = ("_clock", "_slots", "total")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.total = Exponential()
        self._slots: dict[int, Exponential] = {}

    def feed(self, batch: Sequence[Value]) -> None:
        self.total.feed(batch)
        number = int(self._clock() // SLOT_S)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = Exponential()
            self._forget(number)
        slot.feed(batch)

    def _forget(self, number: int) -> None:
        for old in [each for each in self._slots if each <= number - SLOTS]:
            del self._slots[old]

    def recent(self) -> Exponential:
        """The values of the last minute."""
        merged = Exponential()
        number = int(self._clock() // SLOT_S)
        for each, slot in list(self._slots.items()):
            if each > number - SLOTS:
                merged.merge(slot)
        return merged

    def point(self, attributes: Mapping[str, Any], start_ns: int, now_ns: int) -> Point | None:
        return self.total.point(attributes, start_ns, now_ns)

    def reset(self) -> None:
        self.total.reset()
        self._slots.clear()


class Live:
    """All series since the start and of the last minute."""

    __slots__ = ("_clock", "_cursor", "started_s")

    def __init__(self, registry: Registry, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.started_s = clock()
        self._cursor = registry.cursor(self._cell)

    def _cell(self, series: Series) -> Cell:
        kind = series.instrument.metric.kind
        if kind == "histogram":
            return Windowed(self._clock)
        return LastValue() if kind == "gauge" else Sum()

    @property
    def uptime_s(self) -> float:
        """Seconds since this reader began."""
        return self._clock() - self.started_s

    @property
    def window_s(self) -> float:
        """How many seconds the recent values cover: a minute, less right after the start."""
        return max(1.0, min(float(WINDOW_S), self.uptime_s))

    @contextmanager
    def held(self) -> Generator[list[tuple[str, Mapping[str, Any], Cell]], None, None]:
        """Metric name, attributes and cell of every series up to now, whatever scope recorded it, still for a block."""
        with self._cursor.held() as cells:
            yield [(series.instrument.metric.name, series.attributes, cell) for series, cell in cells]

    def observed(self) -> Iterator[tuple[str, Mapping[str, Any], float]]:
        """Metric name, attributes and value of everything that is observed on demand."""
        for instrument, pairs in self._cursor.observe():
            for value, attributes in pairs:
                yield instrument.metric.name, attributes, value


_live: dict[int, Live] = {}


def attach(runtime: Runtime) -> None:
    """Starts reading a runtime that `configure()` made; an earlier one is forgotten."""
    _live.clear()
    _live[id(runtime)] = Live(runtime.registry)


def of(runtime: Runtime) -> Live:
    """The reader of this runtime."""
    return _live[id(runtime)]
