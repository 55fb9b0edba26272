"""A leaf is a query like any other, but for the current span that it does not become."""

from __future__ import annotations

import contextvars

import pytest
from opentelemetry import trace

import otel_perf
from otel_perf import conventions as c
from otel_perf import guard, measure
from otel_perf.telemetry import leaf, operation, runtime
from otel_perf.telemetry.containers import Known
from tests.conftest import Telemetry

LABELS = ["redis", "GET", None, "0", None]
KNOWN = Known({c.DB_SYSTEM: "redis", c.DB_OPERATION: "GET", c.DB_NAMESPACE: "0", c.DB_QUERY_TEXT: "GET ?"})


def start(**options):
    return leaf.start("GET", LABELS.copy(), KNOWN, "GET ?", **options)


@pytest.mark.parametrize("error", [None, LookupError("boom")], ids=["good", "failed"])
def test_it_is_told_as_any_other_query(telemetry: Telemetry, error: Exception | None) -> None:
    """Span, duration and labels are those that `operation.start` makes of the same, and so is a failure."""
    with measure("unit"):
        for begun in (start(), operation.start(operation.QUERY, "GET", LABELS, KNOWN)):
            begun.stop(error)
    first, second, unit = telemetry.spans
    assert dict(first.attributes or {}) == dict(second.attributes or {})
    assert (first.name, first.kind, first.status.status_code, len(first.events)) == (
        second.name, second.kind, second.status.status_code, len(second.events),
    )  # fmt: skip
    assert first.parent is not None
    assert unit.context is not None
    assert first.parent.span_id == unit.context.span_id
    (point,) = telemetry.points(c.QUERY_DURATION.name)
    assert point.count == 2


def test_it_is_current_for_us_alone(telemetry: Telemetry) -> None:
    """`current()` knows it, the current span stays what it was, and nothing is left when it stops."""
    with measure("unit") as above:
        begun = start()
        assert operation.current() is begun
        assert trace.get_current_span() is above.span
        begun.stop()
        assert operation.current() is above


def test_spans_that_share_attributes_write_to_their_own(telemetry: Telemetry) -> None:
    """What one query adds to its span is on no other, nor in what they share."""
    before = dict(KNOWN)
    first, second = start(), start()
    first.set("cache.result", "hit")
    second.stop()
    first.stop()
    assert [(span.attributes or {}).get("cache.result") for span in telemetry.spans] == [None, "hit"]
    assert dict(KNOWN) == before


def test_a_live_view_of_the_attributes_stays_true(telemetry: Telemetry) -> None:
    """Who looks at a span that goes on sees what is written later, as with the SDK's."""
    begun = start()
    assert begun.span is not None
    view = begun.span.attributes  # type: ignore[attr-defined]  # the SDK's
    begun.set("cache.result", "hit")
    assert view["cache.result"] == "hit"
    begun.stop()


def test_repetitions_are_counted(telemetry: Telemetry) -> None:
    """Leaves of one template within a unit are candidates for N+1."""
    with measure("unit"):
        for _ in range(5):
            start().stop()
    (point,) = telemetry.points(c.QUERY_REPEATED.name)
    assert point.value == 5


def test_slow_ones_are_recorded(telemetry: Telemetry) -> None:
    """A slow leaf is a slow query, also where its trace is not sampled."""
    telemetry.restart(slow_query_s=0.01, sampler="always_off")
    begun = start()
    begun.started_ns -= 20_000_000
    begun.stop()
    assert runtime.current is not None
    (slow,) = runtime.current.slow_queries.recent()
    assert slow.statement == "GET ?"


@pytest.mark.parametrize(("span", "metrics"), [(False, True), (True, False)])
def test_a_part_that_is_another_s(telemetry: Telemetry, span: bool, metrics: bool) -> None:
    """Without a span it only measures, without metrics it only has a span."""
    start(span=span, metrics=metrics).stop()
    assert len(telemetry.spans) == span
    assert len(telemetry.points(c.QUERY_DURATION.name)) == metrics


def test_before_configure_and_after() -> None:
    """It comes back from both, and what spans a `configure()` is in nobody's counts."""
    otel_perf.shutdown()
    begun = start()
    assert operation.current() is begun
    begun.stop()
    assert operation.current() is None
    captured = Telemetry()
    begun = start()
    captured.restart()
    begun.stop()
    begun.stop()
    assert not captured.points(c.QUERY_DURATION.name)


def test_stopped_in_another_context(telemetry: Telemetry) -> None:
    """Stopped in a copy of its context, it is current there no more."""
    begun = start()

    def stop() -> object:
        begun.stop()
        return operation.current()

    assert contextvars.copy_context().run(stop) is None
    operation._current.set(None)


def test_faults_of_ours_stay_ours(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its start nor its end raises, whatever fails in them, and the other part is still done."""
    monkeypatch.setattr(guard, "strict", False)

    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(operation.Operation, "_record", fault)
        start().stop()
    assert len(telemetry.spans) == 1
    with monkeypatch.context() as patch:
        patch.setattr(runtime.Runtime, "entry", property(fault))
        start().stop()
    assert guard.errors >= 2
    assert operation.current() is None
