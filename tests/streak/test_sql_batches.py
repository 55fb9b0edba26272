"""A batch that is being written keeps others from the lease, and from ranges that overlap it, until it is written."""

from __future__ import annotations

import asyncio
from datetime import date, datetime, timedelta, timezone

import pytest

from examples.streak.records import Activity, Range, Tally
from examples.streak.stores import Database, OverlapError, sql_batches

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True),
]

NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = date(2026, 3, 4)
# Long enough for whoever does not wait to be done.
A_WHILE_S = 0.2


async def test_nobody_takes_the_lease_while_a_batch_is_written(database: Database) -> None:
    """Whoever takes over a lease that ran out gets it after the batch is written, and finds that among what is done."""
    runs = database.runs
    run = await runs.begin(TODAY, "cli", NOON)
    await runs.lease("a", NOON, 60)
    part = Range("", "m")
    async with database.measured[0].begin() as connection:
        await sql_batches.account(connection, run.id, part, TODAY, "a")
        # Who cannot have it yet is told so without waiting.
        assert (await runs.lease("b", NOON, 60)).holder == "a"
        taking = asyncio.create_task(runs.lease("b", NOON + timedelta(seconds=60), 60))
        done, _ = await asyncio.wait({taking}, timeout=A_WHILE_S)
        assert not done
    assert (await taking).holder == "b"
    assert await runs.done(run.id) == [part]


async def test_a_range_waits_for_one_that_overlaps_it(database: Database) -> None:
    """While a range is being written, one that overlaps it waits, and is refused once the first is there."""
    runs = database.runs
    await database.store.log_activity("ada", Activity("learn", 1), NOON - timedelta(days=1))
    run = await runs.begin(TODAY, "cli", NOON)
    async with database.measured[0].begin() as connection:
        await sql_batches.account(connection, run.id, Range("", "m"), TODAY, None)
        second = asyncio.create_task(runs.settle(run.id, Range("a", "z"), TODAY))
        done, _ = await asyncio.wait({second}, timeout=A_WHILE_S)
        assert not done
    with pytest.raises(OverlapError):
        await second
    assert (await runs.end(run.id, NOON)).tally == Tally(processed=1, at_risk=1)
