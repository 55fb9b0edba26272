"""The operation: one start and one stop make a duration, its labels, a span, and whatever goes with its kind."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.metrics.export import NumberDataPoint
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags

import otel_perf
from otel_perf import conventions as c
from otel_perf import guard
from otel_perf.telemetry import operation, sdk
from otel_perf.telemetry.operation import CACHE, EXTERNAL, HTTP_CLIENT, JOB, QUERY, REQUEST, STEP, Kind, start

KINDS = [
    (REQUEST, ("GET", "/a/{id}", 200, "http", "1.1"), SpanKind.SERVER),
    (QUERY, ("postgresql", "SELECT", "users", "shop"), SpanKind.CLIENT),
    (CACHE, ("redis", "get", "PROFILE", "hit"), SpanKind.CLIENT),
    (EXTERNAL, ("stripe", "charge", "payments"), SpanKind.CLIENT),
    (HTTP_CLIENT, ("GET", "host", 443, 200, "https", "1.1"), SpanKind.CLIENT),
    (JOB, ("nightly",), SpanKind.INTERNAL),
    (STEP, ("parse", "io"), SpanKind.INTERNAL),
]


@pytest.mark.parametrize(("kind", "labels", "span_kind"), KINDS, ids=lambda value: getattr(value, "name", None))
def test_every_kind_makes_one_duration_and_one_span(telemetry, kind, labels, span_kind):
    """The labels stand on both, `error.type` on neither without a failure, and the exemplar is the span's trace."""
    op = start(kind, "work", labels, {"extra": "on the span only"})
    assert operation.current() is op
    op.stop()
    span = telemetry.span("work")
    named = dict(zip(kind.duration.attributes, labels, strict=False))
    [point] = telemetry.points(kind.duration.name)
    assert dict(point.attributes) == named
    assert dict(span.attributes) == {**named, "extra": "on the span only"}
    assert span.kind is span_kind
    assert span.status.status_code is StatusCode.UNSET
    assert point.sum == pytest.approx(op.seconds)
    assert point.explicit_bounds == kind.duration.buckets
    assert [each.trace_id for each in point.exemplars] == [span.context.trace_id]
    assert operation.current() is None


def test_a_failure_is_the_same_on_span_and_metric(telemetry):
    """An exception gives `error.type`, an event with a redacted message and a status; the first failure counts."""
    op = start(STEP, "work", ("parse", None))
    error = ValueError("bad 'secret'")
    op.fail(error)
    op.fail("later")
    op.stop(KeyError("later still"))
    span = telemetry.span("work")
    assert span.attributes[c.ERROR_TYPE] == "ValueError"
    assert span.status.status_code is StatusCode.ERROR
    [event] = span.events
    assert event.attributes[c.EXCEPTION_MESSAGE] == "bad ?"
    assert telemetry.points(c.STEP_DURATION.name, error__type="ValueError")


def test_a_failure_by_name(telemetry):
    """A short word is a failure without an exception."""
    op = start(STEP, "work", ("parse",))
    op.fail("timeout")
    op.stop()
    assert telemetry.span("work").attributes[c.ERROR_TYPE] == "timeout"
    assert not telemetry.span("work").events


def test_labels_may_be_filled_in_until_the_end(telemetry):
    """A status that is known late is a label all the same."""
    op = start(REQUEST, "GET /", ("GET", "/"))
    op.label(c.HTTP_STATUS, 404)
    op.set("url.query", "token=secret")
    op.set("nothing", None)
    op.stop()
    assert telemetry.points(c.REQUEST_DURATION.name, http__response__status_code=404)
    assert telemetry.span("GET /").attributes["url.query"] == "token=REDACTED"
    assert "nothing" not in telemetry.span("GET /").attributes


