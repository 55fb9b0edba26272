"""What the service does: the store, the cache and the push API brought together."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date, datetime, timedelta
from typing import Any

from otel_perf import measure

from . import rules
from .cache import CALENDAR, CONSISTENCY, LEADERBOARD, PROFILE, ReadCache
from .push import Kind, Message, PushClient
from .records import Activity, Receipt
from .store import Store
from .telemetry import record_logged

__all__ = ["BOARD_SIZE", "MAX_DAYS", "Streaks"]

MAX_DAYS = 365
BOARD_SIZE = 10


class Streaks:
    """The use cases. What it returns is ready for JSON."""

    def __init__(self, store: Store, cache: ReadCache, push: PushClient) -> None:
        self._store = store
        self._cache = cache
        self._push = push

    @measure("log_activity", category="streak")
    async def log_activity(self, user: str, activity: Activity, at: datetime) -> tuple[Receipt, bool]:
        """Log an activity; the second value tells whether the user's devices were told."""
        known = await self.profile(user) is not None
        receipt = await self._store.log_activity(user, activity, at)
        if receipt.logged is None:
            return receipt, False
        record_logged(activity.category, receipt.logged)
        await self._forget(user, board=receipt.logged.grew)
        kind = _kind(receipt.logged, known=known)
        return receipt, await self._push.send(Message(user=user, kind=kind))

    async def activity(self, user: str, activity_id: int) -> dict[str, Any] | None:
        """Return one of the user's activities."""
        entry = await self._store.activity(user, activity_id)
        return None if entry is None else {**asdict(entry), "day": entry.day.isoformat()}

    async def profile(self, user: str) -> dict[str, Any] | None:
        """Return the user at a glance; None before the first activity."""

        async def load() -> dict[str, Any] | None:
            profile = await self._store.profile(user)
            return None if profile is None else {**asdict(profile), "joined_on": profile.joined_on.isoformat()}

        found: dict[str, Any] | None = await self._cache.read(PROFILE, load, user=user)
        return found

    async def calendar(self, user: str, days: int, today: date) -> dict[str, Any]:
        """Return the last days, today included. All share one cached year, however many are asked for."""
        year = await self._cache.read(CALENDAR, lambda: self._get_user_activities(user, today), user=user)
        since = (today - timedelta(days=days - 1)).isoformat()
        shown = [day for day in year if since <= day["day"]]
        return {"from": since, "to": today.isoformat(), "active_days": len(shown), "days": shown}

    @measure("get_user_activities", category="streak")
    async def _get_user_activities(self, user: str, today: date) -> list[dict[str, Any]]:
        days = await self._store.calendar(user, today - timedelta(days=MAX_DAYS - 1), today)
        return [{**asdict(day), "day": day.day.isoformat()} for day in days]

    async def consistency(self, user: str, today: date) -> dict[str, Any]:
        """Return what is done and what is missing of the week's four categories."""

        async def load() -> dict[str, Any]:
            state = await self._store.state(user)
            return {
                "week": state.week.isoformat() if state.week else None,
                "done": sorted(state.done),
                "bonus": state.bonus,
            }

        # What is kept belongs to the week in which it was loaded; a new one has begun when they differ.
        kept = await self._cache.read(CONSISTENCY, load, user=user)
        week = rules.week_of(today).isoformat()
        current = kept["week"] == week
        done = kept["done"] if current else []
        bonus = current and kept["bonus"]
        return {
            "week": week,
            "categories": {category: category in done for category in rules.CATEGORIES},
            "bonus": bonus,
            "multiplier": rules.BONUS_MULTIPLIER if bonus else 1.0,
        }

    async def leaderboard(self) -> list[dict[str, Any]]:
        """Return the longest streaks. XP in it may be as old as the strategy's TTL, streaks are not."""

        async def load() -> list[dict[str, Any]]:
            return [asdict(standing) for standing in await self._store.leaderboard(BOARD_SIZE)]

        board: list[dict[str, Any]] = await self._cache.read(LEADERBOARD, load, limit=BOARD_SIZE)
        return board

    async def health(self) -> dict[str, str]:
        """Raise when the store does not answer; without a cache the service goes on, and says so."""
        await self._store.ping()
        return {"status": "ok", "cache": "ok" if await self._cache.ping() else "degraded"}

    async def _forget(self, user: str, *, board: bool) -> None:
        keys = [strategy.key(user=user) for strategy in (CALENDAR, CONSISTENCY, PROFILE)]
        if board:
            keys.append(LEADERBOARD.key(limit=BOARD_SIZE))
        await self._cache.forget(*keys)


def _kind(logged: rules.Logged, *, known: bool) -> Kind:
    if not known:
        return "welcome"
    if logged.bonus_earned:
        return "bonus"
    if logged.milestone:
        return "milestone"
    return "first_today" if logged.grew else "logged"
