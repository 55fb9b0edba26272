"""The daily maintenance sees everybody once a day, in batches, and says what it did."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from structlog.testing import capture_logs

from examples.streak import rules
from examples.streak.cache import LEADERBOARD, PROFILE
from examples.streak.leases import hold
from examples.streak.maintenance import AlreadyRunningError, NothingToResumeError
from examples.streak.records import Activity, Tally
from examples.streak.stores import Database
from tests.conftest import Telemetry
from tests.streak.maintaining import Meddled, assert_each_once, maintaining
from tests.streak.seeding import expected, name_of, past_of, read_states, seed_users

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = rules.day_of(NOW)
on_sql = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def test_missed_days_and_who_is_at_risk(database: Database) -> None:
    """On each database: a missed day ends the streak, one that is held is at risk, and the next day is another run."""
    store, days = database.store, timedelta(days=1)
    for user, last in (("ada", NOW - days), ("bob", NOW - 2 * days), ("cyd", NOW)):
        await store.log_activity(user, Activity("learn", 10), last)
    async with maintaining(database) as kit:
        summary = await kit.maintenance.run(NOW, "http")
        assert summary.tally == Tally(processed=2, missed=1, at_risk=1, notified=2)
        assert summary.run is not None
        assert (summary.run.state, summary.run.trigger, summary.run.day) == ("completed", "http", TODAY)
        assert kit.told == {("ada", "at_risk"): 1, ("bob", "broken"): 1}
        assert [(await store.state(user)).streak for user in ("ada", "bob", "cyd")] == [1, 0, 1]
        tomorrow = await kit.maintenance.run(NOW + days, "http")
        assert tomorrow.tally == Tally(processed=2, missed=1, at_risk=1, notified=2)
        assert [run.day for run in await kit.maintenance.history(10)] == [TODAY + days, TODAY]


@on_sql
async def test_run_does_what_the_rules_say(database: Database) -> None:
    """Of a thousand users with all kinds of pasts each is what the rules make of them, counted and told once."""
    await seed_users(database, 1_000, TODAY)
    seen: list[Tally] = []
    async with maintaining(database, batch_size=30) as kit:
        summary = await kit.maintenance.run(NOW, progress=seen.append)
        total = await assert_each_once(database, 1_000, TODAY)
        assert summary.tally == total == seen[-1]
        assert total.notified == total.processed == sum(kit.told.values())
        assert set(kit.told.values()) == {1}


@on_sql
async def test_once_a_day(database: Database) -> None:
    """A second run of a day does nothing, tells nobody and says so, and there is nothing to resume."""
    await seed_users(database, 60, TODAY)
    async with maintaining(database, batch_size=7) as kit:
        first = await kit.maintenance.run(NOW)
        before, told = await read_states(database), kit.told
        again = await kit.maintenance.run(NOW + timedelta(hours=1))
        assert again.repeated
        assert (again.run, again.tally) == (first.run, first.tally)
        assert (await read_states(database), kit.told) == (before, told)
        with pytest.raises(NothingToResumeError):
            await kit.maintenance.resume(NOW)
        with pytest.raises(NothingToResumeError):
            await kit.maintenance.resume(NOW + timedelta(days=1))


@on_sql
async def test_dry_run_writes_nothing(database: Database) -> None:
    """A dry run counts what the run after it does, tells nobody, and needs no lease."""
    await seed_users(database, 60, TODAY)
    before = await read_states(database)
    async with maintaining(database, batch_size=7) as kit:
        async with hold(database.runs, NOW):
            dry = await kit.maintenance.run(NOW, dry_run=True)
        assert dry.run is None
        assert dry.dry_run
        assert dry.tally == expected(60, TODAY)[0]
        assert await read_states(database) == before
        assert not kit.told
        assert await kit.maintenance.history(10) == []
        run = await kit.maintenance.run(NOW)
        assert run.tally == dry.tally + Tally(notified=dry.tally.processed)


@on_sqlite
async def test_one_at_a_time(database: Database) -> None:
    """While somebody else has the lease nothing is begun, and whoever asks learns who has it."""
    async with maintaining(database) as kit:
        async with hold(database.runs, NOW):
            for attempt in (kit.maintenance.run, kit.maintenance.resume):
                with pytest.raises(AlreadyRunningError, match=r"has the lease until \d\d:\d\d:\d\d UTC"):
                    await attempt(NOW)
        assert await kit.maintenance.history(10) == []
        assert (await kit.maintenance.run(NOW)).run is not None


@on_sqlite
async def test_batches_in_flight(database: Database) -> None:
    """So many batches are under way at once and no more, and no more users are asked for ahead than for those."""
    await seed_users(database, 240, TODAY)
    now = most = begun = ended = furthest = asked = 0

    async def settle(*args: Any, **kwargs: Any) -> Any:
        nonlocal now, most, begun, ended
        begun += 1
        now += 1
        most = max(most, now)
        while most < 3:  # noqa: ASYNC110  # all of them, before the first may end
            await asyncio.sleep(0.01)
        batch = await database.runs.settle(*args, **kwargs)
        now -= 1
        ended += 1
        return batch

    async def due(*args: Any, **kwargs: Any) -> Any:
        nonlocal furthest, asked
        asked += 1
        furthest = max(furthest, asked - ended)
        names = await database.runs.due(*args, **kwargs)
        assert len(names) <= 5
        return names

    runs = Meddled(database.runs, settle=settle, due=due)
    async with maintaining(database, runs=runs, batch_size=5, batches_in_flight=3) as kit:
        await kit.maintenance.run(NOW)
    assert begun == 32
    assert most == 3
    # Those under way, as many that wait, the one that waits for its turn, and the one that is asked for.
    assert furthest <= 3 + 3 + 2
    await assert_each_once(database, 240, TODAY)


@on_sqlite
async def test_cached_pages_are_forgotten(database: Database) -> None:
    """Pages of users whose streak changed, and the board, are loaded anew; those of the others stay."""
    await seed_users(database, 12, TODAY)
    async with maintaining(database, batch_size=4) as kit:

        async def load() -> str:
            return "old"

        for number in range(12):
            await kit.cache.read(PROFILE, load, user=name_of(number))
        await kit.cache.read(LEADERBOARD, load, limit=100)
        await kit.maintenance.run(NOW)

        async def load_anew() -> str:
            return "new"

        for number in range(12):
            changed = rules.settle(past_of(number, TODAY), TODAY).changed
            found = await kit.cache.read(PROFILE, load_anew, user=name_of(number))
            assert found == ("new" if changed else "old")
        assert await kit.cache.read(LEADERBOARD, load_anew, limit=100) == "new"


@on_sqlite
async def test_what_it_says(database: Database, telemetry: Telemetry) -> None:
    """A run is a run of the job, a span with one for each batch below it, counts of its own, and one line."""
    await seed_users(database, 60, TODAY)
    tally = expected(60, TODAY)[0]
    async with maintaining(database, batch_size=10) as kit:
        with capture_logs() as lines:
            summary = await kit.maintenance.run(NOW)
    assert summary.run is not None
    (line,) = lines
    assert isinstance(line.pop("duration_ms"), int)
    assert line == {
        "event": "Daily streak maintenance completed",
        "log_level": "info",
        "users_processed": tally.processed,
        "freezes_applied": tally.freezes_spent,
        "streaks_broken": tally.broken,
        "at_risk": tally.at_risk,
        "notified": tally.processed,
        "unsent": 0,
        "errors": 0,
        "run_id": summary.run.id,
        "resumed": 0,
    }
    job, span = telemetry.span("streak.maintenance"), telemetry.span("run_daily_maintenance")
    assert job.context is not None
    assert span.context is not None
    assert span.parent is not None
    assert span.parent.span_id == job.context.span_id
    batches = [each for each in telemetry.spans if each.name == "settle_batch"]
    assert len(batches) == 4
    assert {each.parent.span_id for each in batches if each.parent} == {span.context.span_id}
    assert sum(point.value for point in telemetry.points("background.job.items")) == tally.processed
    users = {point.attributes["outcome"]: point.value for point in telemetry.points("streak.maintenance.users")}
    assert sum(users.values()) == tally.processed
    assert users["broken"] == tally.broken
    assert [point.value for point in telemetry.points("background.job.last_success")]


@on_sqlite
async def test_a_dry_run_is_no_run_of_the_job(database: Database, telemetry: Telemetry) -> None:
    """After a dry run nobody is to believe that today's maintenance was done."""
    await seed_users(database, 6, TODAY)
    async with maintaining(database) as kit:
        await kit.maintenance.run(NOW, dry_run=True)
    assert "background.job.duration" not in telemetry.metrics()
    assert telemetry.span("run_daily_maintenance").attributes


@on_sql
async def test_old_runs_are_forgotten(database: Database) -> None:
    """After ninety days a run and its batches are gone."""
    await seed_users(database, 6, TODAY)
    async with maintaining(database) as kit:
        for days in (0, 1, 60, 90.5):
            await kit.maintenance.run(NOW + timedelta(days=days))
        ages = [(run.day - TODAY).days for run in await kit.maintenance.history(10)]
    assert ages == [90, 60, 1]


@on_sqlite
async def test_a_run_that_nobody_took_up_ends_with_the_next_day(database: Database) -> None:
    """A run that a kill left as under way is abandoned by the next day's, which does its work."""
    await seed_users(database, 60, TODAY)
    left = await database.runs.begin(TODAY - timedelta(days=1), "cli", NOW - timedelta(days=1))
    async with maintaining(database) as kit:
        summary = await kit.maintenance.run(NOW)
        runs = await kit.maintenance.history(10)
    assert summary.run is not None
    assert [(run.id, run.state, run.error) for run in runs] == [
        (summary.run.id, "completed", None),
        (left.id, "failed", "abandoned"),
    ]
    await assert_each_once(database, 60, TODAY)
