"""Fills the cache before anybody asks: the board, and the pages of those who did something last.

It runs in the background when the service starts, and after a maintenance run, which made many values old. Nobody asked
for what it loads, so that hit rates and the step `get_user_activities` are those of users: only the job itself and its
queries show it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from datetime import date
from itertools import islice

from otel_perf import measure

from .cache import ReadCache
from .service import Streaks
from .stores import Store

__all__ = ["warm_up"]

_log = logging.getLogger(__name__)

_job = measure.job("streak.warm_up")

_USERS_AT_ONCE = 4
"""Few: those who ask now come first."""


async def warm_up(streaks: Streaks, store: Store, cache: ReadCache, today: date, limit: int) -> int:
    """Load the board and what `limit` users will ask for, and return how many users that were.

    It never fails its caller: what it could not load is loaded by whoever asks for it.
    """
    if limit <= 0:
        return 0
    warmed = 0
    try:
        with _job as run:
            await streaks.warm_board(today)
            left = iter(await store.most_active(limit))
            # Without a cache all of this would be loaded for nothing.
            while not cache.degraded and (users := list(islice(left, _USERS_AT_ONCE))):
                await _all(streaks.warm_user(user, today) for user in users)
                warmed += len(users)
                run.items = warmed
    except Exception as problem:
        # The text is left out: it may repeat what is in the database.
        _log.warning("the cache was warmed up for %d users only (%s)", warmed, type(problem).__name__)
    return warmed


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """Wait for all of them, also when one fails, so that none goes on by itself."""
    for ended in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(ended, BaseException):
            raise ended
