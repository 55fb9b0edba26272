"""The cache helps while it lives, and is not missed when it dies."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cashews import Cache
from cashews.exceptions import CacheBackendInteractionError

from examples.streak.cache import PROFILE, STRATEGIES, ReadCache, make_cache
from tests.streak.conftest import Seconds, Start

pytestmark = pytest.mark.anyio


class Source:
    """Counts how often it was asked, and answers with that."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self) -> dict[str, int]:
        self.asked += 1
        return {"asked": self.asked}


@pytest.fixture(params=["memory", "redis"])
async def cashews(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    """A cache of each kind, empty."""
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else None
    made = make_cache(url)
    await made.clear()
    yield made
    await ReadCache(made).close()


@pytest.fixture
def nowhere() -> str:
    """The address of a Redis that is not there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return f"redis://127.0.0.1:{port}/0"


async def test_reads_through_until_forgotten(cashews: Cache) -> None:
    """A value is loaded once, kept with its TTL, and loaded again when it was forgotten."""
    cache, source = ReadCache(cashews), Source()
    assert await cache.ping()
    for _ in range(3):
        assert await cache.read(PROFILE, source, user="ada") == {"asked": 1}
    assert 0 < await cashews.get_expire("user:profile:ada") <= PROFILE.ttl_s
    await cache.forget(PROFILE.key(user="ada"))
    assert await cache.read(PROFILE, source, user="ada") == {"asked": 2}
    assert await cache.read(PROFILE, source, user="ben") == {"asked": 3}


async def test_nothing_is_not_kept(cashews: Cache) -> None:
    """That a user is not known yet is asked again each time."""
    cache, asked = ReadCache(cashews), []

    async def load() -> None:
        asked.append(1)

    for _ in range(2):
        assert await cache.read(PROFILE, load, user="ada") is None
    assert len(asked) == 2


@pytest.mark.parametrize("value", [[], {}, [{"day": "2026-03-04", "xp": 3}], {"a": None, "b": 1.5, "c": "é"}, 7])
async def test_values_come_back_as_they_were(cashews: Cache, value: Any) -> None:
    """What is cached is given back as it was, in memory and from Redis."""
    cache = ReadCache(cashews)

    async def load() -> Any:
        return value

    for _ in range(2):
        assert await cache.read(PROFILE, load, user="ada") == value


async def test_dead_redis_costs_only_the_cache(nowhere: str) -> None:
    """Without Redis each read is loaded, and Redis is left alone for a while after a failure."""
    clock = Seconds()
    dead = make_cache(nowhere)
    cache, source = ReadCache(dead, clock_s=clock), Source()
    assert not cache.degraded
    assert await cache.read(PROFILE, source, user="ada") == {"asked": 1}
    assert cache.degraded
    assert await cache.read(PROFILE, source, user="ada") == {"asked": 2}
    await cache.forget(PROFILE.key(user="ada"))
    assert not await cache.ping()
    clock.now_s += 6
    assert not cache.degraded
    await cache.close()


async def test_what_was_owed_is_forgotten_when_the_cache_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that a write made old while the cache was away is not served when it is back."""
    clock, cashews = Seconds(), make_cache(None)
    cache, source = ReadCache(cashews, clock_s=clock), Source()
    await cache.read(PROFILE, source, user="ada")

    async def fail(*_keys: str) -> None:
        raise CacheBackendInteractionError

    with monkeypatch.context() as away:
        away.setattr(cashews, "delete_many", fail)
        await cache.forget(PROFILE.key(user="ada"))
    clock.now_s += 6
    assert await cache.read(PROFILE, source, user="ada") == {"asked": 2}
    await cache.close()


async def test_a_spoilt_value_is_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that cannot be decoded is no reason to fail a request."""
    cashews, source = make_cache(None), Source()

    async def spoilt(*_args: Any, **_kwargs: Any) -> None:
        raise ValueError

    monkeypatch.setattr(cashews, "get", spoilt)
    cache = ReadCache(cashews)
    assert await cache.read(PROFILE, source, user="ada") == {"asked": 1}
    await cache.close()


async def test_service_goes_on_without_redis(start: Start, nowhere: str) -> None:
    """With a dead Redis every route works as before, and health says that the cache is degraded."""
    async with start(redis_url=nowhere) as service:
        assert (await service.log()).json()["streak"] == 1
        for path in ("/api/profile", "/api/calendar", "/api/consistency", "/api/leaderboard"):
            assert (await service.get(path)).status_code == 200
        service.clock.pass_days()
        assert (await service.maintain())["processed"] == 1
        assert (await service.http.get("/api/health")).json() == {"status": "ok", "cache": "degraded"}


async def test_service_on_redis(start: Start, redis_server: Any) -> None:
    """With Redis the cached values are there, under the keys of the declared strategies."""
    cleaner = make_cache(redis_server.url)
    await cleaner.clear()
    async with start(redis_url=redis_server.url) as service:
        await service.log()
        for path in ("/api/profile", "/api/calendar", "/api/consistency", "/api/leaderboard"):
            assert (await service.get(path)).json() == (await service.get(path)).json()
        keys = sorted([key async for key in cleaner.scan("*")])
        assert keys == ["leaderboard:10", "user:calendar:ada", "user:consistency:ada", "user:profile:ada"]
        await service.log()
        assert [key async for key in cleaner.scan("*")] == ["leaderboard:10"]
    await ReadCache(cleaner).close()


async def test_strategies() -> None:
    """Each strategy has a lifetime, an expectation, and a pattern that its keys match and others do not."""
    assert {s.name: (s.ttl_s, s.expected_hit_rate, s.pattern) for s in STRATEGIES} == {
        "CALENDAR": (300, 0.85, "user:calendar:*"),
        "CONSISTENCY": (60, 0.80, "user:consistency:*"),
        "LEADERBOARD": (600, 0.95, "leaderboard:*"),
        "PROFILE": (900, 0.90, "user:profile:*"),
    }
