"""The service runs its maintenance by itself at a time of the day, measured, and leaves it to whoever is at it."""

from __future__ import annotations

import asyncio
from datetime import datetime, time, timedelta, timezone
from typing import Any

import pytest
from structlog.testing import capture_logs

from examples.streak import rules
from examples.streak.leases import hold
from examples.streak.maintenance import JOB
from examples.streak.schedule import scheduled
from examples.streak.stores import Database
from tests.conftest import Telemetry
from tests.streak.maintaining import Meddled, assert_each_once, maintaining
from tests.streak.seeding import seed_users

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)]

NOW = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = rules.day_of(NOW)
COUNT = 60


def _clock() -> datetime:
    return NOW


def _due_now(scheduler: Any) -> None:
    """Have the scheduler run its job at once, as if its time had come."""
    scheduler.modify_job(JOB, next_run_time=datetime.now(timezone.utc))


async def _until_logged(lines: Any, event: str) -> Any:
    for _ in range(1_000):
        found = [line for line in lines if line["event"] == event]
        if found:
            return found[0]
        await asyncio.sleep(0.01)
    raise AssertionError(lines)


async def test_when_it_is_due(database: Database) -> None:
    """It is due at its time of the day in UTC, once, however many were missed, and an hour late still."""
    async with maintaining(database) as kit, scheduled(kit.maintenance, time(4, 5), _clock) as scheduler:
        job = scheduler.get_job(JOB)
        due = job.next_run_time
        assert (due.hour, due.minute, due.second, due.utcoffset()) == (4, 5, 0, timedelta(0))
        assert (job.coalesce, job.max_instances, job.misfire_grace_time) == (True, 1, 3_600)
    assert not scheduler.running


async def test_it_runs_and_is_measured(database: Database, telemetry: Telemetry) -> None:
    """A run by the schedule is one run of the job, whose trigger is the schedule, in the database and in the trace."""
    await seed_users(database, COUNT, TODAY)
    async with maintaining(database) as kit:
        with capture_logs() as lines:
            async with scheduled(kit.maintenance, time(4, 5), _clock) as scheduler:
                _due_now(scheduler)
                await _until_logged(lines, "Daily streak maintenance completed")
                await asyncio.sleep(0.05)
        (run,) = await kit.maintenance.history(10)
    assert (run.trigger, run.state) == ("schedule", "completed")
    total = await assert_each_once(database, COUNT, TODAY)
    span = telemetry.span(JOB)
    assert span.attributes is not None
    assert span.attributes["background.job.trigger"] == "schedule"
    assert sum(point.count for point in telemetry.points("background.job.duration")) == 1
    assert sum(point.value for point in telemetry.points("background.job.items")) == total.processed


async def test_it_leaves_it_to_whoever_is_at_it(database: Database) -> None:
    """While somebody else has the lease the run is skipped, with a line that says who."""
    async with maintaining(database) as kit, hold(database.runs, NOW):
        with capture_logs() as lines:
            async with scheduled(kit.maintenance, time(4, 5), _clock) as scheduler:
                _due_now(scheduler)
                line = await _until_logged(lines, "Daily streak maintenance skipped")
        lease = await database.runs.lease("asks", NOW, 60)
        assert line["holder"] == lease.holder
        assert await kit.maintenance.history(10) == []


async def test_end_of_the_service_interrupts_a_run(database: Database) -> None:
    """A service that goes down in the middle gives the lease back; the run can be taken up."""
    await seed_users(database, COUNT, TODAY)
    under_way = asyncio.Event()

    async def settle(*_: Any, **__: Any) -> Any:
        under_way.set()
        await asyncio.Event().wait()

    async with maintaining(database, runs=Meddled(database.runs, settle=settle)) as kit:
        async with scheduled(kit.maintenance, time(4, 5), _clock) as scheduler:
            _due_now(scheduler)
            await under_way.wait()
        (run,) = await kit.maintenance.history(10)
        assert (run.state, run.error) == ("failed", "interrupted")
    async with maintaining(database) as kit:
        await kit.maintenance.resume(NOW)
    await assert_each_once(database, COUNT, TODAY)
