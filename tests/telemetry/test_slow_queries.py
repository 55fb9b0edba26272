"""Slow queries: what is kept of each, who is told, and what happens when they come faster than they can be written."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import threading
from datetime import datetime, timezone

import pytest

import otel_perf
from otel_perf import conventions as c
from otel_perf import guard, measure, redaction
from otel_perf.telemetry import query_listeners, slow_queries
from otel_perf.telemetry.logs import request_id
from otel_perf.telemetry.operation import CACHE, QUERY, Operation, start
from otel_perf.telemetry.slow_queries import SlowQueries

LABELS = ("postgresql", "SELECT", "users", "shop")


def slow(seconds: float = 0.3, name: str = "SELECT users", text: str | None = None, **options) -> Operation:
    """A query that took so long."""
    attributes = {} if text is None else {c.DB_QUERY_TEXT: text}
    op = start(QUERY, name, LABELS, attributes, **options)
    op.set(c.DB_ROWS, 7)
    op.stop(ended_ns=op.started_ns + int(seconds * 1e9))
    return op


def test_everything_that_is_known_of_a_slow_query(telemetry):
    """Masked, with its place and its ids, the same in the store and as a line of JSON."""
    token = request_id.set("abc")
    op = slow(0.25, text="SELECT * FROM users WHERE email = 'a@b.c'")
    request_id.reset(token)
    [query] = telemetry.runtime.slow_queries.recent()
    assert (query.threshold, query.duration_s) == ("slow", pytest.approx(0.25))
    assert (query.system, query.operation, query.collection, query.namespace) == LABELS
    assert query.statement == "SELECT * FROM users WHERE email = ?"
    assert (query.rows, query.request_id, query.error_type) == (7, "abc", None)
    assert query.caller.file == __file__
    assert query.caller.line == slow.__code__.co_firstlineno + 5
    context = op.span.get_span_context()
    assert (query.trace_id, query.span_id) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    line = json.loads(query.json())
    assert line == {
        "time": line["time"], "threshold": "slow", "duration_s": 0.25, "system": "postgresql", "operation": "SELECT",
        "collection": "users", "namespace": "shop", "statement": "SELECT * FROM users WHERE email = ?",
        "summary": "SELECT users", "rows": 7, "error_type": None, "caller": str(query.caller), "request_id": "abc",
        "trace_id": query.trace_id, "span_id": query.span_id,
    }  # fmt: skip
    written = datetime.fromisoformat(line["time"].replace("Z", "+00:00"))
    assert abs((written - datetime.fromtimestamp(query.time_s, timezone.utc)).total_seconds()) < 0.002


@pytest.mark.parametrize(("seconds", "threshold"), [(0.199, None), (0.2, "slow"), (0.999, "slow"), (1.0, "critical")])
def test_the_thresholds(telemetry, seconds, threshold):
    """From 0.2 s on a query is slow, from 1 s on it is critical; the counter says which."""
    slow(seconds)
    found = telemetry.runtime.slow_queries.recent()
    assert [each.threshold for each in found] == ([] if threshold is None else [threshold])
    points = telemetry.points(c.QUERY_SLOW.name)
    assert [point.attributes[c.DB_THRESHOLD] for point in points] == ([] if threshold is None else [threshold])


def test_sampling_makes_no_difference(telemetry):
    """Slow queries of traces that are not sampled, or that have no span at all, are kept as well."""
    telemetry.restart(sampler="always_off", slow_query_s=0.1)
    slow()
    slow(span=False)
    first, second = telemetry.runtime.slow_queries.recent()
    assert first.trace_id is not None
    assert not first.sampled
    assert second.trace_id is None
    assert (first.rows, second.rows) == (7, 7)


def test_where_somebody_else_measures_the_duration(telemetry):
    """What is slow is ours to say all the same."""
    slow(metrics=False)
    assert len(telemetry.runtime.slow_queries.recent()) == 1
    assert not telemetry.points(c.QUERY_DURATION.name)
    assert telemetry.points(c.QUERY_SLOW.name)


def test_what_waits_and_what_is_no_query_is_not_slow(telemetry):
    """A blocking pop has nothing else to do; other kinds have thresholds of their own."""
    op = start(QUERY, "BLPOP", ("redis", "BLPOP"))
    op.waits = True
    op.stop(ended_ns=op.started_ns + 5_000_000_000)
    op = start(CACHE, "cache get", ("redis", "get"))
    op.stop(ended_ns=op.started_ns + 5_000_000_000)
    assert telemetry.runtime.slow_queries.recent() == []


def test_a_failure_is_told(telemetry):
    """A query that failed slowly is a slow query; what the server said of values is not in it."""
    op = start(QUERY, "INSERT users", LABELS)
    op.stop(ValueError("Key (email)=(a@b.c) already exists"), ended_ns=op.started_ns + 300_000_000)
    [query] = telemetry.runtime.slow_queries.recent()
    assert query.error_type == "ValueError"
    assert "a@b.c" not in query.json()


def test_templates_add_up(telemetry):
    """The same statement with other literals is one template; the costliest comes first."""
    for number, seconds in enumerate((0.3, 2.0, 0.4)):
        slow(seconds, text=f"SELECT * FROM users WHERE id = {number}")
    slow(0.5, text="SELECT 1 FROM orders")
    users, orders = telemetry.runtime.slow_queries.by_template()
    assert (users.template, users.count, users.critical_count) == ("SELECT * FROM users WHERE id = ?", 3, 1)
    assert (users.total_s, users.max_s) == (pytest.approx(2.7), pytest.approx(2.0))
    assert users.last.duration_s == pytest.approx(0.4)
    assert orders.count == 1


def test_without_a_text_the_name_is_the_template(telemetry):
    """As with Redis and with one's own clients; `measure.query` takes the number of rows like any other."""
    telemetry.restart(slow_query_s=0.01)
    with measure.query("find", collection="trips", system="mongodb") as op:
        op.set(c.DB_ROWS, 3)
        op.started_ns -= 20_000_000
    [query] = telemetry.runtime.slow_queries.recent()
    assert (query.statement, query.system, query.rows) == ("find trips", "mongodb", 3)


