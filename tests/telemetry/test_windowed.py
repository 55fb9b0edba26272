"""The cell that keeps the last minute apart, and histograms of several workers added up."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_perf.telemetry.aggregation import Exponential
from otel_perf.telemetry.windowed import SLOT_S, WINDOW_S, Windowed, combine, packed, unpacked


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def filled(values, scale=3):
    made = Exponential(scale)
    made.feed(values)
    return made


def state(histogram):
    return packed(histogram)[:-2], histogram.buckets


def test_it_forgets_after_a_minute_and_the_total_does_not():
    """Values leave the recent minute as it passes and stay in the total."""
    clock = Clock()
    cell = Windowed(clock)
    cell.feed([0.1, 0.2])
    clock.now += WINDOW_S - SLOT_S
    cell.feed([0.3])
    assert (cell.recent().count, cell.total.count) == (3, 3)
    clock.now += SLOT_S
    assert (cell.recent().count, cell.total.count) == (1, 3)
    clock.now += WINDOW_S
    cell.feed([0.4])
    assert (cell.recent().count, cell.total.count) == (1, 4)
    assert len(cell._slots) == 1


def test_a_clock_that_is_set_back_does_not_keep_values_recent_for_ever():
    """Slots that lie in the future after the clock was set back are not of the last minute."""
    clock = Clock()
    cell = Windowed(clock)
    cell.feed([0.1])
    clock.now -= 500
    cell.feed([0.2])
    assert (cell.recent().count, cell.total.count) == (1, 2)


def test_it_gives_a_point_and_resets():
    """As a cell it answers the point of all values, and nothing after a reset."""
    cell = Windowed(Clock())
    cell.feed([0.1])
    point = cell.point({"a": "b"}, 1, 2)
    assert point is not None
    assert point.count == 1
    cell.reset()
    assert cell.point({}, 1, 2) is None
    assert cell.recent().count == 0


def test_two_workers_minutes_are_added_slot_by_slot():
    """What two workers recorded at other moments is recent for as long as each would be alone."""
    clock = Clock()
    one, other = Windowed(clock), Windowed(clock)
    one.feed([0.1])
    clock.now += 30
    other.feed([0.2, 0.3])
    told = json.loads(json.dumps(other.dump()))
    one.merge(Windowed.load(told, clock))
    assert (one.total.count, one.recent().count, one.recent().maximum) == (3, 3, 0.3)
    clock.now += 30
    assert (one.total.count, one.recent().count) == (3, 2)
    copy = one.copy()
    one.feed([0.4])
    assert (copy.total.count, copy.recent().count) == (3, 2)


numbers = st.lists(st.floats(1e-6, 1e6) | st.just(0), max_size=30)


@settings(max_examples=60)
@given(numbers, numbers, st.integers(-2, 5), st.integers(-2, 5))
def test_adding_is_as_if_one_had_counted_all_at_the_lower_scale(ours, theirs, scale, other_scale):
    """Histograms of two scales give exactly what one of the lower scale gives for all values."""
    one, other = filled(ours, scale), filled(theirs, other_scale)
    before = state(other)
    combine(one, other)
    both = filled(ours + theirs, min(scale, other_scale))
    assert one.buckets == both.buckets
    assert (one.scale, one.zeros, one.count) == (both.scale, both.zeros, both.count)
    assert one.total == pytest.approx(both.total)
    assert (one.minimum, one.maximum) == (both.minimum, both.maximum)
    assert state(other) == before


@settings(max_examples=30)
@given(numbers)
def test_packing_loses_nothing(values):
    """A histogram that went through JSON is the same one, empty ones included."""
    histogram = filled(values)
    assert state(unpacked(json.loads(json.dumps(packed(histogram))))) == state(histogram)


@pytest.mark.parametrize(
    "told",
    [
        [3, 0, 1, 1, 1, 1, [9000], [1]],
        [3, 0, 1, 1, 1, 1, [-9000], [1]],
        [21, 0, 1, 1, 1, 1, [0], [1]],
        [-11, 0, 1, 1, 1, 1, [0], [1]],
        [20, 0, 2, 1, 1, 1, [0, 200_000], [1, 1]],
    ],
)
def test_buckets_that_no_number_has_are_refused(told):
    """A bucket beyond all floats, or a range whose point would fill the memory, comes from no histogram of ours."""
    with pytest.raises(ValueError, match="buckets"):
        unpacked(told)


def test_the_outermost_buckets_are_taken():
    """The smallest and the largest of all floats come back."""
    cell = filled([5e-324, 1.7976931348623157e308])
    assert state(unpacked(packed(cell))) == state(cell)
