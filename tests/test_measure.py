"""The kinds of measurement: each name, label and value where it belongs, before and after `configure()`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

import otel_perf
from otel_perf import conventions as c
from otel_perf import guard, jobs, measure, strategy
from otel_perf.handle import Measured
from otel_perf.telemetry import operation


@pytest.fixture(autouse=True)
def _own_declarations(monkeypatch):
    monkeypatch.setattr(jobs, "_jobs", {})
    monkeypatch.setattr(strategy, "_strategies", {})


KINDS: dict[str, tuple[Callable[[], Measured], str, SpanKind, str, dict[str, Any]]] = {
    "step": (
        lambda: measure("parse", category="io"), "parse", SpanKind.INTERNAL, c.STEP_DURATION.name,
        {c.STEP_NAME: "parse", c.STEP_CATEGORY: "io"},
    ),
    "request": (
        lambda: measure.request("GET", "/a/{id}", scheme="https"), "GET /a/{id}", SpanKind.SERVER,
        c.REQUEST_DURATION.name, {c.HTTP_METHOD: "GET", c.HTTP_ROUTE: "/a/{id}", c.URL_SCHEME: "https"},
    ),
    "query": (
        lambda: measure.query("find", collection="trips", system="mongodb", namespace="shop"), "find trips",
        SpanKind.CLIENT, c.QUERY_DURATION.name,
        {c.DB_OPERATION: "find", c.DB_COLLECTION: "trips", c.DB_SYSTEM: "mongodb", c.DB_NAMESPACE: "shop"},
    ),
    "query without a collection": (
        lambda: measure.query("vacuum"), "vacuum", SpanKind.CLIENT, c.QUERY_DURATION.name,
        {c.DB_OPERATION: "vacuum", c.DB_SYSTEM: "other_sql"},
    ),
    "cache": (
        lambda: measure.cache("get", strategy="PROFILE", system="redis"), "cache get", SpanKind.CLIENT,
        c.CACHE_DURATION.name,
        {c.CACHE_OPERATION: "get", c.CACHE_STRATEGY: "PROFILE", c.CACHE_SYSTEM: "redis", c.CACHE_RESULT: "none"},
    ),
    "external": (
        lambda: measure.external("stripe", "charge", category="payments"), "stripe charge", SpanKind.CLIENT,
        c.EXTERNAL_DURATION.name,
        {c.PEER_SERVICE: "stripe", c.EXTERNAL_OPERATION: "charge", c.EXTERNAL_CATEGORY: "payments"},
    ),
    "job": (
        lambda: measure.job("nightly"), "nightly", SpanKind.INTERNAL, c.JOB_DURATION.name, {c.JOB_NAME: "nightly"},
    ),
}  # fmt: skip


def _block(handle: Measured, error: BaseException | None) -> None:
    with handle:
        if error is not None:
            raise error


def _async_block(handle: Measured, error: BaseException | None) -> None:
    async def main() -> None:
        async with handle:
            await asyncio.sleep(0)
            if error is not None:
                raise error

    asyncio.run(main())


def _decorator(handle: Measured, error: BaseException | None) -> None:
    @handle
    def work() -> None:
        if error is not None:
            raise error

    work()


@pytest.mark.parametrize("use", [_block, _async_block, _decorator])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_in_each_use(telemetry, kind, use):
    """Span name, span kind and labels are the same however it is used, with and without a failure."""
    make, name, span_kind, metric, labels = KINDS[kind]
    use(make(), None)
    span = telemetry.span(name)
    assert span.kind is span_kind
    assert dict(span.attributes) == labels
    assert span.status.status_code is StatusCode.UNSET
    [point] = telemetry.points(metric)
    assert dict(point.attributes) == labels
    assert point.count == 1

    telemetry.restart()
    with pytest.raises(ZeroDivisionError):
        use(make(), ZeroDivisionError("x"))
    span = telemetry.span(name)
    assert dict(span.attributes) == {**labels, c.ERROR_TYPE: "ZeroDivisionError"}
    assert span.status.status_code is StatusCode.ERROR
    [point] = telemetry.points(metric)
    assert dict(point.attributes) == dict(span.attributes)
    assert operation.current() is None
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_before_configure(kind):
    """Nothing is recorded and nothing fails; the seconds are there all the same."""
    otel_perf.shutdown()
    with KINDS[kind][0]() as op:
        assert op.span is None
    assert op.seconds is not None
    assert op.seconds >= 0


def test_a_handle_made_before_configure_measures_after_it(telemetry):
    """Decorators run at import, long before the settings are known; a later `configure()` is followed too."""
    otel_perf.shutdown()

    @measure
    def early() -> int:
        return 1

    early()
    for _ in range(2):
        telemetry.restart()
        early()
        assert telemetry.points(c.STEP_DURATION.name)[0].count == 1
        assert len(telemetry.spans) == 1


def test_kinds_nest(telemetry):
    """A job with a step with a query and a cache call in it is one trace of that shape."""
    with measure.job("nightly"), measure("batch"):
        with measure.query("find", collection="trips"):
            pass
        with measure.cache("get") as op:
            op.hit = True
    parents = {span.name: span.parent and span.parent.span_id for span in telemetry.spans}
    ids = {span.name: span.context.span_id for span in telemetry.spans}
    assert parents == {
        "nightly": None, "batch": ids["nightly"], "find trips": ids["batch"], "cache get": ids["batch"],
    }  # fmt: skip
    assert len({span.context.trace_id for span in telemetry.spans}) == 1


@pytest.mark.parametrize(("hit", "result"), [(True, "hit"), (False, "miss"), (None, "none")])
def test_cache_results(telemetry, hit, result):
    """Hit, miss, and neither for what is not a read."""
    with measure.cache("get") as op:
        op.hit = hit
    assert telemetry.span("cache get").attributes[c.CACHE_RESULT] == result
    assert [point.count for point in telemetry.points(c.CACHE_DURATION.name, cache__result=result)] == [1]


def test_query_text_is_masked(telemetry):
    """Literals stay in the process; the text is on the span and never on the metric."""
    with measure.query("SELECT", collection="users", text="SELECT * FROM users WHERE email = 'a@b.c' AND pin = 1234"):
        pass
    text = telemetry.span("SELECT users").attributes[c.DB_QUERY_TEXT]
    assert text == "SELECT * FROM users WHERE email = ? AND pin = ?"
    [point] = telemetry.points(c.QUERY_DURATION.name)
    assert c.DB_QUERY_TEXT not in point.attributes


def test_a_status_is_filled_in_as_the_request_ends(telemetry):
    """What is known last is a label as well."""
    with measure.request("GET", "/") as op:
        op.label("http.response.status_code", 204)
    assert telemetry.points(c.REQUEST_DURATION.name, http__response__status_code=204)
    assert telemetry.span("GET /").attributes[c.HTTP_STATUS] == 204


def test_a_failure_that_raises_nothing(telemetry):
    """`fail` marks what went wrong without an exception, alike on both."""
    with measure.external("stripe", "charge") as op:
        op.fail("declined")
    assert telemetry.span("stripe charge").attributes[c.ERROR_TYPE] == "declined"
    assert telemetry.points(c.EXTERNAL_DURATION.name, error__type="declined")


def test_an_unnamed_block(telemetry):
    """Without a name there is nothing to be named after but the kind of work."""
    with measure():
        pass
    assert telemetry.span("operation")


def test_own_attributes_of_a_decorated_function(telemetry):
    """Attributes that are given come with the function's name, and win over it."""

    @measure(attributes={"team": "a", c.CODE_FUNCTION: "mine"})
    def work() -> None: ...

    work()
    [span] = telemetry.spans
    assert (span.attributes["team"], span.attributes[c.CODE_FUNCTION]) == ("a", "mine")


