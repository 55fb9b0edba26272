"""A maintenance over a real database and a push API, with a way to meddle with what it asks of the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

import httpx
from cashews import Cache
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from examples.streak.cache import ReadCache, make_cache
from examples.streak.maintenance import Maintenance
from examples.streak.push import PushClient, create_push_app
from examples.streak.records import Message, Tally
from examples.streak.settings import Settings
from examples.streak.stores import Database, tables
from tests.streak.seeding import expected, read_states

__all__ = ["Kit", "Meddled", "assert_each_once", "maintaining"]


@dataclass
class Kit:
    """A maintenance and what is around it."""

    maintenance: Maintenance
    cache: ReadCache
    cashews: Cache
    push: FastAPI

    @property
    def told(self) -> Counter[tuple[str, str]]:
        """How often each message arrived."""
        recent: list[Message] = list(self.push.state.recent)
        return Counter((message.user, message.kind) for message in recent)


class Meddled:
    """The runs of a database, but for the methods that are given."""

    def __init__(self, runs: Any, **instead: Callable[..., Any]) -> None:
        self._runs = runs
        self._instead = instead

    def __getattr__(self, name: str) -> Any:
        return self._instead.get(name) or getattr(self._runs, name)


@asynccontextmanager
async def maintaining(
    database: Database,
    *,
    runs: Any = None,
    transport: httpx.AsyncBaseTransport | None = None,
    push_url: str | None = "http://push",
    lease: dict[str, float] | None = None,
    outbox_for_s: float = 0.0,
    **settings: Any,
) -> AsyncIterator[Kit]:
    """Make a maintenance; its push API is in this process unless there is another transport to it."""
    app = create_push_app(delay_s=0, keep=100_000)
    push = PushClient(push_url, transport=transport or httpx.ASGITransport(app))
    cashews = make_cache(None)
    cache = ReadCache(cashews)
    more = {"outbox_for_s": outbox_for_s, **(lease or {})}
    maintenance = Maintenance(runs or database.runs, cache, push, Settings(**settings), **more)
    try:
        yield Kit(maintenance, cache, cashews, app)
    finally:
        await push.close()
        await cache.close()


async def assert_each_once(database: Database, count: int, today: date) -> Tally:
    """Each user is what the rules make of their past, and was accounted for by one batch; return what all came to."""
    tally, states = expected(count, today)
    assert await read_states(database) == states
    engine: AsyncEngine = database.measured[0]
    counts = ("processed", "freezes_spent", "missed", "freezes_exhausted", "at_risk", "notified")
    b = tables.batches.c
    async with engine.connect() as connection:
        query = select(b.after, b.until, *(b[name] for name in counts)).order_by(b.after)
        rows = (await connection.execute(query)).all()
    until = ""
    total = Tally()
    for row in rows:
        assert until <= row.after < row.until
        until = row.until
        total += Tally(*row[2:])
    assert (total.processed, total.freezes_spent, total.missed, total.freezes_exhausted, total.at_risk) == (
        tally.processed,
        tally.freezes_spent,
        tally.missed,
        tally.freezes_exhausted,
        tally.at_risk,
    )
    return total
