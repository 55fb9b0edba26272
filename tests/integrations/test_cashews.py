"""cashews over memory and over a real Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from cashews import Cache, add_prefix
from cashews.exceptions import CacheBackendInteractionError
from opentelemetry.trace import SpanKind, StatusCode

from otel_perf import instrument, measure, strategy
from otel_perf.telemetry import operation
from tests.conftest import Telemetry

_DURATION = "cache.operation.duration"
# cashews closes its Redis client by a name that redis-py does not want any more.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")
_DEAD = "redis://127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def _strategies() -> Iterator[None]:
    """One declared strategy, written as cashews writes its key templates; forgotten afterwards."""
    measure.strategy("USER", "user:{user_id}")
    yield
    strategy._strategies.clear()


def _memory() -> Cache:
    cache = Cache()
    cache.setup("mem://")
    return cache


def _counts(telemetry: Telemetry) -> dict[tuple[str, str | None, str], int]:
    return {
        (
            point.attributes["cache.operation.name"],
            point.attributes.get("cache.strategy"),
            point.attributes["cache.result"],
        ): point.count
        for point in telemetry.points(_DURATION)
    }


def test_commands(telemetry: Telemetry) -> None:
    """Reads give hits and misses, writes neither; the strategy comes from the key."""

    async def main() -> None:
        cache = _memory()
        with instrument(cache):
            assert await cache.get("user:1") is None
            await cache.set("user:1", "alice", expire=10)
            assert await cache.get("user:1") == "alice"
            assert await cache.exists("user:1")
            await cache.incr("visits")
            await cache.delete("user:1")
            await cache.set_many({"user:2": 2, "user:3": 3})
        await cache.get("user:1")

    asyncio.run(main())
    assert _counts(telemetry) == {
        ("get", "USER", "miss"): 1,
        ("get", "USER", "hit"): 1,
        ("set", "USER", "none"): 1,
        ("exists", "USER", "hit"): 1,
        ("incr", None, "none"): 1,
        ("delete", "USER", "none"): 1,
        ("set_many", "USER", "none"): 1,
    }
    first = telemetry.spans[0]
    assert (first.name, first.kind) == ("cache get", SpanKind.CLIENT)
    assert dict(first.attributes or {}) == {
        "cache.system": "memory",
        "cache.operation.name": "get",
        "cache.strategy": "USER",
        "cache.result": "miss",
    }
    assert not any("alice" in span.to_json() or "user:1" in span.to_json() for span in telemetry.spans)


def test_get_many_counts_keys(telemetry: Telemetry) -> None:
    """Each key of a `get_many` is a hit or a miss."""

    async def main() -> None:
        cache = _memory()
        await cache.set_many({"user:1": None, "user:2": 2})
        with instrument(cache):
            missing = object()
            assert await cache.get_many("user:1", "user:2", "user:3", "x", default=missing) == (
                None,
                2,
                missing,
                missing,
            )

    asyncio.run(main())
    assert _counts(telemetry) == {
        ("get_many", "USER", "hit"): 2,
        ("get_many", "USER", "miss"): 1,
        ("get_many", None, "miss"): 1,
    }
    (span,) = telemetry.spans
    assert (span.attributes or {})["cache.key.count"] == 4
    assert (span.attributes or {})["cache.result"] == "partial"


def test_decorated_functions(telemetry: Telemetry) -> None:
    """A decorated function is a miss, then a hit, also for None; on a miss nothing is open while it runs."""
    seen: list[Any] = []

    async def main() -> None:
        cache = _memory()
        with instrument(cache):

            @cache(ttl="1m", key="user:{user_id}")
            async def load(user_id: int) -> None:
                seen.append(operation.current())

            await load(1)
            await load(1)

    asyncio.run(main())
    assert seen == [None]
    assert _counts(telemetry) == {
        ("get", "USER", "miss"): 1,
        ("get", "USER", "hit"): 1,
        ("set", "USER", "none"): 1,
    }


@pytest.mark.parametrize("kind", ["early", "soft", "hit", "failover"])
def test_other_decorators(telemetry: Telemetry, kind: str) -> None:
    """The other decorators go through the same middleware; cashews puts their name before the key."""
    measure.strategy("LOADED", f"{kind[:4]}*:user:{{user_id}}")

    async def main() -> None:
        cache = _memory()
        more: dict[str, Any] = {"cache_hits": 10} if kind == "hit" else {}
        with instrument(cache):

            @getattr(cache, kind)(ttl=60, key="user:{user_id}", **more)
            async def load(user_id: int) -> int:
                return user_id

            assert await load(1) == await load(1) == 1

    asyncio.run(main())
    assert _counts(telemetry)["set", "LOADED", "none"] >= 1
    assert all(span.name.startswith("cache ") for span in telemetry.spans)


def test_tags(telemetry: Telemetry) -> None:
    """Invalidating a tag is counted as what it does."""

    async def main() -> None:
        cache = _memory()
        with instrument(cache):

            @cache(ttl="1m", key="user:{user_id}", tags=["users"])
            async def load(user_id: int) -> int:
                return user_id

            await load(1)
            await cache.delete_tags("users")
            await load(1)

    asyncio.run(main())
    counts = _counts(telemetry)
    assert counts["get", "USER", "miss"] == 2
    assert counts["set_pop", None, "none"] == 1
    assert counts["delete_many", "USER", "none"] == 1


def test_redis_backend(telemetry: Telemetry, redis_server: Any) -> None:
    """The system is the backend's; keys are matched as the backend gets them."""

    async def main() -> None:
        cache = Cache()
        cache.setup(redis_server.url + "?client_side=0", middlewares=(add_prefix("user:"),))
        with instrument(cache):
            await cache.set("cashews-7", {"a": 1}, expire=60)
            assert await cache.get("cashews-7") == {"a": 1}
        await cache.close()

    asyncio.run(main())
    assert _counts(telemetry) == {("set", "USER", "none"): 1, ("get", "USER", "hit"): 1}
    assert {point.attributes["cache.system"] for point in telemetry.points(_DURATION)} == {"redis"}


