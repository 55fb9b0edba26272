"""Runs the maintenance each day from within the service, where nothing outside is there to start it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import date, datetime, time, timedelta, timezone

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler  # type: ignore[import-untyped]  # it has no types
from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped]  # it has no types

from otel_perf import instrument, measure

from . import rules
from .leases import TTL_S, LeaseLostError
from .maintenance import EVERY, JOB, AlreadyRunningError, Maintenance
from .metrics import record_error

__all__ = ["scheduled"]

# A process that was busy, or asleep, an hour long still runs it: a day's run does the same at any time of the day.
_GRACE_S = 3_600
_FIRST_PAUSE_S = 15.0
_LONGEST_PAUSE_S = 900.0

_log = structlog.get_logger("streak.schedule")


class _Today:
    """Sees to it that the maintenance of a day is done: by this process, or by whoever is at it."""

    def __init__(self, maintenance: Maintenance, clock: Callable[[], datetime], look_again_s: float) -> None:
        self._maintenance = maintenance
        self._clock = clock
        self._look_again_s = look_again_s
        self._said: tuple[date, str] | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    async def first(self) -> None:
        """Run it, as its time has come; whatever is left then is seen to by another task."""
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        day = rules.day_of(self._clock())
        pause_s: float | None = _FIRST_PAUSE_S
        try:
            pause_s = await self._attempt(day, _FIRST_PAUSE_S)
        except asyncio.CancelledError:
            pause_s = None
            raise
        finally:
            self._under_way.discard(task)
            if pause_s is not None:
                self.insist(day, pause_s)

    def insist(self, day: date, pause_s: float = 0.0) -> None:
        """Go on until the day's run is completed and everybody is told, or the day is over."""
        task = asyncio.create_task(self._insist(day, pause_s), name="streak maintenance of today")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def end(self) -> None:
        """Interrupt what is under way, and wait until it has ended."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _insist(self, day: date, pause_s: float | None) -> None:
        back_off_s = _FIRST_PAUSE_S
        while pause_s is not None:
            await asyncio.sleep(pause_s)
            if rules.day_of(self._clock()) != day:
                return
            back_off_s = min(2 * back_off_s, _LONGEST_PAUSE_S)
            try:
                pause_s = await self._attempt(day, back_off_s)
            except Exception as error:
                record_error("schedule", error)
                self._say(day, type(error).__name__, error=True)
                pause_s = back_off_s

    async def _attempt(self, day: date, back_off_s: float) -> float | None:
        """Run it, and return in how many seconds to look again; None when there is nothing more to do."""
        try:
            summary = await self._maintenance.run(self._clock(), "schedule")
        except AlreadyRunningError as problem:
            # Whoever is at it may die of it: until the run is completed, it is for everybody to see to.
            self._say(day, "skipped", holder=problem.lease.holder)
            return self._look_again_s
        except LeaseLostError:
            self._say(day, "skipped", holder="somebody else")
            return self._look_again_s
        if summary.run is None or summary.run.state != "completed":
            return back_off_s
        return back_off_s if summary.unsent else None

    def _say(self, day: date, state: str, *, holder: str | None = None, error: bool = False) -> None:
        # Once for each state of a day, and not each time that one looks.
        if self._said == (day, state):
            return
        self._said = (day, state)
        if error:
            _log.error("Daily streak maintenance could not be started", error=state)
        else:
            _log.info("Daily streak maintenance skipped", holder=holder)


@asynccontextmanager
async def scheduled(
    maintenance: Maintenance, at: time, clock: Callable[[], datetime], *, look_again_s: float = TTL_S
) -> AsyncIterator[AsyncIOScheduler]:
    """Run the maintenance at a time of each day, in UTC, for the length of a block.

    Each process of the service may do so: one of them gets the lease, and the others look again until the run is
    completed, so that it is done whoever dies of it. One that starts after the time, and on the same day, runs it at
    once. A run that is under way at the end is interrupted, and taken up by the next one.
    """
    # From here on, a day without a run is a missed one.
    measure.job(JOB, every=EVERY)
    today = _Today(maintenance, clock, look_again_s)
    scheduler = AsyncIOScheduler(timezone=timezone.utc)
    measured = instrument(scheduler)
    trigger = CronTrigger(hour=at.hour, minute=at.minute, second=at.second, timezone=timezone.utc)
    # Of several that are due at once, one is enough.
    scheduler.add_job(
        today.first, trigger, id=JOB, name=JOB, coalesce=True, max_instances=1, misfire_grace_time=_GRACE_S
    )
    scheduler.start()
    now = clock()
    if _was_due(at, now):
        today.insist(rules.day_of(now))
    try:
        yield scheduler
    finally:
        scheduler.remove_all_jobs()
        await today.end()
        # It ends in the next turn of the loop. Earlier, it would cancel what is being cancelled once more.
        scheduler.shutdown(wait=False)
        await asyncio.sleep(0)
        measured.undo()


def _was_due(at: time, now: datetime) -> bool:
    """Tell whether its time has come on the day of a moment."""
    now = now.astimezone(timezone.utc)
    last = datetime.combine(now.date(), at, timezone.utc)
    if last > now:
        last -= timedelta(days=1)
    return rules.day_of(last) == rules.day_of(now)
