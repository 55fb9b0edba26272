"""Firestore's transactions: what is begun anew, what is given up, and that nothing is done twice.

A server before the emulator refuses commits on demand. The emulator itself never does: it keeps no transaction from
another, so races of real transactions are not shown here.
"""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import date, datetime, timedelta, timezone
from typing import Any
from unittest import mock

import grpc
import pytest
from google.api_core.exceptions import PermissionDenied

from examples.streak import rules
from examples.streak.records import Activity, Range
from examples.streak.stores import Database, StoreUnavailableError, firestore_calls, open_database
from tests.firestore import Front, Lost, front

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = date(2026, 3, 4)
ABORTED = grpc.StatusCode.ABORTED
LOST = Lost(grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.fixture
def before(firestore_emulator) -> Iterator[Front]:
    """A server before the emulator."""
    with front(firestore_emulator.address) as made:
        yield made


@pytest.fixture
async def opened(before: Front, telemetry) -> AsyncIterator[Database]:
    """An empty database behind that server."""
    with mock.patch.dict(os.environ, FIRESTORE_EMULATOR_HOST=before.address):
        database = open_database(f"firestore://tests-{uuid.uuid4().hex[:12]}")
    yield database
    await database.close()


def retries(telemetry) -> dict[str, int]:
    points = telemetry.points("streak.transaction.retries")
    return {point.attributes["operation"]: point.value for point in points}


def failures(telemetry) -> dict[tuple[str, str], int]:
    points = telemetry.points("streak.transaction.failures")
    return {(p.attributes["operation"], p.attributes["error.type"]): p.value for p in points}


async def until_seen(before: Front, call: str) -> None:
    """Waits for a call to arrive at the server, which has threads of its own."""
    while call not in before.seen:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def with_freezes(database: Database) -> date:
    """Lets ada earn a freeze in seven days; returns the day after."""
    for day in range(7):
        await database.store.log_activity("ada", Activity("learn", 10), NOON + timedelta(days=day))
    return TODAY + timedelta(days=7)


async def test_a_conflict_is_done_again(telemetry, opened: Database, before: Front) -> None:
    """A refused commit is begun anew, from the reads on; each time counts as a retry, and one activity is logged."""
    before.planned["Commit"] = [ABORTED, ABORTED]
    receipt = await opened.store.log_activity("ada", Activity("learn", 20), NOON)
    assert receipt.logged is not None
    assert before.seen.count("BatchGetDocuments") == 3
    assert retries(telemetry) == {"log_activity": 2}
    assert failures(telemetry) == {}
    assert [each.id for each in await opened.store.activities("ada", limit=5)] == [receipt.entry.id]
    assert await opened.store.state("ada") == receipt.state


async def test_conflicts_beyond_the_librarys_attempts(telemetry, opened: Database, before: Front) -> None:
    """After its five the library gives up; the transaction is begun anew after a pause."""
    before.planned["Commit"] = [ABORTED] * 6
    await opened.store.log_activity("ada", Activity("learn", 20), NOON)
    assert retries(telemetry) == {"log_activity": 6}
    assert failures(telemetry) == {}


async def test_a_conflict_without_end(telemetry, opened: Database, before: Front) -> None:
    """A transaction that loses each time is given up and counted once; nothing is written, no address is told."""
    before.planned["Commit"] = [ABORTED] * 100
    with pytest.raises(StoreUnavailableError, match=r"\AABORTED\Z") as caught:
        await opened.store.log_activity("ada", Activity("learn", 20), NOON)
    assert "user@example.com" not in "".join(traceback.format_exception(caught.value))
    assert retries(telemetry) == {"log_activity": 5 * firestore_calls.ATTEMPTS - 1}
    assert failures(telemetry) == {("log_activity", "Aborted"): 1}
    before.planned.clear()
    assert await opened.store.profile("ada") is None


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_lost_answer_logs_nothing_twice(telemetry, opened: Database, before: Front, key: str | None) -> None:
    """A commit that was made, and whose answer got lost, is recognised: one activity, and the receipt of the first."""
    before.planned["Commit"] = [LOST]
    receipt = await opened.store.log_activity("ada", Activity("learn", 20, client_key=key), NOON)
    assert receipt.logged is not None
    assert retries(telemetry) == {"log_activity": 1}
    (entry,) = await opened.store.activities("ada", limit=5)
    assert entry == receipt.entry
    assert (await opened.store.state("ada")).xp == receipt.entry.xp
    (day,) = await opened.store.calendar("ada", TODAY, TODAY)
    assert day.activities == 1
    (total,) = await opened.store.totals("ada")
    assert total.activities == 1


async def test_a_lost_answer_spends_nothing_twice(telemetry, opened: Database, before: Front) -> None:
    """A freeze whose answer got lost is applied once, and said to be."""
    today = await with_freezes(opened)
    before.planned["Commit"] = [LOST]
    applied = await opened.store.apply_freeze("ada", today)
    assert applied.applied
    assert retries(telemetry) == {"apply_freeze": 1}
    assert await opened.store.state("ada") == applied.state
    assert (await opened.store.apply_freeze("ada", today)).refusal == "day_is_held"


async def test_a_lost_answer_buys_nothing_twice(opened: Database, before: Front) -> None:
    """A recovery whose answer got lost is paid once, and said to have been made."""
    for day in range(2):
        await opened.store.log_activity("ada", Activity("learn", 10), NOON + timedelta(days=day))
    today = TODAY + timedelta(days=3)
    before.planned["Commit"] = [LOST]
    recovered = await opened.store.recover("ada", today)
    assert (recovered.recovered, recovered.paid_xp) == (2, 20)
    assert await opened.store.state("ada") == recovered.state


async def test_a_lost_answer_settles_nothing_twice(telemetry, opened: Database, before: Front) -> None:
    """A batch whose answer got lost is done once, and comes back as it was written."""
    await opened.store.log_activity("ada", Activity("learn", 20), NOON)
    run = await opened.runs.begin(TODAY, "cli", NOON)
    before.planned["Commit"] = [LOST]
    batch = await opened.runs.settle(run.id, Range("", "z"), TODAY + timedelta(days=2))
    assert (batch.tally.processed, batch.tally.missed, batch.changed) == (1, 1, ("ada",))
    assert retries(telemetry) == {"settle": 1}
    ended = await opened.runs.end(run.id, NOON)
    assert ended.tally == batch.tally


async def test_a_document_that_came_meanwhile(telemetry, opened: Database, before: Front) -> None:
    """Of two who log at once under one key, the later one is begun anew and gets the activity of the other."""
    waiting = threading.Event()
    before.planned["Commit"] = [waiting]
    slow = asyncio.create_task(opened.store.log_activity("ada", Activity("learn", 20, client_key="k"), NOON))
    await until_seen(before, "Commit")
    first = await opened.store.log_activity("ada", Activity("move", 30, client_key="k"), NOON)
    waiting.set()
    second = await slow
    assert first.logged is not None
    assert second.logged is None
    assert second.entry == first.entry
    assert retries(telemetry) == {"log_activity": 1}


async def test_a_refusal_is_not_repeated(telemetry, opened: Database, before: Front) -> None:
    """What will not pass by itself fails at once, as what it is; also where the library puts a ValueError before it."""
    for call in ("BeginTransaction", "Commit"):
        before.planned[call] = [grpc.StatusCode.PERMISSION_DENIED]
        with pytest.raises(PermissionDenied):
            await opened.store.log_activity("ada", Activity("learn", 20), NOON)
    assert retries(telemetry) == {}
    assert failures(telemetry) == {("log_activity", "PermissionDenied"): 2}


async def test_a_ping_that_is_refused(opened: Database, before: Front) -> None:
    """A database that refuses to answer is as good as none; a read that is refused fails as what it is."""
    await opened.store.ping()
    before.planned["BatchGetDocuments"] = [grpc.StatusCode.PERMISSION_DENIED] * 2
    with pytest.raises(StoreUnavailableError, match=r"\APERMISSION_DENIED\Z"):
        await opened.store.ping()
    with pytest.raises(PermissionDenied):
        await opened.store.state("ada")


async def test_an_error_of_the_caller(telemetry, opened: Database) -> None:
    """A run that is not there is the caller's error, and no failure of Firestore."""
    with pytest.raises(LookupError, match="there is no run nowhere"):
        await opened.runs.end("nowhere", NOON)
    assert retries(telemetry) == {}
    assert failures(telemetry) == {("end", "LookupError"): 1}


async def test_a_server_that_does_not_answer(
    telemetry, opened: Database, before: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads, pings and transactions have deadlines; after each attempt the next one begins, and then it is over."""
    monkeypatch.setattr(firestore_calls, "_PING_S", 0.05)
    waiting = threading.Event()
    before.planned["BatchGetDocuments"] = [waiting] * 20
    with pytest.raises(StoreUnavailableError, match="DEADLINE_EXCEEDED"):
        await opened.store.ping()
    calls: Any = opened.store._calls  # type: ignore[attr-defined]  # no other way to a shorter deadline

    async def read(transaction: Any) -> None:
        await calls.get(calls.client.document("users/ada"), transaction)

    with pytest.raises(StoreUnavailableError, match="DEADLINE_EXCEEDED"):
        await calls.write("reading", read, 0.05)
    assert retries(telemetry) == {"reading": firestore_calls.ATTEMPTS - 1}
    assert failures(telemetry) == {("reading", "TimeoutError"): 1}
    waiting.set()


async def test_cancelling_ends_the_waiting(opened: Database, before: Front) -> None:
    """Who is cancelled stops waiting at once, by the cancellation; what was begun ends when the database is closed."""
    waiting = threading.Event()
    tasks = asyncio.all_tasks()
    before.planned["BeginTransaction"] = [waiting]
    task = asyncio.create_task(opened.store.log_activity("ada", Activity("learn", 20), NOON))
    await until_seen(before, "BeginTransaction")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    waiting.set()
    await opened.close()
    assert asyncio.all_tasks() == tasks
    assert await with_a_new_one(before)


async def with_a_new_one(before: Front) -> bool:
    """A database that is opened afterwards works."""
    with mock.patch.dict(os.environ, FIRESTORE_EMULATOR_HOST=before.address):
        database = open_database(f"firestore://tests-{uuid.uuid4().hex[:12]}")
    receipt = await database.store.log_activity("ada", Activity("learn", 20), NOON)
    await database.close()
    return receipt.logged is not None


async def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server a ping says so, by the kind of failure; it names no address."""
    with mock.patch.dict(os.environ, FIRESTORE_EMULATOR_HOST="127.0.0.1:1"):
        database = open_database("firestore://tests")
    monkeypatch.setattr(firestore_calls, "_PING_S", 0.1)
    with pytest.raises(StoreUnavailableError, match=r"\A[A-Z_]+\Z"):
        await database.store.ping()
    await database.close()


async def test_the_span_of_the_rules(telemetry, opened: Database) -> None:
    """`update_weekly_consistency` is a span of its own, once for each activity."""
    await opened.store.log_activity("ada", Activity("learn", 20), NOON)
    assert [span.name for span in telemetry.spans].count("update_weekly_consistency") == 1
    assert rules.week_of(TODAY) == (await opened.store.state("ada")).week