def test_a_dead_redis_that_cashews_suppresses(telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    """A miss is answered and the error logged; the operation has the error, is no miss, and the record goes on."""

    async def main() -> None:
        cache = Cache()
        cache.setup(_DEAD, suppress=True)
        with instrument(cache):
            assert await cache.get("user:1", default="fallback") == "fallback"
        await cache.close()

    with caplog.at_level(logging.ERROR, "cashews"):
        asyncio.run(main())
    (point,) = telemetry.points(_DURATION)
    assert point.attributes["error.type"] == "redis.exceptions.ConnectionError"
    assert point.attributes["cache.result"] == "none"
    assert telemetry.spans[-1].status.status_code is StatusCode.ERROR
    assert "can not execute command" in caplog.text


def test_a_dead_redis_that_raises(telemetry: Telemetry) -> None:
    """With `suppress=False` the user gets the exception, and the error has the same type."""

    async def main() -> None:
        cache = Cache()
        cache.setup(_DEAD, suppress=False)
        with instrument(cache), pytest.raises((CacheBackendInteractionError, ConnectionError)):
            await cache.set("user:1", 1)
        await cache.close()

    asyncio.run(main())
    (point,) = telemetry.points(_DURATION)
    assert point.attributes["error.type"] == "redis.exceptions.ConnectionError"


def test_what_is_switched_off_is_no_miss(telemetry: Telemetry) -> None:
    """A disabled cache is not asked, so nothing is counted."""

    async def main() -> None:
        cache = _memory()
        with instrument(cache), cache.disabling():
            assert await cache.get("user:1") is None

    asyncio.run(main())
    assert telemetry.points(_DURATION) == []


def test_iterators_and_transactions(telemetry: Telemetry) -> None:
    """Scans go on lazily and unmeasured; reads and writes inside a transaction are counted as they are made."""

    async def main() -> None:
        cache = _memory()
        with instrument(cache):
            await cache.set("user:1", 1)
            assert [key async for key in cache.scan("user:*")] == ["user:1"]
            assert [pair async for pair in cache.get_match("user:*")] == [("user:1", 1)]
            async with cache.transaction():
                await cache.set("user:2", 2)
                assert await cache.get("user:2") == 2
            assert await cache.get("user:2") == 2

    asyncio.run(main())
    assert _counts(telemetry) == {("set", "USER", "none"): 2, ("get", "USER", "hit"): 2}
    assert {point.attributes["cache.system"] for point in telemetry.points(_DURATION)} == {"memory"}


def test_twice_and_undo(telemetry: Telemetry) -> None:
    """The middleware is there once, until the last handle is undone; then cache and logger are as they were."""
    cache = _memory()
    before = list(cache._default_middlewares)
    filters = list(logging.getLogger("cashews.backends.redis.client").filters)
    first, second = instrument(cache), instrument(cache)

    async def ask() -> None:
        await cache.get("user:1")

    asyncio.run(ask())
    first.undo()
    asyncio.run(ask())
    second.undo()
    asyncio.run(ask())
    assert _counts(telemetry) == {("get", "USER", "miss"): 2}
    assert cache._default_middlewares == before
    assert logging.getLogger("cashews.backends.redis.client").filters == filters


def test_within_measure_cache(telemetry: Telemetry) -> None:
    """The outermost cache operation counts."""

    async def main() -> None:
        cache = _memory()
        with instrument(cache):
            async with measure.cache("lookup", strategy="USER") as op:
                op.hit = await cache.get("user:1") is not None

    asyncio.run(main())
    assert _counts(telemetry) == {("lookup", "USER", "miss"): 1}


def test_cancelled(telemetry: Telemetry) -> None:
    """A cancelled command is ended; nothing stays current."""

    async def main() -> None:
        cache = Cache()

        async def slow(call: Any, _cmd: Any, _backend: Any, *args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(30)
            return await call(*args, **kwargs)

        cache.setup("mem://")
        cache.add_middleware(slow)
        with instrument(cache):
            task = asyncio.create_task(cache.get("user:1"))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    (point,) = telemetry.points(_DURATION)
    assert point.attributes["error.type"] == "asyncio.exceptions.CancelledError"


def test_an_old_cashews_is_refused() -> None:
    """Where a middleware would not be called, the message says what to install instead of measuring nothing."""
    cache = _memory()
    del cache._middlewares
    with pytest.raises(ImportError, match=r"7\.5 or later"):
        instrument(cache)


def test_hostile_keys(telemetry: Telemetry) -> None:
    """Huge and strange keys cost no more than their length and appear nowhere."""

    async def main() -> None:
        cache = _memory()
        with instrument(cache):
            for key in ("user:" + "x" * 100_000, "", "\x1b[31m\x00", "user:\ud800"):
                await cache.set(key, 1)
                assert await cache.get(key) == 1

    asyncio.run(main())
    assert sum(point.count for point in telemetry.points(_DURATION)) == 8
    assert not any("\x1b" in str(span.attributes) or "xxx" in str(span.attributes) for span in telemetry.spans)
