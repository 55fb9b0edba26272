"""The daily maintenance: who missed a day spends a freeze or loses the streak, and who is about to is told.

Users are taken a batch at a time in the order of their names, a few batches at once, each in a transaction of its own
that says what it has accounted for. So memory stays the same however many there are, and a run that was ended half-way
goes on where it was: whoever was accounted for is not accounted for again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import date, datetime

import structlog

from otel_perf import measure

from . import rules
from .batches import Batches, Progress
from .cache import ReadCache
from .effort import Effort, forget_owed
from .leases import EXTEND_EVERY_S, TTL_S, AlreadyRunningError, ClockError, Held, hold
from .outbox import FOR_S, Outbox
from .push import PushClient
from .records import Run, Tally, Trigger
from .retries import Retries
from .settings import Settings
from .stores import Runs

__all__ = [
    "EVERY",
    "JOB",
    "AlreadyRunningError",
    "ClockError",
    "Maintenance",
    "NothingToResumeError",
    "Progress",
    "Summary",
]

JOB = "streak.maintenance"
EVERY = "1d"

_log = structlog.get_logger("streak.maintenance")


class NothingToResumeError(Exception):
    """There is no run of this day that ended half-way."""

    def __init__(self, text: str, completed: Run | None = None) -> None:
        super().__init__(text)
        self.completed = completed
        """The run that has done all there is to do today; None when there was none."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did, or, as a dry run, would have done."""

    run: Run | None
    """None for a dry run, which is not written down. Of a run that failed, it says so: nothing is raised for it."""
    tally: Tally
    dry_run: bool
    repeated: bool
    """The day's run was completed before: nothing was done now, but for messages that were left of it."""
    seconds: float
    users_left: int = 0
    """Users of batches that failed: a resume does them, and whoever comes behind them."""
    errors: int = 0
    """What went wrong, also what a retry made good."""

    @property
    def unsent(self) -> int:
        """Return how many messages the push API did not take yet; they are tried again."""
        return 0 if self.run is None else self.run.unsent


