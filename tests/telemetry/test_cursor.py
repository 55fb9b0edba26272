"""A cursor has its own temporality, its own exemplars and its own start."""

from __future__ import annotations

from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf.conventions import Metric
from otel_perf.telemetry.series import Registry

SCOPE = InstrumentationScope("tests")
TRACED = (1.5, 7, 8, 9)


def histogram(registry: Registry):
    return registry.instrument(Metric("h", "s", "histogram", "", ("who",), (1.0, 2.0)), SCOPE)


def test_exemplars_belong_to_the_time_since_the_last_point():
    """Totals tell an exemplar once, unless the reader keeps them; changes tell those of their interval."""
    registry = Registry()
    series = histogram(registry).at(("a",))
    totals, kept = registry.cursor(), registry.cursor(keep_exemplars=True)
    changes = registry.cursor(delta=lambda *_: True)
    series.record(TRACED)
    for cursor, later in ((totals, 0), (kept, 1)):
        told = []
        for _ in range(2):
            [collected] = cursor.collect()
            [point] = collected.points
            told.append([(each.trace_id, each.span_id, each.time_unix_nano) for each in point.exemplars])
        assert told[0] == [(7, 8, 9)]
        assert len(told[1]) == later
    [collected] = changes.collect()
    assert len(collected.points[0].exemplars) == 1
    series.record(1.5)
    [collected] = changes.collect()
    assert not collected.points[0].exemplars
    assert collected.points[0].count == 1


def test_totals_start_with_their_series_or_with_their_reader():
    """A series that comes later has a later start, one that was there before the reader has the reader's."""
    registry = Registry()
    instrument = histogram(registry)
    old = instrument.at(("old",))
    cursor = registry.cursor()
    new = instrument.at(("new",))
    for series in (old, new):
        series.record(0.5)
    [collected] = cursor.collect()
    starts = {point.attributes["who"]: point.start_time_unix_nano for point in collected.points}
    assert starts["new"] == new.since_ns
    assert starts["old"] == cursor._start_ns > old.since_ns


def test_a_reader_of_changes_is_told_nothing_of_idle_series():
    """What did not change has no point; in totals it stays."""
    registry = Registry()
    histogram(registry).at(("a",)).record(0.5)
    totals, changes = registry.cursor(), registry.cursor(delta=lambda *_: True)
    histogram(registry).at(("a",)).record(0.5)
    assert len(totals.collect()) == len(changes.collect()) == 1
    assert changes.collect() == []
    assert totals.collect()[0].points[0].count == 1
