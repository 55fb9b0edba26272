"""The maintenance in Firestore: large batches, what a run comes to while it runs, and what is forgotten."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta, timezone
from unittest import mock

import pytest
from google.cloud import firestore

from examples.streak import rules
from examples.streak.records import Message, Range, SettledBatch, Tally
from examples.streak.stores import Database, firestore_runs, open_database
from examples.streak.stores import firestore_documents as documents

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = date(2026, 3, 4)
DAY_BEFORE_YESTERDAY = TODAY - timedelta(days=2)


@pytest.fixture
async def opened(firestore_emulator) -> AsyncIterator[Database]:
    """An empty database."""
    with mock.patch.dict(os.environ, FIRESTORE_EMULATOR_HOST=firestore_emulator.address):
        database = open_database(f"firestore://tests-{uuid.uuid4().hex[:12]}")
    yield database
    await database.close()


async def seed(database: Database, count: int, state: rules.State) -> None:
    """Write so many users at once."""
    client: firestore.AsyncClient = database.measured[0]
    batch = client.batch()
    for number in range(count):
        name = f"user-{number:05}"
        user = {"name": name, "joined_on": "2026-03-01", "totals": {}, **documents.from_state(state)}
        batch.set(client.document(f"users/{name}"), user)
    await batch.commit()


FROZEN = rules.State(streak=5, longest=5, freezes=2, held_until=DAY_BEFORE_YESTERDAY, last_active=DAY_BEFORE_YESTERDAY)


async def test_a_batch_of_more_than_500(opened: Database) -> None:
    """A batch is one transaction, however many users it changes; each of them is changed once."""
    count = 510
    await seed(opened, count, FROZEN)
    run = await opened.runs.begin(TODAY, "cli", NOON)
    names = await opened.runs.due(TODAY, after="", until=None, limit=5_000)
    assert len(names) == count
    part = Range("", names[-1])
    batch = await opened.runs.settle(run.id, part, TODAY)
    assert batch.tally == Tally(processed=count, freezes_spent=count, at_risk=count)
    assert batch.changed == tuple(names)
    assert await opened.runs.settle(run.id, part, TODAY) == batch
    assert await opened.store.state(names[0]) == rules.settle(FROZEN, TODAY).state
    assert [(await opened.store.state(names[number])).freezes for number in (0, 499, 500, count - 1)] == [1] * 4


def test_a_batch_of_10_000_fits() -> None:
    """The largest batch that the settings allow is a document below 1 MiB, with the longest names."""
    names = [f"{number:032}" for number in range(10_000)]
    messages = tuple(Message(name, "at_risk") for name in names)
    fields = documents.from_batch(SettledBatch(Range("", names[-1]), Tally(10_000), messages, tuple(names)))
    # A text counts its bytes and one more.
    size_bytes = sum(len(name) + 1 for names in (fields["messages"]["at_risk"], fields["changed"]) for name in names)
    assert size_bytes + 2_000 < 2**20
    assert documents.to_messages(fields) == messages


async def test_a_dry_run_leaves_no_document(opened: Database) -> None:
    """A dry run needs no run, and writes nothing."""
    await seed(opened, 3, FROZEN)
    batch = await opened.runs.settle("none", Range("", "z"), TODAY, dry_run=True)
    assert batch.tally.freezes_spent == 3
    assert await opened.store.state("user-00000") == FROZEN
    client: firestore.AsyncClient = opened.measured[0]
    assert await client.collection("runs").get() == []
    assert await client.collection("runs/none/batches").get() == []


async def test_the_tally_of_a_run(opened: Database) -> None:
    """Under way a run is the sum of its batches; at its end the sum is written, and later messages are added to it."""
    await seed(opened, 4, FROZEN)
    run = await opened.runs.begin(TODAY, "cli", NOON)
    parts = [Range("", "user-00001"), Range("user-00001", "user-00003")]
    for part in parts:
        await opened.runs.settle(run.id, part, TODAY)
    await opened.runs.sent(run.id, parts[0], 2)
    (under_way,) = await opened.runs.history(5)
    expected = Tally(processed=4, freezes_spent=4, at_risk=4, notified=2)
    assert under_way.tally == expected
    assert (await opened.runs.end(run.id, NOON, "TimeoutError")).tally == expected
    client: firestore.AsyncClient = opened.measured[0]
    stored = (await client.document(f"runs/{run.id}").get()).to_dict()
    assert stored is not None
    assert documents.to_tally(stored["tally"]) == expected
    await opened.runs.sent(run.id, parts[1], 1)
    await opened.runs.sent(run.id, parts[1], 1)
    ended = await opened.runs.last_of(TODAY)
    assert ended is not None
    assert ended.tally == expected + Tally(notified=1)
    assert (await opened.runs.take_up(run.id)).tally == ended.tally
    assert await opened.runs.unsent(run.id, 5) == []


async def test_runs_with_many_batches_are_forgotten(opened: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes with its batches, some at a time, and nothing of it is left; newer ones stay."""
    monkeypatch.setattr(firestore_runs, "_FORGET_AT_ONCE", 2)
    client: firestore.AsyncClient = opened.measured[0]
    for batches in (0, 2, 5):
        run = await opened.runs.begin(TODAY, "cli", NOON)
        for number in range(batches):
            await opened.runs.settle(run.id, Range(f"{number}", f"{number + 1}"), TODAY)
    kept = await opened.runs.begin(TODAY, "cli", NOON + timedelta(days=1))
    await opened.runs.settle(kept.id, Range("", "a"), TODAY)
    assert await opened.runs.forget_runs(NOON + timedelta(hours=1)) == 3
    assert [each.id for each in await client.collection("runs").get()] == [kept.id]
    assert await client.collection(f"runs/{run.id}/batches").get() == []
    assert await opened.runs.done(kept.id) == [Range("", "a")]
    assert await opened.runs.forget_runs(NOON + timedelta(hours=1)) == 0
