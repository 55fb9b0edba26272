"""What a user can learn from their own past. A pure function: no clock, no store, no network.

The risk says how likely today is to cost something. It is `none` when there is no streak, or when today counts
already. Otherwise it is made of points, each with its reason:

- 1 because nothing was done today yet,
- 1 more when the day ends within six hours,
- 1 more when no freeze is held,
- 1 more when this weekday was missed in at least half of the weeks in which it could have been active.

One point is `low`, two are `medium`, three and more are `high`. With a freeze in hand it is `medium` at most: what a
missed day costs then is the freeze, not the streak.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal

from . import rules
from .records import Day, Total

__all__ = ["BestDay", "BestWeekday", "Insights", "Level", "Reason", "Risk", "Week", "insights"]

Level = Literal["none", "low", "medium", "high"]
Reason = Literal[
    "no_streak", "done_today", "frozen_today", "nothing_today", "few_hours_left", "no_freeze", "weekday_often_missed"
]

MONTH_DAYS = 30
YEAR_DAYS = 365
FEW_HOURS_LEFT = 6
OFTEN_MISSED = 0.5
MIN_WEEKS = 2
"""A weekday that could have been active fewer times than this has no habit yet."""

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True, slots=True)
class Week:
    """One week of the user's, also one in which nothing was done."""

    monday: str
    """As YYYY-MM-DD, like all days here."""
    active_days: int
    activities: int
    xp: int


@dataclass(frozen=True, slots=True)
class BestDay:
    """The day with the most XP; of several, the last."""

    day: str
    activities: int
    xp: int


@dataclass(frozen=True, slots=True)
class BestWeekday:
    """The weekday with the most XP in all; of several, the first of the week."""

    weekday: str
    active_days: int
    activities: int
    xp: int


@dataclass(frozen=True, slots=True)
class Risk:
    """What today may cost, and why."""

    level: Level
    reasons: tuple[Reason, ...]
    hours_left: float
    """Until the day ends, at 4:00 UTC; rounded down to a tenth."""
    freezes: int
    """Held now; each saves the streak from one missed day."""
    weekday: str
    """Today's."""
    weekday_missed: int
    """On how many of `weekday_weeks` nothing was done."""
    weekday_weeks: int
    """How often this weekday has come since the user's first day, today not counted."""


@dataclass(frozen=True, slots=True)
class Insights:
    """A user's own history, their best, and the risk of today. All of it but `categories` looks back 365 days."""

    today: str
    streak: int
    longest: int
    active_days_30: int
    active_days_365: int
    activities_per_active_day: float | None
    """None before the first active day, as the next."""
    xp_per_active_day: float | None
    best_day: BestDay | None
    best_weekday: BestWeekday | None
    weeks: tuple[Week, ...]
    """From the week of the first active day to this one, oldest first."""
    categories: tuple[Total, ...]
    """What was done of each category in all the time."""
    risk: Risk


def insights(days: Sequence[Day], totals: Sequence[Total], state: rules.State, now: datetime) -> Insights:
    """Return what a user's days, totals and state say at this moment.

    `days` are in any order; those after today, or more than 365 days back, count for nothing. Days that maintenance
    has not seen yet are settled first, so that a streak that is over is not shown.
    """
    today = rules.day_of(now)
    state = rules.settle(state, today).state
    year = sorted(_within(days, today, YEAR_DAYS), key=lambda day: day.day)
    activities, xp = sum(day.activities for day in year), sum(day.xp for day in year)
    return Insights(
        today=today.isoformat(),
        streak=state.streak,
        longest=state.longest,
        active_days_30=sum(1 for _ in _within(year, today, MONTH_DAYS)),
        active_days_365=len(year),
        activities_per_active_day=_average(activities, len(year)),
        xp_per_active_day=_average(xp, len(year)),
        best_day=_best_day(year),
        best_weekday=_best_weekday(year),
        weeks=_by_week(year, today),
        categories=tuple(totals),
        risk=_risk(year, state, now, today),
    )


def _within(days: Iterable[Day], today: date, length: int) -> Iterable[Day]:
    since = today - timedelta(days=length - 1)
    return (day for day in days if since <= day.day <= today)


def _average(amount: int, days: int) -> float | None:
    return round(amount / days, 2) if days else None


def _best_day(days: Sequence[Day]) -> BestDay | None:
    best = max(days, key=lambda day: (day.xp, day.day), default=None)
    return None if best is None else BestDay(best.day.isoformat(), best.activities, best.xp)


def _best_weekday(days: Sequence[Day]) -> BestWeekday | None:
    best: BestWeekday | None = None
    for index, weekday in enumerate(_WEEKDAYS):
        same = [day for day in days if day.day.weekday() == index]
        xp = sum(day.xp for day in same)
        if same and (best is None or xp > best.xp):
            best = BestWeekday(weekday, len(same), sum(day.activities for day in same), xp)
    return best


def _by_week(days: Sequence[Day], today: date) -> tuple[Week, ...]:
    if not days:
        return ()
    by_monday: dict[date, list[Day]] = {}
    for day in days:
        by_monday.setdefault(rules.week_of(day.day), []).append(day)
    weeks: list[Week] = []
    monday = rules.week_of(days[0].day)
    while monday <= today:
        week = by_monday.get(monday, [])
        weeks.append(Week(monday.isoformat(), len(week), sum(day.activities for day in week), sum(d.xp for d in week)))
        monday += timedelta(weeks=1)
    return tuple(weeks)


def _risk(days: Sequence[Day], state: rules.State, now: datetime, today: date) -> Risk:
    hours_left = (rules.ends_at(today) - now).total_seconds() / 3_600
    missed, weeks = _missed(days, today)
    level, reasons = _level(
        state, today, hours_left, often_missed=weeks >= MIN_WEEKS and missed / weeks >= OFTEN_MISSED
    )
    return Risk(
        level=level,
        reasons=reasons,
        hours_left=int(hours_left * 10) / 10,
        freezes=state.freezes,
        weekday=_WEEKDAYS[today.weekday()],
        weekday_missed=missed,
        weekday_weeks=weeks,
    )


def _level(
    state: rules.State, today: date, hours_left: float, *, often_missed: bool
) -> tuple[Level, tuple[Reason, ...]]:
    if state.active_on(today):
        return "none", ("done_today",)
    if not state.streak:
        return "none", ("no_streak",)
    if state.held_on(today):
        return "none", ("frozen_today",)
    reasons: list[Reason] = ["nothing_today"]
    if hours_left <= FEW_HOURS_LEFT:
        reasons.append("few_hours_left")
    if not state.freezes:
        reasons.append("no_freeze")
    if often_missed:
        reasons.append("weekday_often_missed")
    worst = 2 if state.freezes else 3
    levels: tuple[Level, ...] = ("none", "low", "medium", "high")
    return levels[min(len(reasons), worst)], tuple(reasons)


def _missed(days: Sequence[Day], today: date) -> tuple[int, int]:
    """Count on how many of the past days of today's weekday nothing was done, and how many there were."""
    if not days:
        return 0, 0
    active = {day.day for day in days}
    missed = weeks = 0
    day = today - timedelta(weeks=1)
    while day >= days[0].day:
        weeks += 1
        missed += day not in active
        day -= timedelta(weeks=1)
    return missed, weeks
