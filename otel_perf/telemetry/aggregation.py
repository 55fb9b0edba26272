"""Cells: what one reader has added up for one series, and the points that are made of it.

A cell is fed by batches under the registry's fold lock, so it has no lock of its own. Points are the public data
point classes of `opentelemetry.sdk.metrics.export`, so that stock readers and exporters take them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    Buckets,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    NumberDataPoint,
)

from otel_perf.telemetry.batch import Batch, Number, Sampled, Value, index_of
from otel_perf.telemetry.numbers import plain

__all__ = [
    "Cell",
    "Exampled",
    "Explicit",
    "Exponential",
    "LastValue",
    "Number",
    "Point",
    "Sampled",
    "Sum",
    "Value",
    "quantile",
]

Attributes: TypeAlias = "Mapping[str, str | int | float | bool | Sequence[str]]"
Point: TypeAlias = "NumberDataPoint | HistogramDataPoint | ExponentialHistogramDataPoint"


class Cell(Protocol):
    """What one reader adds up for one series."""

    def feed(self, batch: Sequence[Value]) -> None:
        """Adds recorded values, oldest first. The registry hands a `Batch` over, which readers share."""

    def point(self, attributes: Attributes, start_ns: int, now_ns: int) -> Point | None:
        """The point so far, or None when there is nothing to say."""

    def reset(self) -> None:
        """Starts anew: for readers that want the change since the last point."""


def _exemplar(value: Sampled) -> Exemplar:
    return Exemplar({}, value[0], value[3], value[2], value[1])


class Exampled:
    """A cell that keeps the newest exemplar, or that of each bucket."""

    __slots__ = ("_examples",)

    def __init__(self) -> None:
        self._examples: dict[int, Sampled] = {}

    def _example(self, index: int, sampled: Sampled) -> None:
        # Where views drop attributes, batches of several series come here one after the other, whatever their times.
        kept = self._examples.get(index)
        if kept is None or kept[3] <= sampled[3]:
            self._examples[index] = sampled

    def forget_exemplars(self) -> None:
        """Drops the exemplars: those of a point belong to the time since the last one."""
        self._examples = {}

    def _exemplars(self) -> list[Exemplar]:
        examples = self._examples
        return [_exemplar(examples[index]) for index in sorted(examples)] if examples else []


class Sum(Exampled):
    """The sum of all values: counters and up-down counters."""

    __slots__ = ("_touched", "total")

    def __init__(self) -> None:
        self.reset()

    def feed(self, batch: Sequence[Value]) -> None:
        batch = Batch.of(batch)
        self._touched = True
        self.total += batch.total
        if batch.sampled:
            self._example(0, batch.sampled[-1])

    def point(self, attributes: Attributes, start_ns: int, now_ns: int) -> Point | None:
        if not self._touched:
            return None
        # A sum of whole numbers can outgrow the 64 bits that exporters write.
        return NumberDataPoint(attributes, start_ns, now_ns, plain(self.total), self._exemplars())

    def reset(self) -> None:
        self.total: Number = 0
        self._touched = False
        self.forget_exemplars()


class LastValue(Exampled):
    """The newest value: gauges."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        super().__init__()
        self.value: Number | None = None

    def feed(self, batch: Sequence[Value]) -> None:
        batch = Batch.of(batch)
        self.value = batch.numbers[-1]
        if batch.sampled:
            self._example(0, batch.sampled[-1])

    def point(self, attributes: Attributes, start_ns: int, now_ns: int) -> Point | None:  # noqa: ARG002
        # A value of now has no start, so `start_ns` is not used.
        if self.value is None:
            return None
        return NumberDataPoint(attributes, 0, now_ns, self.value, self._exemplars())

    def reset(self) -> None:
        self.value = None
        self.forget_exemplars()


class Explicit(Exampled):
    """A histogram over fixed bounds (upper bounds inclusive), with the newest exemplar of each bucket."""

    __slots__ = ("bounds", "count", "counts", "maximum", "minimum", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.reset()

    def reset(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)
        self.count = 0
        self.total: Number = 0
        self.minimum: Number = math.inf
        self.maximum: Number = -math.inf
        self.forget_exemplars()

    def feed(self, batch: Sequence[Value]) -> None:
        batch = Batch.of(batch)
        if not batch:
            return
        counts = self.counts
        more, newest = batch.explicit(self.bounds)
        for index, count in more.items():
            counts[index] += count
        if newest:
            for index, sampled in newest.items():
                self._example(index, sampled)
        ordered = batch.ordered
        self.count += len(batch)
        self.total += batch.total
        self.minimum = min(self.minimum, ordered[0])
        self.maximum = max(self.maximum, ordered[-1])

    def point(self, attributes: Attributes, start_ns: int, now_ns: int) -> Point | None:
        if not self.count:
            return None
        return HistogramDataPoint(
            attributes, start_ns, now_ns, self.count, self.total, tuple(self.counts), self.bounds,
            self.minimum, self.maximum, self._exemplars(),
        )  # fmt: skip


class Exponential(Exampled):
    """A base-2 exponential histogram: bucket i holds (base^i, base^(i+1)], base = 2^(2^-scale).

    With `max_size` the scale falls as the range grows, as the data model asks; without, the scale is fixed, so that
    histograms of windows, workers and hosts merge exactly. Scale 3 keeps percentiles within 4.5 %.
    Source: OpenTelemetry metrics data model, "Exponential Histogram".
    """

    __slots__ = ("_max_size", "_scale", "buckets", "count", "maximum", "minimum", "scale", "total", "zeros")

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
        self.forget_exemplars()

    def feed(self, batch: Sequence[Value]) -> None:
        batch = Batch.of(batch)
        if not batch:
            return
        ordered, zeros, buckets = batch.ordered, batch.zeros, self.buckets
        if self._max_size is not None and zeros < len(ordered):
            buckets = self._make_room(ordered[zeros], ordered[-1], self._max_size)
        for index, count in batch.exponential(self.scale).items():
            buckets[index] = buckets.get(index, 0) + count
        if batch.sampled:
            self._example(0, batch.sampled[-1])
        self.zeros += zeros
        self.count += len(ordered)
        self.total += batch.total
        self.minimum = min(self.minimum, ordered[0])
        self.maximum = max(self.maximum, ordered[-1])

    def _make_room(self, smallest: Number, largest: Number, max_size: int) -> dict[int, int]:
        """Halves the resolution until these numbers fit too, as the data model describes it."""
        low, high = index_of(smallest, self.scale), index_of(largest, self.scale)
        if self.buckets:
            low, high = min(low, *self.buckets), max(high, *self.buckets)
        steps = 0
        while (high >> steps) - (low >> steps) >= max_size:
            steps += 1
        if steps:
            coarse: dict[int, int] = {}
            for index, count in self.buckets.items():
                coarse[index >> steps] = coarse.get(index >> steps, 0) + count
            self.buckets = coarse
            self.scale -= steps
        return self.buckets

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
        return ExponentialHistogramDataPoint(
            attributes, start_ns, now_ns, self.count, self.total, self.scale, self.zeros,
            Buckets(low, counts), Buckets(0, []), 0, self.minimum, self.maximum, self._exemplars(),
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