def test_an_asynchronous_query(telemetry):
    """Cancelled ones count like all others."""

    async def main() -> None:
        async with measure.query("find", system="mongodb") as op:
            op.started_ns -= 300_000_000
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    [query] = telemetry.runtime.slow_queries.recent()
    assert "CancelledError" in query.error_type


def test_memory_is_bounded(telemetry):
    """Of many templates those are kept that were seen last, and of many queries the last ones."""
    kept = telemetry.runtime.slow_queries
    for number in range(3000):
        slow(name=f"SELECT t{number}")
        kept._waiting.clear()
    assert len(kept.by_template()) == slow_queries._TEMPLATES
    assert len(kept.recent()) == slow_queries._RECENT
    assert kept.recent()[-1].statement == "SELECT t2999"


def test_a_statement_of_a_megabyte(telemetry):
    """It is cut before it is read, and again before it is kept."""
    slow(text="SELECT * FROM users WHERE a IN (" + "b, " * 400_000 + "'secret')")
    [query] = telemetry.runtime.slow_queries.recent()
    assert len(query.json()) < 4000
    assert telemetry.span("SELECT users").attributes[c.DB_QUERY_TEXT] == query.statement
    assert len(query.statement) <= redaction.MAX_LENGTH


def test_what_finds_no_room_is_counted(telemetry):
    """A hook that hangs fills the queue; nobody waits for it, a flush says so, and the loss is a metric."""
    gate = threading.Event()
    entered = threading.Event()

    def hang(_):
        entered.set()
        gate.wait(30)

    otel_perf.on_critical_query(hang)
    try:
        slow(2.0)
        assert entered.wait(10)
        for _ in range(slow_queries._QUEUE + 5):
            slow()
        assert telemetry.runtime.slow_queries.lost == {"queue_full": 5}
        assert not telemetry.runtime.slow_queries.flush(0.01)
    finally:
        gate.set()
        query_listeners.hooks.remove(hang)
    assert not telemetry.runtime.slow_queries.flush(10)  # it was lost since the last time
    assert telemetry.runtime.slow_queries.flush(10)
    [point] = telemetry.points(c.DROPPED.name, signal="slow_queries")
    assert (point.value, point.attributes["reason"]) == (5, "queue_full")


