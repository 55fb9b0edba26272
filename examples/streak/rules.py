"""What a streak is. Pure functions over frozen values: no clock, no store, no network.

A day starts at 4:00 UTC, so that what someone does after midnight still belongs to their evening; a week starts on
Monday at 4:00 UTC. The first activity of a day makes the streak grow by one. Every seventh day earns a freeze, of
which at most three are held; a missed day spends a freeze or, when there is none, ends the streak. Whoever does all
four categories within a week gets half as much XP again for the rest of that week.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from typing import Literal, get_args

__all__ = [
    "BONUS_MULTIPLIER",
    "CATEGORIES",
    "MAX_FREEZES",
    "MILESTONES",
    "Category",
    "Logged",
    "Settled",
    "State",
    "base_xp",
    "day_of",
    "log_activity",
    "settle",
    "week_of",
    "with_bonus",
]

Category = Literal["learn", "move", "create", "connect"]
CATEGORIES: tuple[Category, ...] = get_args(Category)

DAY_STARTS_AT = timedelta(hours=4)
ONE_DAY = timedelta(days=1)
DAYS_PER_FREEZE = 7
MAX_FREEZES = 3
MILESTONES = frozenset({7, 30, 100, 365})

BONUS_MULTIPLIER = 1.5
MAX_MULTIPLIER = 3.0
XP_PER_ACTIVITY = 10
MAX_PAID_MINUTES = 60


@dataclass(frozen=True, slots=True)
class State:
    """All that the rules need to know of one user."""

    streak: int = 0
    longest: int = 0
    freezes: int = 0
    held_until: date | None = None
    """The last day that counts for the streak, by an activity or by a freeze."""
    week: date | None = None
    """The Monday of the week that `done` and `bonus` belong to."""
    done: frozenset[Category] = frozenset()
    bonus: bool = False
    xp: int = 0

    def active_on(self, day: date) -> bool:
        """Tell whether the user has done something on this day. Freezes only ever cover days that are over."""
        return self.held_until is not None and self.held_until >= day

    def in_week(self, week: date) -> State:
        """Return the state as this week sees it: a new week starts with nothing done.

        It never goes back: a server whose clock is behind must not open the last week, and its bonus, again.
        """
        if self.week is not None and self.week >= week:
            return self
        return replace(self, week=week, done=frozenset(), bonus=False)


@dataclass(frozen=True, slots=True)
class Logged:
    """What one activity led to."""

    state: State
    xp: int
    """What the activity earned in all, `bonus_xp` included."""
    bonus_xp: int
    grew: bool
    freeze_earned: bool
    bonus_earned: bool
    """True for the one activity of a week that completes the four categories."""
    milestone: int | None
    settled: Settled


@dataclass(frozen=True, slots=True)
class Settled:
    """What the days since the last activity led to."""

    state: State
    freezes_spent: int = 0
    broken: int = 0
    """How long the streak was that ended; 0 when none did."""

    @property
    def changed(self) -> bool:
        """Tell whether anything is to be written."""
        return bool(self.freezes_spent or self.broken)


def day_of(moment: datetime) -> date:
    """Return the day that a moment belongs to."""
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone belongs to no day")
    return (moment.astimezone(timezone.utc) - DAY_STARTS_AT).date()


def week_of(day: date) -> date:
    """Return the Monday of the week that a day belongs to."""
    return day - timedelta(days=day.weekday())


def base_xp(minutes: int) -> int:
    """Return what an activity earns: something for doing it, and one for each of the first sixty minutes."""
    if minutes < 0:
        raise ValueError(f"minutes must not be negative, not {minutes}")
    return XP_PER_ACTIVITY + min(minutes, MAX_PAID_MINUTES)


def with_bonus(xp: int, multiplier: float = BONUS_MULTIPLIER) -> int:
    """Return the XP with the bonus on it, rounded down."""
    if not 1.0 <= multiplier <= MAX_MULTIPLIER:
        raise ValueError(f"the multiplier must be from 1.0 to {MAX_MULTIPLIER}, not {multiplier}")
    return int(xp * multiplier)


def settle(state: State, today: date) -> Settled:
    """Account for the days that are over: each missed one spends a freeze; the first without one ends the streak.

    Doing it twice, or each day, or once after many days, comes to the same.
    """
    if state.streak == 0 or state.held_until is None:
        return Settled(state)
    missed = (today - ONE_DAY - state.held_until).days
    if missed <= 0:
        return Settled(state)
    if missed > state.freezes:
        return Settled(replace(state, streak=0, freezes=0), freezes_spent=state.freezes, broken=state.streak)
    held = replace(state, freezes=state.freezes - missed, held_until=today - ONE_DAY)
    return Settled(held, freezes_spent=missed)


def log_activity(state: State, category: Category, minutes: int, today: date) -> Logged:
    """Return what doing an activity today leads to. Days that maintenance has not seen yet are settled first."""
    settled = settle(state, today)
    grown, grew, freeze_earned = _grow(settled.state, today)
    active, bonus_earned = _tick(grown, category, week_of(today))
    base = base_xp(minutes)
    xp = with_bonus(base) if active.bonus else base
    return Logged(
        state=replace(active, xp=active.xp + xp),
        xp=xp,
        bonus_xp=xp - base,
        grew=grew,
        freeze_earned=freeze_earned,
        bonus_earned=bonus_earned,
        milestone=active.streak if grew and active.streak in MILESTONES else None,
        settled=settled,
    )


def _grow(state: State, today: date) -> tuple[State, bool, bool]:
    if state.active_on(today):
        return state, False, False
    streak = state.streak + 1
    earns = streak % DAYS_PER_FREEZE == 0 and state.freezes < MAX_FREEZES
    grown = replace(
        state,
        streak=streak,
        longest=max(state.longest, streak),
        freezes=state.freezes + earns,
        held_until=today,
    )
    return grown, True, earns


def _tick(state: State, category: Category, week: date) -> tuple[State, bool]:
    state = state.in_week(week)
    done = state.done | {category}
    earned = not state.bonus and len(done) == len(CATEGORIES)
    return replace(state, done=done, bonus=state.bonus or earned), earned
