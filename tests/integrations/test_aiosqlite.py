"""aiosqlite."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from otel_perf import instrument, measure
from otel_perf.telemetry import operation
from tests.conftest import Telemetry

_SLOW = "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 3000000) SELECT count(*) FROM r"


def _run(path: Path, work: Callable[[Any], Awaitable[None]], *, whole: bool = True) -> None:
    async def main() -> None:
        async with aiosqlite.connect(path) as connection:
            await connection.execute("CREATE TABLE people (name text UNIQUE)")
            with instrument("aiosqlite" if whole else connection):
                await work(connection)
            assert operation.current() is None

    asyncio.run(main())


def _names(telemetry: Telemetry) -> list[str]:
    return [span.name for span in telemetry.spans]


def _ended(telemetry: Telemetry) -> list[tuple[str, str | None]]:
    points = telemetry.points("db.client.transaction.duration")
    found = [(each.attributes["db.transaction.outcome"], each.attributes.get("error.type")) for each in points]
    return sorted((one for one, each in zip(found, points, strict=True) for _ in range(each.count)), key=str)


def test_what_a_query_says(telemetry: Telemetry, tmp_path: Path) -> None:
    """By the connection's own short cuts as by cursors, a statement is one span and one duration, and no fetch is."""

    async def work(connection: Any) -> None:
        await connection.executemany("INSERT INTO people VALUES (?)", [("secret-a",), ("secret-b",)])
        async with connection.execute("SELECT name FROM people WHERE name <> 'x'") as cursor:
            assert len([row async for row in cursor]) == 2
            await cursor.execute("SELECT 1")
            assert await cursor.fetchone() == (1,)
        assert len(await connection.execute_fetchall("SELECT name FROM people")) == 2
        assert await connection.execute_insert("INSERT INTO people VALUES ('secret-c')") == (3,)
        await connection.executescript("SELECT 1; SELECT 2")
        cursor = await connection.cursor()
        await cursor.executemany("INSERT INTO people VALUES (?)", [("secret-d",)])

    _run(tmp_path / "app.db", work)
    many, select, _, fetched, inserted, *_ = telemetry.spans
    assert dict(select.attributes or {}) == {
        "db.system.name": "sqlite", "db.operation.name": "SELECT", "db.collection.name": "people",
        "db.namespace": "app.db", "db.query.summary": "SELECT people",
        "db.query.text": "SELECT name FROM people WHERE name <> ?",
    }  # fmt: skip
    assert (many.attributes or {})["db.operation.batch.size"] == 2
    assert (fetched.attributes or {})["db.response.returned_rows"] == 2
    assert inserted.name == "INSERT people"
    assert not any("secret" in span.to_json() for span in telemetry.spans)
    points = telemetry.points("db.client.operation.duration")
    assert sum(each.count for each in points) == len(telemetry.spans) == 7


def test_every_failure_is_counted(telemetry: Telemetry, tmp_path: Path) -> None:
    """N failed calls are N failed measurements, without values; one that is cancelled says so."""

    async def work(connection: Any) -> None:
        await connection.execute("INSERT INTO people VALUES ('secret-x')")
        for _ in range(5):
            with pytest.raises(sqlite3.IntegrityError):
                await connection.execute("INSERT INTO people VALUES ('secret-x')")
        task = asyncio.ensure_future(connection.execute_fetchall(_SLOW))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await connection.interrupt()

    _run(tmp_path / "app.db", work)
    (failed,) = telemetry.points("db.client.operation.duration", error__type="sqlite3.IntegrityError")
    (cancelled,) = telemetry.points("db.client.operation.duration", error__type="asyncio.exceptions.CancelledError")
    assert (failed.count, cancelled.count) == (5, 1)
    assert not any("secret" in span.to_json() for span in telemetry.spans)


def test_transactions(telemetry: Telemetry, tmp_path: Path) -> None:
    """What begins by itself and by hand; reading alone begins none."""

    async def work(connection: Any) -> None:
        await connection.execute("SELECT 1")
        await connection.commit()
        assert not _ended(telemetry)
        await connection.execute("INSERT INTO people VALUES ('a')")
        await connection.commit()
        with pytest.raises(sqlite3.IntegrityError):
            await connection.execute("INSERT INTO people VALUES ('a')")
        await connection.rollback()
        await connection.execute("BEGIN")
        await connection.execute("ROLLBACK")

    _run(tmp_path / "app.db", work)
    assert _ended(telemetry) == [("commit", None), ("rollback", "sqlite3.IntegrityError"), ("rollback", None)]


def test_tasks_keep_their_parents(telemetry: Telemetry, tmp_path: Path) -> None:
    """Queries of tasks that share a connection are children of the step of their own task."""

    async def work(connection: Any) -> None:
        async def one(number: int) -> None:
            with measure(f"step {number}"):
                await connection.execute_fetchall("SELECT 1")

        await asyncio.gather(*(one(number) for number in range(5)))

    _run(tmp_path / "app.db", work)
    steps = {span.context.span_id: span.name for span in telemetry.spans if span.name.startswith("step")}
    parents = [steps[span.parent.span_id] for span in telemetry.spans if span.name == "SELECT"]
    assert sorted(parents) == [f"step {number}" for number in range(5)]


def test_one_connection(telemetry: Telemetry, tmp_path: Path) -> None:
    """Of two connections only the one that was handed over is measured, and undo puts the method back."""
    before = aiosqlite.Connection._execute

    async def work(connection: Any) -> None:
        await connection.execute("SELECT 1")
        async with aiosqlite.connect(":memory:") as other:
            await other.execute("SELECT 2")

    _run(tmp_path / "app.db", work, whole=False)
    assert _names(telemetry) == ["SELECT"]
    assert aiosqlite.Connection._execute is before


def test_a_connection_of_ones_own_making(telemetry: Telemetry) -> None:
    """Where a connection does not say which database it opens, the namespace is left out."""

    async def main() -> None:
        async with aiosqlite.Connection(lambda: sqlite3.connect(":memory:"), 64) as connection:
            await connection.execute("SELECT 1")

    with instrument("aiosqlite"):
        asyncio.run(main())
    assert "db.namespace" not in (telemetry.spans[0].attributes or {})