def test_a_fault_of_ours_stays_ours(telemetry, monkeypatch):
    """The query is measured, and whoever asked knows nothing of it."""
    monkeypatch.setattr(guard, "strict", False)
    monkeypatch.setattr(slow_queries, "caller", lambda: 1 / 0)
    slow()
    assert guard.errors == 1
    assert telemetry.points(c.QUERY_DURATION.name)


def test_no_thread_runs_before_the_first_slow_query(telemetry):
    """And none after the shutdown."""

    def ours() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name == "otel_perf-slow_queries"]

    slow(0.1)
    assert ours() == []
    slow()
    assert len(ours()) == 1
    otel_perf.shutdown()
    assert ours() == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_its_own(telemetry, tmp_path):
    """What waited in the parent is the parent's; the child writes its own slow queries to the same file."""
    path = tmp_path / "slow.log"
    telemetry.restart(slow_query_log=str(path))
    slow(0.3, name="SELECT parent")
    telemetry.runtime.slow_queries.flush(10)
    process = multiprocessing.get_context("fork").Process(target=_child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    slow(0.3, name="SELECT parent")
    otel_perf.shutdown()
    lines = [json.loads(line)["summary"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == ["SELECT parent", "SELECT child", "SELECT parent"]


def _child() -> None:
    from otel_perf.telemetry import runtime

    kept = runtime.current.slow_queries
    assert kept.recent() == []
    slow(0.3, name="SELECT child")
    assert len(kept.recent()) == 1
    os._exit(0 if kept.flush(10) else 1)


def test_after_the_shutdown_nothing_is_taken():
    """Whoever still holds it loses nothing that anybody waits for, and no thread starts."""
    kept = SlowQueries()
    assert kept.shutdown(5)
    kept._hand_on(None)
    assert not kept._waiting
    assert kept._thread is None


def test_names_of_a_megabyte(telemetry):
    """Whatever is handed over as a name or a label, what is kept of it is short."""
    telemetry.restart(slow_query_s=0.01)
    long = "x" * 1_000_000
    with measure("work"):
        for options in ({}, {"span": False}):
            for _ in range(5):
                op = start(QUERY, long, (long, long, long, 5), **options)
                op.set(c.DB_ROWS, long)
                op.stop(ended_ns=op.started_ns + 20_000_000)
    kept = telemetry.runtime
    assert all(len(each.json()) < 6000 and each.rows is None for each in kept.slow_queries.recent())
    assert all(len(repr(each)) < 6000 for each in kept.repeated_queries.recent())


def test_a_text_that_is_none(telemetry):
    """What is handed over as a query text may be anything; the query is measured all the same."""

    class Odd:
        def __str__(self) -> str:
            return "SELECT 'a@b.c'"

    for text in (Odd(), 5, b"SELECT 1", None):
        slow(text=text) if text is not None else slow()
    assert telemetry.runtime.slow_queries.recent()[0].statement == "SELECT ?"
    assert len(telemetry.spans) == 4


def test_critical_below_slow(telemetry):
    """A query from `critical_query_s` on is critical, also where `slow_query_s` is higher."""
    telemetry.restart(slow_query_s=0.3, critical_query_s=0.1)
    slow(0.09)
    slow(0.2)
    assert [each.threshold for each in telemetry.runtime.slow_queries.recent()] == ["critical"]