# record ---------------------------------------------------------------------------------------------------------------


def test_a_recorded_step(telemetry):
    """What was timed elsewhere counts like a measured step, without a span; its exemplar is the trace around it."""
    with measure("around"):
        measure.record("validation", seconds=0.1255, items=100, category="data")
    [point] = telemetry.points(c.STEP_DURATION.name, operation__name="validation", operation__category="data")
    assert (point.count, point.sum) == (1, 0.1255)
    assert [each.trace_id for each in point.exemplars] == [telemetry.span("around").context.trace_id]
    assert telemetry.points(c.STEP_ITEM_COUNT.name, operation__name="validation")[0].value == 100
    assert len(telemetry.spans) == 1


def test_a_recorded_step_without_exemplars_and_items(telemetry):
    """Both are optional, and 0 seconds is a duration."""
    telemetry.restart(exemplars=False)
    with measure("around"):
        measure.record("validation", seconds=0)
        measure.record("validation", seconds=0, items=0)
    [point] = telemetry.points(c.STEP_DURATION.name, operation__name="validation")
    assert (point.count, point.exemplars) == (2, [])
    assert not telemetry.points(c.STEP_ITEM_COUNT.name)


def test_recording_before_configure_does_nothing():
    """There is nothing to record into, which is no fault."""
    otel_perf.shutdown()
    measure.record("validation", seconds=1)
    assert guard.errors == 0


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, "one"])
def test_no_duration_is_not_recorded(telemetry, monkeypatch, seconds):
    """Strict says so; in production it is counted, and the histogram stays sound."""
    with pytest.raises((ValueError, TypeError)):
        measure.record("validation", seconds=seconds)
    monkeypatch.setattr(guard, "strict", False)
    measure.record("validation", seconds=seconds)
    assert guard.errors == 2
    assert not telemetry.points(c.STEP_DURATION.name)


