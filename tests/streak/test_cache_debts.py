"""What a write made old goes from Redis as soon as it is back, also when nobody reads; what stays old is told."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timezone
from typing import Any

import anyio
import pytest
import redis
from sqlalchemy import select
from structlog.testing import capture_logs

from collector import servers
from examples.streak import rules
from examples.streak.cache import BOARD_LIMIT, LEADERBOARD, PROFILE, ReadCache, make_cache
from examples.streak.effort import StaleCacheError
from examples.streak.maintenance import Maintenance
from examples.streak.push import PushClient
from examples.streak.records import Tally
from examples.streak.settings import Settings
from examples.streak.stores import Database, tables
from otel_perf import instrument, measure
from tests.conftest import Telemetry
from tests.servers import find_or_skip
from tests.streak.seeding import expected, name_of, seed_users

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
USERS = 30


@pytest.fixture
def own_redis() -> Iterator[servers.Redis]:
    """A Redis that may be stopped and killed."""
    find_or_skip("redis-server")
    with servers.redis() as server:
        yield server


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again many times a second."""
    monkeypatch.setattr("examples.streak.mending._EVERY_S", 0.02)


def _load(value: Any) -> Callable[[], Awaitable[Any]]:
    async def load() -> Any:
        return value

    return load


async def _until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not holds():  # noqa: ASYNC110  # what is waited for happens in a server
            await asyncio.sleep(0.02)


@contextmanager
def _stopped(server: servers.Redis) -> Iterator[None]:
    server.process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.signal(signal.SIGCONT)


@asynccontextmanager
async def _caching(server: servers.Redis, close_within_s: float = 0.0) -> AsyncIterator[ReadCache]:
    cache = ReadCache(make_cache(server.url), close_within_s=close_within_s)
    try:
        yield cache
    finally:
        await cache.close()


async def _warm(cache: ReadCache, count: int = USERS) -> None:
    for number in range(count):
        await cache.read(PROFILE, _load("old"), user=name_of(number))
    await cache.read(LEADERBOARD, _load("old"), limit=BOARD_LIMIT)


def _kept(beside: redis.Redis) -> int:
    return len(beside.keys("*"))


@pytest.mark.usefixtures("often")
async def test_other_processes_need_not_wait_for_a_read(own_redis: servers.Redis) -> None:
    """A writer that nobody asks anything drops what it owes when Redis is back; another process reads what is new."""
    async with _caching(own_redis) as reader, _caching(own_redis) as writer:
        await _warm(reader)
        with _stopped(own_redis):
            assert not await writer.forget_users(name_of(number) for number in range(USERS))
            assert not await writer.forget_board()
            assert not await writer.forget_user("ada", board=True)
        with redis.Redis.from_url(own_redis.url) as beside:
            await _until(lambda: not _kept(beside))
        assert await reader.read(PROFILE, _load("new"), user=name_of(0)) == "new"
        await _until(lambda: not writer.degraded)
        assert await writer.forget_users([name_of(0)])
        assert await writer.forget_user("ada")
        assert await writer.forget_board()


@pytest.mark.usefixtures("often")
async def test_an_idle_process_finds_out_that_the_cache_is_back(own_redis: servers.Redis, telemetry: Telemetry) -> None:
    """The gauge goes back to 0 without anybody reading or asking for health, and nothing goes on by itself then."""

    def gauge() -> float:
        (point,) = telemetry.points("streak.cache.degraded")
        return float(point.value)

    others = asyncio.all_tasks()
    async with _caching(own_redis) as cache:
        with _stopped(own_redis):
            await cache.read(PROFILE, _load("new"), user="ada")
            assert gauge() == 1
            assert len(asyncio.all_tasks() - others) == 1
        await _until(lambda: gauge() == 0)
        await _until(lambda: asyncio.all_tasks() == others)


@pytest.mark.usefixtures("often")
async def test_what_mends_is_nobodys(own_redis: servers.Redis, telemetry: Telemetry) -> None:
    """What is dropped later is no part of the request that could not, and what it measures has no parent."""
    cashews = make_cache(own_redis.url)
    instrument(cashews)
    cache = ReadCache(cashews, close_within_s=0)
    with _stopped(own_redis):
        async with measure("writing"):
            await cache.forget_user("ada")
    await _until(lambda: not cache.degraded)
    await cache.close()
    writing = telemetry.span("writing")
    late = [span for span in telemetry.spans if span.start_time > writing.end_time]
    assert [span.name for span in late if span.parent is not None] == []


