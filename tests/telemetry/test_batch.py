"""A batch answers in bulk what a look at each value would."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_perf.telemetry.batch import Batch, index_of

BOUNDS = (0.005, 0.01, 0.1, 0.5, 1.0, 10.0)
NUMBERS = st.floats(min_value=-1, max_value=1e6, allow_nan=False) | st.integers(0, 20) | st.sampled_from(BOUNDS)


def traced(numbers, every: int):
    """The numbers, each `every`-th with a trace of its own."""
    return [(n, i + 1, i + 2, i + 3) if every and i % every == 0 else n for i, n in enumerate(numbers)]


@settings(max_examples=150, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=200), st.sampled_from([0, 1, 3]))
def test_buckets_and_their_newest_values(numbers, every):
    """Counts and exemplars of explicit bounds are those of a loop over the values, for few values and for many."""
    values = traced(numbers, every)
    batch = Batch(values)
    counts: Counter[int] = Counter()
    newest = {}
    for number, value in zip(numbers, values, strict=True):
        counts[bisect_left(BOUNDS, number)] += 1
        if isinstance(value, tuple):
            newest[bisect_left(BOUNDS, number)] = value
    assert batch.explicit(BOUNDS) == (counts, newest)
    assert list(batch.numbers) == numbers
    assert batch.total == pytest.approx(sum(numbers))
    assert list(batch.sampled) == [value for value in values if isinstance(value, tuple)]


@settings(max_examples=150, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=200), st.integers(-6, 8))
def test_exponential_buckets(numbers, scale):
    """Every number above zero is in the bucket whose bounds enclose it, and none is lost."""
    batch = Batch(numbers)
    above = [number for number in numbers if number > 0]
    counts = batch.exponential(scale)
    assert batch.zeros == len(numbers) - len(above)
    assert sum(counts.values()) == len(above)
    for index, count in counts.items():
        low, high = (math.ldexp(1.0, -scale) * each for each in (index, index + 1))
        near = 1e-9
        enclosed = [n for n in above if low - near <= math.log2(max(n, 2.0**-1022)) <= high + near]
        assert len(enclosed) >= count > 0


def test_powers_of_two_belong_to_the_bucket_below():
    """Upper bounds are inclusive; what is below the normal range falls into its lowest bucket."""
    assert [index_of(number, 0) for number in (1.0, 1.5, 2.0, 2.1)] == [-1, 0, 0, 1]
    assert index_of(4.0, 3) == 15
    assert index_of(5e-324, 0) == index_of(2.0**-1022, 0)


def test_readers_with_the_same_bounds_share_the_work():
    """The second one gets what was worked out for the first."""
    batch = Batch([0.2, (0.3, 1, 2, 3)] * 10)
    assert batch.explicit(BOUNDS)[0] is batch.explicit(BOUNDS)[0]
    assert batch.exponential(3) is batch.exponential(3)
    assert Batch.of(batch) is batch
    assert list(Batch.of([1]).numbers) == [1]


def test_a_rare_old_value_keeps_its_exemplar():
    """The newest value of a bucket is found however long ago it was."""
    values = [(9.0, 1, 1, 1), (9.5, 2, 2, 2), *traced([0.05] * 300, 1)]
    _, newest = Batch(values).explicit(BOUNDS)
    assert newest[5] == (9.5, 2, 2, 2)
    assert newest[2] == values[-1]
