"""What a streak is. Pure functions over frozen values: no clock, no store, no network.

A day starts at 4:00 UTC, so that what someone does after midnight still belongs to their evening; a week starts on
Monday at 4:00 UTC. The first activity of a day makes the streak grow by one. Every seventh day earns a freeze, of
which at most three are held; a missed day spends a freeze or, when there are too few, ends the streak. A freeze can
also be applied by hand, to a day that is not over: a rest that was planned. A streak that ended can be bought back
with XP within two days. Whoever does all four categories within a week gets half as much XP again for the rest of it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, time, timedelta, timezone
from fractions import Fraction
from typing import Literal

from .states import CATEGORIES, Applied, Category, Logged, Reason, Recovered, Settled, State

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
    "holds_on",
    "holds_until",
    "log_activity",
    "recover",
    "recovery_cost_xp",
    "settle",
    "week_of",
    "with_bonus",
]

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


def with_bonus(xp: int, multiplier: float | Fraction = BONUS_MULTIPLIER) -> int:
    """Return the XP with the bonus on it, rounded down: exactly, however many there are."""
    if xp < 0:
        raise ValueError(f"XP must not be negative, not {xp}")
    if not 1.0 <= multiplier <= MAX_MULTIPLIER:
        raise ValueError(f"the multiplier must be from 1.0 to {MAX_MULTIPLIER}, not {multiplier}")
    # 1.1 is eleven tenths here, and not the float that is next to it.
    exact = Fraction(str(multiplier))
    return xp * exact.numerator // exact.denominator


def holds_until(state: State) -> date | None:
    """Return the last day on which the streak still holds when nothing more is done; None without one."""
    if state.streak == 0 or state.held_until is None:
        return None
    return state.held_until + ONE_DAY * (1 + state.freezes)


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
        yesterday = today - ONE_DAY
        return Settled(replace(left, held_until=yesterday, missed_on=yesterday), freezes_spent=spent)
    # Days that freezes have held before this run count as well: running each day comes to the same. Days that were
    # bought back do not.
    reason: Reason = "freezes_exhausted" if spent or _is_frozen(state, state.held_until) else "missed"
    held_until = state.held_until + ONE_DAY * spent
    missed_on = held_until + ONE_DAY
    ended = replace(
        left,
        streak=0,
        held_until=held_until,
        lost_streak=state.streak,
        # The day that no freeze was left for is over when the next one begins.
        lost_on=missed_on + ONE_DAY,
        missed_on=missed_on,
    )
    return Settled(ended, freezes_spent=spent, broken=state.streak, reason=reason)


def _is_frozen(state: State, day: date) -> bool:
    """Tell whether a freeze alone holds a day."""
    return state.last_active != day and day in (state.missed_on, state.rested_on)


def holds_on(state: State, today: date) -> bool:
    """Tell whether there is a streak, and it is not over today."""
    last = holds_until(state)
    return last is not None and last >= today


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
    held = replace(
        state, freezes=state.freezes - 1, freezes_used=state.freezes_used + 1, held_until=today, rested_on=today
    )
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
        # It is paid for: what comes late for that day gives nothing back any more.
        missed_on=None,
    )
    return Recovered(
        back, recovered=state.lost_streak, paid_xp=cost, freeze_earned=earns, refusal=None, settled=settled
    )


def log_activity(state: State, category: Category, minutes: int, today: date) -> Logged:
    """Return what doing an activity today leads to. Days that maintenance has not seen yet are settled first.

    What is written after its day is over, and after the day was settled as a missed one, gives back what that cost.
    """
    settled = settle(state, today)
    given_back = _give_back(settled.state, today)
    grown, grew, freeze_earned = _grow(given_back, settled.state, today)
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
        restored=given_back.streak - settled.state.streak,
        freeze_returned=given_back.freezes > settled.state.freezes,
    )


def _give_back(state: State, today: date) -> State:
    """Take back what missing a day has cost, when it turns out that something was done on it.

    A server whose clock is behind is no way to more than that one day: nothing later may have been built upon it but
    what was done on the day after.
    """
    if state.missed_on != today or state.held_until is None or state.held_until > today + ONE_DAY:
        return state
    if state.lost_on == today + ONE_DAY:
        streak = state.lost_streak + state.streak
        return replace(state, streak=streak, lost_streak=0, lost_on=None, missed_on=None)
    returned = state.freezes < MAX_FREEZES
    return replace(state, freezes=state.freezes + returned, freezes_used=state.freezes_used - returned, missed_on=None)


def _grow(state: State, settled: State, today: date) -> tuple[State, bool, bool]:
    late = state.missed_on != settled.missed_on
    if state.active_on(today) and not late:
        return state, False, False
    streak = state.streak + 1
    # A streak that came back, and grew meanwhile, may pass a seventh day with two steps.
    before = state.streak - settled.streak or state.streak
    earns = streak // DAYS_PER_FREEZE > before // DAYS_PER_FREEZE and state.freezes < MAX_FREEZES
    grown = replace(
        state,
        streak=streak,
        longest=max(state.longest, streak),
        freezes=state.freezes + earns,
        freezes_earned=state.freezes_earned + earns,
        last_active=max(state.last_active or today, today),
        # A freeze, or an activity, may hold a later day already.
        held_until=max(state.held_until or today, today),
    )
    return grown, True, earns


def _tick(state: State, category: Category, week: date) -> tuple[State, bool]:
    state = state.in_week(week)
    done = state.done | {category}
    earned = not state.bonus and len(done) == len(CATEGORIES)
    return replace(state, done=done, bonus=state.bonus or earned), earned
