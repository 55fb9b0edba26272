"""The composite indexes: each query that the store sends has one, and each index has a query."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from google.cloud.firestore_v1.types import RunAggregationQueryRequest, RunQueryRequest, StructuredQuery

from examples.streak.records import Activity, Range
from examples.streak.stores import Database, open_database
from tests.firestore import Front, front

FILE = Path(__file__).parents[2] / "examples/streak/stores/firestore.indexes.json"
NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = date(2026, 3, 4)

Ordered = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Need:
    """What a query asks of an index: fields that are compared with a value, in any order, and then those that sort."""

    collection: str
    equal: frozenset[str]
    sorted: Ordered

    @property
    def is_composite(self) -> bool:
        """One field has its own index; equal fields alone are answered by several of those."""
        return bool(self.sorted) and len(self.equal) + len(self.sorted) > 1

    @property
    def single(self) -> set[tuple[str, str]]:
        """The indexes of one field that it uses."""
        if self.is_composite:
            return set()
        return {(self.collection, name) for name in (*self.equal, *(name for name, _ in self.sorted))}


def filters(query: StructuredQuery) -> list[tuple[str, str]]:
    """The fields and operators of a query's filters."""
    where = query.where
    if "field_filter" in where:
        found = [where.field_filter]
    else:
        found = [each.field_filter for each in where.composite_filter.filters]
    return [(each.field.field_path, each.op.name) for each in found]


def need(query: StructuredQuery, sums: list[str]) -> Need:
    """Firestore sorts by what is asked for, then by the other fields with a range, then by those it adds up."""
    given = filters(query)
    equal = frozenset(name for name, operator in given if operator == "EQUAL")
    order = {each.field.field_path: each.direction.name for each in query.order_by}
    last = list(order.values())[-1] if order else "ASCENDING"
    for name in sorted({name for name, operator in given if operator != "EQUAL"} - set(order)):
        order[name] = last
    for name in sums:
        order.setdefault(name, "ASCENDING")
    return Need(query.from_[0].collection_id, equal, tuple(order.items()))


def needs(before: Front) -> set[Need]:
    """What all queries need that were sent."""
    found: set[Need] = set()
    for name, request in before.requests:
        if name == "RunQuery":
            query = RunQueryRequest.deserialize(request).structured_query
            assert not query.from_[0].all_descendants
            found.add(need(query, []))
        elif name == "RunAggregationQuery":
            aggregation = RunAggregationQueryRequest.deserialize(request).structured_aggregation_query
            assert len(aggregation.aggregations) <= 5, "Firestore takes five at most"
            sums = [each.sum.field.field_path for each in aggregation.aggregations if "sum" in each]
            found.add(need(aggregation.structured_query, sums))
    return found


def serves(index: dict[str, Any], wanted: Need) -> bool:
    fields = [(field["fieldPath"], field["order"]) for field in index["fields"]]
    first, rest = fields[: len(wanted.equal)], tuple(fields[len(wanted.equal) :])
    same = {name for name, _ in first} == wanted.equal and rest == wanted.sorted
    return same and index["collectionGroup"] == wanted.collection and index["queryScope"] == "COLLECTION"


@pytest.fixture
def before(firestore_emulator) -> Iterator[Front]:
    """A server before the emulator that keeps what is asked."""
    with front(firestore_emulator.address) as made:
        yield made


async def ask_everything(database: Database) -> None:
    """Call each method, with and without what it need not be given."""
    store, runs = database.store, database.runs
    receipt = await store.log_activity("ada", Activity("learn", 20, client_key="k"), NOON)
    await store.log_activity("ada", Activity("learn", 20, client_key="k"), NOON)
    await store.ping()
    await store.profile("ada")
    await store.state("ada")
    await store.activity("ada", receipt.entry.id)
    for cursor in (None, receipt.entry.id):
        await store.activities("ada", limit=5, before=cursor)
        await store.activities("ada", limit=5, before=cursor, category="learn")
    await store.calendar("ada", TODAY, TODAY)
    await store.totals("ada")
    await store.leaderboard(5, TODAY)
    await store.most_active(5)
    await store.report(TODAY)
    await store.kpis(TODAY)
    await store.apply_freeze("ada", TODAY)
    await store.recover("ada", TODAY)
    await runs.lease("one", NOON, 60)
    run = await runs.begin(TODAY, "cli", NOON)
    tomorrow = TODAY + timedelta(days=1)
    for until in (None, "z"):
        assert await runs.due(tomorrow, after="", until=until, limit=5) == ["ada"]
    part = Range("", "ada")
    await runs.settle(run.id, part, tomorrow, dry_run=True)
    await runs.settle(run.id, part, tomorrow)
    await runs.done(run.id)
    await runs.unsent(run.id, 5)
    await runs.sent(run.id, part, 1)
    await runs.end(run.id, NOON, "TimeoutError")
    await runs.take_up(run.id)
    await runs.last_of(TODAY)
    for cursor in (None, run.id):
        await runs.history(5, cursor)
    await runs.release("one")
    assert await runs.forget_runs(NOON + timedelta(days=1)) == 1


@pytest.mark.anyio
async def test_each_query_has_its_index(before: Front) -> None:
    """The composite indexes in the file are those that the queries need, no more and no fewer."""
    with mock.patch.dict(os.environ, FIRESTORE_EMULATOR_HOST=before.address):
        database = open_database(f"firestore://indexes-{uuid.uuid4().hex[:8]}")
    try:
        await ask_everything(database)
    finally:
        await database.close()
    wanted = needs(before)
    assert len(wanted) > 15
    declared = json.loads(FILE.read_text())
    without = [each for each in wanted if each.is_composite and not any(serves(i, each) for i in declared["indexes"])]
    assert not without, "queries without an index"
    idle = [i for i in declared["indexes"] if not any(each.is_composite and serves(i, each) for each in wanted)]
    assert not idle, "indexes without a query"
    exempt = {(each["collectionGroup"], each["fieldPath"]) for each in declared["fieldOverrides"]}
    used = set().union(*(each.single for each in wanted))
    assert ("users", "longest") in used
    assert not used & exempt, "queries whose index is switched off"
    assert ("activities", "note") in exempt


def test_what_needs_an_index() -> None:
    """The rule itself: what one field answers needs none, a filter and an order of two fields do."""

    def of(**fields: Any) -> Need:
        return Need("users", frozenset(fields.get("equal", ())), fields.get("sorted", ()))

    assert not of(equal=("bonus", "week")).is_composite
    assert not of(sorted=(("streak", "DESCENDING"),)).is_composite
    assert of(equal=("bonus",), sorted=(("streak", "DESCENDING"),)).is_composite
    assert of(sorted=(("streak", "DESCENDING"), ("xp", "DESCENDING"))).is_composite


def test_the_file_has_the_form_of_the_firebase_cli() -> None:
    """It is named in firebase.json and deployed as it is."""
    declared = json.loads(FILE.read_text())
    assert set(declared) == {"indexes", "fieldOverrides"}
    for index in declared["indexes"]:
        assert set(index) == {"collectionGroup", "queryScope", "fields"}
        assert len(index["fields"]) > 1
        assert all(set(field) == {"fieldPath", "order"} for field in index["fields"])
    assert all(set(each) == {"collectionGroup", "fieldPath", "indexes"} for each in declared["fieldOverrides"])
    assert all(each["indexes"] == [] for each in declared["fieldOverrides"])
