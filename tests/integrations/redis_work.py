"""What the tests of Redis share: clients of a database of their own, and how cache operations are read."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import redis
import redis.asyncio

from otel_perf import instrument
from tests.conftest import Telemetry

__all__ = ["DURATION", "async_client", "both", "cache_counts", "counted"]

DURATION = "db.client.operation.duration"


@asynccontextmanager
async def async_client(url: str, **options: Any) -> AsyncIterator[redis.asyncio.Redis]:
    """An async client of database 2, emptied."""
    made = redis.asyncio.Redis.from_url(url.rpartition("/")[0], db=2, **options)
    await made.flushdb()
    try:
        yield made
    finally:
        await made.aclose()


def both(url: str, work: Callable[[Any], Any], **options: Any) -> None:
    """Run the same work on a sync and on an async client; `work` makes results that may be awaitable."""
    sync = redis.Redis.from_url(url.rpartition("/")[0], db=2)
    sync.flushdb()
    with instrument(sync, **options):
        work(sync)
    sync.close()

    async def main() -> None:
        async with async_client(url) as client:
            with instrument(client, **options):
                for step in work(client):
                    if inspect.isawaitable(step):
                        await step

    asyncio.run(main())


def cache_counts(telemetry: Telemetry) -> dict[tuple[str, str, str], int]:
    """How many cache operations there were by operation, strategy and result."""
    return {
        tuple(point.attributes[f"cache.{key}"] for key in ("operation.name", "strategy", "result")): point.count
        for point in telemetry.points("cache.operation.duration")
    }


def counted(telemetry: Telemetry, **attributes: Any) -> int:
    """How many queries there were."""
    return sum(point.count for point in telemetry.points(DURATION, **attributes))
