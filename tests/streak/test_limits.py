"""What may be asked within a minute: in memory, in a Redis that all processes share, and when that Redis dies."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from collector import servers
from examples.streak.limits import MAX_BODY_BYTES, BodyLimit, RateLimits, Taken
from tests.conftest import Telemetry
from tests.streak.conftest import Start

pytestmark = pytest.mark.anyio

# The beginning of a minute.
_AT_S = 1_772_625_600.0


@asynccontextmanager
async def _limits(quota: int, redis_url: str | None = None) -> AsyncIterator[RateLimits]:
    limits = RateLimits(quota, redis_url)
    try:
        yield limits
    finally:
        await limits.close()


async def _allowed(limits: RateLimits, user: str, times: int, at_s: float = _AT_S) -> int:
    """How many of some requests are let through."""
    taken = [await limits.take(user, at_s) for _ in range(times)]
    return sum(each is not None and each.allowed for each in taken)


@given(
    quota=st.integers(1, 60),
    asked=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 180, allow_nan=False)), max_size=150),
)
@settings(max_examples=60)
def test_each_user_has_the_quota_in_each_minute(quota: int, asked: list[tuple[str, float]]) -> None:
    """Of what a user asks within a minute of the clock, the first of the quota are let through, and no more."""

    async def ask() -> None:
        spent: dict[tuple[str, int], int] = {}
        async with _limits(quota) as limits:
            for user, passed_s in sorted(asked, key=lambda each: each[1]):
                place = (user, int((_AT_S + passed_s) // 60))
                before = spent.get(place, 0)
                taken = await limits.take(user, _AT_S + passed_s)
                assert taken is not None
                assert taken.allowed == (before < quota)
                assert taken.left == max(0, quota - before - 1)
                assert 1 <= taken.reset_s <= 60
                spent[place] = before + 1

    asyncio.run(ask())


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more users are remembered than there is room for; a new minute begins with none."""
    monkeypatch.setattr("examples.streak.limits._MAX_USERS", 1_000)
    async with _limits(1) as limits:
        for number in range(1_500):
            assert await _allowed(limits, f"user-{number}", 1) == 1
        assert len(limits._accounts) == 1_000
        assert await _allowed(limits, "user-0", 1) == 0
        assert await _allowed(limits, "user-1499", 1) == 1
        await limits.take("ada", _AT_S + 60)
        assert list(limits._accounts) == ["ada"]


async def test_processes_share_a_redis(redis_server: servers.Redis) -> None:
    """What one process lets through is missing from the others; another user's and the next minute's is not."""
    async with _limits(100, redis_server.url) as one, _limits(100, redis_server.url) as other:
        at_s = _AT_S + 60_000
        assert await _allowed(one, "share-ada", 60, at_s) == 60
        assert await _allowed(other, "share-ada", 60, at_s) == 40
        assert await _allowed(one, "share-ada", 10, at_s) == 0
        assert await _allowed(other, "share-ben", 60, at_s) == 60
        assert await _allowed(one, "share-ada", 10, at_s + 60) == 10
        assert not one.degraded


async def test_redis_keys_end(redis_server: servers.Redis) -> None:
    """A window's counter in Redis goes by itself, soon after the window has."""
    async with _limits(100, redis_server.url) as limits:
        await limits.take("ends-ada", _AT_S)
    with Redis.from_url(redis_server.url) as redis:
        (key,) = redis.keys("*ends-ada*")
        assert 60 < redis.ttl(key) <= 120


async def test_redis_is_asked_seldom(redis_server: servers.Redis) -> None:
    """A process takes some of the quota at a time, and asks no more once all is spent."""
    async with _limits(500, redis_server.url) as limits:
        asked = 0
        redis = limits._redis
        assert redis is not None
        incr = redis.incr

        async def counted(*arguments: Any, **more: Any) -> int:
            nonlocal asked
            asked += 1
            return await incr(*arguments, **more)

        redis.incr = counted  # type: ignore[method-assign]
        assert await _allowed(limits, "seldom-ada", 700) == 500
        assert asked == 51  # fifty shares, and the answer that nothing is left


async def test_many_at_once_share_a_quota(redis_server: servers.Redis) -> None:
    """Of a hundred requests at once, over two processes' limits, exactly the quota is let through."""
    async with _limits(30, redis_server.url) as one, _limits(30, redis_server.url) as other:
        taken = await asyncio.gather(*((one, other)[number % 2].take("many-ada", _AT_S) for number in range(100)))
        assert sum(each is not None and each.allowed for each in taken) == 30


