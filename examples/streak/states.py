"""What the rules know of a user, and what they answer: frozen values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from typing import Literal, get_args

__all__ = ["CATEGORIES", "Applied", "Category", "Logged", "Reason", "Recovered", "Settled", "State"]

Category = Literal["learn", "move", "create", "connect"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
Reason = Literal["missed", "freezes_exhausted"]
"""Why a streak ended: a missed day without any freeze, or more missed days than there were freezes."""


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
    missed_on: date | None = None
    """The last day that was missed: a freeze was spent on it, or the streak ended with it."""
    rested_on: date | None = None
    """The last day that a freeze was applied to by hand."""

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
    restored: int = 0
    """How long the streak was that had been ended too early, and is back; 0 when none is."""
    freeze_returned: bool = False
    """True when the freeze is back that had been spent on the day too early."""


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
