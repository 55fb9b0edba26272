"""The registry: nothing is lost, every reader has its own view, a fork and a new configuration start from zero."""

from __future__ import annotations

import threading

import pytest
from opentelemetry.sdk.metrics.export import NumberDataPoint
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf import guard
from otel_perf.conventions import SCOPE, Metric
from otel_perf.telemetry.aggregation import Exponential
from otel_perf.telemetry.series import Instrument, Registry

OURS = InstrumentationScope(SCOPE)


def make(registry: Registry, kind: str = "counter", name: str = "m") -> Instrument:
    buckets = (0.1, 1.0) if kind == "histogram" else None
    return registry.instrument(Metric(name, "1", kind, "", ("who",), buckets), OURS)  # type: ignore[arg-type]


def values(collected) -> dict[str, object]:
    return {
        str(point.attributes.get("who")): point.value if isinstance(point, NumberDataPoint) else point.count
        for each in collected
        for point in each.points
    }


def delta(_kind, _observed) -> bool:
    return True


def test_nothing_is_lost_when_threads_record_while_others_collect():
    """Six threads record, readers collect and fold all the while: every value is in every reader once."""
    registry = Registry()
    counter = make(registry)
    totals, changes = registry.cursor(), registry.cursor(delta=delta)
    threads_n, each_n = 6, 20_000
    added_up = 0
    running = threading.Event()

    def record(who: int) -> None:
        running.wait()
        for index in range(each_n):
            counter.at((f"{who}-{index % 3}",)).record(1)

    def fold() -> None:
        running.wait()
        while any(thread.is_alive() for thread in threads):
            registry.fold_all()

    threads = [threading.Thread(target=record, args=(who,)) for who in range(threads_n)]
    folding = threading.Thread(target=fold)
    for thread in (*threads, folding):
        thread.start()
    running.set()
    while any(thread.is_alive() for thread in threads):
        added_up += sum(values(changes.collect()).values())
    for thread in (*threads, folding):
        thread.join()
    added_up += sum(values(changes.collect()).values())
    assert added_up == threads_n * each_n
    assert sum(values(totals.collect()).values()) == threads_n * each_n


def test_a_value_that_comes_during_a_fold_waits_for_the_next():
    """Between taking the batch and clearing it another thread may append: that value is not cleared with it."""

    class Raced(list):
        """Gets another value while its content is being copied."""

        late = True

        def __getitem__(self, index):
            batch = super().__getitem__(index)
            if self.late:
                self.late = False
                self.append(10)
            return batch

    registry = Registry()
    series = make(registry).at(("a",))
    cursor = registry.cursor()
    series.pending = Raced()
    series.record(1)
    assert values(cursor.collect()) == {"a": 1}
    assert values(cursor.collect()) == {"a": 11}


def test_a_full_list_is_folded_without_a_reader_asking():
    """At 512 values the recording thread folds, so that memory stays bounded; a fold in progress is not waited for."""
    registry = Registry()
    series = make(registry).at(("a",))
    cursor = registry.cursor()
    for _ in range(512):
        series.record(1)
    assert not series.pending
    with registry.fold_lock:
        for _ in range(600):
            series.record(1)
    assert len(series.pending) == 600
    assert values(cursor.collect()) == {"a": 1112}


def test_each_reader_has_its_own_view():
    """Totals, changes and another aggregation are read side by side; a reader sees what comes after it."""
    registry = Registry()
    histogram = make(registry, "histogram").at(("a",))
    histogram.record(0.05)
    totals, changes = registry.cursor(), registry.cursor(delta=delta)
    windows = registry.cursor(lambda _: Exponential(), delta)
    nothing = registry.cursor(lambda _: None)
    histogram.record(0.5)
    assert values(totals.collect()) == values(changes.collect()) == values(windows.collect()) == {"a": 1}
    histogram.record(0.7)
    [collected] = totals.collect()
    assert (collected.points[0].count, collected.points[0].min, collected.delta) == (2, 0.5, False)
    [collected] = changes.collect()
    assert (collected.points[0].count, collected.points[0].min, collected.delta) == (1, 0.7, True)
    assert nothing.collect() == []
    assert changes.collect() == []
    with windows.held() as cells:
        assert [cell.count for _, cell in cells] == [1]


