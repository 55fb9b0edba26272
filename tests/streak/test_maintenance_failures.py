"""What goes wrong in the maintenance is tried again, or ends the run so that it can be taken up where it was."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any
from unittest import mock

import psycopg
import pytest
from structlog.testing import capture_logs

from examples.streak import rules
from examples.streak.leases import hold, new_holder
from examples.streak.maintenance import Summary
from examples.streak.records import Range, Tally
from examples.streak.stores import Database, StoreBusyError, StoreUnavailableError, open_database
from tests.conftest import Telemetry
from tests.streak.maintaining import Kit, Meddled, assert_each_once, maintaining
from tests.streak.seeding import expected, seed_users

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = rules.day_of(NOW)
COUNT = 240
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


class BrokenError(Exception):
    """Nothing that may be over in a moment."""


async def _resume_and_check(database: Database, kit: Kit, failed: Summary, *, resumed: int = 1) -> None:
    """Whatever happened to the run, taking it up completes it, with each user accounted for once."""
    assert failed.run is not None
    summary = await kit.maintenance.resume(NOW)
    assert summary.run is not None
    assert (summary.run.id, summary.run.state, summary.run.resumed) == (failed.run.id, "completed", resumed)
    total = await assert_each_once(database, COUNT, TODAY)
    assert summary.tally == total
    assert total.notified == total.processed == len(kit.told)


@on_sqlite
async def test_transient_failures_are_tried_again(database: Database, telemetry: Telemetry) -> None:
    """A database that is away for a moment, for a batch and for the scanner, costs a run nothing but a pause."""
    await seed_users(database, COUNT, TODAY)
    fails = {"settle": 2, "due": 1}

    def failing(name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            if fails[name]:
                fails[name] -= 1
                raise StoreUnavailableError("OperationalError")
            return await getattr(database.runs, name)(*args, **kwargs)

        return call

    runs = Meddled(database.runs, settle=failing("settle"), due=failing("due"))
    async with maintaining(database, runs=runs, batch_size=50) as kit:
        with capture_logs() as lines:
            summary = await kit.maintenance.run(NOW)
    assert summary.run is not None
    assert summary.run.state == "completed"
    assert lines[-1]["errors"] == 3
    await assert_each_once(database, COUNT, TODAY)
    (point,) = telemetry.points("streak.maintenance.errors")
    assert (point.value, dict(point.attributes)) == (3, {"step": "settle", "error.type": "StoreUnavailableError"})


@on_postgresql
async def test_killed_connections(database: Database, postgresql_server: Any) -> None:
    """PostgreSQL ends all connections of a run, again and again; it goes on, and accounts for each user once."""
    await seed_users(database, COUNT, TODAY)
    name = database.measured[0].url.database
    killed = calls = 0

    def kill() -> int:
        with psycopg.connect(postgresql_server.dsn, autocommit=True) as connection:
            query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s"
            row = connection.execute(query, [name]).fetchone()
            assert row is not None
            return int(row[0])

    async def settle(run_id: str, part: Range, *args: Any, **kwargs: Any) -> Any:
        nonlocal killed, calls
        calls += 1
        if calls in {3, 10}:
            ended = await asyncio.to_thread(kill)
            killed += ended
        return await database.runs.settle(run_id, part, *args, **kwargs)

    async with maintaining(database, runs=Meddled(database.runs, settle=settle), batch_size=20) as kit:
        summary = await kit.maintenance.run(NOW)
    assert killed
    assert summary.run is not None
    assert summary.run.state == "completed"
    assert summary.tally == await assert_each_once(database, COUNT, TODAY)


@on_sqlite
async def test_batch_that_fails_for_good(database: Database, telemetry: Telemetry) -> None:
    """One batch that fails keeps nobody behind it waiting; the run says how many are left, and a resume does those."""
    await seed_users(database, COUNT, TODAY)
    refused: list[Range] = []

    async def settle(run_id: str, part: Range, *args: Any, **kwargs: Any) -> Any:
        if not refused:
            refused.append(part)
        if part in refused and broken and not kwargs.get("dry_run"):
            raise BrokenError("with a secret in it")
        if not broken:
            resumed.append(part)
        return await database.runs.settle(run_id, part, *args, **kwargs)

    broken, resumed = True, list[Range]()
    runs = Meddled(database.runs, settle=settle)
    async with maintaining(database, runs=runs, batch_size=10, batches_in_flight=3) as kit:
        with capture_logs() as lines:
            failed = await kit.maintenance.run(NOW)
        assert failed.run is not None
        assert (failed.run.state, failed.run.error, failed.users_left) == ("failed", "BrokenError", 10)
        assert failed.tally.processed == expected(COUNT, TODAY)[0].processed - 10
        assert lines[-1]["event"] == "Daily streak maintenance failed"
        assert lines[-1]["log_level"] == "error"
        assert (lines[-1]["error"], lines[-1]["users_left"]) == ("BrokenError", 10)
        assert "secret" not in str(lines)
        jobs = telemetry.points("background.job.duration")
        assert [dict(point.attributes)["error.type"] for point in jobs] == ["BrokenError"]
        # What a run would do now is just that.
        assert (await kit.maintenance.run(NOW, dry_run=True)).tally.processed == 10
        broken = False
        resumed.clear()
        await _resume_and_check(database, kit, failed)
        assert resumed == refused
        assert (await kit.maintenance.run(NOW, dry_run=True)).tally == Tally()


@on_postgresql
async def test_locked_row(database: Database, postgresql_server: Any) -> None:
    """Rows that somebody else has locked are waited for, longer than a transaction does by itself."""
    await seed_users(database, COUNT, TODAY)
    name = database.measured[0].url.database
    refusals: list[BaseException] = []

    async def settle(*args: Any, **kwargs: Any) -> Any:
        try:
            return await opened.runs.settle(*args, **kwargs)
        except StoreBusyError as busy:
            refusals.append(busy)
            await locking.rollback()
            raise

    async with await psycopg.AsyncConnection.connect(postgresql_server.dsn, dbname=name) as locking:
        await locking.execute("SELECT 1 FROM streak_users FOR UPDATE")
        with mock.patch("examples.streak.stores.sql_session._LOCK_TIMEOUT_S", 0.05):
            opened = open_database(database.measured[0].url.render_as_string(hide_password=False))
        try:
            async with maintaining(opened, runs=Meddled(opened.runs, settle=settle), batch_size=50) as kit:
                summary = await kit.maintenance.run(NOW)
        finally:
            await opened.close()
    assert {type(refusal) for refusal in refusals} == {StoreBusyError}
    assert summary.run is not None
    assert (summary.run.state, summary.users_left) == ("completed", 0)


@on_sqlite
async def test_interrupted_run(database: Database, telemetry: Telemetry) -> None:
    """A run that is cancelled gives the lease back, says that it was interrupted, and the next one takes it up."""
    await seed_users(database, COUNT, TODAY)
    under_way = asyncio.Event()

    async def settle(*args: Any, **kwargs: Any) -> Any:
        batch = await database.runs.settle(*args, **kwargs)
        under_way.set()
        await asyncio.sleep(0.001)
        return batch

    runs = Meddled(database.runs, settle=settle)
    async with maintaining(database, runs=runs, batch_size=10, batches_in_flight=2) as kit:
        for resumed in range(2):
            under_way.clear()
            task = asyncio.create_task(kit.maintenance.run(NOW))
            await under_way.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            (run,) = await kit.maintenance.history(10)
            assert (run.state, run.error, run.resumed) == ("failed", "interrupted", resumed)
        async with hold(database.runs, NOW):
            pass
        summary = await kit.maintenance.run(NOW)
        assert summary.run is not None
        assert (summary.run.state, summary.run.resumed) == ("completed", 2)
        total = await assert_each_once(database, COUNT, TODAY)
        assert len(kit.told) == total.processed
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "streak lease"]


@on_sqlite
async def test_lost_lease_stops_a_run(database: Database) -> None:
    """Whoever finds the lease with somebody else begins no further batch, and leaves the run to them."""
    await seed_users(database, COUNT, TODAY)
    calls, thief = 0, ""

    async def settle(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls, thief
        calls += 1
        batch = await database.runs.settle(*args, **kwargs)
        if calls == 2:
            thief = new_holder()
            await database.runs.lease(thief, datetime.now(timezone.utc) + timedelta(hours=1), 60)
            await asyncio.sleep(0.2)  # long enough for this one to hear of it
        return batch

    runs, lease = Meddled(database.runs, settle=settle), {"extend_every_s": 0.01}
    async with maintaining(database, runs=runs, lease=lease, batch_size=10, batches_in_flight=1) as kit:
        failed = await kit.maintenance.run(NOW)
        assert failed.run is not None
        assert (failed.run.state, failed.run.error) == ("failed", "LeaseLostError")
        assert calls == 2
        assert failed.tally.processed == 20
        # What is written says nothing of it: the run is the new holder's.
        assert [(run.state, run.error) for run in await kit.maintenance.history(10)] == [("running", None)]
    await database.runs.release(thief)
    after = NOW + timedelta(hours=2)
    async with maintaining(database, batch_size=10) as kit:
        summary = await kit.maintenance.run(after)
        assert summary.run is not None
        assert (summary.run.id, summary.run.resumed) == (failed.run.id, 1)
    await assert_each_once(database, COUNT, TODAY)


@on_sqlite
async def test_lease_that_runs_out_stops_a_run(database: Database) -> None:
    """A run whose lease cannot be extended ends before its next batch, since somebody else may have it by then."""
    await seed_users(database, COUNT, TODAY)
    leased = 0

    async def lease(*args: Any, **kwargs: Any) -> Any:
        nonlocal leased
        leased += 1
        if leased > 1:
            raise StoreUnavailableError("OperationalError")
        return await database.runs.lease(*args, **kwargs)

    async def settle(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(1.3)
        return await database.runs.settle(*args, **kwargs)

    runs = Meddled(database.runs, lease=lease, settle=settle)
    quick = {"ttl_s": 1.0, "extend_every_s": 0.2}
    async with maintaining(database, runs=runs, lease=quick, batch_size=10, batches_in_flight=1) as kit:
        failed = await kit.maintenance.run(NOW)
    assert failed.run is not None
    assert (failed.run.error, failed.tally.processed) == ("LeaseLostError", 10)


@on_sqlite
async def test_database_that_is_gone_for_good(database: Database) -> None:
    """When not even the failure can be written, the answer still is a run that failed, with what was done of it."""
    await seed_users(database, COUNT, TODAY)

    async def end(*_: Any, **__: Any) -> Any:
        raise BrokenError

    async with maintaining(database, runs=Meddled(database.runs, end=end), batch_size=50) as kit:
        failed = await kit.maintenance.run(NOW)
        assert failed.run is not None
        assert (failed.run.state, failed.run.error) == ("failed", "BrokenError")
        assert failed.tally.processed == expected(COUNT, TODAY)[0].processed
    async with maintaining(database) as kit:
        summary = await kit.maintenance.run(NOW)
        assert summary.run is not None
        assert summary.run.state == "completed"
    await assert_each_once(database, COUNT, TODAY)
