"""The cache is not missed when it dies, and is true when it is back."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
from cashews import Cache

from collector import servers
from examples.streak.cache import BOARD_LIMIT, LEADERBOARD, PROFILE, ReadCache, make_cache
from tests.conftest import Telemetry
from tests.servers import find_or_skip
from tests.streak.conftest import Seconds, Start

pytestmark = pytest.mark.anyio

# Longer than Redis is left alone.
_AWAY_S = 6.0


async def _value(value: Any) -> Any:
    return value


def _load(value: Any) -> Callable[[], Awaitable[Any]]:
    return lambda: _value(value)


@pytest.fixture(autouse=True)
def _closes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.streak.cache._CLOSE_WITHIN_S", 0.0)
    monkeypatch.setattr("examples.streak.effort._FORGET_FOR_S", 0.0)


@pytest.fixture
def nowhere() -> str:
    """The address of a Redis that is not there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return f"redis://127.0.0.1:{port}/0"


@pytest.fixture
def own_redis() -> Iterator[servers.Redis]:
    """A Redis that may be stopped and killed."""
    find_or_skip("redis-server")
    with servers.redis() as server:
        yield server


@asynccontextmanager
async def _reading(cashews: Cache, clock: Seconds) -> AsyncIterator[ReadCache]:
    cache = ReadCache(cashews, clock_s=clock)
    try:
        yield cache
    finally:
        await cache.close()


async def test_dead_redis_costs_only_the_cache(nowhere: str) -> None:
    """Without Redis each read is loaded and nothing raises; it is tried again after a while, by one caller."""
    clock = Seconds()
    async with _reading(make_cache(nowhere), clock) as cache:
        assert not cache.degraded
        assert await cache.read(PROFILE, _load(1), user="ada") == 1
        assert cache.degraded
        assert await cache.read(PROFILE, _load(2), user="ada") == 2
        await cache.forget_user("ada")
        await cache.forget_users(["ada", "ben"])
        await cache.forget_board()
        assert not await cache.ping()
        clock.now_s += _AWAY_S
        assert await cache.read(PROFILE, _load(3), user="ada") == 3
        assert cache.degraded


