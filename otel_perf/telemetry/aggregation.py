"""Cells: what one reader has added up for one series, and the points that are made of it.

A cell is fed by batches under the registry's fold lock, so it has no lock of its own. Points are the public data
point classes of `opentelemetry.sdk.metrics.export`, so that stock readers and exporters take them as they are.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    Buckets,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    NumberDataPoint,
)

from otel_perf.telemetry.numbers import plain

__all__ = ["Cell", "Explicit", "Exponential", "LastValue", "Number", "Point", "Sampled", "Sum", "Value", "quantile"]

Number: TypeAlias = "int | float"
#: A value with the trace it was recorded in: (value, trace id, span id, unix time in ns).
Sampled: TypeAlias = "tuple[Number, int, int, int]"
Value: TypeAlias = "Number | Sampled"
Attributes: TypeAlias = "Mapping[str, str | int | float | bool | Sequence[str]]"
Point: TypeAlias = "NumberDataPoint | HistogramDataPoint | ExponentialHistogramDataPoint"


class Cell(Protocol):
    """What one reader adds up for one series."""

    def feed(self, batch: Sequence[Value]) -> None:
        """Adds recorded values, oldest first."""

    def point(self, attributes: Attributes, start_ns: int, now_ns: int) -> Point | None:
        """The point so far, or None when there is nothing to say."""

    def reset(self) -> None:
        """Starts anew: for readers that want the change since the last point."""


def _exemplar(value: Sampled) -> Exemplar:
    return Exemplar({}, value[0], value[3], value[2], value[1])


def _numbers(batch: Sequence[Value]) -> list[Number]:
    return [value[0] if isinstance(value, tuple) else value for value in batch]


class Sum:
    """The sum of all values: counters and up-down counters."""

    __slots__ = ("_exemplar", "_touched", "total")

    def __init__(self) -> None:
        self.total: Number = 0
        self._touched = False
        self._exemplar: Sampled | None = None

    def feed(self, batch: Sequence[Value]) -> None:
        self._touched = True
        self.total += sum(_numbers(batch))
        self._exemplar = next((value for value in reversed(batch) if isinstance(value, tuple)), self._exemplar)

    def point(self, attributes: Attributes, start_ns: int, now_ns: int) -> Point | None:
        if not self._touched:
            return None
        exemplars = [_exemplar(self._exemplar)] if self._exemplar else []
        # A sum of whole numbers can outgrow the 64 bits that exporters write.
        return NumberDataPoint(attributes, start_ns, now_ns, plain(self.total), exemplars)

    def reset(self) -> None:
        self.total, self._touched, self._exemplar = 0, False, None


class LastValue:
    """The newest value: gauges."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Number | None = None

    def feed(self, batch: Sequence[Value]) -> None:
        last = batch[-1]
        self.value = last[0] if isinstance(last, tuple) else last

    def point(self, attributes: Attributes, start_ns: int, now_ns: int) -> Point | None:  # noqa: ARG002
        # A value of now has no start, so `start_ns` is not used.
        if self.value is None:
            return None
        return NumberDataPoint(attributes, 0, now_ns, self.value, [])

    def reset(self) -> None:
        self.value = None


