"""Firestore transactions: what they do, their outcome, and their attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import firestore as library

from otel_perf import conventions as c
from otel_perf import instrument
from otel_perf.telemetry import operation
from tests.firestore import Front, async_client, client, front


@pytest.fixture(scope="module")
def before(firestore_emulator) -> Iterator[Front]:
    """A server before the emulator, which itself never aborts a transaction."""
    with front(firestore_emulator.address) as made:
        yield made


@pytest.fixture
def db(before, telemetry) -> Iterator[library.Client]:
    """A measured client."""
    before.planned.clear()
    with client(before.address, "transactions") as made, instrument(made):
        yield made


@library.transactional
def add_one(transaction, trip):
    points = trip.get(transaction=transaction).to_dict()["points"]
    transaction.update(trip, {"points": points + 1})
    return points + 1


def outcomes(telemetry) -> dict[tuple[str, str | None], int]:
    points = telemetry.points(c.TRANSACTION_DURATION.name, db__system__name="gcp.firestore")
    return {(p.attributes[c.DB_TRANSACTION_OUTCOME], p.attributes.get(c.ERROR_TYPE)): p.count for p in points}


def retries(telemetry) -> int:
    return sum(point.value for point in telemetry.points(c.TRANSACTION_RETRIES.name))


def test_a_transaction(telemetry, db):
    """One duration with its outcome, one span, and its reads and its commit as operations within."""
    trip = db.document("trips/one")
    trip.set({"points": 1})
    assert add_one(db.transaction(), trip) == 2
    assert trip.get().to_dict() == {"points": 2}
    assert outcomes(telemetry) == {("commit", None): 1}
    assert retries(telemetry) == 0
    around = telemetry.span("transaction")
    within = [span.name for span in telemetry.spans if span.parent and span.parent.span_id == around.context.span_id]
    assert within == ["get trips", "commit trips"]
    assert operation.current() is None


def test_attempts_are_counted(telemetry, db, before):
    """Each attempt after the first is a retry; the commits that were refused are failed operations."""
    trip = db.document("trips/one")
    trip.set({"points": 1})
    before.planned["Commit"] = [grpc.StatusCode.ABORTED, grpc.StatusCode.ABORTED]
    assert add_one(db.transaction(), trip) == 2
    assert outcomes(telemetry) == {("commit", None): 1}
    assert retries(telemetry) == 2
    assert telemetry.span("transaction").attributes["db.transaction.retries"] == 2
    failed = telemetry.points(c.QUERY_DURATION.name, db__operation__name="commit", error__type="ABORTED")
    assert [point.count for point in failed] == [2]


def test_attempts_that_are_used_up(telemetry, db, before):
    """The transaction has failed with the status of its last attempt."""
    trip = db.document("trips/one")
    trip.set({"points": 1})
    before.planned["Commit"] = [grpc.StatusCode.ABORTED] * 3
    with pytest.raises(ValueError, match="3 attempts"):
        add_one(db.transaction(max_attempts=3), trip)
    assert outcomes(telemetry) == {("rollback", "ABORTED"): 1}
    assert retries(telemetry) == 2


def test_other_failures(telemetry, db, before):
    """The function's own exception is the failure; so is a transaction that could not begin."""

    @library.transactional
    def broken(transaction):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        broken(db.transaction())
    before.planned["BeginTransaction"] = [grpc.StatusCode.PERMISSION_DENIED]
    with pytest.raises(ValueError, match="roll"):
        broken(db.transaction())
    assert outcomes(telemetry) == {("rollback", "LookupError"): 1, ("rollback", "PERMISSION_DENIED"): 1}


def test_an_error_of_ones_own(telemetry, db):
    """A `ValueError` that the function raises is that, also where it handles an error of the library."""

    @library.transactional
    def refuse(transaction):
        try:
            db.document("trips/missing").update({"points": 1})
        except exceptions.NotFound:
            raise ValueError("the amount is wrong")  # noqa: B904  # as careless code does

    with pytest.raises(ValueError, match="amount"):
        refuse(db.transaction())
    assert outcomes(telemetry) == {("rollback", "ValueError"): 1}


def test_whose_attempt_it_is(telemetry, before, db):
    """A transaction of a client that is not measured, within one that is, is no attempt of that one."""

    @library.transactional
    def inner(transaction):
        return transaction.id

    @library.transactional
    def outer(transaction, other):
        return inner(other.transaction())

    with client(before.address, "not-measured") as other:
        assert outer(db.transaction(), other)
    assert outcomes(telemetry) == {("commit", None): 1}
    assert retries(telemetry) == 0


def test_async_transactions(telemetry, before):
    """The same of the async client; cancelled it is rolled back and leaves nothing current."""
    before.planned.clear()

    @library.async_transactional
    async def add(transaction, trip):
        found = await trip.get(transaction=transaction)
        transaction.update(trip, {"points": found.to_dict()["points"] + 1})

    @library.async_transactional
    async def wait(transaction, waiting):
        waiting.set()
        await asyncio.sleep(30)

    async def main() -> None:
        async with async_client(before.address, "async-transactions") as db:
            with instrument(db):
                trip = db.document("trips/one")
                await trip.set({"points": 1})
                before.planned["Commit"] = [grpc.StatusCode.ABORTED]
                await add(db.transaction(), trip)
                assert (await trip.get()).to_dict() == {"points": 2}
                waiting = asyncio.Event()
                task = asyncio.create_task(wait(db.transaction(), waiting))
                await waiting.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert operation.current() is None

    asyncio.run(main())
    cancelled = "asyncio.exceptions.CancelledError"
    assert outcomes(telemetry) == {("commit", None): 1, ("rollback", cancelled): 1}
    assert retries(telemetry) == 1


def test_many_threads_share_a_function(telemetry, before):
    """The library keeps attempts on the function, which threads share; ours are of each call."""
    before.planned.clear()
    from concurrent.futures import ThreadPoolExecutor

    with client(before.address, "threads") as db, instrument(db):
        trips = [db.document(f"trips/{each}") for each in range(8)]
        for trip in trips:
            trip.set({"points": 0})
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda trip: add_one(db.transaction(), trip), trips))
    assert outcomes(telemetry) == {("commit", None): 8}
    assert retries(telemetry) == 0


def test_a_write_without_a_transaction_function(telemetry, db):
    """A transaction that is used as a batch is a commit, and a batch that fails is a failed one."""
    with db.batch() as batch:
        batch.set(db.document("trips/two"), {})
    second = db.batch()
    second.create(db.document("trips/two"), {})
    with pytest.raises(exceptions.AlreadyExists):
        second.commit()
    points = telemetry.points(c.QUERY_DURATION.name, db__operation__name="commit")
    assert sorted(str(point.attributes.get(c.ERROR_TYPE)) for point in points) == ["ALREADY_EXISTS", "None"]