@pytest.mark.parametrize("items", [-1, math.inf, math.nan])
def test_items_that_are_no_count_are_left_out(telemetry, items):
    """A sum would never recover from them; the duration is recorded."""
    measure.record("validation", seconds=1, items=items)
    assert not telemetry.points(c.STEP_ITEM_COUNT.name)
    assert telemetry.points(c.STEP_DURATION.name)[0].count == 1


# job, client, strategy ------------------------------------------------------------------------------------------------


def test_a_job_declares_itself_and_counts(telemetry):
    """How often it should run is known before it runs; items, activity and the last success are metrics."""

    @measure.job("nightly", every="1d")
    def run() -> int:
        [active] = telemetry.points(c.JOBS_ACTIVE.name, background__job__name="nightly")
        current = operation.current()
        assert current is not None
        current.items = 12
        return active.value

    assert jobs.declared() == (jobs.Job("nightly", 86400.0),)
    assert run() == 1
    assert telemetry.points(c.JOBS_ACTIVE.name)[0].value == 0
    assert telemetry.points(c.JOB_ITEM_COUNT.name)[0].value == 12
    assert telemetry.points(c.JOB_LAST_SUCCESS.name)[0].value > 1.7e9


def test_a_job_with_a_wrong_interval_stops_the_start():
    """The message names the job and what to write."""
    with pytest.raises(ValueError, match=r"every of job 'nightly' is 'daily': give seconds, or .*'1d'"):
        measure.job("nightly", every="daily")
    assert jobs.declared() == ()


def test_the_client_face(telemetry):
    """`measure.client` wraps, with the collection in the span's name."""

    class Store:
        def find(self) -> int:
            return 7

    assert measure.client(Store(), system="zerodb", methods={"find": "search"}, collection="docs").find() == 7
    assert telemetry.span("search docs").attributes[c.DB_SYSTEM] == "zerodb"


def test_the_strategy_face():
    """`measure.strategy` declares."""
    made = measure.strategy("PROFILE", "user:profile:*", ttl_s=60, expected_hit_rate=0.9)
    assert made == strategy.Strategy("PROFILE", "user:profile:*", 60, 0.9)
    assert strategy.find("user:profile:7") is made
