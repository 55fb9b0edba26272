"""Connection pools of redis-py: connections that are held, and waited for."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import redis
import redis.asyncio

from otel_perf import instrument
from tests.conftest import Telemetry

_COUNT = "db.client.connection.count"


def _pool(telemetry: Telemetry, metric: str = _COUNT) -> dict[str, int]:
    return {
        point.attributes.get("db.client.connection.state", "all"): point.value for point in telemetry.points(metric)
    }


@pytest.mark.parametrize("kind", [redis.ConnectionPool, redis.BlockingConnectionPool])
def test_connections(telemetry: Telemetry, redis_server: Any, kind: Any) -> None:
    """Idle and used connections and the limit, by the pool's address; a pool that is gone is not reported."""
    pool = kind(host="127.0.0.1", port=redis_server.port, db=2, max_connections=5)
    with redis.Redis(connection_pool=pool) as client, instrument(client):
        client.ping()
        assert _pool(telemetry) == {"idle": 1, "used": 0}
        with client.pipeline() as pipe:
            pipe.watch("k")
            client.ping()
            assert _pool(telemetry) == {"idle": 1, "used": 1}
        (point,) = telemetry.points("db.client.connection.max")
        assert point.value == 5
        assert point.attributes["db.client.connection.pool.name"] == f"127.0.0.1:{redis_server.port}/2"
    assert _pool(telemetry) == {}
    pool.disconnect()


def test_async_connections(telemetry: Telemetry, redis_server: Any) -> None:
    """The same for an async pool."""

    async def main() -> None:
        async with redis.asyncio.Redis(port=redis_server.port, max_connections=7) as client:
            with instrument(client):
                async with client.pipeline() as pipe:
                    await pipe.watch("k")
                    assert _pool(telemetry) == {"idle": 0, "used": 1}
                assert _pool(telemetry) == {"idle": 1, "used": 0}
                assert _pool(telemetry, "db.client.connection.max") == {"all": 7}

    asyncio.run(main())


def test_waiting_for_a_connection(telemetry: Telemetry, redis_server: Any) -> None:
    """A blocking pool's wait is measured, also one that was in vain; who waits is counted while it does."""
    pool = redis.BlockingConnectionPool(port=redis_server.port, max_connections=1, timeout=0.3)
    with redis.Redis(connection_pool=pool) as client, instrument(client):
        client.ping()
        held = pool.get_connection()
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                client.ping()
            except redis.ConnectionError as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        pending = [0]
        while thread.is_alive() and pending != [1]:
            pending = [point.value for point in telemetry.points("db.client.connection.pending_requests")]
        thread.join()
        pool.release(held)
        client.ping()
    pool.disconnect()

    assert pending == [1]
    assert len(errors) == 1
    assert [point.value for point in telemetry.points("db.client.connection.pending_requests")] == [0]
    assert [point.value for point in telemetry.points("db.client.connection.timeouts")] == [1]
    assert [point.count for point in telemetry.points("db.client.connection.wait_time")] == [3]
    failed = telemetry.points("db.client.operation.duration", error__type="redis.exceptions.ConnectionError")
    assert [point.count for point in failed] == [1]


def test_waiting_in_a_loop(telemetry: Telemetry, redis_server: Any) -> None:
    """Async: one waits until the other gave its connection back, a third one waits in vain, a fourth is cancelled."""

    async def main() -> None:
        pool = redis.asyncio.BlockingConnectionPool(port=redis_server.port, max_connections=1, timeout=0.2)
        client = redis.asyncio.Redis(connection_pool=pool)
        with instrument(client):
            await asyncio.gather(*(client.ping() for _ in range(3)))
            held = await pool.get_connection()
            with pytest.raises(redis.ConnectionError):
                await client.ping()
            task = asyncio.create_task(client.ping())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await pool.release(held)
        await client.aclose()
        await pool.aclose()

    asyncio.run(main())
    assert [point.count for point in telemetry.points("db.client.connection.wait_time")] == [4]
    assert [point.value for point in telemetry.points("db.client.connection.timeouts")] == [1]
    assert [point.value for point in telemetry.points("db.client.connection.pending_requests")] == [0]


def test_undo_puts_the_pools_back() -> None:
    """The very same functions are back."""
    before = (redis.BlockingConnectionPool.get_connection, redis.asyncio.BlockingConnectionPool.get_connection)
    with instrument("redis"):
        assert redis.BlockingConnectionPool.get_connection is not before[0]
    after = (redis.BlockingConnectionPool.get_connection, redis.asyncio.BlockingConnectionPool.get_connection)
    assert all(one is other for one, other in zip(before, after, strict=True))
