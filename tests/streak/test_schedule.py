"""The service runs its maintenance by itself at a time of the day, measured, and leaves it to whoever is at it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from examples.streak import rules
from examples.streak.leases import hold
from examples.streak.maintenance import JOB
from examples.streak.push import create_push_app
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


def _early() -> datetime:
    """Before its time: nothing is due at the start."""
    return NOW.replace(hour=4, minute=1)


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
    async with maintaining(database) as kit, scheduled(kit.maintenance, time(4, 5), _early) as scheduler:
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
            async with scheduled(kit.maintenance, time(4, 5), _early) as scheduler:
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
            async with scheduled(kit.maintenance, time(4, 5), _early) as scheduler:
                _due_now(scheduler)
                line = await _until_logged(lines, "Daily streak maintenance skipped")
        lease = await database.runs.lease("asks", NOW, 60)
        assert line["holder"] == lease.holder
        assert await kit.maintenance.history(10) == []


async def _until_completed(database: Database) -> Any:
    for _ in range(1_000):
        runs = await database.runs.history(10)
        if runs and runs[0].state == "completed":
            return runs
        await asyncio.sleep(0.01)
    raise AssertionError(runs)


async def test_a_process_that_starts_late_runs_it_at_once(database: Database) -> None:
    """A start after its time on the same day runs it, and a second one finds it done; one before its time waits."""
    await seed_users(database, COUNT, TODAY)
    async with maintaining(database) as kit:
        async with scheduled(kit.maintenance, time(4, 5), _early):
            await asyncio.sleep(0.05)
        assert await kit.maintenance.history(10) == []
        with capture_logs() as lines:
            async with scheduled(kit.maintenance, time(4, 5), _clock):
                await _until_completed(database)
            async with scheduled(kit.maintenance, time(4, 5), _clock):
                await _until_logged(lines, "Daily streak maintenance was completed before")
        assert len(await kit.maintenance.history(10)) == 1
    await assert_each_once(database, COUNT, TODAY)


async def test_the_other_completes_it_when_the_runner_is_killed(database: Database, database_url: str) -> None:
    """The runner is killed with the lease; the process that had skipped the day looks again, and does the rest."""
    await seed_users(database, COUNT, TODAY)
    command = [sys.executable, "-m", "tests.streak.schedule_child", database_url, NOW.isoformat()]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE) as child:  # noqa: ASYNC220
        assert child.stdout is not None
        try:
            await asyncio.to_thread(child.stdout.readline)
            async with maintaining(database) as kit:
                with capture_logs() as lines:
                    async with scheduled(kit.maintenance, time(4, 5), _clock, look_again_s=0.05):
                        await _until_logged(lines, "Daily streak maintenance skipped")
                        await asyncio.sleep(0.3)
                        # Once, however often it looked.
                        assert [line["event"] for line in lines] == ["Daily streak maintenance skipped"]
                        child.kill()
                        child.wait()
                        (run,) = await _until_completed(database)
        finally:
            child.kill()
    assert run.resumed == 1
    await assert_each_once(database, COUNT, TODAY)


async def test_a_run_that_fails_is_tried_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure of the run, and after one to begin it, it is tried again until it is completed."""
    monkeypatch.setattr("examples.streak.schedule._FIRST_PAUSE_S", 0.02)
    await seed_users(database, COUNT, TODAY)
    fails = {"settle": 1, "last_of": 2}

    def failing(name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            if fails[name]:
                fails[name] -= 1
                raise ValueError("not to be tried again at once")
            return await getattr(database.runs, name)(*args, **kwargs)

        return call

    runs = Meddled(database.runs, settle=failing("settle"), last_of=failing("last_of"))
    async with maintaining(database, runs=runs) as kit:
        with capture_logs() as lines:
            async with scheduled(kit.maintenance, time(4, 5), _clock):
                (run,) = await _until_completed(database)
    assert run.resumed == 1
    told = [line for line in lines if line["event"] == "Daily streak maintenance could not be started"]
    assert [line["error"] for line in told] == ["ValueError"]
    await assert_each_once(database, COUNT, TODAY)


async def test_what_is_unsent_is_sent_later(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push API that is down during the run is told later, without anybody who starts something."""
    monkeypatch.setattr("examples.streak.schedule._FIRST_PAUSE_S", 0.02)
    await seed_users(database, COUNT, TODAY)
    app, down = create_push_app(delay_s=0), True
    inner = httpx.ASGITransport(app)

    class Network(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(503) if down else await inner.handle_async_request(request)

    async with (
        maintaining(database, transport=Network()) as kit,
        scheduled(kit.maintenance, time(4, 5), _clock),
    ):
        (run,) = await _until_completed(database)
        assert run.unsent == run.tally.processed
        down = False
        for _ in range(1_000):
            (run,) = await database.runs.history(10)
            if not run.unsent:
                break
            await asyncio.sleep(0.01)
    assert (run.unsent, run.tally.notified) == (0, len(app.state.recent))


async def test_end_of_the_service_interrupts_a_run(database: Database) -> None:
    """A service that goes down in the middle gives the lease back; the run can be taken up."""
    await seed_users(database, COUNT, TODAY)
    under_way = asyncio.Event()

    async def settle(*_: Any, **__: Any) -> Any:
        under_way.set()
        await asyncio.Event().wait()

    async with maintaining(database, runs=Meddled(database.runs, settle=settle)) as kit:
        async with scheduled(kit.maintenance, time(4, 5), _early) as scheduler:
            _due_now(scheduler)
            await under_way.wait()
        (run,) = await kit.maintenance.history(10)
        assert (run.state, run.error) == ("failed", "interrupted")
    async with maintaining(database) as kit:
        await kit.maintenance.resume(NOW)
    await assert_each_once(database, COUNT, TODAY)
