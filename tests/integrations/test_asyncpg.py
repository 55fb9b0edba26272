"""asyncpg on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from opentelemetry.trace import SpanKind

from otel_perf import instrument, measure
from otel_perf.telemetry import operation
from otel_perf.testing import Captured
from tests.conftest import Telemetry

_TABLE = "CREATE TEMPORARY TABLE people (name text UNIQUE)"


def _run(server: Any, work: Callable[[Any], Awaitable[None]], target: object = "asyncpg") -> None:
    """Does the work with a connection, with asyncpg measured, or that connection alone."""

    async def main() -> None:
        connection = await asyncpg.connect(server.dsn)
        try:
            await connection.execute(_TABLE)
            with instrument(connection if target is None else target):
                await work(connection)
            assert operation.current() is None
        finally:
            await connection.close()

    asyncio.run(main())


def _names(telemetry: Captured) -> list[str]:
    return [span.name for span in telemetry.spans]


def _count(telemetry: Telemetry, **attributes: Any) -> int:
    return sum(each.count for each in telemetry.points("db.client.operation.duration", **attributes))


def test_what_a_query_says(telemetry: Telemetry, postgresql_server: Any) -> None:
    """A query is a CLIENT span by the conventions, with the rows that came back and without its literals."""

    async def work(connection: Any) -> None:
        await connection.executemany("INSERT INTO people VALUES ($1)", [("secret-a",), ("secret-b",)])
        assert len(await connection.fetch("SELECT name FROM people WHERE name <> 'x' AND $1", True)) == 2
        assert await connection.fetchrow("SELECT name FROM people WHERE name = $1", "nobody") is None
        assert await connection.fetchval("SELECT count(*) FROM people") == 2

    _run(postgresql_server, work)
    insert, fetch, row, value = telemetry.spans
    assert fetch.kind is SpanKind.CLIENT
    assert dict(fetch.attributes or {}) == {
        "db.system.name": "postgresql", "db.operation.name": "SELECT", "db.collection.name": "people",
        "db.namespace": "otel_perf", "db.query.summary": "SELECT people", "server.address": "127.0.0.1",
        "db.query.text": "SELECT name FROM people WHERE name <> ? AND $1", "server.port": postgresql_server.port,
        "db.response.returned_rows": 2,
    }  # fmt: skip
    assert (insert.attributes or {})["db.operation.batch.size"] == 2
    assert (row.attributes or {})["db.response.returned_rows"] == 0
    assert "db.response.returned_rows" not in (value.attributes or {})
    assert not any("secret" in span.to_json() for span in telemetry.spans)
    assert _count(telemetry) == 4


def test_prepared_statements_and_cursors(telemetry: Telemetry, postgresql_server: Any) -> None:
    """A prepared statement counts each time that it runs; a cursor counts once, however many rows are read."""

    async def work(connection: Any) -> None:
        await connection.executemany("INSERT INTO people VALUES ($1)", [(f"n{n}",) for n in range(120)])
        prepared = await connection.prepare("SELECT name FROM people LIMIT $1")
        assert _names(telemetry) == ["INSERT people"]
        assert len(await prepared.fetch(5)) == 5
        assert await prepared.fetchval(1) is not None
        assert await prepared.fetchrow(1) is not None
        async with connection.transaction():
            assert len([row async for row in connection.cursor("SELECT name FROM people")]) == 120
            assert [row async for row in connection.cursor("SELECT name FROM people WHERE false")] == []
            cursor = await connection.cursor("SELECT name FROM people")
            assert len(await cursor.fetch(50)) + len(await cursor.fetch(50)) == 100

    _run(postgresql_server, work)
    assert _names(telemetry) == ["INSERT people"] + ["SELECT people"] * 6
    assert not telemetry.points("db.client.operation.duration", error__type="StopAsyncIteration")


def test_copy(telemetry: Telemetry, postgresql_server: Any) -> None:
    """COPY in both directions is one operation each, on its table."""

    async def work(connection: Any) -> None:
        await connection.copy_records_to_table("people", records=[("a",), ("b",)])

        async def take(_data: bytes) -> None:
            """Takes what comes."""

        await connection.copy_from_table("people", output=take)
        await connection.copy_to_table("people", source=_lines())

    async def _lines() -> Any:
        yield b"c\n"

    _run(postgresql_server, work)
    assert _names(telemetry) == ["COPY people"] * 3
    assert (telemetry.spans[0].attributes or {})["db.operation.batch.size"] == 2


def test_every_failure_is_counted(telemetry: Telemetry, postgresql_server: Any) -> None:
    """N failed calls, of whatever kind, are N failed measurements, with SQLSTATE and without values."""

    async def work(connection: Any) -> None:
        await connection.execute("INSERT INTO people VALUES ('secret-x')")
        calls = [
            lambda: connection.execute("INSERT INTO people VALUES ('secret-x')"),
            lambda: connection.execute("INSERT INTO people VALUES ($1)", "secret-x"),
            lambda: connection.executemany("INSERT INTO people VALUES ($1)", [("secret-x",)]),
            lambda: connection.fetch("SELECT * FROM nowhere"),
            lambda: connection.fetchval("SELECT 1 / 0"),
            lambda: connection.fetchrow("SELECT $1::integer", "secret-x"),
            lambda: connection.prepare("SELEC"),
            lambda: connection.copy_records_to_table("people", records=[("secret-x",)]),
            lambda: _read(connection.cursor("SELECT * FROM nowhere")),
            lambda: _read(connection.cursor("SELECT 1 / (x - 70) FROM generate_series(1, 100) x")),
        ]
        for call in calls:
            with pytest.raises((asyncpg.PostgresError, asyncpg.DataError, ValueError)):
                async with connection.transaction():
                    await call()

    async def _read(cursor: Any) -> None:
        async for _ in cursor:
            pass

    _run(postgresql_server, work)
    failed = [span for span in telemetry.spans if "error.type" in (span.attributes or {})]
    assert len(failed) == 10
    points = telemetry.points("db.client.operation.duration")
    assert sum(each.count for each in points if "error.type" in each.attributes) == 10
    assert not any("secret" in span.to_json() for span in telemetry.spans)
    assert (failed[0].attributes or {})["db.response.status_code"] == "23505"
    assert (failed[0].attributes or {})["error.type"] == "asyncpg.exceptions.UniqueViolationError"


def test_cancelled_and_timed_out(telemetry: Telemetry, postgresql_server: Any) -> None:
    """A query that is cancelled, or takes too long, is ended and counted as that; the connection goes on."""

    async def work(connection: Any) -> None:
        task = asyncio.ensure_future(connection.fetch("SELECT pg_sleep(30)"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(asyncio.TimeoutError):
            await connection.fetch("SELECT pg_sleep(30)", timeout=0.05)
        await connection.fetch("SELECT 1")

    _run(postgresql_server, work)
    errors = [(span.attributes or {}).get("error.type") for span in telemetry.spans]
    assert errors[0] == "asyncio.exceptions.CancelledError"
    assert errors[1] in {"TimeoutError", "asyncio.exceptions.TimeoutError"}
    assert errors[2] is None


def test_transactions(telemetry: Telemetry, postgresql_server: Any) -> None:
    """Blocks, savepoints and BEGIN by hand: one transaction each time, none for what runs by itself."""

    async def work(connection: Any) -> None:
        await connection.fetch("SELECT 1")
        async with connection.transaction():
            await connection.execute("INSERT INTO people VALUES ('a')")
            async with connection.transaction():
                await connection.execute("INSERT INTO people VALUES ('b')")
        with pytest.raises(asyncpg.UniqueViolationError):
            async with connection.transaction():
                await connection.execute("INSERT INTO people VALUES ('a')")
        await connection.execute("BEGIN")
        await connection.execute("SELECT 1")
        await connection.execute("COMMIT")

    _run(postgresql_server, work)
    points = telemetry.points("db.client.transaction.duration")
    outcomes = {
        (each.attributes["db.transaction.outcome"], each.attributes.get("error.type")): each.count for each in points
    }
    assert outcomes == {("commit", None): 2, ("rollback", "asyncpg.exceptions.UniqueViolationError"): 1}
    assert _count(telemetry) == 5


def test_one_connection(telemetry: Telemetry, postgresql_server: Any) -> None:
    """Of two connections only the one that was handed over is measured, and undo puts all methods back."""
    before = list(vars(asyncpg.Connection).values())

    async def work(connection: Any) -> None:
        await connection.fetch("SELECT 1 AS mine")
        other = await asyncpg.connect(postgresql_server.dsn)
        await other.fetch("SELECT 1 AS other")
        await other.close()

    _run(postgresql_server, work, None)
    assert _count(telemetry) == 1
    assert all(one is other for one, other in zip(before, vars(asyncpg.Connection).values(), strict=True))


def test_within_a_measured_query(telemetry: Telemetry, postgresql_server: Any) -> None:
    """The outermost query measures."""

    async def work(connection: Any) -> None:
        with measure.query("find", collection="people"):
            await connection.fetch("SELECT 1")
            async with connection.transaction():
                await connection.fetch("SELECT 1")

    _run(postgresql_server, work)
    assert _names(telemetry) == ["find people"]
    assert not telemetry.points("db.client.transaction.duration")


def test_beside_upstream(telemetry: Telemetry, postgresql_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where upstream's instrumentor makes the spans, ours adds the durations and no second span."""
    module = SimpleNamespace(AsyncPGInstrumentor=lambda: SimpleNamespace(is_instrumented_by_opentelemetry=True))
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asyncpg", module)

    async def work(connection: Any) -> None:
        await connection.fetch("SELECT 1")

    _run(postgresql_server, work)
    assert not telemetry.spans
    assert _count(telemetry) == 1