def test_intervals_of_a_reader_of_changes_join():
    """Each interval begins where the last one ended; totals keep their start."""
    registry = Registry()
    series = make(registry).at(("a",))
    totals, changes = registry.cursor(), registry.cursor(delta=delta)
    ends = []
    for _ in range(2):
        series.record(1)
        ends.append((totals.collect()[0].points[0], changes.collect()[0].points[0]))
    (total, change), (later_total, later_change) = ends
    assert later_total.start_time_unix_nano == total.start_time_unix_nano
    assert later_change.start_time_unix_nano == change.time_unix_nano


def test_recording_goes_on_while_a_reader_holds_the_cells():
    """`held` keeps folding out, not recording."""
    registry = Registry()
    series = make(registry).at(("a",))
    cursor = registry.cursor()
    series.record(1)
    with cursor.held() as cells:
        series.record(1)
        [(_, cell)] = cells
        assert cell.total == 1
    assert values(cursor.collect()) == {"a": 2}


def test_observed_values_as_totals_and_as_changes():
    """What callbacks tell are totals; a reader of changes gets the difference, a gauge stays as it is."""
    registry = Registry()
    told = {"a": 10}
    make(registry).observers.append(lambda: [(n, {"who": who}) for who, n in told.items()])
    make(registry, "gauge", "g").observers.append(lambda: [(7, {"who": "gauge"})])
    totals, changes = registry.cursor(), registry.cursor(delta=delta)
    assert values(totals.collect()) == values(changes.collect()) == {"a": 10, "gauge": 7}
    told["a"] = 15
    told["b"] = 1
    assert values(totals.collect()) == {"a": 15, "b": 1, "gauge": 7}
    assert values(changes.collect()) == {"a": 5, "b": 1, "gauge": 7}
    del told["a"]
    assert values(changes.collect()) == {"b": 0, "gauge": 7}
    assert [len(earlier) for earlier in changes._last.values()] == [1]


def test_kind_and_unit_belong_to_the_identity_of_an_instrument(caplog):
    """Neither a gauge and a counter nor seconds and milliseconds share series, which is said; case does not count."""
    registry = Registry()
    assert make(registry, name="M") is make(registry, name="m")
    assert not caplog.records
    assert make(registry, "gauge") is not make(registry)
    assert "two metrics of otel_perf are called m: a counter in '1' and a gauge in '1'" in caplog.text
    seconds = registry.instrument(Metric("m", "s", "counter", ""), OURS)
    assert seconds is not make(registry)
    for _ in range(2):
        make(registry, "gauge")
        registry.instrument(Metric("m", "s", "counter", ""), OURS)
    assert len(caplog.records) == 2


def test_one_reader_that_fails_does_not_cost_another_its_values(monkeypatch):
    """Both readers are fed; the fault is counted."""
    monkeypatch.setattr(guard, "strict", False)
    registry = Registry()

    def broken(_):
        raise RuntimeError("no cell")

    registry.cursor(broken)
    working = registry.cursor()
    make(registry).at(("a",)).record(1)
    assert values(working.collect()) == {"a": 1}
    assert guard.errors == 1


def test_a_removed_reader_is_not_fed():
    """Removing it again is no error."""
    registry = Registry()
    cursor = registry.cursor()
    registry.remove(cursor)
    registry.remove(cursor)
    make(registry).at(("a",)).record(1)
    assert cursor.collect() == []


def test_a_forked_child_starts_from_zero_with_the_same_readers():
    """Locks that somebody held are new, what waited and what was added up is gone, series objects stay."""
    registry = Registry()
    series = make(registry).at(("a",))
    cursor = registry.cursor()
    series.record(1)
    registry.fold_all()
    series.record(1)
    registry.fold_lock.acquire()
    registry.after_fork()
    assert cursor.collect() == []
    series.record(1)
    assert values(cursor.collect()) == {"a": 1}


def test_a_new_configuration_starts_from_zero_without_readers():
    """Series, readers and our own callbacks go; callbacks of others stay."""
    registry = Registry()
    cursor = registry.cursor()
    counter = make(registry)
    counter.at(("a",)).record(1)
    counter.observers.append(lambda: [(1, {})])
    theirs = registry.instrument(Metric("t", "1", "gauge", ""), InstrumentationScope("theirs"))
    theirs.observers.append(lambda: [(2, {})])
    registry.reset()
    assert not counter.series
    assert not counter.observers
    assert theirs.observers
    counter.at(("a",)).record(1)
    assert values(registry.cursor().collect()) == {"None": 2}
    with pytest.raises(KeyError):
        cursor._cells[counter.at(("a",))]
