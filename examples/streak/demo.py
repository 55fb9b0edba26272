"""What only the demonstration has: a slow route, one that fails, tokens for the asking, and users with a past."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date, datetime, time, timedelta, timezone
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncEngine

from . import rules
from .auth import mint
from .parts import NeedsParts
from .records import Activity, Entry, new_id
from .service import MAX_DAYS
from .stores import Database, Store
from .stores.sql_past import Past, write_pasts

__all__ = ["DEMO_USERS", "demo_router", "seed"]

DEMO_USERS = tuple(f"user-{number:03}" for number in range(300))

_SLOW_S = (0.3, 0.6)
_FAILS_EACH = 3
_MAX_STREAK = 45
# One transaction for each activity takes its time: where there is no other way, there are fewer users.
_LIVED_USERS = 20


class _Who(BaseModel):
    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,32}$")]


def demo_router() -> APIRouter:
    """Return the routes of the demonstration."""
    router = APIRouter(prefix="/api", tags=["demo"])
    calls = itertools.count(1)

    @router.get("/report")
    async def get_report(parts: NeedsParts) -> dict[str, Any]:
        """Sum up the year of everybody, slowly."""
        since = parts.today - timedelta(days=MAX_DAYS - 1)
        totals = await parts.database.store.report(since)
        await asyncio.sleep(random.uniform(*_SLOW_S))
        return {"from": since, "totals": [asdict(total) for total in totals]}

    @router.get("/flaky")
    async def get_flaky() -> dict[str, str]:
        """Fail each third time, as something that nobody has caught."""
        if next(calls) % _FAILS_EACH == 0:
            raise RuntimeError("this route fails each third time, on purpose")
        return {"status": "ok"}

    @router.post("/demo/token")
    async def make_token(who: _Who, parts: NeedsParts) -> dict[str, str]:
        """Let anybody be anybody: this is a demonstration."""
        return {"token": mint(parts.settings.secret, who.name)}

    return router


async def seed(database: Database, today: date) -> None:
    """Give the demonstration's users a past, unless there are users already."""
    if await database.store.most_active(1):
        return
    chance = random.Random(20)  # the same past each time
    pasts = [_past(name, today, chance) for name in DEMO_USERS]
    engine = database.measured[0]
    if isinstance(engine, AsyncEngine):
        await write_pasts(engine, pasts)
    else:
        await asyncio.gather(*(_relive(database.store, past.name, past.entries) for past in pasts[:_LIVED_USERS]))


async def _relive(store: Store, name: str, entries: Sequence[Entry]) -> None:
    for entry in entries:
        category: rules.Category = entry.category  # type: ignore[assignment]  # it was one of them
        await store.log_activity(name, Activity(category, entry.minutes), entry.at)


def _past(name: str, today: date, chance: random.Random) -> Past:
    """Live through some days by the rules, up to a last one that is mostly yesterday."""
    last = today - timedelta(days=chance.choices((1, 2, 4), weights=(6, 3, 1))[0])
    state = rules.State()
    entries = []
    for back in range(chance.randint(0, _MAX_STREAK), -1, -1):
        day = last - timedelta(days=back)
        category, minutes = chance.choice(rules.CATEGORIES), chance.randint(5, 90)
        logged = rules.log_activity(state, category, minutes, day)
        state = logged.state
        at = datetime.combine(day, time(12), timezone.utc)
        entries.append(Entry(new_id(at), at, day, category, minutes, None, logged.xp, logged.bonus_xp))
    return Past(name, entries[0].day, state, tuple(entries))
