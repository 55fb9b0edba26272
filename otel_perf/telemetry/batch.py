"""A batch: the values of one fold of one series, with what several readers want to know of them worked out once.

Readers that have the same bounds or the same scale share the work. It is done in bulk by C functions: the numbers are
sorted once, and the bounds are looked up among the numbers instead of each number among the bounds.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any, TypeAlias, cast

__all__ = ["Batch", "Number", "Sampled", "Value", "index_of"]

Number: TypeAlias = "int | float"
#: A value with the trace it was recorded in: (value, trace id, span id, unix time in ns).
Sampled: TypeAlias = "tuple[Number, int, int, int]"
Value: TypeAlias = "Number | Sampled"

# Fewer numbers than this are looked up one by one.
_BULK = 12
# So many of the newest values are asked for their bucket's exemplar before the older ones are searched.
_NEWEST = 64

_number: Any = itemgetter(0)


class Batch(list[Value]):
    """Recorded values, oldest first; made under the fold lock and thrown away after it."""

    __slots__ = ("_explicit", "_exponential", "_ordered", "numbers", "sampled", "total")

    numbers: Sequence[Number]
    #: The values that have a trace, oldest first.
    sampled: Sequence[Sampled]

    def __init__(self, values: Iterable[Value]) -> None:
        super().__init__(values)
        # Asking for forgiveness is the quickest way to tell bare numbers from sampled values.
        try:
            self.total: Number = sum(cast("list[Number]", self))
            self.numbers, self.sampled = cast("list[Number]", self), ()
        except TypeError:
            self._take_apart()
            self.total = sum(self.numbers)
        self._ordered: list[Number] | None = None
        self._explicit: list[tuple[tuple[float, ...], dict[int, int], dict[int, Sampled]]] = []
        self._exponential: dict[int, Mapping[int, int]] = {}

    def _take_apart(self) -> None:
        try:
            self.numbers, self.sampled = list(map(_number, self)), cast("list[Sampled]", self)
        except TypeError:
            self.numbers = [value[0] if isinstance(value, tuple) else value for value in self]
            self.sampled = [value for value in self if isinstance(value, tuple)]

    @classmethod
    def of(cls, values: Sequence[Value]) -> Batch:
        """The values as a batch; a batch is handed back as it is."""
        return values if isinstance(values, Batch) else cls(values)

    @property
    def ordered(self) -> list[Number]:
        """The numbers, smallest first."""
        ordered = self._ordered
        if ordered is None:
            ordered = self._ordered = sorted(self.numbers)
        return ordered

    def explicit(self, bounds: tuple[float, ...]) -> tuple[dict[int, int], dict[int, Sampled]]:
        """How many numbers each bucket gets (upper bounds inclusive), and the newest sampled value of each."""
        for known, counts, newest in self._explicit:
            if known is bounds:
                return counts, newest
        if len(self) < _BULK:
            counts = dict(Counter(map(bisect_left, repeat(bounds), self.numbers)))
            newest = _by_bucket(bounds, self.sampled)
        else:
            cuts = [*map(bisect_right, repeat(self.ordered), bounds), len(self)]
            counts = _between(cuts, 0, 0)
            newest = self._newest(bounds, counts, cuts) if self.sampled else {}
        self._explicit.append((bounds, counts, newest))
        return counts, newest

    def _newest(self, bounds: tuple[float, ...], counts: dict[int, int], cuts: list[int]) -> dict[int, Sampled]:
        newest = _by_bucket(bounds, self.sampled[-_NEWEST:])
        missing = counts.keys() - newest.keys()
        if missing:
            # Rare buckets: their numbers are few, so that most older values are passed over by one look into a set.
            rare = {number for each in missing for number in self.ordered[cuts[each - 1] if each else 0 : cuts[each]]}
            older = [value for value in self.sampled[:-_NEWEST] if value[0] in rare]
            newest = {**_by_bucket(bounds, older), **newest}
        return newest

    @property
    def zeros(self) -> int:
        """How many numbers are zero or below.

        Durations and sizes have no negative values; what a clock step makes negative counts as zero.
        """
        return bisect_right(self.ordered, 0)

    def exponential(self, scale: int) -> Mapping[int, int]:
        """How many of the numbers above zero each base-2 exponential bucket of this scale gets."""
        found = self._exponential.get(scale)
        if found is None:
            found = self._exponential[scale] = _exponential(self.ordered, self.zeros, scale)
        return found


def index_of(number: float, scale: int) -> int:
    """The base-2 exponential bucket of a number above zero: bucket i holds (base^i, base^(i+1)]."""
    # Below the normal range the SDK has one bucket for all.
    return math.ceil(math.log2(max(number, sys.float_info.min)) * math.ldexp(1.0, scale)) - 1


def _exponential(ordered: list[Number], zeros: int, scale: int) -> Mapping[int, int]:
    count = len(ordered) - zeros
    if not count:
        return {}
    low, high = index_of(ordered[zeros], scale), index_of(ordered[-1], scale)
    if low == high:
        return {low: count}
    if high - low >= 4 * count:
        return Counter(index_of(number, scale) for number in ordered[zeros:])
    factor = math.ldexp(1.0, -scale)
    bounds = [2.0 ** (index * factor) for index in range(low + 1, high + 1)]
    return _between([*map(bisect_right, repeat(ordered), bounds), len(ordered)], low, zeros)


def _between(cuts: list[int], first: int, before: int) -> dict[int, int]:
    counts: dict[int, int] = {}
    for index, cut in enumerate(cuts, first):
        if cut != before:
            counts[index] = cut - before
            before = cut
    return counts


def _by_bucket(bounds: tuple[float, ...], sampled: Sequence[Sampled]) -> dict[int, Sampled]:
    # Of several values of a bucket the last one stays.
    numbers: Iterable[Number] = map(_number, sampled)
    return dict(zip(map(bisect_left, repeat(bounds), numbers), sampled, strict=True))
