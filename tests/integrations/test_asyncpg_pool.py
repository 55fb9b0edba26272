"""The pools of asyncpg on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from otel_perf import guard, instrument
from otel_perf.integrations import asyncpg as ours
from otel_perf.integrations import asyncpg_pool
from tests.conftest import Telemetry


def _value(telemetry: Telemetry, name: str, **attributes: Any) -> float:
    found = telemetry.points(f"db.client.connection.{name}", **attributes)
    return sum(getattr(each, "count", None) or getattr(each, "value", 0) for each in found)


def _run(server: Any, work: Callable[[Any], Awaitable[None]], *, whole: bool = True) -> None:
    async def main() -> None:
        async with asyncpg.create_pool(server.dsn, min_size=1, max_size=1) as pool:
            with instrument("asyncpg" if whole else pool):
                await work(pool)

    asyncio.run(main())


@pytest.mark.parametrize("whole", [True, False])
def test_waiting_and_giving_up(telemetry: Telemetry, postgresql_server: Any, whole: bool) -> None:
    """Who waits shows at once, who got a connection leaves how long it took, who gave up is counted."""

    async def work(pool: Any) -> None:
        async with pool.acquire() as connection:
            await connection.fetch("SELECT 1")
            waiting = asyncio.ensure_future(pool.fetchval("SELECT 2"))
            await asyncio.sleep(0.01)
            assert _value(telemetry, "pending_requests") == 1
            for _ in range(3):
                with pytest.raises(asyncio.TimeoutError):
                    await pool.acquire(timeout=0.01)
            assert _value(telemetry, "count", db__client__connection__state="used") == 1
            assert _value(telemetry, "max") == 1
        assert await waiting == 2
        assert _value(telemetry, "pending_requests") == 0

    _run(postgresql_server, work, whole=whole)
    assert _value(telemetry, "timeouts") == 3
    (point,) = telemetry.points("db.client.connection.wait_time")
    name = f"127.0.0.1:{postgresql_server.port}/otel_perf"
    assert (point.count, point.attributes["db.client.connection.pool.name"]) == (2, name)
    # What the pool sends when it takes a connection back is no query.
    assert [span.name for span in telemetry.spans] == ["SELECT", "SELECT"]


def test_a_transaction_that_the_pool_ends(telemetry: Telemetry, postgresql_server: Any) -> None:
    """A connection that is given back in the middle of a transaction is rolled back by its pool."""

    async def work(pool: Any) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # asyncpg complains to it
        async with pool.acquire() as connection:
            await connection.execute("BEGIN")
            await connection.fetch("SELECT 1")

    _run(postgresql_server, work)
    (point,) = telemetry.points("db.client.transaction.duration")
    assert (point.count, point.attributes["db.transaction.outcome"]) == (1, "rollback")


def test_another_pool_is_left_alone(telemetry: Telemetry, postgresql_server: Any) -> None:
    """Only the pool that was handed over is measured, with its connections."""

    async def work(pool: Any) -> None:
        async with asyncpg.create_pool(postgresql_server.dsn, min_size=1, max_size=1) as other:
            await other.fetchval("SELECT 1 AS other")
        await pool.fetchval("SELECT 1 AS mine")

    _run(postgresql_server, work, whole=False)
    assert [(span.attributes or {})["db.query.text"] for span in telemetry.spans] == ["SELECT ? AS mine"]
    assert _value(telemetry, "wait_time") == 1


def test_nothing_is_kept_of_closed_pools(telemetry: Telemetry, postgresql_server: Any) -> None:
    """A pool that is closed, or whose loop is gone, is let go when the figures are next asked for."""

    async def work(pool: Any) -> None:
        await pool.fetchval("SELECT 1")

    handle = instrument("asyncpg")
    _run(postgresql_server, work)
    assert not telemetry.points("db.client.connection.count")
    assert not ours._pools._known
    handle.undo()


def test_few_pools_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pools there are, a bounded number is watched."""

    class Pool:
        _holders: tuple[()] = ()

    pools = asyncpg_pool.Pools(lambda: True, str)
    kept = [Pool() for _ in range(200)]
    for each in kept:
        pools.known(each)
    assert len(pools._known) == asyncpg_pool._MAX_POOLS


def test_our_faults_stay_ours(telemetry: Telemetry, postgresql_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails of ours, the pool lends its connections."""

    def fault(*_: Any) -> Any:
        raise ZeroDivisionError

    async def work(pool: Any) -> None:
        monkeypatch.setattr(guard, "strict", False)
        with monkeypatch.context() as patch:
            patch.setattr(asyncpg_pool.pools.Pool, "got", fault)
            assert await pool.fetchval("SELECT 1") == 1
            patch.setattr(asyncpg_pool.Pools, "known", fault)
            assert await pool.fetchval("SELECT 1") == 1

    _run(postgresql_server, work)
    assert guard.errors >= 2
