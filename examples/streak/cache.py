"""What is remembered for a little while: cashews, in memory or in Redis.

The cache may die; the service may not. A read that the cache cannot answer goes to the store, and while Redis is away
it is left alone, so that a hanging one does not slow each request.

**Debts.** What should have been forgotten meanwhile is owed. A task tries every second to pay it, whether anybody reads
or not, since other processes read the same Redis; this one does not read before it has paid. Who closes the cache
waits a little for it. A process that is killed while it owes something takes that with it: then the old values are read
until their TTL is over. A version of the cache in the database would tell them from new ones, but each hit would have
to ask for it, and a cache that asks the database for each hit is none.

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
from itertools import islice
from typing import Any

from cashews import Cache
from cashews.exceptions import CacheError
from redis.exceptions import RedisError

from . import metrics
from .debts import CHUNK, Debts
from .mending import Mending
from .strategies import (
    BOARD,
    BOARD_LIMIT,
    CALENDAR,
    CONSISTENCY,
    LEADERBOARD,
    PROFILE,
    STRATEGIES,
    USER,
    Strategy,
    Tag,
)

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

_MEMORY_KEYS = 10_000
_REDIS_TIMEOUT_S = 0.5
_LEAVE_ALONE_S = 5.0
_CLAIM_S = 10.0
_CLOSE_WITHIN_S = 5.0
_LOOK_EVERY_S = 0.1
_ABSENT: Any = object()
# asyncio.TimeoutError is not the builtin one before Python 3.11.
_FAILURES = (CacheError, RedisError, OSError, asyncio.TimeoutError)


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

    def __init__(
        self,
        cache: Cache,
        *,
        clock_s: Callable[[], float] = time.monotonic,
        close_within_s: float | None = None,
    ) -> None:
        self._cache = cache
        self._clock_s = clock_s
        self._close_within_s = _CLOSE_WITHIN_S if close_within_s is None else close_within_s
        self._retry_at_s = 0.0
        self._degraded = False
        self._recovering = False
        self._debts = Debts()
        self._mending = Mending(self._mend, "streak cache")
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

    async def fill(self, strategy: Strategy, load: Callable[[], Awaitable[Any]], **parts: object) -> None:
        """Load a value and keep it, whether it is there or not. Nobody asks for it: it is no hit, and no miss."""
        key = strategy.key(**parts)
        if key not in self._loading and await self._usable():
            await self._load(key, load, strategy.ttl_s)

    async def forget_user(self, user: str, *, board: bool = False) -> bool:
        """Drop what a write made old of one user, and of the board: at once, or as soon as the cache is back.

        This, as all that forget, tells whether it is done: else it is owed, and `pay` waits for it.
        """
        metrics.record_forgotten("user", 1)
        keys = USER.keys(user=user)
        if board:
            metrics.record_forgotten("board", 1)
            keys += BOARD.keys(limit=BOARD_LIMIT)
        return await self._forget(keys)

    async def forget_users(self, names: Iterable[str]) -> bool:
        """Drop what a write made old of many users, some at a time, so that no command is long."""
        left, done = iter(names), True
        while chunk := list(islice(left, CHUNK)):
            metrics.record_forgotten("user", len(chunk))
            done &= await self._forget([key for user in chunk for key in USER.keys(user=user)])
        return done

    async def forget_board(self) -> bool:
        """Drop the leaderboard."""
        metrics.record_forgotten("board", 1)
        return await self._forget(BOARD.keys(limit=BOARD_LIMIT))

    async def forget_all(self) -> bool:
        """Drop all there is, for when it is not known what is old."""
        self._loading.clear()
        self._debts.owe_all()
        if await self._usable():
            return True
        self._mending.start()
        return False

    async def pay(self, within_s: float) -> int:
        """Try for so long to drop what is owed, and return how many values are left that may be old."""
        ends_at_s = time.monotonic() + within_s
        # While somebody is at it, what he is about to drop is struck off already.
        while (self._debts or self._recovering) and time.monotonic() < ends_at_s:
            if self._recovering or not await self._recover():
                await asyncio.sleep(min(_LOOK_EVERY_S, within_s))
        return len(self._debts)

    async def ping(self) -> bool:
        """Tell whether the cache answers. Whoever asks for the service's health thereby has it try again."""
        if not await self._usable():
            return False
        try:
            await self._cache.ping()
        except _FAILURES as problem:
            self._fail(problem)
        return not self._degraded

    async def close(self) -> int:
        """Try for a few seconds to pay what is owed, then close the connections; return how many values stay old."""
        try:
            await self.pay(self._close_within_s)
        finally:
            await self._mending.end()
            if self._debts:
                _log.warning("%d cached values stay old until their time is up: Redis is away", len(self._debts))
            await self._disconnect()
        return len(self._debts)

    async def _disconnect(self) -> None:
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

    async def _forget(self, keys: list[str]) -> bool:
        for key in keys:
            self._loading.pop(key, None)
        if not await self._usable():
            self._owe(keys)
            return False
        try:
            await self._drop(keys)
        except _FAILURES as problem:
            self._owe(keys)
            self._fail(problem)
            return False
        except BaseException:
            # The write is done, and whoever waited for it has gone.
            self._owe(keys)
            raise
        return True

    async def _usable(self) -> bool:
        """Tell whether the cache may be asked; after a failure, one caller tries, and pays what is owed."""
        # Also while somebody pays: what is about to be dropped is struck off already.
        if not (self._degraded or self._debts or self._recovering):
            return True
        if self._recovering or self._clock_s() < self._retry_at_s:
            return False
        return await self._recover()

    async def _recover(self) -> bool:
        self._recovering = True
        try:
            await self._cache.ping()
            await self._debts.pay(self._drop, self._drop_all)
        except _FAILURES as problem:
            self._fail(problem)
            return False
        except BaseException:
            self._mending.start()
            raise
        finally:
            self._recovering = False
        if self._degraded:
            self._degraded = False
            metrics.record_cache_degraded(degraded=False)
            _log.info("the cache is back")
        return True

    async def _mend(self) -> bool:
        if (self._degraded or self._debts) and not self._recovering:
            await self._recover()
        return not (self._degraded or self._debts or self._recovering)

    async def _drop(self, keys: list[str]) -> None:
        await self._cache.delete_many(*keys, *map(_claim_of, keys))

    async def _drop_all(self) -> None:
        for pattern in (strategy.pattern for strategy in STRATEGIES):
            await self._cache.delete_match(pattern)
            await self._cache.delete_match(_claim_of(pattern))

    def _owe(self, keys: Iterable[str]) -> None:
        self._debts.owe(keys)
        self._mending.start()

    def _fail(self, problem: BaseException) -> None:
        self._retry_at_s = self._clock_s() + _LEAVE_ALONE_S
        self._mending.start()
        if not self._degraded:
            self._degraded = True
            metrics.record_cache_degraded(degraded=True)
            # cashews wraps what happened. The text is left out: it may name where Redis is.
            kind = type(problem.__cause__ or problem).__name__
            _log.warning("the cache failed (%s) and is left alone until it answers again", kind)


def _claim_of(key: str) -> str:
    return "loading:" + key
