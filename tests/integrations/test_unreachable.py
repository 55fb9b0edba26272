"""A PostgreSQL server that cannot be reached."""

from __future__ import annotations

import asyncio
import socket

import asyncpg
import psycopg
import pytest
from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import create_async_engine

from otel_perf import guard, instrument


def test_each_connection_that_cannot_be_had_counts_once(telemetry):
    """Each call that raises is one failed operation, sync and async, by a driver or its pool."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dsn = f"postgresql://nobody@127.0.0.1:{free.getsockname()[1]}/shop"

    async def pooled() -> None:
        async with asyncpg.create_pool(dsn, min_size=0, max_size=1) as pool:
            await pool.fetch("SELECT 1")

    async def connected() -> None:
        await asyncpg.connect(dsn)

    async def later() -> None:
        await psycopg.AsyncConnection.connect(dsn)

    with instrument("asyncpg"), instrument("psycopg"):
        for call in (pooled, connected):
            for _ in range(2):
                with pytest.raises(ConnectionRefusedError):
                    asyncio.run(call())
        for connect in (psycopg.connect, psycopg.Connection.connect, lambda _: asyncio.run(later())):
            with pytest.raises(psycopg.OperationalError):
                connect(dsn)
    points = telemetry.points("db.client.operation.duration")
    assert {(p.attributes["db.operation.name"], p.attributes["db.namespace"]) for p in points} == {("CONNECT", "shop")}
    assert {p.attributes["error.type"] for p in points} == {"ConnectionRefusedError", "psycopg.OperationalError"}
    assert sorted(p.count for p in points) == [3, 4]
    assert guard.errors == 0


def test_the_error_type_is_the_drivers_own_under_sqlalchemy(telemetry, postgresql_server):
    """SQLAlchemy's dialect for asyncpg raises a class of its own; what is told is what asyncpg raised."""

    async def broken() -> None:
        engine = create_async_engine(postgresql_server.url)
        async with engine.connect() as connection:
            with pytest.raises(exc.DBAPIError):
                await connection.execute(text("SELECT * FROM nowhere_at_all"))
        await engine.dispose()

    with instrument("sqlalchemy"):
        asyncio.run(broken())
    found = telemetry.points("db.client.operation.duration")
    types = {p.attributes["error.type"] for p in found if p.attributes.get("db.collection.name") == "nowhere_at_all"}
    assert types == {"asyncpg.exceptions.UndefinedTableError"}
