"""Slow and repeated queries of real drivers and servers, from the request that made them to the file and the log."""

from __future__ import annotations

import asyncio
import json

import pytest
import redis
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import otel_perf
from otel_perf import conventions as c
from otel_perf import instrument
from otel_perf.telemetry.repeated_queries import EVENT
from otel_perf.testing import FakeCollector
from tests.asking import ask

LOOP = "SELECT id FROM generate_series(1, 3) AS items (id) WHERE id = :id"


def test_a_loop_of_queries_in_a_request(telemetry, postgresql_server, redis_server):
    """SQLAlchemy's async API and Redis, each with a template of its own, by route; what is asked once is none."""
    engine = create_async_engine(postgresql_server.url)
    client = redis.Redis(port=redis_server.port)

    async def orders(_request):
        async with engine.connect() as connection:
            for number in range(6):
                await connection.execute(text(LOOP), {"id": number})
            await connection.execute(text("SELECT 1"))
        for number in range(5):
            client.get(f"queries:{number}")
        await engine.dispose()
        return PlainTextResponse("")

    app = Starlette(routes=[Route("/orders/{id}", orders)])
    with instrument(app), instrument(engine), instrument(client):
        assert ask(app, "/orders/5").status_code == 200
    client.close()
    points = {point.attributes[c.DB_SYSTEM]: point for point in telemetry.points(c.QUERY_REPEATED.name)}
    assert {system: point.value for system, point in points.items()} == {"postgresql": 6, "redis": 5}
    assert {point.attributes[c.HTTP_ROUTE] for point in points.values()} == {"/orders/{id}"}
    events = [event for event in telemetry.span("GET /orders/{id}").events if event.name == EVENT]
    assert [event.attributes[c.DB_QUERY_SUMMARY] for event in events] == ["SELECT", "GET"]


def slow_app(ask_database):
    async def report(_request):
        await ask_database()
        return PlainTextResponse("")

    return Starlette(routes=[Route("/report", report)])


@pytest.mark.parametrize("sampler", ["always_on", "always_off"])
def test_a_slow_query_of_a_request_in_the_log(telemetry, postgresql_server, tmp_path, sampler):
    """The line has the request's id and the query's own, its rows, and the line of the handler that asked."""
    path = tmp_path / "slow.log"
    telemetry.restart(slow_query_log=str(path), slow_query_s=0.05, critical_query_s=0.05, sampler=sampler)
    engine = create_async_engine(postgresql_server.url)

    async def ask_database():
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_sleep(0.06), 'a@b.c' AS email, :name AS name"), {"name": "zq7"})
        await engine.dispose()

    app = slow_app(ask_database)
    with instrument(app), instrument(engine):
        answer = ask(app, "/report", headers={"x-request-id": "order-77"})
    assert otel_perf.flush()
    [line] = [json.loads(each) for each in path.read_text(encoding="utf-8").splitlines()]
    assert (line["threshold"], line["system"], line["operation"]) == ("critical", "postgresql", "SELECT")
    assert line["duration_s"] >= 0.06
    assert line["statement"].startswith("SELECT pg_sleep(?), ? AS email, $1")
    assert (line["rows"], line["request_id"]) == (1, "order-77")
    assert line["caller"] == f"{__file__}:{ask_database.__code__.co_firstlineno + 2}"
    if sampler == "always_on":
        assert line["trace_id"] == answer.headers["traceresponse"].split("-")[1]
    assert len(line["trace_id"]) == 32
    assert "zq7" not in path.read_text(encoding="utf-8")


def test_a_slow_query_by_a_synchronous_driver(telemetry, postgresql_server):
    """Psycopg below SQLAlchemy: one slow query, however many layers are measured."""
    telemetry.restart(slow_query_s=0.05)
    engine = create_engine(postgresql_server.sync_url)
    with instrument(engine), engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(0.06)"))
    engine.dispose()
    [query] = telemetry.runtime.slow_queries.recent()
    assert (query.summary, query.rows) == ("SELECT", 1)
    assert query.caller.file == __file__


def test_a_slow_redis_command_and_one_that_waits(telemetry, redis_server):
    """DEBUG SLEEP is slow; BLPOP does what it is asked to do."""
    telemetry.restart(slow_query_s=0.05)
    client = redis.Redis(port=redis_server.port)
    with instrument(client):
        client.blpop("queries:none", timeout=0.1)
        client.eval("local t = redis.call('TIME'); repeat local n = redis.call('TIME') "
                    "until (n[1] - t[1]) * 1e6 + n[2] - t[2] > 60000 return 'zq7'", 0)  # fmt: skip
    client.close()
    [query] = telemetry.runtime.slow_queries.recent()
    assert (query.system, query.summary, query.caller.file) == ("redis", "EVAL", __file__)
    assert "zq7" not in query.json()


def test_slow_queries_are_sent_as_log_records():
    """Where log records are exported these are among them, with their severity, attributes, trace and span."""
    with FakeCollector() as collector:
        otel_perf.configure("app", endpoint=collector.url, logs_exporter="otlp", slow_query_s=0.01)

        async def main() -> None:
            async with otel_perf.measure.query("find", collection="trips", system="mongodb") as op:
                op.set(c.DB_ROWS, 3)
                await asyncio.sleep(0.02)

        asyncio.run(main())
        assert otel_perf.flush()
        otel_perf.shutdown()
    [record] = collector.logs
    [span] = collector.spans
    assert record.attributes[c.DB_THRESHOLD] == "slow"
    assert record.attributes[c.DB_QUERY_TEXT] == "find trips"
    assert record.attributes[c.DB_ROWS] == 3
    assert (record.data.trace_id, record.data.span_id) == (span.data.trace_id, span.data.span_id)
    assert record.data.severity_text == "WARN"
