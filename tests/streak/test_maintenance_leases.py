"""Whoever has lost the lease writes nothing of a run any more, and clocks that differ do not decide who has it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from examples.streak import rules
from examples.streak.leases import AlreadyRunningError, ClockError, LeaseLostError, hold
from examples.streak.maintenance import NothingToResumeError
from examples.streak.stores import Database
from tests.streak.maintaining import Meddled, assert_each_once, maintaining
from tests.streak.seeding import seed_users

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)]

NOW = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = rules.day_of(NOW)
COUNT = 60


async def _expire(database: Database) -> None:
    """Let the lease run out, by the clock of the database, and whoever has it not know of it."""
    lease = await database.runs.lease("asks", None, 60)
    await database.runs.lease(lease.holder, datetime.now(timezone.utc) - timedelta(hours=1), 60)


@pytest.mark.parametrize("fails", [True, False])
async def test_a_stalled_run_does_not_end_the_run_of_another(database: Database, fails: bool) -> None:
    """One stalls in a batch, another one takes the run up and completes it; the first wakes up, and changes nothing."""
    await seed_users(database, COUNT, TODAY)
    stalled, go_on = asyncio.Event(), asyncio.Event()

    async def settle(*args: Any, **kwargs: Any) -> Any:
        stalled.set()
        await go_on.wait()
        if fails:
            raise ValueError("the stalled one fails")
        return await database.runs.settle(*args, **kwargs)

    async with (
        maintaining(database, runs=Meddled(database.runs, settle=settle), batches_in_flight=1) as slow,
        maintaining(database) as quick,
    ):
        stalling = asyncio.create_task(slow.maintenance.run(NOW))
        await stalled.wait()
        await _expire(database)
        done = await quick.maintenance.run(NOW)
        go_on.set()
        failed = await stalling
        assert failed.run is not None
        assert failed.run.state == "failed"
        assert await quick.maintenance.history(10) == [done.run]
        assert (await quick.maintenance.run(NOW)).repeated
    assert done.run is not None
    assert done.run.state == "completed"
    await assert_each_once(database, COUNT, TODAY)


async def test_a_day_has_one_run_though_its_beginning_stalled(database: Database) -> None:
    """One stalls before it begins the run of the day, which another one does meanwhile: there is no second run."""
    await seed_users(database, COUNT, TODAY)
    stalled, go_on = asyncio.Event(), asyncio.Event()

    async def last_of(*args: Any) -> Any:
        found = await database.runs.last_of(*args)
        stalled.set()
        await go_on.wait()
        return found

    async with (
        maintaining(database, runs=Meddled(database.runs, last_of=last_of)) as slow,
        maintaining(database) as quick,
    ):
        stalling = asyncio.create_task(slow.maintenance.run(NOW))
        await stalled.wait()
        await _expire(database)
        done = await quick.maintenance.run(NOW)
        # Its lease is free by now: it may well have it once more.
        lease = await database.runs.lease("asks", None, 60)
        assert lease.holder == "asks"
        await database.runs.release("asks")
        go_on.set()
        with pytest.raises(LeaseLostError):
            await stalling
        assert await quick.maintenance.history(10) == [done.run]
    await assert_each_once(database, COUNT, TODAY)


async def test_two_clocks_apart(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is two minutes ahead, or behind, does not get a healthy lease, and may have a free one."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(minutes=2)

    async with hold(database.runs, NOW):
        with monkeypatch.context() as patched:
            patched.setattr("examples.streak.leases.datetime", Ahead)
            for minutes in (2, -2):
                with pytest.raises(AlreadyRunningError):
                    async with hold(database.runs, NOW + timedelta(minutes=minutes)):
                        pass
    monkeypatch.setattr("examples.streak.leases.datetime", Ahead)
    async with hold(database.runs, NOW) as held:
        await held.extend()
        held.check()


@pytest.mark.parametrize("days", [1, -1])
async def test_a_clock_a_day_apart_is_refused(database: Database, days: int) -> None:
    """Where this host and the database do not agree on the day nothing is begun, and the lease is free again."""
    await seed_users(database, COUNT, TODAY)

    async def lease(*args: Any, **kwargs: Any) -> Any:
        given = await database.runs.lease(*args, **kwargs)
        assert given.asked_at is not None
        return replace(given, asked_at=given.asked_at - timedelta(days=days))

    async with maintaining(database, runs=Meddled(database.runs, lease=lease)) as kit:
        for attempt in (kit.maintenance.run, kit.maintenance.resume):
            with pytest.raises(ClockError, match="set the one that is wrong"):
                await attempt(NOW)
        assert await kit.maintenance.history(10) == []
    async with hold(database.runs, NOW):
        pass


async def test_a_dead_run_beside_a_completed_one_is_not_taken_up(database: Database) -> None:
    """Of a day with a completed run and one that was left as under way, the first is the day's: it is done."""
    await seed_users(database, COUNT, TODAY)
    async with maintaining(database) as kit:
        first = await kit.maintenance.run(NOW)
        await database.runs.begin(TODAY, "cli", NOW + timedelta(minutes=1))
        again = await kit.maintenance.run(NOW + timedelta(minutes=2))
        assert again.repeated
        assert again.run == first.run
        with pytest.raises(NothingToResumeError) as nothing:
            await kit.maintenance.resume(NOW)
    assert nothing.value.completed == first.run