class Explicit:
    """A histogram over fixed bounds (upper bounds inclusive), with the newest exemplar of each bucket."""

    __slots__ = ("_exemplars", "bounds", "count", "counts", "maximum", "minimum", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.reset()

    def reset(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)
        self.count = 0
        self.total: Number = 0
        self.minimum: Number = math.inf
        self.maximum: Number = -math.inf
        self._exemplars: dict[int, Sampled] = {}

    def feed(self, batch: Sequence[Value]) -> None:
        bounds, counts, exemplars = self.bounds, self.counts, self._exemplars
        numbers = _numbers(batch)
        for value, number in zip(batch, numbers, strict=True):
            index = bisect_left(bounds, number)
            counts[index] += 1
            if isinstance(value, tuple):
                exemplars[index] = value
        self.count += len(numbers)
        self.total += sum(numbers)
        self.minimum = min((self.minimum, *numbers))
        self.maximum = max((self.maximum, *numbers))

    def point(self, attributes: Attributes, start_ns: int, now_ns: int) -> Point | None:
        if not self.count:
            return None
        exemplars = [_exemplar(self._exemplars[index]) for index in sorted(self._exemplars)]
        return HistogramDataPoint(
            attributes, start_ns, now_ns, self.count, self.total, tuple(self.counts), self.bounds,
            self.minimum, self.maximum, exemplars,
        )  # fmt: skip


class Exponential:
    """A base-2 exponential histogram: bucket i holds (base^i, base^(i+1)], base = 2^(2^-scale).

    With `max_size` the scale falls as the range grows, as the data model asks; without, the scale is fixed, so that
    histograms of windows, workers and hosts merge exactly. Scale 3 keeps percentiles within 4.5 %.
    Source: OpenTelemetry metrics data model, "Exponential Histogram".
    """

    __slots__ = (
        "_exemplar",
        "_max_size",
        "_scale",
        "buckets",
        "count",
        "maximum",
        "minimum",
        "scale",
        "total",
        "zeros",
    )

    def __init__(self, scale: int = 3, max_size: int | None = None) -> None:
        self._scale = scale
        self._max_size = max_size
        self.reset()

    def reset(self) -> None:
        self.scale = self._scale
        self.buckets: dict[int, int] = {}
        self.zeros = 0
        self.count = 0
        self.total: Number = 0
        self.minimum: Number = math.inf
        self.maximum: Number = -math.inf
        self._exemplar: Sampled | None = None

    def feed(self, batch: Sequence[Value]) -> None:
        numbers = _numbers(batch)
        if self._max_size is None:
            self._count(numbers)
        else:
            for number in numbers:
                known = len(self.buckets)
                self._count((number,))
                if len(self.buckets) > known:
                    self._downscale(self._max_size)
        self._exemplar = next((value for value in reversed(batch) if isinstance(value, tuple)), self._exemplar)
        self.count += len(numbers)
        self.total += sum(numbers)
        self.minimum = min((self.minimum, *numbers))
        self.maximum = max((self.maximum, *numbers))

    def _count(self, numbers: Sequence[Number]) -> None:
        factor = math.ldexp(1.0, self.scale)
        buckets, log2, ceil, smallest = self.buckets, math.log2, math.ceil, sys.float_info.min
        for number in numbers:
            if number > smallest:
                index = ceil(log2(number) * factor) - 1
            elif number > 0:  # below the normal range, where the SDK has one bucket for all
                index = ceil(log2(smallest) * factor) - 1
            else:
                # Durations and sizes have no negative values; what a clock step makes negative counts as zero.
                self.zeros += 1
                continue
            buckets[index] = buckets.get(index, 0) + 1

    def _downscale(self, max_size: int) -> None:
        """Halves the resolution until the range fits, as the data model describes it."""
        low, high, steps = min(self.buckets), max(self.buckets), 0
        while (high >> steps) - (low >> steps) >= max_size:
            steps += 1
        if not steps:
            return
        coarse: dict[int, int] = {}
        for index, count in self.buckets.items():
            coarse[index >> steps] = coarse.get(index >> steps, 0) + count
        self.buckets = coarse
        self.scale -= steps

    def merge(self, other: Exponential) -> None:
        """Adds another histogram of the same scale."""
        for index, count in other.buckets.items():
            self.buckets[index] = self.buckets.get(index, 0) + count
        self.zeros += other.zeros
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def point(self, attributes: Attributes, start_ns: int, now_ns: int) -> Point | None:
        if not self.count:
            return None
        low = min(self.buckets, default=0)
        size = max(self.buckets) - low + 1 if self.buckets else 0
        counts = [self.buckets.get(low + step, 0) for step in range(size)]
        exemplars = [_exemplar(self._exemplar)] if self._exemplar else []
        return ExponentialHistogramDataPoint(
            attributes, start_ns, now_ns, self.count, self.total, self.scale, self.zeros,
            Buckets(low, counts), Buckets(0, []), 0, self.minimum, self.maximum, exemplars,
        )  # fmt: skip


def quantile(histogram: Exponential, share: float) -> float | None:
    """The value below which `share` (0 to 1) of the values lie; None without values.

    It is the geometric middle of its bucket, held within the smallest and largest value seen; the last is exact.
    """
    if not histogram.count:
        return None
    rank = max(1, math.ceil(share * histogram.count))
    seen = histogram.zeros
    if rank <= seen:
        return 0.0
    if rank >= histogram.count:
        return float(histogram.maximum)
    for index in sorted(histogram.buckets):
        seen += histogram.buckets[index]
        if seen >= rank:
            middle = 2.0 ** ((index + 0.5) / 2.0**histogram.scale)
            return float(min(max(middle, histogram.minimum), histogram.maximum))
    return float(histogram.maximum)