def test_children_know_their_parent(telemetry):
    """Spans nest as operations do, and a layer is seen from below while it is unfinished."""
    outer = start(QUERY, "outer", ("sqlite", "SELECT"))
    inner = start(STEP, "inner", ("x",))
    assert inner.parent is outer
    assert inner.within("query")
    assert not inner.within("cache")
    inner.stop()
    outer.stop()
    assert not outer.within("query")
    assert telemetry.span("inner").parent.span_id == telemetry.span("outer").context.span_id
    assert telemetry.span("outer").parent is None


def test_a_remote_parent_and_links(telemetry):
    """A context that is handed over is the parent; links lead to other traces."""
    far = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1))
    parent = trace.set_span_in_context(trace.NonRecordingSpan(far))
    start(REQUEST, "GET /", ("GET", "/"), context=parent, links=[Link(far)]).stop()
    span = telemetry.span("GET /")
    assert (span.context.trace_id, span.parent.span_id) == (7, 8)
    assert [link.context for link in span.links] == [far]


def test_stopping_twice_measures_once(telemetry):
    """The second stop does nothing."""
    op = start(STEP, "work", ("x",))
    op.stop()
    seconds = op.seconds
    op.stop(ValueError("late"))
    assert op.seconds == seconds
    assert telemetry.points(c.STEP_DURATION.name)[0].count == 1
    assert op.error_type is None


def test_an_end_in_the_past(telemetry):
    """What ended before the call counts to its own end, on the span and on the metric."""
    op = start(STEP, "work", ("x",))
    op.stop(ended_ns=op.started_ns + 5_000_000)
    assert op.seconds == pytest.approx(0.005)
    assert telemetry.points(c.STEP_DURATION.name)[0].sum == pytest.approx(0.005)


def test_left_current_on_request(telemetry):
    """Whoever activated it may deactivate it himself, later."""
    op = start(STEP, "work", ("x",))
    op.stop(deactivate=False)
    assert operation.current() is op
    op.deactivate()
    assert operation.current() is None
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_without_being_current(telemetry):
    """An event API starts and stops by hand; nothing becomes current."""
    op = start(QUERY, "SELECT t", ("sqlite", "SELECT"), activate=False)
    assert operation.current() is None
    assert not trace.get_current_span().get_span_context().is_valid
    op.activate()
    assert trace.get_current_span() is op.span
    op.deactivate()
    op.stop()
    assert telemetry.span("SELECT t")


def test_only_one_of_both(telemetry):
    """`span=False` measures only, `metrics=False` makes a span only, suppression keeps spans away."""
    start(STEP, "metric only", ("m",), span=False).stop()
    start(JOB, "span only", ("s",), metrics=False).stop()
    token = otel_context.attach(otel_context.set_value(sdk.SUPPRESS_KEY, True))
    suppressed = start(STEP, "suppressed", ("q",))
    assert suppressed.recorded is None
    suppressed.stop()
    otel_context.detach(token)
    assert [span.name for span in telemetry.spans] == ["span only"]
    assert {point.attributes["operation.name"] for point in telemetry.points(c.STEP_DURATION.name)} == {"m", "q"}
    assert not telemetry.points(c.JOB_DURATION.name)
    assert not telemetry.points(c.JOBS_ACTIVE.name)


def test_a_trace_that_is_not_sampled_is_measured(telemetry):
    """Without a recorded span there is the duration, and no exemplar."""
    telemetry.restart(sampler="always_off")
    op = start(STEP, "work", ("x",))
    assert op.recorded is None
    op.stop(ValueError("x"))
    assert telemetry.spans == []
    [point] = telemetry.points(c.STEP_DURATION.name)
    assert point.exemplars == []


def test_no_exemplars_on_request(telemetry):
    """The setting switches them off."""
    telemetry.restart(exemplars=False)
    start(STEP, "work", ("x",)).stop()
    assert telemetry.points(c.STEP_DURATION.name)[0].exemplars == []


