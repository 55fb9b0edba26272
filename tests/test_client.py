"""Wrapping a client of one's own: the named methods are measured, everything else is the client's."""

from __future__ import annotations

import asyncio
import gc
import inspect
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from otel_perf import client as clients
from otel_perf import conventions as c
from otel_perf import guard, measure
from otel_perf.arguments import Told
from otel_perf.telemetry import operation


class Store:
    """A client with methods of all kinds."""

    timeout = 5

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.items = {"a": 1}

    def search(self, text: str, *, fail: bool = False) -> str:
        """Searches."""
        if fail:
            raise LookupError(text)
        return f"found {text} in {operation.current().name}"

    async def search_later(self, text: str, *, fail: bool = False) -> str:
        await asyncio.sleep(0)
        return self.search(text, fail=fail)

    def search_plainly_later(self, text: str, *, fail: bool = False):
        return self.search_later(text, fail=fail)

    def scan(self):
        yield from (1, 2)

    async def scan_later(self):
        yield 1

    def submit(self, work):
        return self.pool.submit(work)

    def __getitem__(self, key):
        return self.items[key]

    def __len__(self):
        return len(self.items)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pool.shutdown()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.pool.shutdown()


METHODS = {
    "search": "search", "search_later": "search", "search_plainly_later": "search", "scan": "scan",
    "scan_later": "scan", "submit": "submit",
}  # fmt: skip


@pytest.fixture
def store():
    with measure.client(Store(), system="zerodb", methods=METHODS, collection="docs") as measured:
        yield measured


def counted(telemetry, name: str = "search") -> list[tuple[int, str | None]]:
    points = telemetry.points(c.QUERY_DURATION.name, db__system__name="zerodb", db__collection__name="docs")
    return [(p.count, p.attributes.get(c.ERROR_TYPE)) for p in points if p.attributes["db.operation.name"] == name]


def test_a_method_is_a_query(telemetry, store):
    """One duration and one span, the method's own answer, name and docstring."""
    assert store.search("x") == "found x in search docs"
    assert store.search.__doc__ == "Searches."
    assert counted(telemetry) == [(1, None)]
    assert telemetry.span("search docs").attributes[c.DB_SYSTEM] == "zerodb"
    with pytest.raises(LookupError):
        store.search("x", fail=True)
    assert counted(telemetry) == [(1, None), (1, "LookupError")]


@pytest.mark.parametrize("name", ["search_later", "search_plainly_later"])
def test_a_method_that_answers_later(telemetry, store, name):
    """Coroutines are measured until they end, also those of a plain method."""
    method = getattr(store, name)
    assert inspect.iscoroutinefunction(method) == (name == "search_later")
    assert asyncio.run(method("x")) == "found x in search docs"
    with pytest.raises(LookupError):
        asyncio.run(method("x", fail=True))
    assert counted(telemetry) == [(1, None), (1, "LookupError")]
    assert operation.current() is None


def test_a_plain_method_that_fails_at_once(telemetry):
    """Before there is anything to wait for."""

    class Bad:
        def call(self):
            raise OSError("down")

    with pytest.raises(OSError, match="down"):
        measure.client(Bad(), system="zerodb", methods={"call": "call"}).call()
    assert telemetry.span("call").attributes[c.ERROR_TYPE] == "OSError"


def test_streams(telemetry, store):
    """Generators are measured over their whole length."""

    async def later() -> list[int]:
        return [item async for item in store.scan_later()]

    assert list(store.scan()) == [1, 2]
    assert asyncio.run(later()) == [1]
    assert counted(telemetry, "scan") == [(2, None)]


def test_futures_stay_futures(telemetry, store):
    """The answer is the client's own future, and the measurement ends with it."""
    assert store.submit(lambda: 5).result() == 5
    with pytest.raises(ZeroDivisionError):
        store.submit(lambda: 1 / 0).result()
    store.pool.shutdown()
    assert counted(telemetry, "submit") == [(1, None), (1, "ZeroDivisionError")]
    assert operation.current() is None


def test_a_cancelled_future(telemetry):
    """It is a failure by that name."""

    class Loop:
        def call(self):
            return asyncio.get_running_loop().create_future()

    async def main() -> None:
        future = measure.client(Loop(), system="zerodb", methods={"call": "call"}).call()
        future.cancel()
        await asyncio.sleep(0)

    asyncio.run(main())
    assert telemetry.span("call").attributes[c.ERROR_TYPE] == "cancelled"


def test_a_strange_future_is_kept_from_the_application(telemetry, monkeypatch):
    """One whose answer cannot be asked for is a counted fault."""
    monkeypatch.setattr(guard, "strict", False)

    class Strange:
        def add_done_callback(self, call):
            call(self)

    class Api:
        def call(self):
            return Strange()

    assert isinstance(measure.client(Api(), system="x", methods={"call": "call"}).call(), Strange)
    assert guard.errors == 1


