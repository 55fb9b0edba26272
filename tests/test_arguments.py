"""What the arguments and answers of a client's calls tell: collection, masked filter, number of results."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from otel_perf import conventions as c
from otel_perf import guard, measure
from otel_perf.telemetry import operation

SECRET = "user@example.com"


class Store:
    """A vector store, with methods of all kinds."""

    def search(self, collection, *, filter=None, fail=False):  # noqa: A002  # as clients call it
        if fail:
            raise LookupError(SECRET)
        return [1, 2, 3]

    async def search_later(self, collection, filter=None):  # noqa: A002
        return (1, 2)

    def search_plainly_later(self, **options):
        return self.search_later(**options)

    def submit(self, collection):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: [collection])

    def scan(self, collection):
        sent = yield 1
        yield sent

    async def scan_later(self, collection):
        yield 1
        yield 2

    def count(self):
        return 7


NAMES = ("search", "search_later", "search_plainly_later", "submit", "scan", "scan_later", "count")


@pytest.fixture
def store():
    return measure.client(
        Store(), system="zerodb", methods={name: name for name in NAMES}, collection="none",
        collection_argument="collection", filter_argument="filter",
    )  # fmt: skip


def counted(telemetry):
    points = telemetry.points(c.QUERY_DURATION.name, db__system__name="zerodb")
    keys = (c.DB_OPERATION, c.DB_COLLECTION, c.ERROR_TYPE)
    return {tuple(point.attributes.get(key) for key in keys): point.count for point in points}


def test_the_collection_of_a_call(telemetry, store):
    """It is read from the argument, by place or by name, of methods of all kinds; without one the constant counts."""

    async def later():
        await store.search_later("b")
        await store.search_plainly_later(collection="c")
        return [item async for item in store.scan_later("d")]

    store.search("a")
    assert asyncio.run(later()) == [1, 2]
    assert store.submit("e").result() == ["e"]
    scan = store.scan("f")
    next(scan)
    assert scan.send("sent") == "sent"
    scan.close()
    store.count()
    assert counted(telemetry) == {
        ("search", "a", None): 1, ("search_later", "b", None): 1, ("search_plainly_later", "c", None): 1,
        ("scan_later", "d", None): 1, ("submit", "e", None): 1, ("scan", "f", None): 1, ("count", "none", None): 1,
    }  # fmt: skip
    assert operation.current() is None


def test_the_number_of_results(telemetry, store):
    """A list or tuple that is answered says how many there were; other answers say nothing."""
    store.search("a")
    asyncio.run(store.search_later("a"))
    store.submit("a").result()
    store.count()
    assert [span.attributes.get(c.DB_ROWS) for span in telemetry.spans] == [3, 2, 1, None]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"email": SECRET, "age": {"$gt": 21}}, '{"email": ?, "age": {"$gt": ?}}'),
        ("email:alice AND city:Paris", "?"),
        ("genre = horror", "?"),
        ("q=alice&token=abc", "?"),
        (f"SELECT * FROM users WHERE email = '{SECRET}'", "?"),
    ],
)
def test_the_shape_of_a_filter(telemetry, store, given, shown):
    """Its names are on the span, its values are nowhere."""
    store.search("a", filter=given)
    with pytest.raises(LookupError):
        store.search("a", filter=given, fail=True)
    good, bad = telemetry.spans
    assert good.attributes[c.DB_QUERY_TEXT] == bad.attributes[c.DB_QUERY_TEXT] == shown
    assert SECRET not in str([(span.attributes, [event.attributes for event in span.events]) for span in (good, bad)])
    assert counted(telemetry) == {("search", "a", None): 1, ("search", "a", "LookupError"): 1}


@pytest.mark.parametrize("system", ["postgresql", "mysql", "sqlite", "other_sql"])
def test_a_filter_in_sql(telemetry, system):
    """Where the system speaks SQL, a text is shown without its literals."""
    measured = measure.client(Store(), system=system, methods={"search": "search"}, filter_argument="filter")
    measured.search("a", filter=f"email = '{SECRET}' AND age > 21")
    assert telemetry.spans[0].attributes[c.DB_QUERY_TEXT] == "email = ? AND age > ?"


def test_a_collection_by_default(telemetry):
    """What the method takes when it is given none is the collection, not what is said for calls without one."""

    class Shop:
        def find(self, text, collection="items"):
            return text

        def look(self, text, *, collection="orders"):
            return text

        def list(self, text, collection=None):
            return text

    names = {name: name for name in ("find", "look", "list")}
    shop = measure.client(Shop(), system="zerodb", methods=names, collection="none", collection_argument="collection")
    for name in names:
        getattr(shop, name)("x")
    shop.look("x", collection="given")
    assert set(counted(telemetry)) == {
        ("find", "items", None), ("look", "orders", None), ("look", "given", None), ("list", "none", None)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("docs", "docs"), ("tenant-7/docs_v2.de", "tenant-7/docs_v2.de"), ("straße", "straße"),
        (SECRET, "?"), ("user bob 4711", "?"), ("123-45-6789", "?"), ("x" * 1_000_000, "?"), ("user_4711000", "?"),
        ("u-f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "?"), ("docs\n", "?"), ("", "?"),
    ],
)  # fmt: skip
def test_a_collection_that_is_no_name(telemetry, store, given, shown):
    """Data in the place of a name is neither a label nor part of a span's name."""
    store.search(given)
    assert set(counted(telemetry)) == {("search", shown, None)}
    assert telemetry.spans[0].name == f"search {shown}"