async def test_killed_and_back(
    own_redis: servers.Redis, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """A killed Redis is told once, in the log and by a gauge; a new one in its place is used, and told too."""
    caplog.set_level("INFO", "examples.streak")
    clock = Seconds()

    def gauge() -> float:
        (point,) = telemetry.points("streak.cache.degraded")
        return float(point.value)

    async with _reading(make_cache(own_redis.url), clock) as cache:
        await cache.read(PROFILE, _load("kept"), user="ada")
        assert await cache.read(PROFILE, _load("new"), user="ada") == "kept"
        assert gauge() == 0
        own_redis.process.signal(signal.SIGKILL)
        own_redis.process.wait(10)
        for _ in range(3):
            assert await cache.read(PROFILE, _load("loaded"), user="ada") == "loaded"
            clock.now_s += _AWAY_S
        assert cache.degraded
        assert gauge() == 1
        with servers.redis(port=own_redis.port):
            assert await cache.ping()
            assert not cache.degraded
            assert gauge() == 0
            await cache.read(PROFILE, _load("kept again"), user="ada")
            assert await cache.read(PROFILE, _load("new"), user="ada") == "kept again"
    told = [record.getMessage() for record in caplog.records if record.name == "examples.streak.cache"]
    assert len(told) == 2
    assert "the cache failed (ConnectionError)" in told[0]
    assert told[1] == "the cache is back"
    assert str(own_redis.port) not in "".join(told)


async def test_a_hung_redis_costs_one_timeout(own_redis: servers.Redis) -> None:
    """A stopped Redis is waited for once; what was written meanwhile is not read old when it goes on."""
    clock = Seconds()
    async with _reading(make_cache(own_redis.url), clock) as cache:
        await cache.read(PROFILE, _load("old"), user="ada")
        await cache.read(LEADERBOARD, _load("old"), limit=BOARD_LIMIT)
        own_redis.process.signal(signal.SIGSTOP)
        try:
            reads = (cache.read(PROFILE, _load("new"), user="ada") for _ in range(20))
            assert await asyncio.wait_for(asyncio.gather(*reads), 20) == ["new"] * 20
            assert cache.degraded
            for _ in range(500):  # at half a second each, these would not be over in time
                assert await cache.read(PROFILE, _load("new"), user="ben") == "new"
            await cache.forget_user("ada")
            await cache.forget_board()
        finally:
            own_redis.process.signal(signal.SIGCONT)
        clock.now_s += _AWAY_S
        assert await cache.read(PROFILE, _load("new"), user="ada") == "new"
        assert await cache.read(LEADERBOARD, _load("new"), limit=BOARD_LIMIT) == "new"
        assert not cache.degraded


async def test_while_one_tries_the_others_go_on(own_redis: servers.Redis) -> None:
    """When Redis still hangs as it is tried again, one caller waits for it, and all others do not."""
    clock = Seconds()
    async with _reading(make_cache(own_redis.url), clock) as cache:
        own_redis.process.signal(signal.SIGSTOP)
        try:
            await cache.read(PROFILE, _load("first"), user="ada")
            clock.now_s += _AWAY_S
            trying = asyncio.create_task(cache.read(PROFILE, _load("tried"), user="ada"))
            await asyncio.sleep(0)
            for _ in range(100):
                assert await cache.read(PROFILE, _load("on"), user="ada") == "on"
            assert not trying.done()
            assert await trying == "tried"
        finally:
            own_redis.process.signal(signal.SIGCONT)


async def test_a_write_cut_off_in_the_middle_is_still_forgotten(own_redis: servers.Redis) -> None:
    """When whoever waits for a write goes away while it is being forgotten, the old value is not read again."""
    async with _reading(make_cache(own_redis.url), Seconds()) as cache:
        await cache.read(PROFILE, _load("old"), user="ada")
        with redis.Redis.from_url(own_redis.url) as beside:
            old = beside.get("user:profile:ada")
        own_redis.process.signal(signal.SIGSTOP)
        try:
            writing = asyncio.create_task(cache.forget_user("ada"))
            await asyncio.sleep(0.05)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
        finally:
            own_redis.process.signal(signal.SIGCONT)
        with redis.Redis.from_url(own_redis.url) as beside:
            beside.set("user:profile:ada", old)  # what was sent may have come through all the same
        assert await cache.read(PROFILE, _load("new"), user="ada") == "new"


async def test_more_is_owed_than_can_be_named(own_redis: servers.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is owed is bounded; beyond that all cached values are forgotten, and nothing else in that Redis."""
    monkeypatch.setattr("examples.streak.debts._MAX_NAMED", 30)
    clock = Seconds()
    async with _reading(make_cache(own_redis.url), clock) as cache:
        await cache.read(PROFILE, _load("old"), user="ada")
        await cache.read(LEADERBOARD, _load("old"), limit=BOARD_LIMIT)
        with redis.Redis.from_url(own_redis.url) as beside:
            beside.set("LIMITS:somebody-else", "1")
            own_redis.process.signal(signal.SIGSTOP)
            try:
                await cache.forget_user("ada")
                for number in range(100):
                    await cache.forget_user(f"user-{number}")
                    assert len(cache._debts) <= 31
            finally:
                own_redis.process.signal(signal.SIGCONT)
            clock.now_s += _AWAY_S
            assert await cache.ping()
            assert beside.keys("*") == [b"LIMITS:somebody-else"]
        assert await cache.read(PROFILE, _load("new"), user="ada") == "new"


async def test_many_debts_are_paid_in_parts(own_redis: servers.Redis) -> None:
    """More debts than one command takes are all paid before the next read."""
    clock = Seconds()
    async with _reading(make_cache(own_redis.url), clock) as cache:
        names = [f"user-{number}" for number in range(150)]
        for name in names:
            await cache.read(PROFILE, _load("old"), user=name)
        own_redis.process.signal(signal.SIGSTOP)
        try:
            await cache.forget_users(names)
        finally:
            own_redis.process.signal(signal.SIGCONT)
        clock.now_s += _AWAY_S
        assert [await cache.read(PROFILE, _load("new"), user=name) for name in names] == ["new"] * 150


async def test_redis_with_a_password(caplog: pytest.LogCaptureFixture) -> None:
    """A Redis that asks for a password gets it; a wrong one is a dead cache, and is not shown."""
    find_or_skip("redis-server")
    with servers.redis(password="correct-horse") as server:
        async with _reading(make_cache(server.url), Seconds()) as cache:
            assert await cache.read(PROFILE, _load("kept"), user="ada") == "kept"
            assert await cache.read(PROFILE, _load("new"), user="ada") == "kept"
        async with _reading(make_cache(server.url.replace("correct", "battery")), Seconds()) as cache:
            assert await cache.read(PROFILE, _load("new"), user="ada") == "new"
            assert cache.degraded
    assert "AuthenticationError" in caplog.text
    assert "battery" not in caplog.text


async def test_service_goes_on_without_redis(start: Start, nowhere: str) -> None:
    """With a dead Redis every route works as before, and health says that the cache and the limits are degraded."""
    async with start(redis_url=nowhere) as service:
        assert (await service.log()).json()["streak"] == 1
        for path in ("/api/profile", "/api/calendar", "/api/consistency", "/api/leaderboard"):
            assert (await service.get(path)).status_code == 200
        service.clock.pass_days()
        await service.maintain()
        health = (await service.http.get("/api/health")).json()
        assert (health["cache"], health["limits"]) == ("degraded", "degraded")