class Maintenance:
    """Runs the maintenance, and knows the runs before."""

    def __init__(
        self,
        runs: Runs,
        cache: ReadCache,
        push: PushClient,
        settings: Settings,
        *,
        ttl_s: float = TTL_S,
        extend_every_s: float = EXTEND_EVERY_S,
        outbox_for_s: float = FOR_S,
    ) -> None:
        self._runs = runs
        self._cache = cache
        self._push = push
        self._settings = settings
        self._ttl_s = ttl_s
        self._extend_every_s = extend_every_s
        self._outbox_for_s = outbox_for_s
        self._listeners: list[Callable[[], None]] = []

    def when_completed(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call a function after each run that changed something; what is returned ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def run(
        self, now: datetime, trigger: Trigger = "cli", *, dry_run: bool = False, progress: Progress | None = None
    ) -> Summary:
        """Account for all days before today; a run of today that was ended half-way is taken up.

        A day's run that is completed is not done again, so that whoever starts it may do so twice. `progress` is told
        of each batch. Raises `AlreadyRunningError` while somebody else is at it, and `ClockError` where no one knows
        what day it is.
        """
        if dry_run:
            return await self._rehearse(now, progress)
        day = rules.day_of(now)
        async with self._hold(now) as held:
            before = await self._runs.last_of(day)
            if before is not None and before.state == "completed":
                return await self._repeat(before, trigger)
            return await self._do(day, before, trigger, held, progress)

    async def resume(self, now: datetime, trigger: Trigger = "cli", *, progress: Progress | None = None) -> Summary:
        """Take up the run of today that was ended half-way, or raise `NothingToResumeError`.

        Messages that are left of a completed run are something to resume as well.
        """
        day = rules.day_of(now)
        async with self._hold(now) as held:
            before = await self._runs.last_of(day)
            if before is None:
                raise NothingToResumeError("there is no run of today yet: start one")
            if before.state != "completed":
                return await self._do(day, before, trigger, held, progress)
            if not await self._runs.unsent(before.id, 1):
                raise NothingToResumeError("the run of today is completed, and its messages are sent", before)
            return await self._repeat(before, trigger)

    async def history(self, limit: int, before: str | None = None) -> list[Run]:
        """Return runs, newest first: those with an id below `before`."""
        return await self._runs.history(limit, before)

    def _hold(self, now: datetime) -> AbstractAsyncContextManager[Held]:
        return hold(self._runs, now, ttl_s=self._ttl_s, extend_every_s=self._extend_every_s)

    @measure("run_daily_maintenance", category="streak", attributes={"streak.dry_run": True})
    async def _rehearse(self, now: datetime, progress: Progress | None) -> Summary:
        # Not a run of the job: it must not look as if today's had been done.
        began_s = time.monotonic()
        batches = Batches(self._runs, self._settings, rules.day_of(now), Retries(), progress)
        before = await self._runs.last_of(rules.day_of(now))
        if before is None or before.state != "completed":
            await batches.rehearse([] if before is None else await self._runs.done(before.id))
        return Summary(None, batches.tally, dry_run=True, repeated=False, seconds=time.monotonic() - began_s)

    async def _repeat(self, before: Run, trigger: Trigger) -> Summary:
        began_s, retries = time.monotonic(), Retries()
        if trigger != "schedule":
            # It may have ended while the cache was away; which users it changed is not asked for again. Of scheduled
            # processes all but one repeat it, and the one lives on and sees to its cache.
            await self._cache.forget_all()
            await forget_owed(self._cache, retries)
        notified = await Outbox(self._runs, self._push, before.id, retries).deliver_kept(self._outbox_for_s)
        run = await self._runs.last_of(before.day) or before
        seconds = time.monotonic() - began_s
        _log.info(
            "Daily streak maintenance was completed before",
            run_id=run.id,
            notified=notified,
            unsent=run.unsent,
            errors=retries.errors,
        )
        return Summary(run, run.tally, dry_run=False, repeated=True, seconds=seconds, errors=retries.errors)

    async def _do(
        self, day: date, before: Run | None, trigger: Trigger, held: Held, progress: Progress | None
    ) -> Summary:
        began_s = time.monotonic()
        # Declared here and not at the start: of the processes that could run it, only one that does misses a run.
        async with measure.job(JOB, every=EVERY) as job, measure("run_daily_maintenance", category="streak") as step:
            if before is None:
                # The day that was looked for, even if another one has begun since.
                run = await self._runs.begin(day, trigger, held.now, holder=held.holder)
            else:
                run = await self._runs.take_up(before.id, holder=held.holder)
            effort = Effort(
                run,
                held,
                runs=self._runs,
                cache=self._cache,
                push=self._push,
                settings=self._settings,
                outbox_for_s=self._outbox_for_s,
            )
            run = await effort.make(progress)
            job.items = step.items = effort.tally.processed
            if run.error is not None:
                job.fail(run.error)
                step.fail(run.error)
            seconds = time.monotonic() - began_s
            _log_end(run, effort, seconds)
        for listener in self._listeners:
            listener()
        return Summary(
            run,
            run.tally,
            dry_run=False,
            repeated=False,
            seconds=seconds,
            users_left=effort.users_left,
            errors=effort.retries.errors,
        )


def _log_end(run: Run, effort: Effort, seconds: float) -> None:
    tally = run.tally
    figures = {
        "users_processed": tally.processed,
        "freezes_applied": tally.freezes_spent,
        "streaks_broken": tally.broken,
        "at_risk": tally.at_risk,
        "notified": tally.notified,
        "unsent": run.unsent,
        "errors": effort.retries.errors,
        "duration_ms": round(seconds * 1_000),
        "run_id": run.id,
        "resumed": run.resumed,
    }
    if run.error is None:
        _log.info("Daily streak maintenance completed", **figures)
    else:
        _log.error("Daily streak maintenance failed", **figures, error=run.error, users_left=effort.users_left)