async def test_a_burst_leaves_the_quota_to_others(redis_server: servers.Redis) -> None:
    """A burst at one process takes what it asks for and no more than a share beyond; what is left another one has."""
    quota, share = 600, 12
    at_s = _AT_S + 90_000
    async with _limits(quota, redis_server.url) as one, _limits(quota, redis_server.url) as other:
        for burst in (60, 1, 60):
            taken = await asyncio.gather(*(one.take("burst-ada", at_s) for _ in range(burst)))
            assert all(each is not None and each.allowed for each in taken)
        with Redis.from_url(redis_server.url) as redis:
            (key,) = redis.keys("*burst-ada*")
            assert 121 <= int(redis.get(key)) < 121 + share
        first = await other.take("burst-ada", at_s)
        assert first is not None
        assert first.left >= quota - 121 - 1 - share


async def test_bursts_at_two_processes_share_the_quota(redis_server: servers.Redis) -> None:
    """Whatever comes at once and where: nobody is refused before all but a share for each process is spent."""
    quota, share = 600, 12
    at_s = _AT_S + 96_000
    async with _limits(quota, redis_server.url) as one, _limits(quota, redis_server.url) as other:
        let_through = 0
        for number in range(14):
            limits = (one, other)[number % 2]
            taken = await asyncio.gather(*(limits.take("bursts-ada", at_s) for _ in range(70)))
            allowed = sum(each is not None and each.allowed for each in taken)
            assert allowed == 70 or let_through + allowed >= quota - 2 * share
            let_through += allowed
        assert quota - share <= let_through <= quota


async def test_a_share_whose_taker_is_gone(redis_server: servers.Redis) -> None:
    """When whoever takes a share for all is cancelled, one of those who wait for it takes one."""
    async with _limits(600, redis_server.url) as limits:
        at_s = _AT_S + 102_000
        tasks = [asyncio.create_task(limits.take("gone-ada", at_s)) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        cancelled, *taken = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(cancelled, asyncio.CancelledError)
        assert all(isinstance(each, Taken) and each.allowed for each in taken)


async def test_limit_goes_on_when_redis_dies(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that dies is said once; the process counts by itself, and finds out unasked when Redis is back."""
    monkeypatch.setattr("examples.streak.mending._EVERY_S", 0.02)

    def gauge() -> float:
        (point,) = telemetry.points("streak.limits.degraded")
        return float(point.value)

    with servers.redis() as server:
        async with _limits(50, server.url) as limits:
            assert gauge() == 0
            assert await _allowed(limits, "ada", 30) == 30
            server.process.stop()
            with caplog.at_level(logging.WARNING):
                assert await _allowed(limits, "ada", 40) == 20
                assert await _allowed(limits, "ben", 60) == 50
            assert limits.degraded
            assert gauge() == 1
            (record,) = caplog.records
            assert "Redis failed" in record.getMessage()
            assert server.url not in caplog.text
            caplog.clear()
            with servers.redis(port=server.port):
                with anyio.fail_after(10):
                    while limits.degraded:  # noqa: ASYNC110  # what is waited for happens in a server
                        await asyncio.sleep(0.01)
                assert gauge() == 0
                assert await _allowed(limits, "ada", 60, _AT_S + 60) == 50
                with Redis.from_url(server.url) as redis:
                    assert redis.keys("*ada*")
            assert [record.levelname for record in caplog.records] in ([], ["INFO"])


async def test_redis_that_was_never_there(caplog: pytest.LogCaptureFixture) -> None:
    """Without a Redis at its address the limit holds in memory, and many requests at once say so once."""
    async with _limits(20, "redis://127.0.0.1:1/0") as limits:
        taken = await asyncio.gather(*(limits.take("ada", _AT_S) for _ in range(50)))
        assert sum(each is not None and each.allowed for each in taken) == 20
        assert len([record for record in caplog.records if "Redis" in record.getMessage()]) == 1


async def test_redis_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    """A Redis that takes connections and says nothing is given up after a moment, and the requests go on."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with _limits(20, f"redis://127.0.0.1:{silent.getsockname()[1]}/0") as limits:
            assert await _allowed(limits, "ada", 30) == 20
    assert len([record for record in caplog.records if "Redis" in record.getMessage()]) == 1


async def test_service_counts_in_its_redis(start: Start, redis_server: servers.Redis) -> None:
    """Two services with one Redis give a user one quota together."""
    given: dict[str, Any] = {"requests_per_minute": 10, "redis_url": redis_server.url}
    async with start(**given) as one, start(**given) as other:
        answers = [await (one, other)[number % 2].get("/api/calendar", "two-ada") for number in range(14)]
        assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 4
        assert answers[9].headers["ratelimit"].startswith('"user";r=0')


@pytest.mark.parametrize("sizes", [[MAX_BODY_BYTES + 1], [1_000] * 17, [MAX_BODY_BYTES, 1]])
async def test_body_is_read_up_to_its_limit(sizes: list[int]) -> None:
    """A body that is too large is refused as soon as it is, in one piece or in many, and the rest is not read."""
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x" * sizes[read - 1], "more_body": True}

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        for _ in range(100):
            await receive()

    with pytest.raises(Exception, match="413"):
        await BodyLimit(app)({"type": "http", "method": "POST"}, receive, None)  # type: ignore[arg-type]
    assert read == len(sizes)
