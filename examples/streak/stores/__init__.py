"""Where the service keeps what it knows: one contract, SQLAlchemy on SQLite or PostgreSQL, or Firestore.

`Store` is for the users' requests, `Runs` for the maintenance; both work on the same data. Every write is one
transaction, so that of several at a time one takes the last freeze, one earns the bonus, one makes the streak grow.
Moments and days are the caller's; only the lease goes by the database's clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Protocol

from examples.streak import rules
from examples.streak.records import (
    Activity,
    Day,
    Entry,
    Kpis,
    Lease,
    Message,
    Profile,
    Range,
    Receipt,
    Run,
    SettledBatch,
    Standing,
    Total,
    Trigger,
)
from examples.streak.settings import BadSettingError

__all__ = [
    "Database",
    "LeaseLostError",
    "OverlapError",
    "Runs",
    "Store",
    "StoreBusyError",
    "StoreUnavailableError",
    "open_database",
]


class StoreUnavailableError(Exception):
    """The database does not answer; the text names the kind of failure and repeats no address."""


class StoreBusyError(StoreUnavailableError):
    """Others have locked what a transaction needs, for longer than it is tried; it may well succeed later."""


class LeaseLostError(Exception):
    """The lease ran out, or somebody else has it now, or had it and is through with the run."""


class OverlapError(Exception):
    """Some of a range, but not just that range, has been accounted for by the same run."""


class Store(Protocol):
    """What users ask for and do."""

    async def ping(self) -> None:
        """Raise `StoreUnavailableError` when the database does not answer."""

    async def profile(self, user: str) -> Profile | None:
        """Return a user's profile, as it is written; None before their first activity."""

    async def state(self, user: str) -> rules.State:
        """Return what the rules know of a user, as it is written; of someone new, that is nothing."""

    async def activity(self, user: str, activity_id: str) -> Entry | None:
        """Return one of the user's own activities."""

    async def activities(
        self, user: str, *, limit: int, before: str | None = None, category: rules.Category | None = None
    ) -> list[Entry]:
        """Return the user's activities, newest first: those with an id below `before`, of one category or of all."""

    async def calendar(self, user: str, since: date, until: date) -> list[Day]:
        """Return the days, oldest first, on which the user did something."""

    async def totals(self, user: str) -> list[Total]:
        """Return what the user has done of each category, in the order of their names; nothing of it is left out."""

    async def leaderboard(self, limit: int, today: date) -> list[Standing]:
        """Return the longest streaks: by streak, then XP, then name.

        Those that are over today are not on it, whether maintenance has seen it or not.
        """

    async def most_active(self, limit: int) -> list[str]:
        """Return the users who did something last: by the last day, then XP, then name."""

    async def report(self, since: date) -> list[Total]:
        """Return what everybody did since a day, by category."""

    async def kpis(self, today: date) -> Kpis:
        """Count what the KPIs are made of. A streak that is over today counts as none."""

    async def log_activity(self, user: str, activity: Activity, at: datetime) -> Receipt:
        """Write an activity and what it does to the streak, unless the user has one of this client key already."""

    async def apply_freeze(self, user: str, today: date) -> rules.Applied:
        """Let a freeze hold today, as `rules.apply_freeze` has it. Whoever is unknown has no streak."""

    async def recover(self, user: str, today: date) -> rules.Recovered:
        """Buy back the streak that ended last, as `rules.recover` has it."""


class Runs(Protocol):
    """What the maintenance asks for and does."""

    async def lease(self, holder: str, at: datetime | None, ttl_s: float, *, instead_of: str | None = None) -> Lease:
        """Take or extend the one lease, and return the lease that is in force, whoever holds it.

        Without `at`, which is for tests, it is now by the clock of the database: hosts whose clocks differ agree on it.
        It is taken when nobody holds it, when it ran out by `at`, when `holder` has it already, or when it is held by
        `instead_of`, who is known to be gone.
        """

    async def release(self, holder: str) -> None:
        """Give the lease back, if `holder` has it."""

    async def begin(self, day: date, trigger: Trigger, at: datetime, *, holder: str | None = None) -> Run:
        """Write a new run that is under way.

        With `holder` it is refused by `LeaseLostError` unless that one has the lease and the day has no run yet.
        """

    async def take_up(self, run_id: str, *, holder: str | None = None) -> Run:
        """Set a run that was ended half-way under way again, one more time resumed.

        With `holder` it is refused by `LeaseLostError` unless that one has the lease and the run is not completed.
        """

    async def end(self, run_id: str, at: datetime, error: str | None = None, *, holder: str | None = None) -> Run:
        """Write that a run is completed, or, with the kind of its error, that it failed.

        With `holder` it is refused by `LeaseLostError` unless that one has the lease and the run is under way, or ended
        just so.
        """

    async def last_of(self, day: date) -> Run | None:
        """Return the run of a day: the newest, but a completed one before all that are not."""

    async def history(self, limit: int, before: str | None = None) -> list[Run]:
        """Return runs, newest first: those with an id below `before`."""

    async def due(self, day: date, *, after: str, until: str | None, limit: int) -> list[str]:
        """Return the next users by name who have a streak and for whom nothing holds `day` yet.

        `after` is not among them, `until` may be; without it there is no end.
        """

    async def done(self, run_id: str) -> list[Range]:
        """Return the ranges that a run has accounted for, by their beginning; adjacent ones are one."""

    async def settle(
        self, run_id: str, part: Range, day: date, *, holder: str | None = None, dry_run: bool = False
    ) -> SettledBatch:
        """Account for the missed days of a range's users, and write it with the batch itself, in one transaction.

        A range that the run has accounted for already is not done again: what was written comes back; one that
        overlaps such a range is refused by `OverlapError`. With `holder`, it is refused by `LeaseLostError` unless that
        one has the lease when it is written. A dry run writes nothing, and needs no run and no lease.
        """

    async def unsent(self, run_id: str, limit: int, after: str = "") -> list[tuple[Range, tuple[Message, ...]]]:
        """Return batches of a run, from a name on, whose messages were not taken by the push API yet."""

    async def sent(self, run_id: str, part: Range, notified: int, left: Sequence[Message] = ()) -> None:
        """Write that messages of a batch were taken, so many, or are given up; they are forgotten, and counted.

        `left` are those that are kept. Where no more than that are kept already, it was written before.
        """

    async def forget_runs(self, before: datetime) -> int:
        """Delete runs that began before a moment, with their batches, and return how many."""


@dataclass(frozen=True, slots=True)
class Database:
    """An opened database."""

    store: Store
    runs: Runs
    measured: Sequence[Any]
    """What `otel_perf.instrument` takes: an engine, or a client."""
    prepare: Callable[[], Awaitable[None]]
    """`await prepare()` brings the tables to this version; several processes may do so at once."""
    close: Callable[[], Awaitable[None]]
    """`await close()` ends its connections."""


def open_database(url: str) -> Database:
    """Open the database behind an address; it connects on first use.

    `sqlite+aiosqlite:///file.db`, `postgresql+asyncpg://user:password@host/database` or `firestore://project/database`.
    """
    if url.startswith("firestore:"):
        try:
            from .firestore import open_firestore
        except ModuleNotFoundError as missing:
            raise BadSettingError(
                f"DATABASE_URL asks for Firestore, and {missing.name} is not installed: "
                "pip install 'otel-perf[firestore]'"
            ) from None
        return open_firestore(url)
    from .sql import open_sql

    return open_sql(url)
