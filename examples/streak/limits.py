"""How much may be asked: by one user within a minute, and in one body.

Requests are counted in memory, or in Redis for all processes together. The windows are minutes of the clock, so that
every process has the same ones, and a window needs no key of its own to tell when it ends. At the turn of a minute
somebody may thus have two minutes' worth within a few seconds: what is kept in check is load, and that is on average.
`limits` has the script for Redis. Its storage in memory is not used: it looks through all keys at each hit, which
takes 2 ms when there are 20,000 of them.

Redis is not asked for each request. A process takes a fiftieth of the quota at a time and spends it by itself, so that
with several processes somebody may be refused a few requests early: what the others have taken and not spent, a
fiftieth each at most, since of many requests at once one takes and the others wait for it. While Redis is away each
process goes on by itself, and looks each second whether it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from math import ceil

from fastapi import HTTPException
from limits.aio.storage import RedisStorage
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .mending import Mending
from .metrics import record_limits_degraded

__all__ = ["MAX_BODY_BYTES", "POLICY", "BodyLimit", "RateLimits", "Taken"]

_log = logging.getLogger(__name__)

#: What the policy is called in the headers.
POLICY = "user"

MAX_BODY_BYTES = 16_384

_WINDOW_S = 60
_SHARES = 50
_MAX_USERS = 100_000
_REDIS_TIMEOUT_S = 0.25
_MAX_CONNECTIONS = 20
# asyncio.TimeoutError is not the builtin one before Python 3.11.
_FAILURES = (RedisError, OSError, asyncio.TimeoutError)


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one request."""

    allowed: bool
    left: int
    """How many more there may be in this window."""
    reset_s: int
    """Until the next window, at least 1."""


@dataclass(slots=True)
class _Account:
    """What one user has in this window and this process."""

    granted: int = 0
    spent: int = 0
    elsewhere: int = 0
    """What nobody has taken from Redis yet."""
    closed: bool = False
    """Nothing more is to be had in this window."""
    granting: asyncio.Event | None = None
    """Set once the share that somebody takes just now is there."""


class RateLimits:
    """The limits of all users. The time is the caller's."""

    def __init__(self, requests_per_minute: int, redis_url: str | None = None) -> None:
        self._quota = requests_per_minute
        self._share = max(1, requests_per_minute // _SHARES)
        self._degraded = False
        self._mending = Mending(self._mend, "streak limits")
        self._window = -1
        self._accounts: dict[str, _Account] = {}
        self._pool: BlockingConnectionPool | None = None
        self._redis: RedisStorage | None = None
        if redis_url is not None and requests_per_minute:
            self._pool = _make_pool(redis_url)
            self._redis = RedisStorage(
                redis_url,
                implementation="redispy",
                key_prefix="streak:limit",
                connection_pool=self._pool,  # type: ignore[arg-type]  # it is meant to be given; its type leaves it out
            )
        self.policy = f'"{POLICY}";q={requests_per_minute};w={_WINDOW_S}'
        """The quota in words of the IETF draft."""
        record_limits_degraded(degraded=False)

    @property
    def degraded(self) -> bool:
        """Tell whether Redis failed, and has not answered since: each process counts by itself."""
        return self._degraded

    async def take(self, user: str, at_s: float) -> Taken | None:
        """Count one request of a user at a moment; None where there is no limit."""
        if not self._quota:
            return None
        window = int(at_s // _WINDOW_S)
        if window != self._window:
            self._window = window
            self._accounts = {}
        account = self._accounts.get(user)
        if account is None:
            account = _Account()
            if len(self._accounts) < _MAX_USERS:
                # Memory is bounded; whoever comes after that many within a minute is let through.
                self._accounts[user] = account
        # Somebody who waited may find that others were faster.
        while account.spent >= account.granted and not account.closed:
            await self._granted(account, user, window)
        reset_s = max(1, ceil((window + 1) * _WINDOW_S - at_s))
        if account.spent >= account.granted:
            return Taken(allowed=False, left=0, reset_s=reset_s)
        account.spent += 1
        return Taken(allowed=True, left=account.elsewhere + account.granted - account.spent, reset_s=reset_s)

    async def close(self) -> None:
        """Close the connections, if any."""
        await self._mending.end()
        if self._pool is not None:
            await self._pool.disconnect()

    async def _granted(self, account: _Account, user: str, window: int) -> None:
        """Wait for the share that is being taken, or take one: if each took its own, a burst would take all."""
        if account.granting is not None:
            await account.granting.wait()
            return
        granting = account.granting = asyncio.Event()
        try:
            await self._grant(account, user, window)
        finally:
            # Also when whoever took it is gone: another one does then.
            account.granting = None
            granting.set()

    async def _grant(self, account: _Account, user: str, window: int) -> None:
        """Give a user another share of the quota, or, without Redis, all of it that was not spent here."""
        if self._redis is not None and not self._degraded:
            try:
                taken = await self._redis.incr(f"{user}:{window}", 2 * _WINDOW_S, amount=self._share)
            except _FAILURES as problem:
                self._fail(problem)
            else:
                # Whoever takes beyond the quota has the rest of it.
                got = max(0, self._share - max(0, taken - self._quota))
                account.granted += got
                account.elsewhere = max(0, self._quota - taken)
                account.closed = not got
                return
        account.granted = self._quota
        account.elsewhere = 0
        account.closed = True

    def _fail(self, problem: BaseException) -> None:
        if self._degraded:
            return
        self._degraded = True
        record_limits_degraded(degraded=True)
        self._mending.start()
        _log.warning(
            "Redis failed (%s): each process counts requests by itself until it is back", type(problem).__name__
        )

    async def _mend(self) -> bool:
        assert self._redis is not None
        with contextlib.suppress(*_FAILURES):
            # Not `check`, which takes its own cancellation for a Redis that does not answer.
            await self._redis.get("anybody")
            self._degraded = False
            record_limits_degraded(degraded=False)
            _log.info("Redis is back: requests are counted there again")
        return not self._degraded


def _make_pool(redis_url: str) -> BlockingConnectionPool:
    # A request waits for this: no second attempt, and no waiting beyond a moment.
    return BlockingConnectionPool.from_url(
        redis_url,
        max_connections=_MAX_CONNECTIONS,
        timeout=_REDIS_TIMEOUT_S,
        socket_timeout=_REDIS_TIMEOUT_S,
        socket_connect_timeout=_REDIS_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


class BodyLimit:
    """A middleware that reads no more of a body than it may have."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on."""
        if scope["type"] != "http" or scope["method"] == "GET":
            await self._app(scope, receive, send)
            return
        read_bytes = 0

        async def limited() -> Message:
            nonlocal read_bytes
            message = await receive()
            read_bytes += len(message.get("body", b""))
            if read_bytes > self._max_bytes:
                # Raised where the route reads its body, so it is answered as every refusal is.
                raise HTTPException(413, f"the body is too large: send {self._max_bytes} bytes at most")
            return message

        await self._app(scope, limited, send)
