"""Firestore: reads, writes, queries, streams and failures, sync and async, against an emulator."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import firestore as library
from google.cloud.firestore_v1.base_query import FieldFilter, Or
from google.cloud.firestore_v1.base_vector_query import DistanceMeasure
from google.cloud.firestore_v1.query_profile import ExplainOptions
from google.cloud.firestore_v1.types import (
    BatchWriteResponse,
    Cursor,
    ExplainMetrics,
    ListCollectionIdsResponse,
    ListDocumentsResponse,
    PartitionQueryResponse,
    RunQueryResponse,
)
from google.cloud.firestore_v1.types.write import WriteResult
from google.cloud.firestore_v1.vector import Vector
from google.rpc.status_pb2 import Status

from otel_perf import conventions as c
from otel_perf import instrument, measure
from otel_perf.telemetry import operation
from tests.firestore import Front, async_client, client, front

SECRET = "user@example.com"


@pytest.fixture(scope="module")
def before(firestore_emulator) -> Iterator[Front]:
    """A server before the emulator."""
    with front(firestore_emulator.address) as made:
        yield made


@pytest.fixture
def db(before, telemetry, request) -> Iterator[library.Client]:
    """A measured client of a project of its own."""
    before.seen.clear()
    before.planned.clear()
    with client(before.address, f"p-{abs(hash(request.node.name))}") as made, instrument(made):
        yield made


def counts(telemetry, **labels: Any) -> dict[tuple[Any, ...], int]:
    points = telemetry.points(c.QUERY_DURATION.name, **labels)
    keys = (c.DB_OPERATION, c.DB_COLLECTION, c.ERROR_TYPE)
    return {tuple(point.attributes.get(key) for key in keys): point.count for point in points}


def test_reads_and_writes(telemetry, db):
    """Each call is one operation, named by what it does to which collection, though a gRPC call serves several."""
    trip = db.collection("trips").document("one")
    trip.create({"points": 1})
    trip.set({"points": 2})
    trip.update({"points": 3})
    assert trip.get().to_dict() == {"points": 3}
    trip.delete()
    assert not trip.get().exists
    db.collection("trips").add({"points": 4})
    names = ("create", "set", "update", "delete", "add")
    assert counts(telemetry) == {**{(name, "trips", None): 1 for name in names}, ("get", "trips", None): 2}
    read = next(span for span in telemetry.spans if span.name == "get trips")
    assert read.attributes[c.DB_SYSTEM] == "gcp.firestore"
    assert read.attributes["gcp.client.service"] == "firestore"
    assert read.attributes[c.DB_NAMESPACE] == "(default)"
    assert read.attributes[c.SERVER_ADDRESS] == "127.0.0.1"
    assert read.attributes[c.SERVER_PORT] > 0
    rows = [span.attributes[c.DB_ROWS] for span in telemetry.spans if span.name == "get trips"]
    assert rows == [1, 0]


def test_subcollections_have_a_template(telemetry, db):
    """The ids of documents are no part of the name, however deep a collection lies."""
    for user in range(50):
        db.document(f"users/{user}/activities/{user}").set({"n": user})
    db.document(f"users/{SECRET}/activities/1/laps/7").set({})
    assert counts(telemetry) == {
        ("set", "users/{id}/activities", None): 50,
        ("set", "users/{id}/activities/{id}/laps", None): 1,
    }
    assert all(SECRET not in str(span.attributes) for span in telemetry.spans)


def test_queries_show_their_shape(telemetry, db):
    """Filters, orders and limits are on the span, values are not."""
    trips = db.collection("trips")
    for points in range(5):
        trips.document(str(points)).set({"points": points, "owner": SECRET})
    query = trips.where(filter=FieldFilter("points", ">", 1)).where(filter=FieldFilter("owner", "==", SECRET))
    answer = query.order_by("points", direction="DESCENDING").limit(2).get()
    assert [found.id for found in answer] == ["4", "3"]
    span = telemetry.span("query trips")
    expected = "FROM trips WHERE points > ? AND owner = ? ORDER BY points DESC LIMIT ?"
    assert span.attributes[c.DB_QUERY_TEXT] == expected
    assert span.attributes[c.DB_ROWS] == 2
    assert SECRET not in str(span.attributes)


def test_other_queries(telemetry, db):
    """Aggregations, groups of collections, whole collections and filters within filters."""
    db.document("users/a/activities/1").set({"n": 5})
    activities = db.collection("users/a/activities")
    found = activities.count(alias="all").sum("n", alias="sum").get()
    assert {each.alias: each.value for each in found[0]} == {"all": 1, "sum": 5}
    assert [found.id for found in activities.stream()] == ["1"]
    either = Or([FieldFilter("n", "in", [5, 6]), FieldFilter("gone", "==", None)])
    list(db.collection_group("activities").where(filter=either).stream())
    assert counts(telemetry) == {
        ("set", "users/{id}/activities", None): 1,
        ("aggregate", "users/{id}/activities", None): 1,
        ("query", "users/{id}/activities", None): 1,
        ("query", "activities", None): 1,
    }
    texts = [span.attributes.get(c.DB_QUERY_TEXT) for span in telemetry.spans]
    assert texts[1] == "SELECT COUNT(), SUM(n) FROM users/{id}/activities"
    assert texts[3] == "FROM activities WHERE (n IN ? OR gone IS NULL)"


def test_the_nearest_vectors(telemetry, db, before):
    """A search for neighbours is an operation of its own name; the vector is not on the span."""
    name = f"{db._database_string}/documents/trips/one"
    before.planned["RunQuery"] = [RunQueryResponse(document={"name": name})]
    search = db.collection("trips").find_nearest("v", Vector([0.25, 0.5]), 3, DistanceMeasure.COSINE)
    assert [found.id for found in search.get()] == ["one"]
    assert counts(telemetry) == {("find_nearest", "trips", None): 1}
    span = telemetry.span("find_nearest trips")
    assert (span.attributes[c.DB_QUERY_TEXT], span.attributes[c.DB_ROWS]) == ("FROM trips NEAREST ?", 1)


def test_many_at_once(telemetry, db):
    """`get_all` and a batch are one operation each, with the number of documents; several collections have no name."""
    trips = [db.document(f"trips/{each}") for each in range(3)]
    batch = db.batch()
    for trip in trips[:2]:
        batch.set(trip, {})
    batch.commit()
    assert len(list(db.get_all(trips))) == 3
    assert len(list(db.get_all(references=iter(trips[:1])))) == 1  # what can be read only once is left to the library
    mixed = db.batch()
    mixed.delete(trips[0])
    mixed.delete(db.document("users/a"))
    mixed.commit()
    assert counts(telemetry) == {
        ("commit", "trips", None): 1,
        ("get", "trips", None): 1,
        ("get", None, None): 1,
        ("commit", None, None): 1,
    }
    assert [span.attributes.get(c.DB_BATCH_SIZE) for span in telemetry.spans] == [2, 3, None, 2]


def test_lists_of_documents_and_collections(telemetry, db, before):
    """They are measured over all their pages, and end where nobody asks for the first one."""
    name = f"{db._database_string}/documents/trips/one"
    before.planned["ListDocuments"] = [ListDocumentsResponse(documents=[{"name": name}]), ListDocumentsResponse()]
    before.planned["ListCollectionIds"] = [ListCollectionIdsResponse(collection_ids=["trips"])]
    assert [found.id for found in db.collection("trips").list_documents()] == ["one"]
    db.collection("trips").list_documents()
    assert [found.id for found in db.collections()] == ["trips"]
    gc.collect()
    assert counts(telemetry) == {("list_documents", "trips", None): 2, ("list_collections", None, None): 1}
    before.planned["ListDocuments"] = [grpc.StatusCode.PERMISSION_DENIED]
    with pytest.raises(exceptions.PermissionDenied):
        db.collection("trips").list_documents()
    assert counts(telemetry)[("list_documents", "trips", "PERMISSION_DENIED")] == 1
    assert operation.current() is None


def test_partitions(telemetry, db, before, firestore_emulator):
    """How a group of collections is divided is a call of its own, sync and async."""
    name = f"{db._database_string}/documents/users/a/activities/1"
    answer = PartitionQueryResponse(partitions=[Cursor(values=[{"reference_value": name}])])
    before.planned["PartitionQuery"] = [answer, grpc.StatusCode.PERMISSION_DENIED, answer]
    assert len(list(db.collection_group("activities").get_partitions(3))) == 2
    with pytest.raises(exceptions.PermissionDenied):
        list(db.collection_group("activities").get_partitions(3))

    async def main() -> None:
        async with async_client(before.address, db.project) as later:
            with instrument(later):
                assert len([each async for each in later.collection_group("activities").get_partitions(3)]) == 2

    asyncio.run(main())
    assert counts(telemetry) == {
        ("partition_query", "activities", None): 2, ("partition_query", "activities", "PERMISSION_DENIED"): 1,
    }  # fmt: skip
    assert telemetry.spans[0].attributes[c.DB_ROWS] == 2


def test_queries_that_explain_themselves(telemetry, before, firestore_emulator):
    """What an async query tells of itself is no document, and the operation has ended when it was told."""
    left: list[Any] = []

    async def main() -> None:
        async with async_client(before.address, "explained") as db:
            with instrument(db):
                name = f"{db._database_string}/documents/trips/one"
                metrics = ExplainMetrics(execution_stats={"results_returned": 1})
                before.planned["RunQuery"] = [RunQueryResponse(document={"name": name}, explain_metrics=metrics)]
                stream = db.collection("trips").order_by("a").stream(explain_options=ExplainOptions(analyze=True))
                assert len([found async for found in stream]) == 1
                left.extend(span.attributes[c.DB_ROWS] for span in telemetry.spans)
                assert await stream.get_explain_metrics()

    asyncio.run(main())
    assert left == [1]
    assert counts(telemetry) == {("query", "trips", None): 1}


def test_bulk_writers_of_async_clients(telemetry, before, firestore_emulator):
    """They use a sync copy of their client, which is measured where that is, and not where it is not."""

    async def main() -> None:
        async with async_client(before.address, "copies") as db, async_client(before.address, "others") as other:
            with instrument(db):
                for each in (db, other):
                    answer = BatchWriteResponse(write_results=[WriteResult()], status=[Status()])
                    before.planned["BatchWrite"] = [answer]
                    with mock.patch.dict(os.environ, FIRESTORE_EMULATOR_HOST=before.address):
                        writer = each.bulk_writer()
                    writer.set(each.document("trips/one"), {})
                    writer.close()
                    each._sync_copy._firestore_api.transport.grpc_channel.close()

    asyncio.run(main())
    assert counts(telemetry) == {("batch_write", "trips", None): 1}


def test_bulk_writers(telemetry, db, before):
    """Each batch that a bulk writer sends is an operation; it has failed where one of its writes has."""
    outcomes = [Status(code=0), Status(code=7, message=SECRET)]
    before.planned["BatchWrite"] = [BatchWriteResponse(write_results=[WriteResult(), WriteResult()], status=outcomes)]
    writer = db.bulk_writer()
    writer.on_write_error(lambda *_: False)
    for each in range(2):
        writer.set(db.document(f"trips/{each}"), {})
    writer.close()
    assert counts(telemetry) == {("batch_write", "trips", "PERMISSION_DENIED"): 1}
    assert telemetry.span("batch_write trips").attributes[c.DB_BATCH_SIZE] == 2


def test_failures(telemetry, db, before):
    """N calls that fail give N failed measurements, by the status of gRPC; retries within the library are one."""
    trip = db.document("trips/one")
    trip.create({})
    for _ in range(3):
        with pytest.raises(exceptions.AlreadyExists):
            trip.create({"owner": SECRET})
    before.planned["RunQuery"] = [grpc.StatusCode.PERMISSION_DENIED]
    with pytest.raises(exceptions.PermissionDenied):
        db.collection("trips").get()
    before.planned["BatchGetDocuments"] = [grpc.StatusCode.UNAVAILABLE]
    before.seen.clear()
    assert trip.get().exists
    assert before.seen == ["BatchGetDocuments"] * 2
    assert counts(telemetry) == {
        ("create", "trips", None): 1,
        ("create", "trips", "ALREADY_EXISTS"): 3,
        ("query", "trips", "PERMISSION_DENIED"): 1,
        ("get", "trips", None): 1,
    }
    failed = telemetry.span("query trips")
    assert failed.attributes[c.DB_STATUS] == failed.attributes[c.ERROR_TYPE] == "PERMISSION_DENIED"
    assert SECRET not in str([event.attributes for event in failed.events])


def test_a_stream_that_is_left_early(telemetry, db):
    """It ends there, as no failure, with what it gave; nothing is current between its documents."""
    for each in range(4):
        db.document(f"trips/{each}").set({})
    stream = db.collection("trips").stream()
    next(stream)
    assert operation.current() is None
    next(stream)
    stream.close()
    assert counts(telemetry)[("query", "trips", None)] == 1
    assert telemetry.span("query trips").attributes[c.DB_ROWS] == 2
    never = db.collection("trips").stream()  # never asked, never sent
    del never
    assert counts(telemetry)[("query", "trips", None)] == 1


def test_async_calls(telemetry, before, firestore_emulator):
    """The same of the async client: reads, writes, queries, streams left early, failures."""

    async def main() -> None:
        async with async_client(before.address, "async") as db:
            with instrument(db):
                trips = db.collection("trips")
                for each in range(3):
                    await trips.document(str(each)).set({"n": each})
                await trips.document("0").update({"n": 1})
                assert (await trips.document("0").get()).exists
                assert len(await trips.where(filter=FieldFilter("n", ">=", 1)).get()) == 3
                stream = trips.stream()
                await stream.__anext__()
                assert operation.current() is None
                await stream.aclose()
                assert (await trips.count().get())[0][0].value == 3
                assert len([found async for found in db.get_all([trips.document("0")])]) == 1
                batch = db.batch()
                batch.delete(trips.document("0"))
                await batch.commit()
                with pytest.raises(exceptions.AlreadyExists):
                    await trips.document("1").create({})

    asyncio.run(main())
    assert counts(telemetry) == {
        ("set", "trips", None): 3, ("update", "trips", None): 1, ("get", "trips", None): 2,
        ("query", "trips", None): 2, ("aggregate", "trips", None): 1, ("commit", "trips", None): 1,
        ("create", "trips", "ALREADY_EXISTS"): 1,
    }  # fmt: skip
    assert [span.attributes[c.DB_ROWS] for span in telemetry.spans if span.name == "query trips"] == [3, 1]


def test_async_streams_that_are_cancelled(telemetry, before):
    """A task that is cancelled while it waits for a document leaves nothing current and is counted as cancelled."""
    held = threading.Event()
    left: list[Any] = []

    async def main() -> None:
        async with async_client(before.address, "cancelled") as db:
            with instrument(db):
                before.planned["RunQuery"] = [held]

                async def read() -> None:
                    try:
                        async for _ in db.collection("trips").stream():
                            pass
                    finally:
                        left.append(operation.current())

                task = asyncio.create_task(read())
                while before.planned["RunQuery"]:  # noqa: ASYNC110  # a thread of the server takes it
                    await asyncio.sleep(0.01)
                task.cancel()
                held.set()
                with pytest.raises(asyncio.CancelledError):
                    await task

    asyncio.run(main())
    assert left == [None]
    assert counts(telemetry) == {("query", "trips", "asyncio.exceptions.CancelledError"): 1}


def test_the_outermost_measures(telemetry, db):
    """Within a query that somebody else measures, nothing is counted twice."""
    trip = db.document("trips/one")
    with measure.query("load", collection="trips", system="own"):
        trip.set({})
        assert trip.get().exists
        list(db.collection("trips").stream())
    assert counts(telemetry) == {("load", "trips", None): 1}
    assert len(telemetry.spans) == 1


def test_reads_one_by_one_are_told(telemetry, db):
    """Documents of one collection that are read one after another within a request are a candidate for `get_all`."""
    with measure.request("GET", "/trips"):
        for each in range(7):
            db.document(f"trips/{each}").get()
    (point,) = telemetry.points(c.QUERY_REPEATED.name, db__system__name="gcp.firestore")
    assert (point.attributes[c.DB_OPERATION], point.attributes[c.DB_COLLECTION]) == ("get", "trips")


def test_other_clients_are_left_alone(telemetry, before, db):
    """Where one client is measured another is not; as a whole all are."""
    with client(before.address, "other") as other:
        other.document("trips/one").set({})
        assert counts(telemetry) == {}
        with instrument("firestore"):
            other.document("trips/one").set({})
    assert counts(telemetry) == {("set", "trips", None): 1}


def test_many_collections_stay_bounded(telemetry, db):
    """Names beyond the limit of series go into the overflow; spans have names of bounded length."""
    db.document("x" * 1000, "one").get()
    telemetry.restart(cardinality_limit=20)
    for each in range(60):
        db.document(f"tenant-{each}", "one").get()
    points = telemetry.points(c.QUERY_DURATION.name)
    assert len(points) <= 21
    assert sum(point.count for point in points) == 60
    assert all(len(span.name) <= 256 for span in telemetry.spans)
