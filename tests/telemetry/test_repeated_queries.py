"""Queries that one piece of work repeats: counted by template, emitted when it ends, whatever is sampled."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import otel_perf
from otel_perf import conventions as c
from otel_perf import guard, measure
from otel_perf.telemetry import operation, repeated_queries
from otel_perf.telemetry.kind import JOB, QUERY, REQUEST, STEP
from otel_perf.telemetry.operation import start
from otel_perf.telemetry.repeated_queries import EVENT, RepeatedQueries
from tests.serving import served


def ask(text: str = "SELECT * FROM items WHERE id = 1", times: int = 1, seconds: float = 0.001, **options) -> None:
    for _ in range(times):
        labels = ("sqlite", "SELECT", "items", "shop")
        op = start(QUERY, "SELECT items", labels, {c.DB_QUERY_TEXT: text}, **options)
        op.stop(ended_ns=op.started_ns + int(seconds * 1e9))


def test_a_request_that_repeats_a_query(telemetry):
    """A point by route with the number of queries, an event on the request's span, and a candidate."""
    request = start(REQUEST, "GET", ("GET", "/orders/{id}"))
    for number in range(7):
        ask(f"SELECT * FROM items WHERE id = {number}", seconds=0.01)
    ask("SELECT 1 FROM other", times=4)
    request.stop()
    [point] = telemetry.points(c.QUERY_REPEATED.name)
    assert point.value == 7
    assert dict(point.attributes) == {
        c.DB_SYSTEM: "sqlite", c.DB_OPERATION: "SELECT", c.DB_COLLECTION: "items", c.HTTP_ROUTE: "/orders/{id}",
    }  # fmt: skip
    span = telemetry.span("GET")
    [event] = span.events
    assert event.name == EVENT
    assert event.attributes[c.DB_QUERY_SUMMARY] == "SELECT items"
    assert event.attributes["db.repeated_query.count"] == 7
    assert event.attributes["db.repeated_query.duration"] == pytest.approx(0.07)
    [found] = telemetry.runtime.repeated_queries.recent()
    assert (found.template, found.count) == ("SELECT * FROM items WHERE id = ?", 7)
    assert found.total_s == pytest.approx(0.07)
    assert (found.route, found.unit, found.caller) == ("/orders/{id}", "GET", None)
    assert (found.trace_id, found.span_id) == (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}")


def test_through_a_real_app(telemetry):
    """Queries deep in the handler, in steps and in threads of Starlette's, belong to the request."""

    def handler(_request):
        with measure("load"):
            ask(times=3)
        ask(times=2)
        return PlainTextResponse("")

    app = Starlette(routes=[Route("/orders/{id}", handler)])
    with otel_perf.instrument(app), served(app) as address:
        httpx.get(f"{address}/orders/5")
    [found] = telemetry.runtime.repeated_queries.recent()
    assert (found.route, found.count) == ("/orders/{id}", 5)


@pytest.mark.parametrize("kind", [REQUEST, JOB, STEP], ids=lambda kind: kind.name)
@pytest.mark.parametrize("sampler", ["always_on", "always_off"])
def test_pieces_of_work(telemetry, kind, sampler):
    """A request, a job and the outermost step count, sampled or not."""
    telemetry.restart(sampler=sampler)
    unit = start(kind, "work", ("x", "y"))
    ask(times=5)
    unit.stop()
    [found] = telemetry.runtime.repeated_queries.recent()
    assert found.count == 5
    assert (found.route, found.trace_id is None) == ("y" if kind is REQUEST else None, False)


def test_fewer_than_the_setting_are_none(telemetry):
    """The setting says how many are repeated."""
    telemetry.restart(repeated_query_count=3)
    for times in (2, 3):
        with measure("work"):
            ask(times=times)
    assert [found.count for found in telemetry.runtime.repeated_queries.recent()] == [3]


def test_a_job_within_a_request_counts_by_itself(telemetry):
    """Its queries are its own."""
    request = start(REQUEST, "GET", ("GET", "/"))
    ask(times=2)
    with measure.job("nightly"):
        ask(times=5)
    ask(times=2)
    request.stop()
    [found] = telemetry.runtime.repeated_queries.recent()
    assert (found.unit, found.count) == ("nightly", 5)


