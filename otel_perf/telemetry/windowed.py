"""A cell over time: all values, and those of the last minute apart, as exponential histograms that add up exactly.

The minute is twelve slots of five seconds on the wall clock, so that the slots of several workers are the same ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from otel_perf.telemetry.aggregation import Exponential, Point, Value
from otel_perf.telemetry.numbers import plain

__all__ = ["SLOTS", "SLOT_S", "WINDOW_S", "Windowed", "combine", "packed", "unpacked"]

SLOT_S = 5
SLOTS = 12
WINDOW_S = SLOT_S * SLOTS
_LOWEST_SCALE, _HIGHEST_SCALE = -10, 20
_DOUBLINGS = 1100
_MOST_BUCKETS = 100_000


class Windowed:
    """A cell that keeps all values, and those of the last minute apart."""

    __slots__ = ("_clock", "_slots", "total")

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.total = Exponential()
        self._slots: dict[int, Exponential] = {}

    def feed(self, batch: Sequence[Value]) -> None:
        """Adds recorded values to the slot of now."""
        self.total.feed(batch)
        number = self._now()
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = Exponential()
            self._forget(number)
        slot.feed(batch)

    def _now(self) -> int:
        return int(self._clock() // SLOT_S)

    def _forget(self, number: int) -> None:
        for old in [each for each in self._slots if not _is_recent(each, number)]:
            del self._slots[old]

    def recent(self) -> Exponential:
        """The values of the last minute."""
        merged = Exponential()
        number = self._now()
        for each, slot in self._slots.items():
            if _is_recent(each, number):
                combine(merged, slot)
        return merged

    def merge(self, other: Windowed) -> None:
        """Adds what another worker counted, slot by slot."""
        combine(self.total, other.total)
        for number, slot in other._slots.items():
            combine(self._slots.setdefault(number, Exponential()), slot)
        self._forget(self._now())

    def copy(self) -> Windowed:
        """The same figures in an object that nobody feeds."""
        made = Windowed(self._clock)
        made.total = _copy(self.total)
        made._slots = {number: _copy(slot) for number, slot in self._slots.items()}
        return made

    def dump(self) -> list[Any]:
        """Plain JSON types, which `load` takes back."""
        number = self._now()
        slots = {str(each): packed(slot) for each, slot in self._slots.items() if _is_recent(each, number)}
        return [packed(self.total), slots]

    @classmethod
    def load(cls, told: Sequence[Any], clock: Callable[[], float] = time.time) -> Windowed:
        """What another worker's `dump` told."""
        made = cls(clock)
        total, slots = told
        made.total = unpacked(total)
        made._slots = {int(number): unpacked(slot) for number, slot in slots.items()}
        return made

    def point(self, attributes: Mapping[str, Any], start_ns: int, now_ns: int) -> Point | None:
        """The point of all values."""
        return self.total.point(attributes, start_ns, now_ns)

    def reset(self) -> None:
        """Starts anew."""
        self.total.reset()
        self._slots.clear()


def _is_recent(number: int, now: int) -> bool:
    # One slot ahead is another worker a moment later; more is a clock that was set back.
    return now - SLOTS < number <= now + 1


def combine(into: Exponential, other: Exponential) -> None:
    """Adds a histogram of any scale, at the lower resolution of the two."""
    scale = min(into.scale, other.scale)
    _coarsen(into, into.scale - scale)
    if other.scale != scale:
        finer, other = other, Exponential(scale)
        other.merge(finer)
        _coarsen(other, finer.scale - scale)
    into.merge(other)
    into.scale = scale


def _copy(histogram: Exponential) -> Exponential:
    made = Exponential(histogram.scale)
    made.buckets = histogram.buckets.copy()
    made.zeros, made.count, made.total = histogram.zeros, histogram.count, histogram.total
    made.minimum, made.maximum = histogram.minimum, histogram.maximum
    return made


def _coarsen(histogram: Exponential, steps: int) -> None:
    # Bucket i of one scale lies wholly in bucket i >> steps of a scale that is so many steps lower.
    if steps:
        coarse: dict[int, int] = {}
        for index, count in histogram.buckets.items():
            coarse[index >> steps] = coarse.get(index >> steps, 0) + count
        histogram.buckets = coarse
        histogram.scale -= steps


def packed(histogram: Exponential) -> list[Any]:
    """A histogram as a short list of plain JSON types."""
    return [
        histogram.scale, histogram.zeros, histogram.count, histogram.total, histogram.minimum, histogram.maximum,
        list(histogram.buckets), list(histogram.buckets.values()),
    ]  # fmt: skip


def unpacked(told: Sequence[Any]) -> Exponential:
    """The histogram of such a list.

    Raises:
        TypeError, ValueError: for what is no histogram.
    """
    scale, zeros, count, total, minimum, maximum, indexes, counts = told
    made = Exponential(int(scale))
    made.buckets = {int(index): int(n) for index, n in zip(indexes, counts, strict=True)}
    # No float lies beyond; a point would have a count for each bucket between the outermost ones.
    furthest = max(map(abs, made.buckets), default=0)
    if not _LOWEST_SCALE <= made.scale <= _HIGHEST_SCALE or furthest > _DOUBLINGS * 2.0**made.scale + 1:
        raise ValueError("there are no such buckets")
    if len(made.buckets) > 1 and max(made.buckets) - min(made.buckets) > _MOST_BUCKETS:
        raise ValueError("the buckets lie too far apart")
    made.zeros, made.count, made.total = int(zeros), int(count), plain(total)
    made.minimum, made.maximum = plain(minimum), plain(maximum)
    return made
