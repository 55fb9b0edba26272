"""Databases that stand on each other: one query is one span and one duration, one transaction is one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from otel_perf import instrument, measure
from otel_perf.telemetry import operation
from tests.conftest import Telemetry

_Url = Callable[[Path, Any], str]

_SYNC: dict[str, _Url] = {
    "sqlalchemy over sqlite3": lambda folder, _: f"sqlite:///{folder / 'app.db'}",
    "sqlalchemy over psycopg": lambda _, server: str(server.sync_url),
}
_ASYNC: dict[str, _Url] = {
    "sqlalchemy over aiosqlite over sqlite3": lambda folder, _: f"sqlite+aiosqlite:///{folder / 'app.db'}",
    "sqlalchemy over asyncpg": lambda _, server: str(server.url),
    "sqlalchemy over async psycopg": lambda _, server: str(server.sync_url),
}


def _counts(telemetry: Telemetry) -> tuple[int, int]:
    names = ("db.client.operation.duration", "db.client.transaction.duration")
    queries, transactions = (sum(each.count for each in telemetry.points(name)) for name in names)
    return queries, transactions


def _is_one(telemetry: Telemetry) -> None:
    assert [span.name for span in telemetry.spans] == ["SELECT", "SELECT", "step"]
    step = telemetry.span("step")
    queries = [span for span in telemetry.spans if span.name == "SELECT"]
    assert all(span.parent.span_id == step.context.span_id for span in queries)
    assert _counts(telemetry) == (2, 1)
    assert operation.current() is None


@pytest.mark.parametrize("pre_ping", [False, True])
@pytest.mark.parametrize("stack", _SYNC)
def test_sync(telemetry: Telemetry, tmp_path: Path, postgresql_server: Any, stack: str, pre_ping: bool) -> None:
    """Also what a dialect asks when it connects, and when it looks whether a connection lives, is no query."""
    engine = sa.create_engine(_SYNC[stack](tmp_path, postgresql_server), pool_pre_ping=pre_ping)
    with instrument(), measure("step"):
        for _ in range(2):
            engine.connect().close()
        with engine.begin() as connection:
            connection.execute(sa.text("SELECT 1"))
            with connection.begin_nested():
                connection.execute(sa.text("SELECT 2"))
    engine.dispose()
    _is_one(telemetry)


@pytest.mark.parametrize("pre_ping", [False, True])
@pytest.mark.parametrize("stack", _ASYNC)
def test_async(telemetry: Telemetry, tmp_path: Path, postgresql_server: Any, stack: str, pre_ping: bool) -> None:
    """The same in tasks, where aiosqlite works in a thread of its own."""

    async def main() -> None:
        engine = create_async_engine(_ASYNC[stack](tmp_path, postgresql_server), pool_pre_ping=pre_ping)
        with measure("step"):
            async with engine.connect():
                pass
            async with engine.begin() as connection:
                await connection.execute(sa.text("SELECT 1"))
                async with connection.begin_nested():
                    await connection.execute(sa.text("SELECT 2"))
        await engine.dispose()

    with instrument():
        asyncio.run(main())
    _is_one(telemetry)


def test_aiosqlite_over_sqlite3(telemetry: Telemetry, tmp_path: Path) -> None:
    """The connection that works in the thread below is not measured again."""

    async def main() -> None:
        async with aiosqlite.connect(tmp_path / "app.db") as connection:
            with measure("step"):
                await connection.execute("BEGIN")
                await connection.execute("SELECT 1")
                await connection.execute("SELECT 2")
                await connection.commit()

    with instrument():
        asyncio.run(main())
    _is_one(telemetry)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "aiosqlite", "sqlite3"])
def test_a_driver_measures_where_sqlalchemy_does_not(
    telemetry: Telemetry, tmp_path: Path, postgresql_server: Any, driver: str
) -> None:
    """With the driver alone, a query and a transaction of SQLAlchemy are still counted once."""

    async def main() -> None:
        sqlite = f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"
        url = {"aiosqlite": sqlite, "asyncpg": postgresql_server.url}.get(driver, postgresql_server.sync_url)
        engine = create_async_engine(url)
        async with engine.connect():
            pass  # what it asks first is the driver's as well
        telemetry.restart()
        async with engine.begin() as connection:
            await connection.execute(sa.text("CREATE TABLE IF NOT EXISTS driver_layers (x integer)"))
            await connection.execute(sa.text("INSERT INTO driver_layers VALUES (1)"))
        await engine.dispose()

    def blocking() -> None:
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'app.db'}")
        engine.connect().close()
        telemetry.restart()
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE driver_layers (x integer)"))
            connection.execute(sa.text("INSERT INTO driver_layers VALUES (1)"))
        engine.dispose()

    with instrument(driver):
        blocking() if driver == "sqlite3" else asyncio.run(main())
    assert [span.name for span in telemetry.spans] == ["CREATE driver_layers", "INSERT driver_layers"]
    assert _counts(telemetry) == (2, 1)
