"""Runs the maintenance each day from within the service, where nothing outside is there to start it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, time, timezone

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler  # type: ignore[import-untyped]  # it has no types
from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped]  # it has no types

from otel_perf import instrument, measure

from .maintenance import EVERY, JOB, AlreadyRunningError, Maintenance

__all__ = ["scheduled"]

# A process that was busy, or asleep, an hour long still runs it: a day's run does the same at any time of the day.
_GRACE_S = 3_600

_log = structlog.get_logger("streak.schedule")


@asynccontextmanager
async def scheduled(
    maintenance: Maintenance, at: time, clock: Callable[[], datetime]
) -> AsyncIterator[AsyncIOScheduler]:
    """Run the maintenance at a time of each day, in UTC, for the length of a block.

    Each process of the service may do so: one of them gets the lease, and for the others there is nothing to do. A run
    that is under way at the end is interrupted, and taken up by the next one.
    """
    # From here on, a day without a run is a missed one.
    measure.job(JOB, every=EVERY)
    running: set[asyncio.Task[None]] = set()

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await maintenance.run(clock(), "schedule")
        except AlreadyRunningError as problem:
            _log.info("Daily streak maintenance skipped", holder=problem.lease.holder)
        finally:
            running.discard(task)

    scheduler = AsyncIOScheduler(timezone=timezone.utc)
    measured = instrument(scheduler)
    trigger = CronTrigger(hour=at.hour, minute=at.minute, second=at.second, timezone=timezone.utc)
    # Of several that are due at once, one is enough.
    scheduler.add_job(run, trigger, id=JOB, name=JOB, coalesce=True, max_instances=1, misfire_grace_time=_GRACE_S)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.remove_all_jobs()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        # It ends in the next turn of the loop. Earlier, it would cancel what is being cancelled once more.
        scheduler.shutdown(wait=False)
        await asyncio.sleep(0)
        measured.undo()
