"""What the service does: the store, the cache and the push API brought together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import date, datetime, timedelta
from typing import Any

from otel_perf import measure

from . import metrics, rules
from .cache import BOARD_LIMIT, CALENDAR, CONSISTENCY, LEADERBOARD, PROFILE, ReadCache
from .insights import insights
from .push import PushClient
from .records import Activity, Day, Entry, Kind, Message, Profile, Receipt
from .stores import Store

__all__ = ["BOARD_LIMIT", "MAX_DAYS", "Streaks", "freezes"]

MAX_DAYS = 365


class Streaks:
    """The use cases. What it returns is ready for JSON, and may be a cached value: it is not to be changed."""

    def __init__(self, store: Store, cache: ReadCache, push: PushClient) -> None:
        self._store = store
        self._cache = cache
        self._push = push

    @measure("log_activity", category="streak")
    async def log_activity(self, user: str, activity: Activity, at: datetime) -> tuple[dict[str, Any], bool]:
        """Log an activity, and tell what it earned and whether it is new: its client key may have been there before."""
        async with self._attempt(user):
            receipt = await self._store.log_activity(user, activity, at)
        logged = receipt.logged
        if logged is None:
            # It is sent again because there was no answer: perhaps nobody has come to forget anything then.
            await self._forget(user, board=True)
            return _receipt(receipt, rules.settle(receipt.state, rules.day_of(at)).state, notified=False), False
        metrics.record_logged(activity.category, logged)
        await self._forget(user, board=logged.grew or logged.settled.broken > 0)
        kind = _kind(logged)
        notified = kind is not None and await self._push.send(Message(user, kind))
        return _receipt(receipt, receipt.state, notified=notified), True

    @measure("get_user_activities", category="streak")
    async def activities(
        self, user: str, limit: int, before: str | None, category: rules.Category | None
    ) -> dict[str, Any]:
        """Return a page of what the user did, newest first, and the cursor of the next one."""
        # One more than is shown tells whether there is a next page.
        entries = await self._store.activities(user, limit=limit + 1, before=before, category=category)
        shown = entries[:limit]
        return {
            "activities": [_entry(entry) for entry in shown],
            "next": shown[-1].id if len(entries) > limit else None,
        }

    async def activity(self, user: str, activity_id: str) -> dict[str, Any] | None:
        """Return one of the user's activities."""
        entry = await self._store.activity(user, activity_id)
        return None if entry is None else _entry(entry)

    async def profile(self, user: str, today: date) -> dict[str, Any] | None:
        """Return the user at a glance; None before the first activity."""
        kept: dict[str, Any] | None = await self._cache.read(PROFILE, lambda: self._load_profile(user), user=user)
        return None if kept is None else _profile_today(kept, today)

    async def calendar(self, user: str, days: int, today: date) -> dict[str, Any]:
        """Return the last days, today included. All share one cached year, however many are asked for."""
        year = await self._year(user, today)
        since = (today - timedelta(days=days - 1)).isoformat()
        shown = [day for day in year if since <= day["day"]]
        return {"from": since, "to": today.isoformat(), "active_days": len(shown), "days": shown}

    async def consistency(self, user: str, today: date) -> dict[str, Any]:
        """Return what is done and what is missing of the week's four categories."""
        # What is kept belongs to the week in which it was loaded; a new one has begun when they differ.
        kept = await self._cache.read(CONSISTENCY, lambda: self._load_week(user), user=user)
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

    async def leaderboard(self, today: date, limit: int = BOARD_LIMIT) -> list[dict[str, Any]]:
        """Return the longest streaks that hold. XP in it may be as old as the strategy's TTL, streaks are not."""
        kept = await self._cache.read(LEADERBOARD, lambda: self._load_board(today), limit=BOARD_LIMIT)
        if kept["day"] < today.isoformat():
            # With a new day streaks are over, and others are on the board.
            await self._cache.forget_board()
            kept = await self._cache.read(LEADERBOARD, lambda: self._load_board(today), limit=BOARD_LIMIT)
        board: list[dict[str, Any]] = kept["board"]
        return board[:limit]

    async def insights(self, user: str, now: datetime) -> dict[str, Any]:
        """Return what the user's own past says."""
        year = await self._year(user, rules.day_of(now))
        days = [Day(date.fromisoformat(day["day"]), day["activities"], day["xp"]) for day in year]
        totals = await self._store.totals(user)
        return asdict(insights(days, totals, await self._store.state(user), now))

    async def freeze(self, user: str, today: date) -> dict[str, Any]:
        """Return how the user's freezes stand."""
        return freezes(await self._store.state(user), today)

    async def apply_freeze(self, user: str, today: date) -> rules.Applied:
        """Let a freeze hold today, unless there is a reason not to."""
        async with self._attempt(user):
            applied = await self._store.apply_freeze(user, today)
        metrics.record_freeze(applied)
        # Also when it is refused: perhaps somebody else has written what it was refused for, and has not come to this.
        await self._forget(user, board=applied.settled.broken > 0)
        return applied

    async def recovery(self, user: str, today: date) -> dict[str, Any]:
        """Return what the user could buy back, at which price, until when."""
        state = await self._store.state(user)
        tried = rules.recover(state, today)
        # Of the state as it is before the purchase: what was settled is in `tried.settled`.
        state = tried.settled.state
        lost = state.lost_streak if tried.refusal in (None, "too_few_xp") else 0
        last_day = None if state.lost_on is None else state.lost_on + timedelta(days=rules.RECOVERY_DAYS - 1)
        return {
            "lost_streak": lost,
            "price_xp": rules.recovery_cost_xp(lost),
            "xp": state.xp,
            "until": rules.ends_at(last_day).isoformat() if lost and last_day else None,
            "can_recover": tried.refusal is None,
            "reason": tried.refusal,
        }

    async def recover(self, user: str, today: date) -> rules.Recovered:
        """Buy back the streak that ended last, unless there is a reason not to."""
        async with self._attempt(user):
            recovered = await self._store.recover(user, today)
        metrics.record_recovery(recovered)
        await self._forget(user, board=True)
        return recovered

    async def health(self) -> dict[str, str]:
        """Raise when the store does not answer; without a cache the service goes on, and says so."""
        await self._store.ping()
        cache = "ok" if await self._cache.ping() else "degraded"
        return {"status": "ok", "cache": cache, "push": "ok" if self._push.available else "degraded"}

    async def warm_user(self, user: str, today: date) -> None:
        """Keep what the user will ask for. Nobody waits for it: it is no hit, no miss and no step."""
        await self._cache.fill(PROFILE, lambda: self._load_profile(user), user=user)
        await self._cache.fill(CALENDAR, lambda: self._load_days(user, today), user=user)
        await self._cache.fill(CONSISTENCY, lambda: self._load_week(user), user=user)

    async def warm_board(self, today: date) -> None:
        """Keep the board, as `warm_user` does what is a user's."""
        await self._cache.fill(LEADERBOARD, lambda: self._load_board(today), limit=BOARD_LIMIT)

    async def _load_profile(self, user: str) -> dict[str, Any] | None:
        profile = await self._store.profile(user)
        return None if profile is None else _profile(profile)

    async def _load_week(self, user: str) -> dict[str, Any]:
        state = await self._store.state(user)
        return {
            "week": state.week.isoformat() if state.week else None,
            "done": sorted(state.done),
            "bonus": state.bonus,
        }

    async def _load_board(self, today: date) -> dict[str, Any]:
        board = await self._store.leaderboard(BOARD_LIMIT, today)
        return {"day": today.isoformat(), "board": [asdict(standing) for standing in board]}

    async def _year(self, user: str, today: date) -> list[dict[str, Any]]:
        year: list[dict[str, Any]] = await self._cache.read(
            CALENDAR, lambda: self._get_user_activities(user, today), user=user
        )
        return year

    @measure("get_user_activities", category="streak")
    async def _get_user_activities(self, user: str, today: date) -> list[dict[str, Any]]:
        return await self._load_days(user, today)

    async def _load_days(self, user: str, today: date) -> list[dict[str, Any]]:
        days: Sequence[Day] = await self._store.calendar(user, today - timedelta(days=MAX_DAYS - 1), today)
        return [{"day": day.day.isoformat(), "activities": day.activities, "xp": day.xp} for day in days]

    @asynccontextmanager
    async def _attempt(self, user: str) -> AsyncIterator[None]:
        """Forget what is cached when a write fails, or nobody waits for it any more: it may have been made even so."""
        try:
            yield
        except BaseException:
            await self._forget(user, board=True)
            raise

    async def _forget(self, user: str, *, board: bool) -> None:
        await self._cache.forget_user(user, board=board)