async def test_close_waits_for_redis(own_redis: servers.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever closes the cache while Redis hangs waits for it, drops what is owed, and leaves nothing."""
    async with _caching(own_redis) as reader:
        await _warm(reader)
        writer = ReadCache(make_cache(own_redis.url), close_within_s=20)
        with _stopped(own_redis):
            await writer.forget_users(name_of(number) for number in range(USERS))
            await writer.forget_board()
            closing = asyncio.create_task(writer.close())
            await asyncio.sleep(0.05)
            assert not closing.done()
        assert await closing == 0
        assert await reader.read(PROFILE, _load("new"), user=name_of(7)) == "new"
        assert "stay old" not in caplog.text


async def test_close_says_what_is_left(own_redis: servers.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Where Redis does not come back in time, it is told how many values may be old, and no task is left."""
    others = asyncio.all_tasks()
    cache = ReadCache(make_cache(own_redis.url), close_within_s=0.05)
    with _stopped(own_redis):
        await cache.forget_user("ada", board=True)
        assert await cache.close() == 4
    assert "4 cached values stay old until their time is up" in caplog.text
    assert asyncio.all_tasks() == others


async def test_close_has_nothing_to_wait_for() -> None:
    """A dead Redis that nothing is owed to does not hold up who closes, nor does a cache in memory."""
    for url in (None, "redis://127.0.0.1:1/0"):
        cache = ReadCache(make_cache(url), close_within_s=3_600)
        await cache.read(PROFILE, _load("new"), user="ada")
        with anyio.fail_after(20):
            assert await cache.close() == 0


async def test_all_is_forgotten(own_redis: servers.Redis) -> None:
    """Where it is not known what is old all of it goes, and what is not of the cache stays."""
    async with _caching(own_redis) as cache:
        await _warm(cache)
        with redis.Redis.from_url(own_redis.url) as beside:
            beside.set("LIMITS:somebody-else", "1")
            assert await cache.forget_all()
            assert beside.keys("*") == [b"LIMITS:somebody-else"]
            with _stopped(own_redis):
                assert not await cache.forget_all()


@asynccontextmanager
async def _maintaining(database: Database, server: servers.Redis) -> AsyncIterator[Maintenance]:
    push = PushClient(None)
    async with _caching(server) as cache:
        yield Maintenance(database.runs, cache, push, Settings(batch_size=5, batches_in_flight=1))
    await push.close()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_maintenance_waits_until_it_is_forgotten(database: Database, own_redis: servers.Redis) -> None:
    """A run during which Redis hangs ends when it is back, with nothing old left and no error."""
    total, settled = await _seeded(database), asyncio.Event()

    def seen(tally: Tally) -> None:
        if tally.processed == total:
            settled.set()

    async with _caching(own_redis) as reader, _maintaining(database, own_redis) as maintenance:
        await _warm(reader)
        with capture_logs() as lines:
            with _stopped(own_redis):
                run = asyncio.create_task(maintenance.run(NOW, progress=seen))
                with anyio.fail_after(20):
                    await settled.wait()
            await run
        assert lines[-1]["errors"] == 0
        ended = [await reader.read(PROFILE, _load("new"), user=name) for name in await _changed(database)]
        assert ended
        assert set(ended) == {"new"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_maintenance_says_what_is_not_forgotten(
    database: Database, own_redis: servers.Redis, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that Redis did not answer counts an error; repeated when it does, in another process, it makes it good."""
    monkeypatch.setattr("examples.streak.effort._FORGET_FOR_S", 0.05)
    await _seeded(database)
    async with _caching(own_redis) as reader:
        await _warm(reader)
        with _stopped(own_redis):
            async with _maintaining(database, own_redis) as maintenance:
                with capture_logs() as lines:
                    summary = await maintenance.run(NOW)
        assert summary.run is not None
        assert summary.run.state == "completed"
        assert lines[-1]["errors"] == 1
        (error,) = telemetry.points("streak.maintenance.errors")
        assert dict(error.attributes) == {"step": "forget", "error.type": StaleCacheError.__name__}
        changed = await _changed(database)
        assert await reader.read(PROFILE, _load("new"), user=changed[-1]) == "old"
        async with _maintaining(database, own_redis) as maintenance:
            assert (await maintenance.run(NOW)).repeated
        assert [await reader.read(PROFILE, _load("new"), user=name) for name in changed] == ["new"] * len(changed)


async def _seeded(database: Database) -> int:
    """Write users, and return how many of them there is something to do for."""
    today = rules.day_of(NOW)
    await seed_users(database, USERS, today)
    return expected(USERS, today)[0].processed


async def _changed(database: Database) -> list[str]:
    """Who was written by the maintenance."""
    async with database.measured[0].connect() as connection:
        rows = (await connection.execute(select(tables.batches.c.changed))).scalars().all()
    return sorted(name for row in rows for name in json.loads(row))
