"""cashews by its templates: strategies that nobody declared, tags that are made void, old answers, and all caches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import cashews.key
import pytest
from cashews import Cache
from cashews.decorators.cache.defaults import context_cache_detect
from cashews.wrapper.wrapper import Wrapper

from otel_perf import instrument, measure, strategy
from otel_perf.integrations import cashews_templates
from otel_perf.telemetry import operation
from tests.conftest import Telemetry

_DURATION = "cache.operation.duration"
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")


@pytest.fixture(autouse=True)
def _strategies() -> Iterator[None]:
    yield
    strategy._strategies.clear()


def _memory(**options: Any) -> Cache:
    cache = Cache()
    cache.setup("mem://", **options)
    return cache


def _counts(telemetry: Telemetry) -> dict[tuple[str, str | None, str], int]:
    return {
        tuple(point.attributes.get(f"cache.{key}") for key in ("operation.name", "strategy", "result")): point.count
        for point in telemetry.points(_DURATION)
    }


def _values(telemetry: Telemetry, name: str) -> dict[tuple[Any, ...], int]:
    return {tuple(point.attributes.get(key) for key in ("cache.system", "cache.strategy", "cache.tag")): point.value
            for point in telemetry.points(name)}  # fmt: skip


def test_the_template_is_the_strategy(telemetry: Telemetry) -> None:
    """A decorated function's keys are counted by its template, unless a declared strategy has them."""
    measure.strategy("PAGE", "page:*")

    async def main() -> None:
        cache = _memory()

        @cache(ttl="3m", key="user:{user_id}")
        async def user(user_id: int) -> int:
            return user_id

        @cache(ttl="3m", key="page:{number}")
        async def page(number: int) -> int:
            return number

        @cache.early(ttl="3m", key="early:{number}")
        async def early(number: int) -> int:
            return number

        @cache.hit(ttl="3m", cache_hits=10, key="hit:{number}")
        async def hit(number: int) -> int:
            return number

        with instrument(cache):
            for each in (user, page, early, hit):
                assert await each(7) == await each(7) == 7
            assert await cache.get("user:7") == 7

    asyncio.run(main())
    counts = _counts(telemetry)
    assert counts["get", "user:{user_id}", "miss"] == 1
    assert counts["get", "user:{user_id}", "hit"] == 2
    assert counts["set", "user:{user_id}", "none"] == 1
    assert counts["get", "PAGE", "hit"] == counts["get", "PAGE", "miss"] == 1
    assert counts["get", "early:v2:early:{number}", "hit"] == 1
    assert counts["get", "hit:hit:{number}", "hit"] == 1
    assert not any(":7" in str(name) for _, name, _ in counts)


def test_a_hundred_thousand_keys(telemetry: Telemetry) -> None:
    """They make two series, and no more than the last keys are kept."""

    async def main() -> None:
        cache = _memory(size=10)

        @cache(ttl="3m", key="user:{user_id}", protected=False)
        async def user(user_id: int) -> int:
            return user_id

        with instrument(cache):
            cashews_templates.noted(lambda _, **values: values["key"])("big:{key}", key="x" * 2**20)
            assert all(len(key) <= 512 for key in cashews_templates._newer)
            for number in range(2000):
                await user(number)
            made = cashews_templates.noted(lambda _, **values: f"other:{values['key']}")
            for number in range(100_000):
                made("other:{key}", key=number)

    asyncio.run(main())
    assert set(_counts(telemetry)) == {("get", "user:{user_id}", "miss"), ("set", "user:{user_id}", "none")}
    assert len(cashews_templates._newer) + len(cashews_templates._older) <= 2048


@pytest.mark.parametrize("whole", [False, True])
def test_tags_by_template(telemetry: Telemetry, redis_server: Any, whole: bool) -> None:
    """A tag that is made void is counted once, by its template, however many keys it has; a strange one by none."""

    async def main() -> None:
        cache = Cache()
        cache.setup(redis_server.url)

        @cache(ttl="3m", key="item:{user}:{number}", tags=["owner:{user}", "all"], protected=False)
        async def item(user: str, number: int) -> int:
            return number

        with instrument("cashews" if whole else cache):
            for number in range(150):
                await item("alice", number)
            await cache.delete_tags("owner:alice", "all")
            await cache.delete_tags("owner:" + "x" * 2**20, "strange")
            assert await cache.get("item:alice:1") is None
        await cache.delete_tags("all")
        await cache.close()

    asyncio.run(main())
    assert _values(telemetry, "cache.invalidations") == {
        ("redis", None, "owner:{user}"): 1,
        ("redis", None, "all"): 1,
        ("redis", None, None): 2,
    }


