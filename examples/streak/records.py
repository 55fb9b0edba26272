"""What the store takes and gives: frozen values, whatever the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from . import rules

__all__ = ["Activity", "Batch", "Day", "Entry", "Profile", "Receipt", "Standing", "Total"]


@dataclass(frozen=True, slots=True)
class Activity:
    """What a user says they did."""

    category: rules.Category
    minutes: int
    note: str | None = None
    client_key: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """An activity as it was logged."""

    id: int
    day: date
    category: str
    minutes: int
    note: str | None
    xp: int
    bonus_xp: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to logging an activity."""

    entry: Entry
    state: rules.State
    logged: rules.Logged | None
    """None when the same client key was logged before, and nothing was written."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Who a user is, at a glance."""

    name: str
    joined_on: date
    streak: int
    longest: int
    freezes: int
    xp: int


@dataclass(frozen=True, slots=True)
class Day:
    """One day of the calendar on which something was done."""

    day: date
    activities: int
    xp: int


@dataclass(frozen=True, slots=True)
class Standing:
    """One line of the leaderboard."""

    name: str
    streak: int
    xp: int


@dataclass(frozen=True, slots=True)
class Total:
    """One line of the year's report."""

    category: str
    activities: int
    minutes: int
    xp: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A few users that maintenance has accounted for, in the order of their names."""

    settled: tuple[tuple[str, rules.Settled], ...]

    @property
    def last(self) -> str | None:
        """Return the name that the next batch starts after; None when this one is empty."""
        return self.settled[-1][0] if self.settled else None
