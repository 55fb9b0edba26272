"""Figures of several workers added up, by the rule of each kind."""

from __future__ import annotations

import enum
from dataclasses import replace

import pytest
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf import conventions as c
from otel_perf.conventions import Metric
from otel_perf.telemetry import summing, told
from otel_perf.telemetry.aggregation import Explicit, Exponential
from otel_perf.telemetry.instrument import OVERFLOW
from otel_perf.telemetry.series import Registry, default_cell
from otel_perf.telemetry.summing import Tally, Window
from otel_perf.telemetry.windowed import Windowed

SCOPE = InstrumentationScope("test")


class Worker:
    """A registry with one reader."""

    def __init__(self, cell=default_cell):
        self.registry = Registry()
        self.cursor = self.registry.cursor(cell)

    def record(self, kind, *values, name="m", **labels):
        series = self.registry.instrument(Metric(name, "", kind, "about", tuple(labels)), SCOPE).of(labels)
        for value in values:
            series.record(value)
        return self

    def observe(self, kind, value, name="m"):
        self.registry.instrument(Metric(name, "", kind, "about"), SCOPE).observers.append(lambda: [(value, {})])
        return self

    def tally(self, windows=()):
        made = Tally(1)
        made.take(self.cursor.collect())
        made.take_windows(windows)
        return made


def through_json(tally):
    return Tally.load(told.decoded(told.document(**tally.dump())))


def points(tally):
    return [point for figures in tally.families.values() for point in figures.points.values()]


def added(one, other, living=True):
    one.add(through_json(other), living=living)
    return points(one)


@pytest.mark.parametrize(
    ("kind", "values", "living", "dead"),
    [("counter", (3, 4), 7, 7), ("updowncounter", (3, 4), 7, 3)],
)
def test_sums(kind, values, living, dead):
    """Counters keep what a dead worker counted; up-down counters lose what ended with it."""
    for lives, wanted in ((True, living), (False, dead)):
        one, other = (Worker().record(kind, value).tally() for value in values)
        [point] = added(one, other, lives)
        assert point.value == wanted


@pytest.mark.parametrize(
    ("name", "living", "dead"), [("load", 9, 2), (c.QUEUE_SIZE.name, 11, 2), (c.POOL_COUNT.name, 9, 2)]
)
def test_observed_gauges(name, living, dead):
    """The largest of the living is told; of ours, which are amounts, the sum; a dead worker's is gone."""
    for lives, wanted in ((True, living), (False, dead)):
        one, other = (Worker().observe("gauge", value, name).tally() for value in (2, 9))
        [point] = added(one, other, lives)
        assert point.value == wanted


def test_a_gauge_that_is_set():
    """Whoever set it last is believed, living or not; a job's last success is the latest of all."""
    early = Worker().record("gauge", 9).record("gauge", 5, name=c.JOB_LAST_SUCCESS.name).tally()
    late = Worker().record("gauge", 2).record("gauge", 4, name=c.JOB_LAST_SUCCESS.name).tally()
    for lives in (True, False):
        assert [point.value for point in added(through_json(early), late, lives)] == [2, 5]
        assert [point.value for point in added(through_json(late), early, lives)] == [2, 5]


def test_histograms_with_the_newest_exemplar_of_each_bucket():
    """Buckets, counts, sums and extremes are added; each bucket keeps the exemplar that is newest."""
    one = Worker(lambda _: Explicit((1.0, 2.0))).record("histogram", (0.5, 1, 1, 10), (1.5, 2, 2, 30), 5)
    other = Worker(lambda _: Explicit((1.0, 2.0))).record("histogram", (0.7, 3, 3, 20), (1.7, 4, 4, 20))
    [point] = added(one.tally(), other.tally(), living=False)
    assert (point.bucket_counts, point.count, point.sum, point.min, point.max) == ((2, 2, 1), 5, 9.4, 0.5, 5)
    assert [(each.value, each.trace_id) for each in point.exemplars] == [(0.7, 3), (1.5, 2)]


def test_other_bounds_are_added_over_those_that_they_share(caplog):
    """After a change of buckets every count is still right, and the change is said, once."""
    summing._said.clear()
    one = Worker(lambda _: Explicit((1.0, 2.0, 4.0))).record("histogram", 0.5, 1.5, 3, 9).tally()
    for _ in range(2):
        other = Worker(lambda _: Explicit((2.0, 3.0, 4.0))).record("histogram", 0.5, 2.5, 9).tally()
        [point] = added(through_json(one), other)
    assert (point.explicit_bounds, point.bucket_counts, point.count) == ((2.0, 4.0), (3, 2, 2), 7)
    assert len(caplog.messages) == 1
    assert "metric m in other buckets" in caplog.text


