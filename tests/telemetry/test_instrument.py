"""Instruments find the series of a set of labels, and keep their number bounded."""

from __future__ import annotations

import logging

import pytest
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf import guard
from otel_perf.conventions import Metric
from otel_perf.telemetry.series import Instrument, Registry

SCOPE = InstrumentationScope("tests")


def instrument(limit: int = 2000, *, kind: str = "counter") -> Instrument:
    metric = Metric("m", "1", kind, "", ("method", "route"))  # type: ignore[arg-type]
    return Registry(limit).instrument(metric, SCOPE)


def test_a_series_is_found_by_values_and_by_attributes():
    """Both ways lead to the same series; None leaves a label out."""
    made = instrument()
    by_values = made.at(("GET", "/a"))
    assert by_values is made.at(("GET", "/a"))
    assert by_values is made.of({"route": "/a", "method": "GET"})
    assert made.at(("GET", None)).attributes == {"method": "GET"}


def test_values_must_fit_the_labels():
    """A value too many is a mistake of ours, not another series."""
    with pytest.raises(ValueError, match="zip"):
        instrument().at(("GET",))


def test_sets_that_are_the_same_when_clean_are_one_series():
    """No exporter sees the same labels twice."""
    made = instrument()
    assert made.of({"a": "\ud800"}) is made.of({"a": "?"})
    assert made.of({"a": ["x"]}) is made.of({"a": ("x",)})


def test_labels_of_another_type_are_other_labels():
    """To Python 1, 1.0 and True are the same, also within a list; to OpenTelemetry they are not."""
    made = instrument()
    for values in ((1, 1.0, True), ((1,), (True,), [1.0])):
        series = [made.of({"a": value}) for value in values]
        assert len({id(each) for each in series}) == 3
        assert [made.of({"a": value}) for value in values] == series
        assert [str(each.attributes["a"]) for each in series] == [
            str(tuple(value) if isinstance(value, list) else value) for value in values
        ]


def test_the_order_of_labels_does_not_matter():
    """One series, found again in either order, and callers that shuffle labels do not fill the memory."""
    made = instrument(10)
    names = "abcdefgh"
    orders = [dict.fromkeys(names[n:] + names[:n], "x") for n in range(8)]
    orders += [dict(reversed(each.items())) for each in orders] * 2
    assert len({id(made.of(each)) for each in orders}) == 1
    orders += [dict.fromkeys((*names[:n], *reversed(names[n:])), "x") for n in range(8)]
    assert len({id(made.of(each)) for each in orders}) == 1
    assert len(made._by_items) <= 20


def test_what_is_over_the_limit_goes_into_one_series(caplog):
    """The overflow series counts towards the limit, and one warning names the label with most values."""
    made = instrument(10)
    series = {id(made.at(("GET", f"/{index}"))) for index in range(100)}
    assert len(series) == 10
    overflow = made.at(("GET", "/new"))
    assert overflow.attributes == {"otel.metric.overflow": True}
    assert made.at(("GET", "/0")).attributes["route"] == "/0"
    assert len(made.by_values) == 9
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "metric m reached 10 series" in caplog.text
    assert "is 'route'" in caplog.text


def test_a_fork_keeps_the_series_and_drops_what_waits(caplog):
    """Whoever holds a series goes on with it; the child warns of no overflow that the parent has named."""
    made = instrument(10)
    held = made.at(("GET", "/0"))
    for index in range(20):
        made.at(("GET", f"/{index}")).record(1)
    made._lock.acquire()
    made.after_fork()
    assert made.at(("GET", "/0")) is held
    assert not held.pending
    assert made.at(("GET", "/99")).attributes == {"otel.metric.overflow": True}
    assert len(caplog.records) == 1


def test_forgetting_frees_the_limit():
    """Series of an earlier configuration do not fill the limit of the next one."""
    made = instrument(10)
    for index in range(20):
        made.at(("GET", f"/{index}"))
    made.forget()
    assert made.at(("GET", "/99")).attributes == {"method": "GET", "route": "/99"}


def test_the_lock_may_be_taken_twice():
    """Garbage collection may end an operation while the lock is held by the same thread."""
    made = instrument()
    with made._lock:
        assert made.at(("GET", "/a"))


def test_callbacks_tell_one_value_for_each_set_of_labels():
    """The last one told counts; sets over the limit and what is not a number are left out."""
    made = instrument(10, kind="gauge")
    made.observers.append(lambda: [(1, {"a": "x"}), (2, {"a": "y"})])
    made.observers.append(lambda: [(3, {"a": "x"}), (float("nan"), {"a": "z"})])
    assert made.observed() == [(2, {"a": "y"}), (3, {"a": "x"})]
    made.observers.append(lambda: [(index, {"a": index}) for index in range(50)])
    assert len(made.observed()) == 10


def test_the_last_one_told_is_the_last_one():
    """Where views drop labels, the newest of the sets that fall together counts."""
    made = instrument(kind="gauge")
    made.observers.append(lambda: [(1, {"a": "x"}), (2, {"a": "y"}), (3, {"a": "x"})])
    assert made.observed() == [(2, {"a": "y"}), (3, {"a": "x"})]


def test_what_was_told_before_a_fault_counts(monkeypatch):
    """A callback that raises midway costs only what it would have told afterwards."""
    monkeypatch.setattr(guard, "strict", False)
    made = instrument(kind="gauge")

    def telling():
        yield 1, {"a": "x"}
        raise LookupError

    made.observers.append(telling)
    assert made.observed() == [(1, {"a": "x"})]
    assert guard.errors == 1


def test_labels_that_are_no_mapping_are_none():
    """As in the SDK the value counts."""
    made = instrument()
    assert made.of(["a"]) is made.of({})  # type: ignore[arg-type]


def test_a_failing_callback_costs_only_itself(monkeypatch):
    """The others are still asked, and the fault is counted."""
    monkeypatch.setattr(guard, "strict", False)
    made = instrument(kind="gauge")
    made.observers.append(lambda: [(1, {}), ("one", {"a": "x"})])  # type: ignore[list-item]
    made.observers.append(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    made.observers.append(lambda: [(2, {"b": "y"})])
    assert made.observed() == [(1, {}), (2, {"b": "y"})]
    assert guard.errors == 2