def test_tasks_of_a_request_count_together(telemetry):
    """And what they do after it has ended does not count into it, nor keeps it in memory."""
    left: list[object] = []

    async def one() -> None:
        ask()

    async def main() -> None:
        request = start(REQUEST, "GET", ("GET", "/"))
        await asyncio.gather(*(one() for _ in range(5)))
        late = contextvars.copy_context()
        request.stop()
        left.append(late)

    asyncio.run(main())
    [found] = telemetry.runtime.repeated_queries.recent()
    assert found.count == 5
    left.pop().run(ask, times=6)
    assert len(telemetry.runtime.repeated_queries.recent()) == 1


def test_no_operation_keeps_another_alive(telemetry):
    """A unit refers to no query and to itself by nothing: it goes without the garbage collector."""

    class Watched(operation.Operation):
        __slots__ = ("__weakref__",)

    gc.disable()
    try:
        unit = start(REQUEST, "GET", ("GET", "/"), made=Watched)
        inner = start(STEP, "step", ("x",), made=Watched)
        ask(times=6)
        inner.stop()
        unit.stop()
        assert inner.unit is None
        gone = [weakref.ref(unit), weakref.ref(inner)]
        del unit, inner
        assert [each() for each in gone] == [None, None]
    finally:
        gc.enable()


def test_where_no_query_ran_nothing_is_kept(telemetry):
    """Neither a count nor a call."""
    unit = start(REQUEST, "GET", ("GET", "/"))
    unit.stop()
    assert unit.queries is None
    assert not telemetry.points(c.QUERY_REPEATED.name)


def test_many_templates_are_bounded(telemetry):
    """Of 100,000 distinct ones in one request 256 are counted; so many candidates are kept, and so many events."""
    telemetry.restart(repeated_query_count=2, sampler="always_off")
    with measure("work") as unit:
        for number in range(100_000):
            # As `start` and `stop` would do, without the rest.
            query = operation.Operation(QUERY, f"q{number}", ["sqlite", "GET", None, None, None])
            query.seconds = 0.0
            query._record(telemetry.runtime, 0)
    assert len(unit.queries) == 256
    telemetry.restart(repeated_query_count=2)
    with measure("work"):
        for number in range(300):
            ask(f"SELECT {'x' * (number + 1)}", times=2)
    assert len(telemetry.span("work").events) == repeated_queries._EVENTS
    kept = telemetry.runtime.repeated_queries
    assert len(kept.recent()) == 256
    with measure("work"):
        ask(times=2)
    assert len(kept.recent()) == 256


def test_what_waits_does_not_count(telemetry):
    """A worker that asks a queue again and again repeats nothing."""
    with measure("worker"):
        for _ in range(9):
            query = start(QUERY, "BLPOP", ("redis", "BLPOP"))
            query.waits = True
            query.stop()
    assert telemetry.runtime.repeated_queries.recent() == []


def test_the_place_of_a_slow_one(telemetry):
    """Frames are looked at for slow queries only; the last one of them says where the loop is."""
    with measure("work"):
        ask(times=4)
        ask(seconds=0.3)
        ask()
    [found] = telemetry.runtime.repeated_queries.recent()
    assert found.count == 6
    assert found.caller.file == __file__


def test_a_fault_of_ours_stays_ours(telemetry, monkeypatch):
    """The request ends as it would."""
    monkeypatch.setattr(guard, "strict", False)
    monkeypatch.setattr(repeated_queries, "_candidate", lambda *_: 1 / 0)
    with measure("work"):
        ask(times=5)
    assert guard.errors == 1
    assert telemetry.span("work")


def test_a_child_process_begins_with_none():
    """What its parent saw is the parent's."""
    kept = RepeatedQueries()
    kept._recent.append(object())
    kept.clear()
    assert kept.recent() == []


def test_a_shutdown_in_between(telemetry):
    """What began before counts nowhere."""
    unit = start(STEP, "work", ("x",))
    ask(times=5)
    otel_perf.shutdown()
    unit.stop()
    assert unit.repeats
