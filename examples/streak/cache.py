"""What is remembered for a little while: cashews, in memory or in Redis.

The cache may die; the service may not. A read that the cache cannot answer goes to the store, and while Redis is away
it is left alone for some seconds, so that a hanging one does not slow each request. What should have been forgotten
meanwhile is forgotten before the first read after it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from cashews import Cache
from cashews.exceptions import CacheError
from redis.exceptions import RedisError

__all__ = ["CALENDAR", "CONSISTENCY", "LEADERBOARD", "PROFILE", "STRATEGIES", "ReadCache", "Strategy", "make_cache"]

_log = logging.getLogger(__name__)

_MEMORY_KEYS = 10_000
_REDIS_TIMEOUT_S = 0.25
_LEAVE_ALONE_S = 5.0
_MAX_OWED = 10_000
_ABSENT = object()
# asyncio.TimeoutError is not the builtin one before Python 3.11. A value that does not decode is a ValueError.
_FAILURES = (CacheError, RedisError, OSError, asyncio.TimeoutError, ValueError)


@dataclass(frozen=True, slots=True)
class Strategy:
    """A kind of cached value: how its keys look, how long it is good for, and how often it should be found."""

    name: str
    template: str
    ttl_s: int
    expected_hit_rate: float

    def key(self, **parts: object) -> str:
        """Return the key of one value."""
        return self.template.format(**parts)

    @property
    def pattern(self) -> str:
        """Return what all keys of this strategy match."""
        return self.template.partition("{")[0] + "*"


CALENDAR = Strategy("CALENDAR", "user:calendar:{user}", ttl_s=300, expected_hit_rate=0.85)
CONSISTENCY = Strategy("CONSISTENCY", "user:consistency:{user}", ttl_s=60, expected_hit_rate=0.80)
LEADERBOARD = Strategy("LEADERBOARD", "leaderboard:{limit}", ttl_s=600, expected_hit_rate=0.95)
PROFILE = Strategy("PROFILE", "user:profile:{user}", ttl_s=900, expected_hit_rate=0.90)
STRATEGIES = (CALENDAR, CONSISTENCY, LEADERBOARD, PROFILE)


def make_cache(redis_url: str | None) -> Cache:
    """Return a cache in memory, or in Redis when there is an address. It connects on first use."""
    cache = Cache("streak")
    if redis_url is None:
        cache.setup(f"mem://?size={_MEMORY_KEYS}")
        return cache
    cache.setup(
        redis_url,
        # By default cashews makes a miss of every failure, and nobody would know that Redis is dead.
        suppress=False,
        # What comes back from another process is data, never code, as it could be with pickle.
        pickle_type="json",
        socket_timeout=_REDIS_TIMEOUT_S,
        socket_connect_timeout=_REDIS_TIMEOUT_S,
        wait_for_connection_timeout=_REDIS_TIMEOUT_S,
        max_connections=50,
    )
    return cache


class ReadCache:
    """Reads through a cache: what it does not have, or cannot give, is loaded."""

    def __init__(self, cache: Cache, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._clock_s = clock_s
        self._retry_at_s = 0.0
        self._owed: dict[str, None] = {}

    @property
    def degraded(self) -> bool:
        """Tell whether the cache failed a moment ago and is left alone."""
        return self._clock_s() < self._retry_at_s

    async def read(self, strategy: Strategy, load: Callable[[], Awaitable[Any]], **parts: object) -> Any:
        """Return the cached value, or load it and keep it. The value is JSON, not to be changed; None is not kept."""
        key = strategy.key(**parts)
        value = await self._try(lambda: self._get(key), otherwise=_ABSENT)
        if value is _ABSENT:
            value = await load()
            if value is not None:
                await self._try(lambda: self._cache.set(key, value, expire=strategy.ttl_s), otherwise=False)
        return value

    async def forget(self, *keys: str) -> None:
        """Drop values that a write has made old: at once, or as soon as the cache is back."""
        if await self._try(lambda: self._cache.delete_many(*keys), otherwise=_ABSENT) is not _ABSENT:
            return
        self._owed.update(dict.fromkeys(keys))
        if len(self._owed) > _MAX_OWED:
            # Memory is bounded; what is not dropped by name ends with its TTL.
            self._owed.clear()

    async def ping(self) -> bool:
        """Tell whether the cache answers."""
        return bool(await self._try(self._cache.ping, otherwise=False))

    async def close(self) -> None:
        """Close the connections, if any."""
        with warnings.catch_warnings():
            # cashews 7.6 closes redis-py by a name that redis-py has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                await self._cache.close()
            except _FAILURES:
                _log.warning("the cache did not close", exc_info=True)

    async def _get(self, key: str) -> Any:
        owed = list(self._owed)
        if owed:
            await self._cache.delete_many(*owed)
            for paid in owed:
                self._owed.pop(paid, None)
        return await self._cache.get(key, default=_ABSENT)

    async def _try(self, attempt: Callable[[], Awaitable[Any]], *, otherwise: Any) -> Any:
        if self.degraded:
            return otherwise
        try:
            return await attempt()
        except _FAILURES as problem:
            if not self.degraded:
                _log.warning("the cache failed (%s) and is left alone for %g s", type(problem).__name__, _LEAVE_ALONE_S)
            self._retry_at_s = self._clock_s() + _LEAVE_ALONE_S
            return otherwise