def test_a_filter_of_a_megabyte(telemetry, store):
    """It is cut, and the collections of 5,000 names go into the overflow."""
    store.search("a", filter={"x" * 1_000_000: ["y"] * 100_000})
    assert len(telemetry.spans[0].attributes[c.DB_QUERY_TEXT]) <= 2048
    telemetry.restart(cardinality_limit=50)
    for each in range(5000):
        store.search(f"c{each}-{'x' * 100}")
    points = telemetry.points(c.QUERY_DURATION.name)
    assert len(points) <= 51
    assert sum(point.count for point in points) == 5000
    assert max(len(point.attributes.get(c.DB_COLLECTION, "")) for point in points) <= 128


def test_an_argument_that_no_method_has():
    """The mistake is told at once."""
    with pytest.raises(TypeError, match="no measured method of Store has an argument 'colection'"):
        measure.client(Store(), system="x", methods={"search": "search"}, collection_argument="colection")


def test_an_argument_that_cannot_be_read(telemetry, monkeypatch, store):
    """It is a counted fault of ours, and the call is measured without it."""
    monkeypatch.setattr(guard, "strict", False)

    def fault(_):
        raise ZeroDivisionError

    monkeypatch.setattr("otel_perf.redaction.document", fault)
    assert store.search("a", filter={"a": 1}) == [1, 2, 3]
    assert guard.errors == 1
    assert counted(telemetry) == {("search", "none", None): 1}


def test_methods_of_what_a_client_holds(telemetry):
    """`index.query` is measured where the client holds an index, also another one later; the rest goes through."""
    client = SimpleNamespace(index=SimpleNamespace(query=lambda text: [text], name="first"), close=lambda: "closed")
    measured = measure.client(client, system="zerodb", methods={"index.query": "search"}, collection="docs")
    assert measured.index.query("x") == ["x"]
    assert measured.index is measured.index
    assert measured.index.name == "first"
    assert measured.close() == "closed"
    client.index = SimpleNamespace(query=lambda text: [text, text])
    assert measured.index.query("x") == ["x", "x"]
    client.index = None
    assert measured.index is None
    assert counted(telemetry) == {("search", "docs", None): 2}
    client.index = SimpleNamespace(query=len)
    with pytest.raises(AttributeError, match="no method 'serch'"):
        measure.client(client, system="zerodb", methods={"index.serch": "search"})
    with pytest.raises(AttributeError, match=r"no method 'indx\.query'"):
        measure.client(client, system="zerodb", methods={"indx.query": "search"})


def test_a_cancelled_call(telemetry, store):
    """It has failed, by that name, and nothing is left current."""

    class Slow:
        async def find(self, collection):
            await asyncio.sleep(30)

    async def main():
        slow = measure.client(Slow(), system="zerodb", methods={"find": "find"}, collection_argument="collection")
        task = asyncio.create_task(slow.find("a"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert operation.current() is None

    asyncio.run(main())
    assert counted(telemetry) == {("find", "a", "asyncio.exceptions.CancelledError"): 1}


def test_a_method_whose_arguments_cannot_be_told(telemetry):
    """Of a method in C the argument is taken by its name."""
    client = SimpleNamespace(make=dict)
    measured = measure.client(client, system="zerodb", methods={"make": "make"}, collection_argument="collection")
    assert measured.make(collection="a") == {"collection": "a"}
    assert counted(telemetry) == {("make", "a", None): 1}
