"""What a streak is. Pure functions over frozen values: no clock, no store, no network.

A day starts at 4:00 UTC, so that what someone does after midnight still belongs to their evening; a week starts on
Monday at 4:00 UTC. The first activity of a day makes the streak grow by one. Every seventh day earns a freeze, of
which at most three are held; a missed day spends a freeze or, when there are too few, ends the streak. A freeze can
also be applied by hand, to a day that is not over: a rest that was planned. A streak that ended can be bought back
with XP within two days. Whoever does all four categories within a week gets half as much XP again for the rest of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta, timezone
from typing import Literal, get_args

__all__ = [
    "BONUS_MULTIPLIER",
    "CATEGORIES",
    "DAYS_PER_FREEZE",
    "MAX_FREEZES",
    "MILESTONES",
    "RECOVERY_DAYS",
    "Applied",
    "Category",
    "Logged",
    "Reason",
    "Recovered",
    "Settled",
    "State",
    "apply_freeze",
    "base_xp",
    "day_of",
    "ends_at",
    "log_activity",
    "recover",
    "recovery_cost_xp",
    "settle",
    "week_of",
    "with_bonus",
]

Category = Literal["learn", "move", "create", "connect"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
Reason = Literal["missed", "freezes_exhausted"]
"""Why a streak ended: a missed day without any freeze, or more missed days than there were freezes."""

DAY_STARTS_AT = timedelta(hours=4)
ONE_DAY = timedelta(days=1)
DAYS_PER_FREEZE = 7
MAX_FREEZES = 3
MILESTONES = frozenset({7, 30, 100, 365})

BONUS_MULTIPLIER = 1.5
MAX_MULTIPLIER = 3.0
XP_PER_ACTIVITY = 10
MAX_PAID_MINUTES = 60

RECOVERY_DAYS = 2
RECOVERY_XP_PER_DAY = 10
MAX_RECOVERY_XP = 500


@dataclass(frozen=True, slots=True)
class State:
    """All that the rules need to know of one user."""

    streak: int = 0
    longest: int = 0
    freezes: int = 0
    """Held at this moment: `freezes_earned` less `freezes_used`."""
    freezes_earned: int = 0
    freezes_used: int = 0
    last_active: date | None = None
    """The last day on which something was done."""
    held_until: date | None = None
    """The last day that counts for the streak, by an activity or by a freeze."""
    week: date | None = None
    """The Monday of the week that `done` and `bonus` belong to."""
    done: frozenset[Category] = frozenset()
    bonus: bool = False
    xp: int = 0
    """What was earned, less what was paid for recoveries."""
    lost_streak: int = 0
    """How long the streak was that ended last; 0 when there is none to recover."""
    lost_on: date | None = None
    """The first day without that streak."""

    def active_on(self, day: date) -> bool:
        """Tell whether the user has done something on this day, or after it."""
        return self.last_active is not None and self.last_active >= day

    def held_on(self, day: date) -> bool:
        """Tell whether this day counts for the streak already, by an activity or by a freeze."""
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
    reason: Reason | None = None
    """Why it ended."""

    @property
    def changed(self) -> bool:
        """Tell whether anything is to be written."""
        return bool(self.freezes_spent or self.broken)


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a freeze by hand led to."""

    state: State
    applied: bool
    refusal: Literal["no_streak", "no_freeze", "day_is_held"] | None
    """Why it was not applied."""
    settled: Settled


@dataclass(frozen=True, slots=True)
class Recovered:
    """What buying back the lost streak led to."""

    state: State
    recovered: int
    """How long the streak was that came back; 0 when none did."""
    paid_xp: int
    freeze_earned: bool
    """True when what was added completes a seventh day."""
    refusal: Literal["nothing_lost", "too_late", "too_few_xp"] | None
    """Why none came back."""
    settled: Settled


def day_of(moment: datetime) -> date:
    """Return the day that a moment belongs to."""
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone belongs to no day")
    return (moment.astimezone(timezone.utc) - DAY_STARTS_AT).date()


