"""What the routes answer, for the OpenAPI document.

The answers themselves are made by hand and are not checked against this at each request; tests do that.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from . import rules
from .records import RunState, Trigger

__all__ = [
    "Calendar",
    "Consistency",
    "Entry",
    "Freezes",
    "Health",
    "History",
    "Insights",
    "KpiReport",
    "MaintenanceRun",
    "MaintenanceSummary",
    "Page",
    "Profile",
    "Receipt",
    "Recovered",
    "Recovery",
    "Standing",
]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Entry(_Answer):
    """An activity as it was logged. `xp` includes `bonus_xp`."""

    id: str
    at: datetime
    day: date
    category: rules.Category
    minutes: int
    note: str | None
    xp: int
    bonus_xp: int


class Receipt(Entry):
    """What an activity led to. `repeated`: its key was known, and nothing was written."""

    streak: int
    longest: int
    freezes: int
    total_xp: int
    bonus_earned: bool
    milestone: int | None
    repeated: bool
    notified: bool


class Page(_Answer):
    """A page of activities, and the cursor of the next one."""

    activities: list[Entry]
    next: str | None


class Profile(_Answer):
    """The caller at a glance."""

    name: str
    joined_on: date
    streak: int
    longest: int
    freezes: int
    xp: int


class CalendarDay(_Answer):
    """A day on which something was done."""

    day: date
    activities: int
    xp: int


class Calendar(_Answer):
    """The active ones of some days."""

    since: date = Field(alias="from")
    to: date
    active_days: int
    days: list[CalendarDay]


class Consistency(_Answer):
    """The week's four categories, and its bonus. `week` is its Monday."""

    week: date
    categories: dict[rules.Category, bool]
    bonus: bool
    multiplier: float


class Standing(_Answer):
    """One line of the leaderboard."""

    name: str
    streak: int
    xp: int


class Freezes(_Answer):
    """How the freezes stand. `reason` says why none can be applied now."""

    held: int
    max: int
    earned: int
    used: int
    next_at_streak: int
    today_is_held: bool
    can_apply: bool
    reason: Literal["no_streak", "no_freeze", "day_is_held"] | None


class Recovery(_Answer):
    """What could be bought back. `reason` says why it cannot be."""

    lost_streak: int
    price_xp: int
    xp: int
    until: datetime | None
    can_recover: bool
    reason: Literal["nothing_lost", "too_late", "too_few_xp"] | None


class Recovered(_Answer):
    """What was bought back."""

    recovered: int
    paid_xp: int
    streak: int
    longest: int
    xp: int


class BestDay(_Answer):
    """The day with the most XP."""

    day: date
    activities: int
    xp: int


class BestWeekday(_Answer):
    """The weekday with the most XP."""

    weekday: str
    active_days: int
    activities: int
    xp: int


class Week(_Answer):
    """One week of the caller's."""

    monday: date
    active_days: int
    activities: int
    xp: int


class Total(_Answer):
    """What was done of one category."""

    category: str
    activities: int
    minutes: int
    xp: int


class Risk(_Answer):
    """What today may cost, and why."""

    level: Literal["none", "low", "medium", "high"]
    reasons: list[str]
    hours_left: float
    freezes: int
    weekday: str
    weekday_missed: int
    weekday_weeks: int


class Insights(_Answer):
    """What the caller's own past says."""

    today: date
    streak: int
    longest: int
    active_days_30: int
    active_days_365: int
    activities_per_active_day: float | None
    xp_per_active_day: float | None
    best_day: BestDay | None
    best_weekday: BestWeekday | None
    weeks: list[Week]
    categories: list[Total]
    risk: Risk


class Health(_Answer):
    """Whether the service can work; without cache or push API it goes on, degraded."""

    status: Literal["ok"]
    cache: Literal["ok", "degraded"]
    limits: Literal["ok", "degraded"]
    push: Literal["ok", "degraded"]


class Figures(_Answer):
    """What a run came to, in users, freezes, streaks and messages. `unsent` are messages to be tried again."""

    processed: int
    freezes_spent: int
    missed: int
    freezes_exhausted: int
    broken: int
    at_risk: int
    notified: int
    unsent: int


class MaintenanceRun(Figures):
    """One run of the maintenance. `error` is the kind of failure that ended it."""

    id: str
    day: date
    trigger: Trigger
    state: RunState
    started_at: datetime
    ended_at: datetime | None
    resumed: int
    error: str | None


class MaintenanceSummary(Figures):
    """What a run did, or, as a dry run, would have done; a dry run is none that is written down."""

    id: str | None
    day: date
    trigger: Trigger | None
    state: RunState | None
    started_at: datetime | None
    ended_at: datetime | None
    resumed: int
    error: str | None
    errors: int
    dry_run: bool
    repeated: bool
    seconds: float


class History(_Answer):
    """A page of runs, newest first, and the cursor of the next one."""

    runs: list[MaintenanceRun]
    next: str | None


class Kpi(_Answer):
    """One KPI, and how it stands. `value` is null where the denominator is 0."""

    name: str
    numerator: int
    denominator: int
    value: float | None
    target: str
    target_low: float
    target_high: float | None
    unit: Literal["%", "d"]
    status: Literal["good", "low", "high", "no_data"]


class KpiReport(_Answer):
    """The KPIs, and when they were counted."""

    counted_at: datetime
    kpis: list[Kpi]