def test_everything_else_is_the_clients_own(store):
    """Class, attributes, containers, truth, equality, representation: all go through."""
    assert isinstance(store, Store)
    assert store.timeout == 5
    store.timeout = 6
    store.extra = 7
    assert (store.timeout, store.extra) == (6, 7)
    del store.extra
    assert not hasattr(store, "extra")
    assert store["a"] == 1
    assert len(store) == 1
    assert store
    assert hash(store) == hash(store)
    assert store == store  # noqa: PLR0124  # `==` goes through as well
    assert "search" in dir(store)
    assert repr(store).startswith("<measured <")
    with pytest.raises(TypeError):
        iter(measure.client(object(), system="x", methods={}))


def test_entering_gives_the_measured_client(telemetry):
    """`with client as c` and `async with` answer the stand-in, so that its calls are measured too."""

    async def later() -> None:
        async with measure.client(Store(), system="zerodb", methods=METHODS, collection="docs") as entered:
            entered.search("y")

    with measure.client(Store(), system="zerodb", methods=METHODS, collection="docs") as entered:
        entered.search("x")
    asyncio.run(later())
    assert counted(telemetry) == [(2, None)]


def test_a_client_that_enters_something_else(telemetry):
    """What the client's own `__aenter__` answers is handed on when it is another object."""

    class Pool:
        async def __aenter__(self):
            return "connection"

        async def __aexit__(self, *_): ...

    async def main() -> str:
        async with measure.client(Pool(), system="x", methods={}) as entered:
            return entered

    assert asyncio.run(main()) == "connection"


def test_a_client_that_is_itself_called(telemetry):
    """`__call__` may be one of the methods."""

    class Callable:
        def __call__(self, value):
            return value + 1

    assert measure.client(Callable(), system="x", methods={"__call__": "invoke"})(1) == 2
    assert telemetry.span("invoke")


def test_a_method_that_is_not_there_is_named():
    """The mistake is told at once, with the methods that there are."""
    with pytest.raises(AttributeError, match=r"Store has no method 'serch'; it has: .*search"):
        clients.wrap(Store(), {"serch": "search"}, Told("x"))


def test_a_call_by_keyword(telemetry):
    """A client that is called takes its arguments by name, measured or not."""

    class Callable:
        def __call__(self, value, *, top=1):
            return value, top

    assert measure.client(Callable(), system="x", methods={"__call__": "invoke"})(1, top=5) == (1, 5)
    assert measure.client(Callable(), system="x", methods={})(value=1) == (1, 1)


def test_a_weak_reference(store):
    """Caches that hold their client weakly go on working."""
    assert weakref.ref(store)() is store


def test_a_method_that_is_replaced(telemetry, store):
    """What is assigned takes effect, on the client too, and is measured; deleting it gives the client's own back."""
    store.search = lambda text: f"faked {text}"
    assert store.search("x") == "faked x"
    del store.search
    assert store.search("x") == "found x in search docs"
    assert counted(telemetry) == [(2, None)]
    store.search = None
    assert store.search is None
    del store.search


def test_what_a_method_answers_is_not_asked(telemetry):
    """Answers that have every attribute, or fail when one is asked for, are handed on as they are."""

    class Everything:
        def __getattr__(self, name):
            return lambda *_: None

    class Hostile:
        @property
        def __class__(self):
            raise RuntimeError("asked")

        def __getattr__(self, name):
            raise RuntimeError("asked")

    answers = [Everything(), Hostile()]

    class Api:
        def call(self):
            return answers[-1]

    api = measure.client(Api(), system="x", methods={"call": "call"})
    while answers:
        assert api.call() is answers[-1]
        answers.pop()
    assert telemetry.points(c.QUERY_DURATION.name)[0].count == 2


def test_a_future_that_takes_no_callback(telemetry, monkeypatch):
    """The answer is handed on, the call is measured up to here, the fault is counted."""
    monkeypatch.setattr(guard, "strict", False)

    class Strange:
        def add_done_callback(self, call):
            raise RuntimeError("no loop")

    class Api:
        def call(self):
            return Strange()

    assert isinstance(measure.client(Api(), system="x", methods={"call": "call"}).call(), Strange)
    assert guard.errors == 1
    assert telemetry.span("call")


def test_a_missing_method_touches_no_property():
    """The list of what there is does not run the client's properties."""

    class Lazy:
        @property
        def connection(self):
            raise RuntimeError("connected")

        def find(self): ...

    with pytest.raises(AttributeError, match=r"Lazy has no method 'search'; it has: find$"):
        measure.client(Lazy(), system="x", methods={"search": "search"})


def test_a_task_that_is_cancelled_before_it_starts(telemetry, store):
    """It ends as without us: cancelled, without a warning about the client's own coroutine."""

    async def main() -> None:
        task = asyncio.create_task(store.search_plainly_later("x"))
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())
    gc.collect()
    assert operation.current() is None
