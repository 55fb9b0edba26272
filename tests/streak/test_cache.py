"""The cache keeps what was read, until it is forgotten or a write goes by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis
from cashews import Cache

from collector import servers
from examples.streak.cache import (
    BOARD_LIMIT,
    CALENDAR,
    CONSISTENCY,
    LEADERBOARD,
    PROFILE,
    STRATEGIES,
    ReadCache,
    Strategy,
    make_cache,
)
from tests.conftest import Telemetry
from tests.streak.conftest import Start

pytestmark = pytest.mark.anyio

_BY_THE_WAY = ("hello", "client")
_OF_A_USER = (CALENDAR, CONSISTENCY, PROFILE)


class Source:
    """Counts how often it was asked, and answers with that."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self) -> dict[str, int]:
        self.asked += 1
        return {"asked": self.asked}


class Slow:
    """Answers with what was true when it was asked, once it is told to."""

    def __init__(self, truth: str = "old") -> None:
        self.truth = truth
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def __call__(self) -> str:
        seen = self.truth
        self.asked.set()
        await self.may_answer.wait()
        return seen


async def _value(value: Any) -> Any:
    return value


def _load(value: Any) -> Callable[[], Awaitable[Any]]:
    return lambda: _value(value)


@pytest.fixture(params=["memory", "redis"])
async def cashews(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    """A cache of each kind, empty."""
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else None
    made = make_cache(url)
    await made.clear()
    yield made
    await ReadCache(made).close()


@pytest.fixture
async def two(redis_server: servers.Redis) -> AsyncIterator[tuple[ReadCache, ReadCache]]:
    """Two processes' views of one Redis, empty."""
    both = [make_cache(redis_server.url) for _ in range(2)]
    await both[0].clear()
    caches = ReadCache(both[0]), ReadCache(both[1])
    yield caches
    for cache in caches:
        await cache.close()


async def test_reads_through_until_forgotten(cashews: Cache) -> None:
    """A value is loaded once, kept with its TTL, and loaded again when its user was forgotten, and no other."""
    cache, source = ReadCache(cashews), Source()
    assert await cache.ping()
    await cache.read(PROFILE, _load("ben's"), user="ben")
    for strategy in _OF_A_USER:
        source.asked = 0
        for _ in range(3):
            assert await cache.read(strategy, source, user="ada") == {"asked": 1}
        assert 0 < await cashews.get_expire(strategy.key(user="ada")) <= strategy.ttl_s
    await cache.forget_user("ada")
    for strategy in _OF_A_USER:
        assert await cache.read(strategy, _load("new"), user="ada") == "new"
    assert await cache.read(PROFILE, _load("newer"), user="ben") == "ben's"


async def test_short_lived_values_do_not_shield_the_others(cashews: Cache) -> None:
    """A value that outlives the others of its tag is forgotten with them, when those have run out already."""
    cache = ReadCache(cashews)
    await cache.read(PROFILE, _load("old"), user="ada")
    await cache.read(Strategy("", CONSISTENCY.template, ttl_s=1, expected_hit_rate=0), _load("short"), user="ada")
    await cashews.delete(CONSISTENCY.key(user="ada"))
    await cache.forget_user("ada")
    assert await cache.read(PROFILE, _load("new"), user="ada") == "new"


async def test_forgets_many_users(cashews: Cache) -> None:
    """Many users are forgotten, however many there are and wherever their names come from."""
    cache = ReadCache(cashews)
    names = [f"user-{number}" for number in range(250)]
    for name in names:
        await cache.read(PROFILE, _load("old"), user=name)
    await cache.forget_users(name for name in names[:-1])
    read = [await cache.read(PROFILE, _load("new"), user=name) for name in names]
    assert read == ["new"] * 249 + ["old"]
    await cache.forget_users([])


async def test_forgets_the_board(cashews: Cache) -> None:
    """The board goes by its own tag; users stay."""
    cache = ReadCache(cashews)
    await cache.read(LEADERBOARD, _load("old"), limit=BOARD_LIMIT)
    await cache.read(PROFILE, _load("old"), user="ada")
    await cache.forget_user("ada")
    assert await cache.read(LEADERBOARD, _load("new"), limit=BOARD_LIMIT) == "old"
    await cache.read(PROFILE, _load("kept"), user="ada")
    await cache.forget_board()
    assert await cache.read(LEADERBOARD, _load("new"), limit=BOARD_LIMIT) == "new"
    assert await cache.read(PROFILE, _load("new"), user="ada") == "kept"
    await cache.forget_user("ada", board=True)
    assert await cache.read(LEADERBOARD, _load("newer"), limit=BOARD_LIMIT) == "newer"
    assert await cache.read(PROFILE, _load("newer"), user="ada") == "newer"


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
    for _ in range(2):
        assert await cache.read(PROFILE, _load(value), user="ada") == value
    assert await cache.read(PROFILE, _load("another"), user="ada") == value


async def test_a_read_that_overlaps_a_write_keeps_nothing_old(cashews: Cache) -> None:
    """What was loaded before a write and comes after it is answered, and not kept."""
    cache, slow = ReadCache(cashews), Slow()
    reader = asyncio.create_task(cache.read(PROFILE, slow, user="ada"))
    await slow.asked.wait()
    await cache.forget_user("ada")
    slow.may_answer.set()
    assert await reader == "old"
    assert await cache.read(PROFILE, _load("new"), user="ada") == "new"
    assert await cache.read(PROFILE, _load("newer"), user="ada") == "new"


async def test_a_newer_read_does_not_vouch_for_an_older_one(cashews: Cache) -> None:
    """When another read began after the write, the old value still finds no way in, whoever is first to answer."""
    cache = ReadCache(cashews)
    for new_first in (True, False):
        old, new = Slow("old"), Slow("new")
        await cache.forget_user("ada")
        first = asyncio.create_task(cache.read(PROFILE, old, user="ada"))
        await old.asked.wait()
        await cache.forget_user("ada")
        second = asyncio.create_task(cache.read(PROFILE, new, user="ada"))
        await new.asked.wait()
        for slow, task in [(new, second), (old, first)] if new_first else [(old, first), (new, second)]:
            slow.may_answer.set()
            await task
        assert await cache.read(PROFILE, _load("newer"), user="ada") != "old"


@pytest.mark.parametrize("new_first", [True, False])
async def test_writes_of_another_process_count_too(two: tuple[ReadCache, ReadCache], new_first: bool) -> None:
    """A write in one process keeps the overlapping read of another from leaving the old value in Redis."""
    here, there = two
    old, new = Slow("old"), Slow("new")
    first = asyncio.create_task(here.read(PROFILE, old, user="ada"))
    await old.asked.wait()
    await there.forget_user("ada")
    second = asyncio.create_task(there.read(PROFILE, new, user="ada"))
    await new.asked.wait()
    for slow, task in [(new, second), (old, first)] if new_first else [(old, first), (new, second)]:
        slow.may_answer.set()
        await task
    assert await there.read(PROFILE, _load("newer"), user="ada") != "old"


async def test_of_several_that_miss_one_keeps(two: tuple[ReadCache, ReadCache]) -> None:
    """Reads of the same key at the same time are all answered, and leave one value and no claim behind."""
    here, there = two
    source = Source()
    caches = [here, there] * 5
    answers = await asyncio.gather(*(cache.read(PROFILE, source, user="ada") for cache in caches))
    assert all(answer["asked"] <= 10 for answer in answers)
    asked = source.asked
    assert await here.read(PROFILE, source, user="ada") == await there.read(PROFILE, source, user="ada")
    assert source.asked == asked


async def test_a_read_that_fails_or_is_cancelled_leaves_the_key_usable(cashews: Cache) -> None:
    """After a load that failed and one that was cancelled, the next write makes the key as good as new."""
    cache = ReadCache(cashews)

    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await cache.read(PROFILE, fail, user="ada")
    slow = Slow()
    reader = asyncio.create_task(cache.read(PROFILE, slow, user="ada"))
    await slow.asked.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await cache.forget_user("ada")
    assert await cache.read(PROFILE, _load("kept"), user="ada") == "kept"
    assert await cache.read(PROFILE, _load("new"), user="ada") == "kept"


async def test_commands_of_redis(redis_server: servers.Redis) -> None:
    """A hit is one command, a write is one, a miss four; nothing is left in Redis that has no end."""
    cashews = make_cache(redis_server.url)
    await cashews.clear()
    cache = ReadCache(cashews)
    with redis.Redis.from_url(redis_server.url) as beside:
        await cache.read(PROFILE, _load("warm"), user="ben")
        assert await _commands(beside, lambda: cache.read(PROFILE, _load("x"), user="ada")) == [
            "get",
            "set",
            "set",
            "evalsha",
        ]
        assert await _commands(beside, lambda: cache.read(PROFILE, _load("x"), user="ada")) == ["get"]
        assert await _commands(beside, lambda: cache.forget_user("ada")) == ["unlink"]
        assert await _commands(beside, lambda: cache.forget_user("ada", board=True)) == ["unlink"]
        assert await _commands(beside, cache.forget_board) == ["unlink"]
        assert await _commands(beside, lambda: cache.forget_users(map(str, range(200)))) == ["unlink"] * 2
        assert [key for key in beside.scan_iter() if beside.ttl(key) < 0] == []
    await cache.close()


async def _commands(beside: redis.Redis, act: Callable[[], Awaitable[Any]]) -> list[str]:
    """What Redis was told, in order, while something was done; not what scripts tell it."""
    with beside.monitor() as monitor:
        await act()
        beside.echo("the end")
        told = []
        while (seen := monitor.next_command())["command"] != "ECHO the end":
            told.append((seen["client_type"], seen["command"].split()[0].lower()))
    return [command for client, command in told if client != "lua" and command not in _BY_THE_WAY]


async def test_a_spoilt_value_is_loaded_anew(redis_server: servers.Redis) -> None:
    """A value that cannot be decoded is written over, and is no reason to leave Redis alone."""
    cache = ReadCache(make_cache(redis_server.url))
    with redis.Redis.from_url(redis_server.url) as beside:
        beside.flushdb()
        beside.set("user:profile:ada", b"\x80spoilt")
    assert await cache.read(PROFILE, _load("good"), user="ada") == "good"
    assert not cache.degraded
    assert await cache.read(PROFILE, _load("x"), user="ada") == "good"
    await cache.close()


async def test_what_is_forgotten_is_counted(telemetry: Telemetry) -> None:
    """Tags that writes made void are counted by their name."""
    cache = ReadCache(make_cache(None))
    await cache.forget_user("ada")
    await cache.forget_users(["ben", "cy"])
    await cache.forget_board()
    counted = {point.attributes["tag"]: point.value for point in telemetry.points("streak.cache.forgotten")}
    assert counted == {"user": 3, "board": 1}


async def test_strategies() -> None:
    """Each strategy has a lifetime, an expectation, and a pattern that its keys match and others do not."""
    assert {s.name: (s.ttl_s, s.expected_hit_rate, s.pattern) for s in STRATEGIES} == {
        "CALENDAR": (300, 0.85, "user:calendar:*"),
        "CONSISTENCY": (60, 0.80, "user:consistency:*"),
        "LEADERBOARD": (600, 0.95, "leaderboard:*"),
        "PROFILE": (900, 0.90, "user:profile:*"),
    }


async def test_service_on_redis(start: Start, redis_server: servers.Redis) -> None:
    """With Redis the cached values are there, under the keys of the declared strategies, until the user writes."""
    cleaner = make_cache(redis_server.url)
    await cleaner.clear()
    async with start(redis_url=redis_server.url, warm_up=0) as service:
        await service.log()
        for path in ("/api/profile", "/api/calendar", "/api/consistency", "/api/leaderboard"):
            assert (await service.get(path)).json() == (await service.get(path)).json()
        wanted = {"user:calendar:ada", "user:consistency:ada", "user:profile:ada"}
        keys = {key async for key in cleaner.scan("*")}
        assert wanted | {f"leaderboard:{BOARD_LIMIT}"} <= keys
        await service.log()
        assert not wanted & {key async for key in cleaner.scan("*")}
    await ReadCache(cleaner).close()
