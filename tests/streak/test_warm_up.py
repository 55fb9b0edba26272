"""The cache is filled before anybody asks, few at a time, and failing fails nobody."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from collector import servers
from examples.streak import rules
from examples.streak.cache import BOARD_LIMIT, LEADERBOARD, PROFILE, USER, ReadCache, make_cache
from examples.streak.parts import Parts
from examples.streak.warm_up import warm_up
from tests.conftest import Telemetry
from tests.streak.conftest import NOW, Service, Start

pytestmark = pytest.mark.anyio

_TODAY = rules.day_of(NOW)


async def _users(service: Service, count: int) -> list[str]:
    """Users who did something on different days; the last ones did it last."""
    names = [f"user-{number:02}" for number in range(count)]
    service.clock.now = NOW - timedelta(days=count - 1)
    for name in names:
        assert (await service.log(user=name)).status_code == 201
        service.clock.pass_days()
    service.clock.now = NOW
    return names


def _parts(service: Service) -> Parts:
    parts: Parts = service.app.state.parts
    return parts


async def _warm(service: Service, limit: int) -> int:
    parts = _parts(service)
    return await warm_up(parts.streaks, parts.database.store, parts.cache, _TODAY, limit)


async def test_loads_what_the_most_active_will_ask_for(start: Start, redis_server: servers.Redis) -> None:
    """The board and all pages of the most active are in the cache afterwards, and of nobody else."""
    beside = make_cache(redis_server.url)
    async with start(redis_url=redis_server.url, warm_up=0) as service:
        names = await _users(service, 10)
        await beside.clear()
        assert await _warm(service, 6) == 6
        wanted = {LEADERBOARD.key(limit=BOARD_LIMIT)} | {key for name in names[4:] for key in USER.keys(user=name)}
        assert {key async for key in beside.scan("*")} == wanted
    await ReadCache(beside).close()


async def test_reads_afterwards_are_hits(telemetry: Telemetry, start: Start) -> None:
    """Who was warmed up for finds everything, and the job is measured with its users, but not as reads of anybody."""
    async with start(warm_up=0) as service:
        names = await _users(service, 5)
        assert await _warm(service, 100) == 5
        assert _results(telemetry) == {}
        assert telemetry.points("operation.duration", operation__name="get_user_activities") == []
        for path in ("/api/profile", "/api/calendar", "/api/consistency", "/api/leaderboard"):
            await service.get(path, names[0])
        assert _results(telemetry) == {"hit": 4}
    (run,) = telemetry.points("background.job.duration", background__job__name="streak.warm_up")
    assert run.count == 1
    assert run.attributes.get("error.type") is None
    (items,) = telemetry.points("background.job.items", background__job__name="streak.warm_up")
    assert getattr(items, "value", None) == 5 or items.sum == 5


def _results(telemetry: Telemetry) -> dict[str, int]:
    found: dict[str, int] = {}
    for point in telemetry.points("cache.operation.duration", cache__operation__name="get"):
        result = str(point.attributes["cache.result"])
        found[result] = found.get(result, 0) + point.count
    return found


async def test_what_is_there_is_renewed(start: Start, redis_server: servers.Redis) -> None:
    """A value that is about to run out is loaded anew, and what somebody loads just now is left to them."""
    beside = make_cache(redis_server.url)
    await beside.clear()
    async with start(redis_url=redis_server.url, warm_up=0) as service:
        names = await _users(service, 2)
        key = PROFILE.key(user=names[0])
        await beside.set(key, "old", expire=5)
        assert await _warm(service, 2) == 2
        assert (await beside.get(key))["name"] == names[0]
        assert await beside.get_expire(key) > 5
        loading = _parts(service).cache._loading
        loading[key] = "somebody"
        await beside.set(key, "theirs", expire=5)
        assert await _warm(service, 2) == 2
        assert await beside.get(key) == "theirs"
        assert loading == {key: "somebody"}
    await ReadCache(beside).close()


async def test_few_at_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a few users are loaded at a time, however many there are."""
    async with start(warm_up=0) as service:
        await _users(service, 13)
        store = _parts(service).database.store
        loading, most = 0, 0
        original = store.profile

        async def counted(user: str) -> Any:
            nonlocal loading, most
            loading += 1
            most = max(most, loading)
            try:
                await asyncio.sleep(0)
                return await original(user)
            finally:
                loading -= 1

        monkeypatch.setattr(type(store), "profile", lambda _self, user: counted(user))
        _parts(service).cache._cache._backends[""].store.clear()
        assert await _warm(service, 13) == 13
        assert 1 < most <= 4


async def test_a_failure_is_a_log_line(
    telemetry: Telemetry, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the store fails the job has failed, the log says so without the error's text, and the caller goes on."""
    async with start(warm_up=0) as service:
        await _users(service, 6)
        store = _parts(service).database.store

        async def fail(*_args: Any) -> None:
            raise LookupError("hunter2")

        for name in ("calendar", "most_active"):
            with monkeypatch.context() as broken:
                broken.setattr(type(store), name, fail)
                _parts(service).cache._cache._backends[""].store.clear()
                assert await _warm(service, 6) == 0
    told = [record.getMessage() for record in caplog.records if record.name.endswith("warm_up")]
    assert told == ["the cache was warmed up for 0 users only (LookupError)"] * 2
    assert "hunter2" not in caplog.text
    (failed,) = telemetry.points("background.job.duration", error__type="LookupError")
    assert failed.count == 2


async def test_ends_when_it_is_cancelled(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled in the middle it ends, and nothing of it goes on by itself."""
    async with start(warm_up=0) as service:
        await _users(service, 6)
        started, ended = asyncio.Event(), 0

        async def forever(*_args: Any) -> None:
            nonlocal ended
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended += 1

        monkeypatch.setattr(type(_parts(service).database.store), "profile", forever)
        others = asyncio.all_tasks()
        warming = asyncio.create_task(_warm(service, 6))
        await started.wait()
        warming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await warming
        assert ended == 4
        assert asyncio.all_tasks() == others


async def test_not_without_a_cache(start: Start) -> None:
    """Nothing is loaded for a cache that does not answer, and none when it is switched off."""
    async with start(redis_url="redis://127.0.0.1:1/0", warm_up=0) as service:
        await _users(service, 3)
        assert await _warm(service, 3) == 0
    async with start(warm_up=0) as service:
        assert await _warm(service, 0) == 0