def test_jobs_count_what_runs_what_was_done_and_the_last_success(telemetry):
    """Active goes up and down, items add up on metric and span, the last success is a time and only of successes."""
    op = start(JOB, "nightly", ("nightly",))
    assert telemetry.points(c.JOBS_ACTIVE.name)[0].value == 1
    op.items = 7
    op.stop()
    start(JOB, "nightly", ("nightly",)).stop(ValueError("x"))
    assert telemetry.points(c.JOBS_ACTIVE.name)[0].value == 0
    assert telemetry.points(c.JOB_ITEM_COUNT.name)[0].value == 7
    [last] = telemetry.points(c.JOB_LAST_SUCCESS.name)
    assert isinstance(last, NumberDataPoint)
    assert last.value > 1.7e9
    assert [span.attributes.get(c.JOB_ITEMS) for span in telemetry.spans] == [7, None]


@pytest.mark.parametrize(("hit", "result"), [(True, "hit"), (False, "miss"), (None, "none")])
def test_the_result_of_a_cache_operation(telemetry, hit, result):
    """Hit, miss, or neither."""
    op = start(CACHE, "cache get", ("memory", "get"))
    op.hit = hit
    op.stop()
    assert telemetry.points(c.CACHE_DURATION.name, cache__result=result)


def test_slow_queries_are_counted(telemetry):
    """At the threshold a query counts as slow, with the labels of its duration but the error."""
    telemetry.restart(slow_query_s=0.01)
    for nanoseconds in (9_999_999, 10_000_000):
        op = start(QUERY, "q", ("sqlite", "SELECT", "t"))
        op.stop(ended_ns=op.started_ns + nanoseconds)
    [slow] = telemetry.points(c.QUERY_SLOW.name)
    assert slow.value == 1
    assert dict(slow.attributes) == {
        c.DB_SYSTEM: "sqlite",
        c.DB_OPERATION: "SELECT",
        c.DB_COLLECTION: "t",
        c.DB_THRESHOLD: "slow",
    }


def test_too_many_labels_go_into_one_series(telemetry, caplog):
    """Of 500 collections as many are kept as the limit says, and one warning names the label at fault."""
    telemetry.restart(cardinality_limit=50)
    for number in range(500):
        start(QUERY, "q", ("mongodb", "find", f"c{number}"), activate=False).stop()
    points = telemetry.points(c.QUERY_DURATION.name)
    assert len(points) == 50
    assert sum(point.count for point in points) == 500
    [record] = caplog.records
    assert "metric db.client.operation.duration reached 50 series" in record.getMessage()
    assert "'db.collection.name'" in record.getMessage()


def test_before_configure_everything_is_timed_and_nothing_recorded():
    """An operation always comes back, with seconds afterwards."""
    otel_perf.shutdown()
    op = start(JOB, "early", ("x",), {"a": 1})
    op.set("b", 2)
    op.label(c.JOB_NAME, "y")
    assert operation.current() is op
    assert op.span is None
    op.stop()
    assert op.seconds >= 0


def test_what_spans_two_configurations_is_in_the_counts_of_neither(telemetry):
    """Active of the second configuration is not minus one because of what the first one started."""
    op = start(JOB, "work", ("x",))
    telemetry.restart()
    op.stop()
    assert not telemetry.points(c.JOBS_ACTIVE.name)
    assert not telemetry.points(c.JOB_DURATION.name)


def test_stopped_in_a_copy_of_the_context(telemetry):
    """A stream that another task closes leaves nothing current there either, and nothing is logged."""
    outer = start(STEP, "outer", ("o",))
    op = start(STEP, "work", ("x",))

    def close() -> tuple:
        assert operation.current() is op
        op.stop()
        return operation.current(), trace.get_current_span()

    assert contextvars.copy_context().run(close) == (outer, outer.span)
    assert operation.current() is op  # this context was never told
    contextvars.Context().run(op.deactivate)
    operation._current.set(outer)
    otel_context.attach(outer.context)
    outer.deactivate()
    operation._current.set(None)
    otel_context.attach(otel_context.Context())
    outer.stop()