def test_a_dead_redis_invalidates_nothing(telemetry: Telemetry) -> None:
    """Cashews says nothing of it by itself; it is no invalidation, and each failed command is counted."""

    async def main() -> None:
        cache = Cache()
        cache.setup("redis://127.0.0.1:1/0", socket_connect_timeout=0.2, retry_on_error=[])
        with instrument(cache):
            for _ in range(3):
                await cache.delete_tags("all")
        await cache.close()

    asyncio.run(main())
    assert telemetry.points("cache.invalidations") == []
    (point,) = telemetry.points(_DURATION, cache__operation__name="set_pop")
    assert point.count == 3
    assert "error.type" in point.attributes


def test_failover(telemetry: Telemetry) -> None:
    """An old answer in place of a failed call is counted, by the template; a call that fails without one is not."""

    async def main() -> None:
        cache = _memory()
        broken: list[Any] = []

        @cache.failover(ttl="3m", key="rate:{currency}", prefix="old")
        async def rate(currency: str) -> int:
            if broken:
                raise ConnectionError("away")
            return 4

        @cache.soft(ttl="3m", soft_ttl=timedelta(milliseconds=1), key="soft:{currency}", exceptions=ConnectionError)
        async def soft(currency: str) -> int:
            return await rate.__wrapped__(currency)  # type: ignore[attr-defined,no-any-return]

        with instrument(cache):
            await rate("eur")
            await soft("eur")
            broken.append(True)
            await asyncio.sleep(0.01)
            assert await rate("eur") == 4
            assert await rate("eur") == 4
            assert await soft("eur") == 4
            with pytest.raises(ConnectionError):
                await rate("usd")
            assert operation.current() is None
        assert await rate("eur") == 4

    asyncio.run(main())
    assert _values(telemetry, "cache.failovers") == {
        ("memory", "old:rate:{currency}", None): 2,
        ("memory", "soft:soft:{currency}", None): 1,
    }


def test_get_or_set_and_locks(telemetry: Telemetry) -> None:
    """`get_or_set` is a read and a write, and a lock is taken and given back: operations like any other."""

    async def main() -> None:
        cache = _memory()
        with instrument(cache):
            assert await cache.get_or_set("key", lambda: 1, expire=10) == 1
            assert await cache.get_or_set("key", lambda: 2, expire=10) == 1
            async with cache.lock("lock", expire=10):
                pass

    asyncio.run(main())
    assert _counts(telemetry) == {
        ("get", None, "miss"): 1,
        ("set", None, "none"): 1,
        ("get", None, "hit"): 1,
        ("set_lock", None, "none"): 1,
        ("unlock", None, "none"): 1,
    }


def test_all_caches(telemetry: Telemetry) -> None:
    """By name, caches that are alive and those to come are measured, each command once; undo puts all back."""
    detect = type(context_cache_detect)

    def state() -> list[Any]:
        return [Wrapper._with_middlewares_for_backend, cashews.key.default_format, vars(detect)["_set"]]

    async def main() -> None:
        before = _memory()
        with instrument("cashews"), instrument("cashews"), instrument(before):
            after = _memory()
            await before.get("a")
            await after.get("b")
            await after.get_many("a", "b")
        await before.get("a")
        await after.get("a")

    found = state()
    asyncio.run(main())
    assert all(one is other for one, other in zip(found, state(), strict=True))
    assert _counts(telemetry) == {("get", None, "miss"): 2, ("get_many", None, "miss"): 2}


def test_cancelled_in_a_decorated_function(telemetry: Telemetry) -> None:
    """A function that is cancelled behind a miss leaves nothing current."""

    async def main() -> None:
        cache = _memory()

        @cache(ttl="3m", key="user:{user_id}")
        async def user(user_id: int) -> None:
            await asyncio.sleep(30)

        with instrument(cache):
            task = asyncio.create_task(user(1))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert operation.current() is None

    asyncio.run(main())
    assert ("get", "user:{user_id}", "miss") in _counts(telemetry)
