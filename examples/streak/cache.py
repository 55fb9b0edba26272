"""What is remembered for a little while: cashews, in memory or in Redis.

The cache may die; the service may not. A read that the cache cannot answer goes to the store, and while Redis is away
it is left alone for some seconds, so that a hanging one does not slow each request. What should have been forgotten
meanwhile is forgotten before the first read after it.

**Tags.** A tag names the values that a write makes old together. All its keys follow from its name, so they are dropped
by one command, and no list of them is kept. cashews' own tags keep one in Redis, where a kept value costs three round
trips instead of one, and the shortest-lived value of a tag ends the list of the others, which then outlive the write.

**A read that overlaps a write** has loaded what the write makes old, and must not keep it. So it claims the key first,
a write drops the claims of its tag along with the values, and the reader takes its value back when its claim is gone.
Of several that miss the same key, one keeps it. This costs a miss two commands; a hit stays one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import warnings
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cashews import Cache
from cashews.exceptions import CacheError
from redis.exceptions import RedisError

from . import metrics

__all__ = [
    "BOARD",
    "BOARD_LIMIT",
    "CALENDAR",
    "CONSISTENCY",
    "LEADERBOARD",
    "PROFILE",
    "STRATEGIES",
    "USER",
    "ReadCache",
    "Strategy",
    "Tag",
    "make_cache",
]

_log = logging.getLogger(__name__)

BOARD_LIMIT = 100
"""The board is kept once, of this length; shorter ones are cut from it."""

_MEMORY_KEYS = 10_000
_REDIS_TIMEOUT_S = 0.5
_LEAVE_ALONE_S = 5.0
_CLAIM_S = 10.0
_CHUNK = 100
_MAX_OWED = 20_000
_ABSENT: Any = object()
# asyncio.TimeoutError is not the builtin one before Python 3.11.
_FAILURES = (CacheError, RedisError, OSError, asyncio.TimeoutError)


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


@dataclass(frozen=True, slots=True)
class Tag:
    """Values that a write makes old together."""

    template: str
    strategies: tuple[Strategy, ...]

    def keys(self, **parts: object) -> list[str]:
        """Return the keys of all its values."""
        return [strategy.key(**parts) for strategy in self.strategies]


USER = Tag("user:{user}", (CALENDAR, CONSISTENCY, PROFILE))
BOARD = Tag("board", (LEADERBOARD,))


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
        max_connections=100,
    )
    return cache


class ReadCache:
    """Reads through a cache: what it does not have, or cannot give, is loaded."""

    def __init__(self, cache: Cache, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._clock_s = clock_s
        self._retry_at_s = 0.0
        self._degraded = False
        self._recovering = False
        # Keys that should have been dropped; None of them, but all there are, once there are too many to name.
        self._owed: dict[str, None] = {}
        self._owes_all = False
        # Who keeps what is loaded, by key. It settles who of this process does; the claim in Redis, who of several.
        self._loading: dict[str, str] = {}
        metrics.record_cache_degraded(degraded=False)

    @property
    def degraded(self) -> bool:
        """Tell whether the cache failed, and has not answered since."""
        return self._degraded

    async def read(self, strategy: Strategy, load: Callable[[], Awaitable[Any]], **parts: object) -> Any:
        """Return the cached value, or load it and keep it. The value is JSON, not to be changed; None is not kept."""
        key = strategy.key(**parts)
        if not await self._usable():
            return await load()
        try:
            value = await self._get(key)
        except _FAILURES as problem:
            self._fail(problem)
            return await load()
        return await self._load(key, load, strategy.ttl_s) if value is _ABSENT else value

    async def forget_user(self, user: str, *, board: bool = False) -> None:
        """Drop what a write made old of one user, and of the board: at once, or as soon as the cache is back."""
        metrics.record_forgotten("user", 1)
        keys = USER.keys(user=user)
        if board:
            metrics.record_forgotten("board", 1)
            keys += BOARD.keys(limit=BOARD_LIMIT)
        await self._forget(keys)

    async def forget_users(self, names: Iterable[str]) -> None:
        """Drop what a write made old of many users, some at a time, so that no command is long."""
        left = iter(names)
        while chunk := list(islice(left, _CHUNK)):
            metrics.record_forgotten("user", len(chunk))
            await self._forget([key for user in chunk for key in USER.keys(user=user)])

    async def forget_board(self) -> None:
        """Drop the leaderboard."""
        metrics.record_forgotten("board", 1)
        await self._forget(BOARD.keys(limit=BOARD_LIMIT))

    async def ping(self) -> bool:
        """Tell whether the cache answers. Whoever asks for the service's health thereby has it try again."""
        if not await self._usable():
            return False
        try:
            await self._cache.ping()
        except _FAILURES as problem:
            self._fail(problem)
        return not self._degraded

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
        try:
            return await self._cache.get(key, default=_ABSENT)
        except ValueError:
            # What does not decode was not written by this version: it is loaded, and written over.
            return _ABSENT

    async def _load(self, key: str, load: Callable[[], Awaitable[Any]], ttl_s: int) -> Any:
        if key in self._loading:
            return await load()
        token = self._loading[key] = secrets.token_hex(8)
        try:
            claimed = await self._claim(key, token)
            value = await load()
            if claimed and value is not None and self._loading.get(key) == token:
                await self._keep(key, value, ttl_s, token)
            return value
        finally:
            if self._loading.get(key) == token:
                del self._loading[key]

    async def _claim(self, key: str, token: str) -> bool:
        try:
            return await self._cache.set_lock(_claim_of(key), token, expire=_CLAIM_S)
        except _FAILURES as problem:
            self._fail(problem)
            return False

    async def _keep(self, key: str, value: Any, ttl_s: int, token: str) -> None:
        """Keep a value, then look whether a write went by: the other way round, it could go by in between."""
        try:
            await self._cache.set(key, value, expire=ttl_s)
            # cashews' memory lets go whatever the token, but there nobody else is than this process.
            if not await self._cache.unlock(_claim_of(key), token) or self._loading.get(key) != token:
                await self._cache.delete(key)
        except _FAILURES as problem:
            self._owe((key,))
            self._fail(problem)
        except BaseException:
            self._owe((key,))
            raise

    async def _forget(self, keys: list[str]) -> None:
        for key in keys:
            self._loading.pop(key, None)
        if not await self._usable():
            self._owe(keys)
            return
        try:
            await self._cache.delete_many(*keys, *map(_claim_of, keys))
        except _FAILURES as problem:
            self._owe(keys)
            self._fail(problem)
        except BaseException:
            # The write is done, and whoever waited for it has gone.
            self._owe(keys)
            raise

    async def _usable(self) -> bool:
        """Tell whether the cache may be asked; after a failure, one caller tries, and pays what is owed."""
        if not (self._degraded or self._owed or self._owes_all):
            return True
        if self._recovering or self._clock_s() < self._retry_at_s:
            return False
        self._recovering = True
        try:
            await self._cache.ping()
            await self._pay()
        except _FAILURES as problem:
            self._fail(problem)
            return False
        finally:
            self._recovering = False
        if self._degraded:
            self._degraded = False
            metrics.record_cache_degraded(degraded=False)
            _log.info("the cache is back")
        return True

    async def _pay(self) -> None:
        """Drop what is owed. It is struck off first: what is owed anew meanwhile is another debt."""
        if self._owes_all:
            self._owes_all = False
            try:
                for pattern in (strategy.pattern for strategy in STRATEGIES):
                    await self._cache.delete_match(pattern)
                    await self._cache.delete_match(_claim_of(pattern))
            except BaseException:
                self._owes_all = True
                raise
        while chunk := list(islice(self._owed, _CHUNK)):
            for key in chunk:
                del self._owed[key]
            try:
                await self._cache.delete_many(*chunk, *map(_claim_of, chunk))
            except BaseException:
                self._owe(chunk)
                raise

    def _owe(self, keys: Iterable[str]) -> None:
        self._owed.update(dict.fromkeys(keys))
        if len(self._owed) > _MAX_OWED:
            self._owed.clear()
            self._owes_all = True

    def _fail(self, problem: BaseException) -> None:
        self._retry_at_s = self._clock_s() + _LEAVE_ALONE_S
        if not self._degraded:
            self._degraded = True
            metrics.record_cache_degraded(degraded=True)
            # cashews wraps what happened. The text is left out: it may name where Redis is.
            kind = type(problem.__cause__ or problem).__name__
            _log.warning("the cache failed (%s) and is left alone for %g s at a time", kind, _LEAVE_ALONE_S)


def _claim_of(key: str) -> str:
    return "loading:" + key