def test_a_chain_of_tasks_does_not_keep_its_past(telemetry):
    """Each task starts the next one from within its operation; only the newest few operations hang together."""

    async def link(left: int) -> None:
        op = start(STEP, "link", ("x",))
        following = asyncio.create_task(link(left - 1)) if left else None
        await asyncio.sleep(0)
        op.stop()
        del op
        if following is not None:
            waiting.append(following)

    waiting: list[asyncio.Task] = []

    async def main() -> int:
        await link(50)
        longest = 0
        while waiting:
            current = operation.current()
            await waiting.pop()
            depth = 0
            while current is not None:
                depth, current = depth + 1, current.parent
            longest = max(longest, depth)
        return longest

    assert asyncio.run(main()) <= 3
    assert len(telemetry.spans) == 51


def test_stopping_compresses_the_chain(telemetry):
    """A stopped operation points past stopped ones, so whoever holds it holds no history."""
    first = start(STEP, "1", ("1",), activate=False)
    second = start(STEP, "2", ("2",), activate=False)
    third = start(STEP, "3", ("3",), activate=False)
    second.parent, third.parent = first, second
    first.stop()
    second.stop()
    third.stop()
    assert third.parent is None


def test_our_faults_do_not_reach_the_application(telemetry, monkeypatch):
    """Wrong labels, values that cannot be keys, a tracer that fails: the work goes on, the fault is counted."""
    monkeypatch.setattr(guard, "strict", False)
    op = start(STEP, "unhashable", (["x"],))
    op.label("no.such.label", 1)
    op.stop()
    assert telemetry.span("unhashable").end_time is not None
    assert guard.errors == 2

    start(STEP, "too many", ("a", "b", "c", "d")).stop()
    assert guard.errors == 4  # no span, no series
    assert operation.current() is None


def test_items_that_are_no_count_cost_only_themselves(telemetry, monkeypatch):
    """The duration is recorded and the span ends."""
    monkeypatch.setattr(guard, "strict", False)
    op = start(STEP, "work", ("x",))
    op.items = "many"  # type: ignore[assignment]
    op.stop()
    assert telemetry.span("work")
    assert telemetry.points(c.STEP_DURATION.name)
    assert guard.errors == 2  # neither the metric of items nor the attribute


def test_failing_attributes_and_errors_cost_only_themselves(telemetry, monkeypatch):
    """A redactor that fails is our fault, and stays ours."""
    monkeypatch.setattr(guard, "strict", False)

    def broken(_):
        raise RuntimeError("ours")

    op = start(STEP, "work", ("x",))
    monkeypatch.setattr(operation.redaction, "redact", broken)
    monkeypatch.setattr(operation.redaction, "exception", broken)
    op.set("a", "x")
    op.fail(ValueError("x"))
    op.stop()
    assert guard.errors == 3
    assert operation.current() is None
    assert telemetry.points(c.STEP_DURATION.name, error__type="ValueError")
    assert telemetry.span("work").status.status_code is StatusCode.ERROR


def test_threads_do_not_see_each_others_operation(telemetry):
    """What is current belongs to the context."""
    op = start(STEP, "work", ("x",))
    seen = []
    thread = threading.Thread(target=lambda: seen.append(operation.current()))
    thread.start()
    thread.join()
    op.stop()
    assert seen == [None]


def test_a_kind_of_ones_own(telemetry):
    """A kind is a record: another histogram and another order of labels are enough."""
    mine = Kind("mine", c.Metric("mine.duration", "s", "histogram", "", ("name", c.ERROR_TYPE), (1.0,)))
    assert mine.alone
    start(mine, "mine", ("x",)).stop()
    assert dict(telemetry.points("mine.duration")[0].attributes) == {"name": "x"}
