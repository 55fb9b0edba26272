"""What the stores take and give: frozen values, whatever the database."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal

from . import rules

__all__ = [
    "Activity",
    "Day",
    "Entry",
    "Kpis",
    "Lease",
    "Message",
    "Profile",
    "Range",
    "Receipt",
    "Run",
    "SettledBatch",
    "Standing",
    "Tally",
    "Total",
    "new_id",
]

Kind = Literal["welcome", "bonus", "milestone", "first_today", "at_risk", "broken"]
Trigger = Literal["cli", "http", "schedule"]
RunState = Literal["running", "completed", "failed"]


def new_id(at: datetime) -> str:
    """Return an id of 32 hexadecimal digits. Ids sort by their moment, as UUID version 7 does; so cursors are ids."""
    return f"{int(at.timestamp() * 1_000):012x}{secrets.token_hex(10)}"


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

    id: str
    at: datetime
    day: date
    category: str
    minutes: int
    note: str | None
    xp: int
    """What it earned in all, `bonus_xp` included."""
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
    """Who a user is, at a glance; as it is written: days that are over since then are not accounted for."""

    name: str
    joined_on: date
    streak: int
    longest: int
    freezes: int
    xp: int
    held_until: date | None = None
    """The last day that counts for the streak: what the rest comes to today follows from it."""


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
    """What was done of one category."""

    category: str
    activities: int
    minutes: int
    xp: int


@dataclass(frozen=True, slots=True)
class Kpis:
    """What the service wants to be good at, as counts: ratios of them are made where they are read."""

    users: int = 0
    active_streaks: int = 0
    """Users with a streak that holds on this day, whether maintenance has been here or not."""
    weekly_bonuses: int = 0
    """Users with the bonus of this week."""
    freezes_earned: int = 0
    freezes_used: int = 0
    reached_7_days: int = 0
    """Users whose longest streak has seven days or more."""
    kept_7_days: int = 0
    """Users whose streak has seven days or more, and holds."""
    streak_days: int = 0
    """The days of all streaks that hold together."""


# Maintenance -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One notification for one user."""

    user: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Lease:
    """Who may run the maintenance, and until when."""

    holder: str
    until: datetime
    asked_at: datetime | None = field(default=None, compare=False)
    """When it was asked for, by the clock that `until` goes by."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What a run, or a batch of it, came to."""

    processed: int = 0
    """Users with a streak that nothing was done for today yet."""
    freezes_spent: int = 0
    missed: int = 0
    """Streaks that ended by a missed day without any freeze."""
    freezes_exhausted: int = 0
    """Streaks that ended by more missed days than there were freezes."""
    at_risk: int = 0
    """Users who lose the streak, or a freeze, unless they do something today."""
    notified: int = 0
    """Messages that the push API took."""

    @property
    def broken(self) -> int:
        """Return how many streaks ended."""
        return self.missed + self.freezes_exhausted

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in Tally.__dataclass_fields__))


@dataclass(frozen=True, slots=True)
class Range:
    """Users by name, from after the first to the last with it."""

    after: str
    until: str


@dataclass(frozen=True, slots=True)
class SettledBatch:
    """What became of the users of one range. It is written with them, in one transaction."""

    range: Range
    tally: Tally
    messages: tuple[Message, ...]
    """To be sent; kept until they are."""
    changed: tuple[str, ...] = ()
    """Users whose streak or freezes are not what they were."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the maintenance."""

    id: str
    day: date
    trigger: Trigger
    state: RunState
    started_at: datetime
    ended_at: datetime | None = None
    resumed: int = 0
    """How often it was taken up again."""
    error: str | None = None
    """The kind of failure that ended it."""
    tally: Tally = field(default_factory=Tally)
    unsent: int = 0
    """Messages that the push API did not take yet; they are kept."""
