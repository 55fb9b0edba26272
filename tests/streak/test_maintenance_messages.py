"""Messages of the maintenance arrive at least once, on the day that they are about, or not at all."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from examples.streak import rules
from examples.streak.push import create_push_app
from examples.streak.stores import Database, StoreUnavailableError
from tests.conftest import Telemetry
from tests.streak.maintaining import Meddled, assert_each_once, maintaining
from tests.streak.seeding import expected, seed_users

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)]

NOW = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = rules.day_of(NOW)
COUNT = 240


class _Switched(httpx.AsyncBaseTransport):
    """The network to a push API, which may be down."""

    def __init__(self) -> None:
        self.app = create_push_app(delay_s=0, keep=10_000)
        self._inner = httpx.ASGITransport(self.app)
        self.down = True
        self.calls = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        if self.down:
            raise httpx.ConnectError("nobody listens")
        return await self._inner.handle_async_request(request)


async def test_push_api_is_down(database: Database, telemetry: Telemetry) -> None:
    """The circuit opens, the run completes without anybody told, and a later run of the day sends what was kept."""
    await seed_users(database, COUNT, TODAY)
    tally, network = expected(COUNT, TODAY)[0], _Switched()
    async with maintaining(database, transport=network, batch_size=10, batches_in_flight=2) as kit:
        with capture_logs() as lines:
            summary = await kit.maintenance.run(NOW)
        assert summary.run is not None
        assert (summary.run.state, summary.tally.notified) == ("completed", 0)
        assert 5 <= network.calls <= 6
        assert len(await database.runs.unsent(summary.run.id, 100)) == 16
        assert lines[-1]["errors"] == 16
        assert {dict(point.attributes)["step"] for point in telemetry.points("streak.maintenance.errors")} == {"notify"}
    await assert_each_once(database, COUNT, TODAY)
    network.down = False
    async with maintaining(database, transport=network) as kit:
        again = await kit.maintenance.run(NOW + timedelta(hours=1))
        assert again.repeated
        assert again.tally.notified == tally.processed
        told = [(message.user, message.kind) for message in network.app.state.recent]
        assert len(told) == len(set(told)) == tally.processed
        assert await database.runs.unsent(summary.run.id, 1) == []
        assert (await kit.maintenance.run(NOW + timedelta(hours=2))).tally == again.tally
        assert len(network.app.state.recent) == tally.processed


async def test_resume_sends_what_was_kept(database: Database) -> None:
    """Messages that are left of a completed run are something to resume."""
    await seed_users(database, COUNT, TODAY)
    network = _Switched()
    async with maintaining(database, transport=network, batch_size=50) as kit:
        await kit.maintenance.run(NOW)
    network.down = False
    # A process of its own, as a resume is: the circuit of the one before is open still.
    async with maintaining(database, transport=network, batch_size=50) as kit:
        resumed = await kit.maintenance.resume(NOW)
    assert resumed.repeated
    assert resumed.tally.notified == resumed.tally.processed == len(network.app.state.recent)


async def test_a_short_failure_is_made_good_at_the_end(database: Database) -> None:
    """What the push API did not take the first time is sent at the end of the same run."""
    await seed_users(database, COUNT, TODAY)
    network = _Switched()
    batches = 0

    async def settle(*args: Any, **kwargs: Any) -> Any:
        nonlocal batches
        batches += 1
        network.down = batches == 2
        return await database.runs.settle(*args, **kwargs)

    runs = Meddled(database.runs, settle=settle)
    async with maintaining(database, runs=runs, transport=network, batch_size=40, batches_in_flight=1) as kit:
        summary = await kit.maintenance.run(NOW)
    assert summary.tally.notified == summary.tally.processed == len(network.app.state.recent)


async def test_large_batches_are_told_a_hundred_at_a_time(database: Database) -> None:
    """A batch with more messages than a call may have is sent in several calls."""
    await seed_users(database, COUNT, TODAY)
    async with maintaining(database, batch_size=1_000) as kit:
        summary = await kit.maintenance.run(NOW)
        assert summary.tally.processed == 160
        assert len(kit.told) == 160


async def test_messages_of_an_older_day_are_dropped(database: Database) -> None:
    """That a streak was at risk yesterday is nothing to be told today."""
    await seed_users(database, COUNT, TODAY)
    network = _Switched()
    async with maintaining(database, transport=network, batch_size=50) as kit:
        first = await kit.maintenance.run(NOW)
    network.down = False
    async with maintaining(database, transport=network, batch_size=50) as kit:
        with capture_logs() as lines:
            second = await kit.maintenance.run(NOW + timedelta(days=1))
    assert first.run is not None
    assert await database.runs.unsent(first.run.id, 1) == []
    assert len(network.app.state.recent) == second.tally.notified == second.tally.processed
    (line,) = [line for line in lines if line["event"] == "Notifications of an older day dropped"]
    assert line["dropped"] == first.tally.processed


async def test_without_a_push_api_nothing_is_kept(database: Database) -> None:
    """Where nobody is there to be told, no messages pile up."""
    await seed_users(database, COUNT, TODAY)
    async with maintaining(database, push_url=None, batch_size=50) as kit:
        summary = await kit.maintenance.run(NOW)
    assert summary.run is not None
    assert summary.tally.notified == 0
    assert await database.runs.unsent(summary.run.id, 1) == []


async def test_told_and_not_written(database: Database) -> None:
    """Messages that arrived, which could not be written, are sent once more: the API knows the call."""
    await seed_users(database, COUNT, TODAY)

    failures = 1

    async def sent(*args: Any, **kwargs: Any) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise ValueError("not to be tried again")
        await database.runs.sent(*args, **kwargs)

    async with maintaining(database, runs=Meddled(database.runs, sent=sent), batch_size=40) as kit:
        summary = await kit.maintenance.run(NOW)
        assert summary.run is not None
        assert (summary.run.state, summary.tally.notified) == ("completed", summary.tally.processed)
        assert failures == 0
        assert set(kit.told.values()) == {1}
    await assert_each_once(database, COUNT, TODAY)


async def test_clearing_up_may_fail(database: Database) -> None:
    """That old runs could not be forgotten is counted, and does not fail a run."""
    await seed_users(database, COUNT, TODAY)

    async def forget_runs(*_: Any) -> int:
        raise StoreUnavailableError("OperationalError")

    async with maintaining(database, runs=Meddled(database.runs, forget_runs=forget_runs)) as kit:
        with capture_logs() as lines:
            summary = await kit.maintenance.run(NOW)
    assert summary.run is not None
    assert summary.run.state == "completed"
    assert lines[-1]["errors"] == 1