def test_exponential_histograms_of_two_scales():
    """They are added at the lower scale, with the newest exemplar."""
    one = Worker(lambda _: Exponential(3)).record("histogram", (0.5, 1, 1, 10), 0)
    other = Worker(lambda _: Exponential(0)).record("histogram", (3, 2, 2, 20))
    [point] = added(one.tally(), other.tally())
    assert (point.scale, point.count, point.zero_count, point.sum) == (0, 3, 1, 3.5)
    assert (point.positive.offset, point.positive.bucket_counts) == (-2, [1, 0, 0, 1])
    assert [each.trace_id for each in point.exemplars] == [2]


def test_two_kinds_of_buckets_are_not_mixed(caplog):
    """What cannot be added is left out and said."""
    summing._said.clear()
    one = Worker(lambda _: Exponential()).record("histogram", 0.5)
    [point] = added(one.tally(), Worker().record("histogram", 0.5).tally())
    assert point.count == 1
    assert "the first is kept" in caplog.text


def test_series_and_scopes_stay_apart():
    """Only the same metric, kind, scope and labels are added; types of labels count."""
    one = Worker().record("counter", 1, a="1").record("counter", 2, a=1).record("gauge", 7)
    other = Worker().record("counter", 10, a="1").record("counter", 20, a=True).record("counter", 5, a=("x", 1))
    values = {repr(point.attributes): point.value for point in added(one.tally(), other.tally())}
    assert values == {"{'a': '1'}": 11, "{'a': 1}": 2, "{'a': True}": 20, "{'a': ('x', 1)}": 5, "{}": 7}


def test_scopes_of_one_name_stay_apart():
    """Version, schema and attributes tell scopes apart, also after they went through a file."""
    worker = Worker()
    scopes = [
        InstrumentationScope("lib"), InstrumentationScope("lib", "1"), InstrumentationScope("lib", "1", "https://s"),
        InstrumentationScope("lib", "1", "https://s", {"a": "b"}),
    ]  # fmt: skip
    for number, scope in enumerate(scopes, 1):
        worker.registry.instrument(Metric("m", "", "counter", "about"), scope).of({}).record(number)
    one = worker.tally()
    assert [point.value for point in added(one, worker.tally())] == [2, 4, 6, 8]


def test_labels_that_only_look_like_plain_ones_are_the_same_series():
    """A number of another class is the same label before and after it went through a file."""
    color = enum.IntEnum("color", "RED")
    one = Worker().record("counter", 1, a=color.RED).tally()
    assert [point.value for point in added(one, Worker().record("counter", 2, a=color.RED).tally())] == [3]


def test_windows_are_added():
    """What insight keeps is added series by series, and stays when its worker ends."""
    tallies = []
    for value in (0.1, 0.2):
        cell = Windowed()
        cell.feed([value])
        tallies.append(Worker().tally([Window("m", {"a": "x"}, cell)]))
    one, other = tallies
    added(one, other, living=False)
    [window] = [window for windows in one.windows.values() for window in windows.values()]
    assert (window.cell.total.count, window.cell.recent().count) == (2, 2)


def test_what_is_beyond_the_limit_goes_into_the_overflow():
    """However many label sets workers leave behind, no more are kept than allowed, and no count is lost."""
    whole = Tally(5, living=0, limit=10)
    for number in range(5):
        worker = Worker()
        windows = []
        for each in range(5):
            worker.record("counter", 1, a=f"{number}-{each}")
            cell = Windowed()
            cell.feed([1])
            windows.append(Window("m", {"a": f"{number}-{each}"}, cell))
        whole.add(worker.tally(windows), living=False)
    listed = points(whole)
    assert (len(listed), sum(point.value for point in listed)) == (10, 25)
    assert {OVERFLOW: True} in [point.attributes for point in listed]
    assert (len(whole.windows["m"]), sum(each.cell.total.count for each in whole.windows["m"].values())) == (10, 25)
    assert (whole.started_ns, whole.living, whole.ended) == (1, 0, 5)


def test_what_is_no_number_costs_only_itself():
    """A value that somebody recorded past the API is not told; the others are."""
    tally = Worker().record("gauge", 1).record("gauge", 2, name="bad").tally()
    for figures in tally.families.values():
        if figures.metric.name == "bad":
            figures.points = {key: replace(point, value="no number") for key, point in figures.points.items()}
    assert [point.value for point in points(through_json(tally))] == [1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda read: read.pop("families"),
        lambda read: read.update(started_ns="soon"),
        lambda read: read["families"][0].pop(),
        lambda read: read["families"][0][-1][0].pop(),
        lambda read: read["families"][0][-1][0].__setitem__(-1, "many"),
        lambda read: read["families"][1][-1][0][-1].pop(),
    ],
)
def test_what_is_no_tally_is_refused(spoil):
    """A document of another shape raises one of the errors that readers expect."""
    read = told.decoded(told.document(**Worker().record("counter", 1).record("histogram", 1).tally().dump()))
    spoil(read)
    with pytest.raises(told.MALFORMED):
        Tally.load(read)
