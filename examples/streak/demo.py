"""What only the demonstration has: a slow route, one that fails, and users with a past."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import asdict
from datetime import date, datetime, time, timedelta, timezone
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from . import rules
from .routes import Parts, parts_of
from .service import MAX_DAYS
from .store import to_columns
from .tables import activities, users

__all__ = ["DEMO_USERS", "demo_router", "seed"]

DEMO_USERS = tuple(f"user-{number:03}" for number in range(300))

_SLOW_S = (0.3, 0.6)
_FAILS_EACH = 3
_MAX_STREAK = 45


def demo_router() -> APIRouter:
    """Return the routes of the demonstration."""
    router = APIRouter(prefix="/api")
    calls = itertools.count(1)

    @router.get("/report")
    async def get_report(parts: Annotated[Parts, Depends(parts_of)]) -> dict[str, Any]:
        """Sum up the year of everybody, slowly."""
        since = parts.today - timedelta(days=MAX_DAYS - 1)
        totals = await parts.store.report(since)
        await asyncio.sleep(random.uniform(*_SLOW_S))
        return {"from": since, "totals": [asdict(total) for total in totals]}

    @router.get("/flaky")
    async def get_flaky() -> dict[str, str]:
        """Fail each third time, as something that nobody has caught."""
        if next(calls) % _FAILS_EACH == 0:
            raise RuntimeError("this route fails each third time, on purpose")
        return {"status": "ok"}

    return router


async def seed(engine: AsyncEngine, today: date) -> None:
    """Give the demonstration's users a past, unless there are users already."""
    chance = random.Random(20)  # the same past each time
    async with engine.begin() as connection:
        if (await connection.execute(select(users.c.id).limit(1))).first() is not None:
            return
        pasts = [_past(name, today, chance) for name in DEMO_USERS]
        await connection.execute(insert(users), [user for user, _ in pasts])
        await connection.execute(insert(activities), [entry for _, entries in pasts for entry in entries])


def _past(name: str, today: date, chance: random.Random) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Live through some days by the rules, up to a last one that is mostly yesterday."""
    last = today - timedelta(days=chance.choices((1, 2, 4), weights=(6, 3, 1))[0])
    state = rules.State()
    entries = []
    for back in range(chance.randint(0, _MAX_STREAK), -1, -1):
        day = last - timedelta(days=back)
        category, minutes = chance.choice(rules.CATEGORIES), chance.randint(5, 90)
        logged = rules.log_activity(state, category, minutes, day)
        state = logged.state
        entries.append(_entry(name, day, category, minutes, logged))
    return _user(name, entries[0]["day"], state), entries


def _entry(name: str, day: date, category: rules.Category, minutes: int, logged: rules.Logged) -> dict[str, Any]:
    return {
        "user_id": name,
        "day": day,
        "at": datetime.combine(day, time(12), timezone.utc),
        "category": category,
        "minutes": minutes,
        "xp": logged.xp,
        "bonus_xp": logged.bonus_xp,
    }


def _user(name: str, joined_on: date, state: rules.State) -> dict[str, Any]:
    return {"id": name, "joined_on": joined_on, **to_columns(state)}