def ends_at(day: date) -> datetime:
    """Return the first moment after a day."""
    return datetime.combine(day + ONE_DAY, time(), timezone.utc) + DAY_STARTS_AT


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
    """Account for the days that are over: each missed one spends a freeze; too few of them end the streak.

    Doing it twice, or each day, or once after many days, comes to the same.
    """
    if state.streak == 0 or state.held_until is None:
        return Settled(state)
    missed = (today - ONE_DAY - state.held_until).days
    if missed <= 0:
        return Settled(state)
    spent = min(missed, state.freezes)
    left = replace(state, freezes=state.freezes - spent, freezes_used=state.freezes_used + spent)
    if spent == missed:
        return Settled(replace(left, held_until=today - ONE_DAY), freezes_spent=spent)
    # The day that no freeze was left for is over when the next one begins.
    lost_on = state.held_until + ONE_DAY * (spent + 2)
    ended = replace(
        left, streak=0, held_until=state.held_until + ONE_DAY * spent, lost_streak=state.streak, lost_on=lost_on
    )
    # Days that freezes have held before this run count as well: running each day comes to the same. So do days that
    # were bought back.
    frozen = spent > 0 or (state.last_active is not None and state.held_until > state.last_active)
    reason: Reason = "freezes_exhausted" if frozen else "missed"
    return Settled(ended, freezes_spent=spent, broken=state.streak, reason=reason)


def apply_freeze(state: State, today: date) -> Applied:
    """Let a freeze hold today, so that nothing has to be done on it. Days that are over are settled first.

    It is spent with that: an activity later on the same day makes the streak grow and gives no freeze back.
    """
    settled = settle(state, today)
    state = settled.state
    if not state.streak:
        return Applied(state, applied=False, refusal="no_streak", settled=settled)
    if state.held_on(today):
        return Applied(state, applied=False, refusal="day_is_held", settled=settled)
    if not state.freezes:
        return Applied(state, applied=False, refusal="no_freeze", settled=settled)
    held = replace(state, freezes=state.freezes - 1, freezes_used=state.freezes_used + 1, held_until=today)
    return Applied(held, applied=True, refusal=None, settled=settled)


def recovery_cost_xp(lost_streak: int) -> int:
    """Return what a lost streak costs to get back: ten XP for each of its days, up to 500."""
    return min(lost_streak * RECOVERY_XP_PER_DAY, MAX_RECOVERY_XP)


def recover(state: State, today: date) -> Recovered:
    """Buy back the streak that ended last, within two days of its end; what has grown since is added to it."""
    settled = settle(state, today)
    state = settled.state
    cost = recovery_cost_xp(state.lost_streak)
    refusal: Literal["nothing_lost", "too_late", "too_few_xp"] | None = None
    if not state.lost_streak or state.lost_on is None:
        refusal = "nothing_lost"
    elif (today - state.lost_on).days >= RECOVERY_DAYS:
        refusal = "too_late"
    elif state.xp < cost:
        refusal = "too_few_xp"
    if refusal is not None:
        return Recovered(state, recovered=0, paid_xp=0, freeze_earned=False, refusal=refusal, settled=settled)
    streak = state.lost_streak + state.streak
    # A seventh day is one whether it was reached by an activity or by the addition.
    earns = streak // DAYS_PER_FREEZE > state.lost_streak // DAYS_PER_FREEZE and state.freezes < MAX_FREEZES
    back = replace(
        state,
        streak=streak,
        longest=max(state.longest, streak),
        freezes=state.freezes + earns,
        freezes_earned=state.freezes_earned + earns,
        # A server whose clock is behind must not give back a streak that is over again with the next look.
        held_until=max(state.held_until or today, max(today, state.lost_on or today) - ONE_DAY),
        xp=state.xp - cost,
        lost_streak=0,
        lost_on=None,
    )
    return Recovered(
        back, recovered=state.lost_streak, paid_xp=cost, freeze_earned=earns, refusal=None, settled=settled
    )


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
        freezes_earned=state.freezes_earned + earns,
        last_active=today,
        # A freeze may hold a later day already, where a server's clock is behind.
        held_until=max(state.held_until or today, today),
    )
    return grown, True, earns


def _tick(state: State, category: Category, week: date) -> tuple[State, bool]:
    state = state.in_week(week)
    done = state.done | {category}
    earned = not state.bonus and len(done) == len(CATEGORIES)
    return replace(state, done=done, bonus=state.bonus or earned), earned
