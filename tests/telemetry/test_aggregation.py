"""Cells add up what the stock SDK adds up, and quantiles are as exact as they say."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource

from otel_perf.telemetry.aggregation import Explicit, Exponential, LastValue, Sum, quantile

DURATIONS = st.floats(min_value=1e-9, max_value=1e6, allow_nan=False) | st.sampled_from(
    [1e-4, 0.25, 0.5, 1.0, 2.0, 8.0]
)
SHARES = st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 1.0])


@settings(max_examples=300, deadline=None)
@given(st.lists(DURATIONS, min_size=1, max_size=200), SHARES)
def test_a_quantile_is_within_four_and_a_half_percent(values, share):
    """The answer is within 4.5 % of the exact one, and within the values seen."""
    histogram = Exponential()
    histogram.feed(values)
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    estimate = quantile(histogram, share)
    assert estimate == pytest.approx(exact, rel=0.045)
    assert min(values) <= estimate <= max(values)


def test_quantiles_at_the_edges():
    """Nothing seen is no quantile; what counts as zero is zero; counts that a reader tore apart give the maximum."""
    histogram = Exponential()
    assert quantile(histogram, 0.5) is None
    histogram.feed([0, -1.0, 5.0])
    assert quantile(histogram, 0.5) == 0.0
    assert quantile(histogram, 1.0) == 5.0
    histogram.count = 9
    assert quantile(histogram, 0.9) == 5.0


@given(st.lists(DURATIONS, max_size=50), st.lists(DURATIONS, max_size=50))
def test_merging_is_the_same_as_feeding_all(left, right):
    """Histograms of the fixed scale merge exactly: windows, workers and hosts."""
    one, other, both = Exponential(), Exponential(), Exponential()
    for histogram, values in ((one, left), (other, right), (both, left + right)):
        histogram.feed(values)
    one.merge(other)
    assert one.total == pytest.approx(both.total)
    for name in ("buckets", "zeros", "count", "minimum", "maximum", "scale"):
        assert getattr(one, name) == getattr(both, name)


def stock(values, *, delta: bool, scale: int, size: int):
    wanted = AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE
    reader = InMemoryMetricReader(
        preferred_temporality={Histogram: wanted},
        preferred_aggregation={Histogram: ExponentialBucketHistogramAggregation(max_size=size, max_scale=scale)},
    )
    provider = MeterProvider([reader], Resource({}), shutdown_on_exit=False)
    histogram = provider.get_meter("t").create_histogram("h")
    for value in values:
        histogram.record(value)
    return reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]


def nonzero(buckets) -> dict[int, int]:
    return {buckets.offset + index: count for index, count in enumerate(buckets.bucket_counts) if count}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(DURATIONS | st.just(0.0), min_size=1, max_size=60),
    st.booleans(),
    st.sampled_from([(20, 160), (3, 20), (20, 2)]),
)
@example([0.0, 0.0], False, (20, 160))
@example([1e-9, 1e6], True, (20, 160))
def test_exponential_histograms_are_the_stock_ones(values, delta, shape):
    """Same scale, buckets, zeros, sum and extremes as the SDK's own, through every loss of resolution."""
    scale, size = shape
    expected = stock(values, delta=delta, scale=scale, size=size)
    cell = Exponential(scale, max_size=size)
    for start in range(0, len(values), 7):
        cell.feed(values[start : start + 7])
    point = cell.point({}, 0, 0)
    if any(values):
        assert point.scale == expected.scale
    assert nonzero(point.positive) == nonzero(expected.positive)
    assert (point.count, point.zero_count, point.min, point.max) == (
        expected.count, expected.zero_count, expected.min, expected.max,
    )  # fmt: skip
    assert point.sum == pytest.approx(expected.sum)
    assert not any(point.negative.bucket_counts)


SAMPLED = (0.3, 0xABC, 0xDEF, 1_000)


@pytest.mark.parametrize("make", [Sum, LastValue, lambda: Explicit((0.1, 0.5)), Exponential])
def test_nothing_recorded_is_no_point(make):
    """Before the first value, and again after a reset, there is nothing to say."""
    cell = make()
    assert cell.point({}, 0, 0) is None
    cell.feed([0.2])
    assert cell.point({}, 0, 0) is not None
    cell.reset()
    assert cell.point({}, 0, 0) is None


@pytest.mark.parametrize("make", [Sum, lambda: Explicit((0.1, 0.5)), Exponential])
def test_exemplars_carry_the_trace_of_their_value(make):
    """A value recorded in a sampled trace is its example; the newest one is kept; a reset forgets it."""
    cell = make()
    cell.feed([0.2, (0.35, 1, 2, 3), SAMPLED, 0.4])
    [exemplar] = cell.point({}, 0, 0).exemplars
    assert (exemplar.value, exemplar.trace_id, exemplar.span_id, exemplar.time_unix_nano) == (0.3, 0xABC, 0xDEF, 1_000)
    cell.feed([0.1])
    assert len(cell.point({}, 0, 0).exemplars) == 1
    cell.reset()
    cell.feed([0.2])
    assert not cell.point({}, 0, 0).exemplars


@pytest.mark.parametrize("make", [Sum, LastValue, lambda: Explicit((1.0,)), Exponential])
def test_the_newest_exemplar_is_kept_whatever_comes_first(make):
    """Where views drop labels, older values of another series are added up after newer ones."""
    cell = make()
    cell.feed([(5, 1, 2, 300)])
    cell.feed([(6, 3, 4, 200)])
    assert [each.value for each in cell.point({}, 0, 1).exemplars] == [5]
    cell.feed([(7, 3, 4, 400)])
    assert [each.value for each in cell.point({}, 0, 1).exemplars] == [7]


def test_each_bucket_has_an_exemplar_of_its_own():
    """A slow example is not pushed out by fast ones."""
    cell = Explicit((0.1, 0.5))
    cell.feed([(0.05, 1, 1, 1), (0.9, 2, 2, 2), (0.06, 3, 3, 3)])
    assert [(each.trace_id, each.value) for each in cell.point({}, 0, 0).exemplars] == [(3, 0.06), (2, 0.9)]


def test_last_values():
    """The newest value wins, with or without a trace."""
    cell = LastValue()
    cell.feed([1, 2])
    assert cell.point({"a": 1}, 5, 9).value == 2
    cell.feed([SAMPLED])
    assert cell.point({}, 0, 0).value == 0.3


def test_bounds_belong_to_their_bucket():
    """Upper bounds are inclusive, as the data model has it."""
    cell = Explicit((0.1, 0.5))
    cell.feed([0.1, 0.5, 0.50001])
    assert cell.point({}, 0, 0).bucket_counts == (1, 1, 1)