def _kind(logged: rules.Logged) -> Kind | None:
    """Return what the user is told of, if anything: one message at most, of what matters most."""
    if logged.settled.state.last_active is None:
        return "welcome"
    if logged.bonus_earned:
        return "bonus"
    if logged.milestone:
        return "milestone"
    return "first_today" if logged.grew else None


def _entry(entry: Entry) -> dict[str, Any]:
    # By hand: `asdict` copies deeply, and a page has a hundred of them.
    return {
        "id": entry.id,
        "at": entry.at.isoformat(),
        "day": entry.day.isoformat(),
        "category": entry.category,
        "minutes": entry.minutes,
        "note": entry.note,
        "xp": entry.xp,
        "bonus_xp": entry.bonus_xp,
    }


def _profile(profile: Profile) -> dict[str, Any]:
    """Return what is kept of a profile: it depends on no day."""
    held_until = None if profile.held_until is None else profile.held_until.isoformat()
    return {**asdict(profile), "joined_on": profile.joined_on.isoformat(), "held_until": held_until}


def _profile_today(kept: dict[str, Any], today: date) -> dict[str, Any]:
    """Return a profile with the days accounted for that are over by now, whoever has seen them yet."""
    shown = dict(kept)
    held_until = shown.pop("held_until", None)
    if held_until is not None:
        written = rules.State(
            streak=shown["streak"], freezes=shown["freezes"], held_until=date.fromisoformat(held_until)
        )
        state = rules.settle(written, today).state
        shown.update(streak=state.streak, freezes=state.freezes)
    return shown


def _receipt(receipt: Receipt, state: rules.State, *, notified: bool) -> dict[str, Any]:
    logged = receipt.logged
    return {
        **_entry(receipt.entry),
        "streak": state.streak,
        "longest": state.longest,
        "freezes": state.freezes,
        "total_xp": state.xp,
        "bonus_earned": logged is not None and logged.bonus_earned,
        "milestone": logged.milestone if logged else None,
        "repeated": logged is None,
        "notified": notified,
    }


def freezes(state: rules.State, today: date) -> dict[str, Any]:
    """Return how the freezes of a state stand today."""
    tried = rules.apply_freeze(state, today)
    # As it is before one is applied, with the days that are over accounted for.
    state = tried.settled.state
    return {
        "held": state.freezes,
        "max": rules.MAX_FREEZES,
        "earned": state.freezes_earned,
        "used": state.freezes_used,
        "next_at_streak": (state.streak // rules.DAYS_PER_FREEZE + 1) * rules.DAYS_PER_FREEZE,
        "today_is_held": state.held_on(today),
        "can_apply": tried.applied,
        "reason": tried.refusal,
    }
