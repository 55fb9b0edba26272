"""What a user writes, as type checkers see it: checked by mypy and pyright in strict mode, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

from typing_extensions import assert_type

from otel_perf import Settings, catalogue, configure, flush, measure, shutdown
from otel_perf.handle import Measured
from otel_perf.runs import JobHandle, Run
from otel_perf.strategy import Strategy
from otel_perf.telemetry.operation import Operation


@measure
def bare(count: int, *, name: str = "") -> list[str]:
    """A function keeps its parameters and its answer."""
    return [name] * count


@measure("match_trips", category="processing", attributes={"team": "a"})
async def coroutine(count: int) -> str:
    """A coroutine function stays one."""
    return str(count)


@measure(category="processing")
def generator(count: int) -> Iterator[int]:
    """A generator function stays one."""
    yield count


@measure
async def async_generator(count: int) -> AsyncIterator[int]:
    """An async generator function stays one."""
    yield count


@measure.job("streak.maintenance", every="1d")
def run() -> None:
    """A job."""


class Service:
    """Methods of all kinds."""

    @measure
    def method(self, count: int) -> int:
        """A method."""
        return count

    @classmethod
    @measure
    def build(cls) -> Service:
        """A class method: `measure` below."""
        return cls()

    @staticmethod
    @measure("work")
    def static(count: int) -> int:
        """A static method: `measure` below."""
        return count


class Store:
    """A client of one's own."""

    async def vector_search(self, text: str) -> list[str]:
        """Searches."""
        return [text]


async def functions() -> None:
    """Decorated functions are what they were."""
    assert_type(bare(1, name="x"), list[str])
    waiting: Coroutine[Any, Any, str] = coroutine(1)  # the checkers name its class differently
    assert_type(await waiting, str)
    assert_type(generator(1), Iterator[int])
    assert_type(async_generator(1), AsyncIterator[int])
    assert_type(run(), None)
    assert_type(Service().method(1), int)
    assert_type(Service.build(), Service)
    assert_type(Service.static(1), int)


def mistakes() -> None:
    """What must not pass: an ignore that is not needed is an error as well."""
    bare("one")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    measure("x", colour="red")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    measure.job("x", every=None).nothing()  # type: ignore[attr-defined]  # pyright: ignore
    catalogue.counter("x", attributes=(1,))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    measure.record("x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def blocks() -> None:
    """Blocks give the operation and swallow nothing."""
    with measure("custom", category="processing") as op:
        assert_type(op, Operation)
        op.items = 100
    assert_type(op.seconds, float | None)
    async with measure.external("stripe", "create_payment", category="payments") as call:
        call.fail("declined")
    with measure.query("find", collection="trips", system="mongodb", namespace="shop", text="SELECT 1"):
        pass
    with measure.cache("get", strategy="USER_PROFILE", system="redis") as read:
        read.hit = True
    with measure.request("GET", "/a/{id}", scheme="https") as request:
        request.label("http.response.status_code", 200)
    assert_type(measure("x"), Measured)
    assert_type(measure(), Measured)
    assert_type(measure.job("x", every=30), JobHandle)
    with measure.job("x", every="0 4 * * *", timezone="Europe/Berlin") as job:
        assert_type(job, Run)
        job.items = 3
    assert_type(job.rate, float | None)
    async with measure.job("x") as later:
        assert_type(later, Run)


def answers_from_a_block() -> int:
    """A block does not hide that the function always answers."""
    with measure("x"):
        return 1


async def others() -> None:
    """The rest of the public face."""
    assert_type(configure(service_name="streak"), Settings)
    assert_type(flush(1.5), bool)
    assert_type(shutdown(), bool)
    measure.record("data_validation", seconds=0.1255, items=100)
    client = measure.client(Store(), system="zerodb", methods={"vector_search": "search"}, collection="docs")
    assert_type(client, Store)
    assert_type(await client.vector_search("x"), list[str])
    assert_type(measure.strategy("PROFILE", "user:*", ttl_s=60, expected_hit_rate=0.9), Strategy)


def metrics() -> None:
    """Metrics of one's own."""
    sold = catalogue.counter("shop.sold", unit="{item}", attributes=("kind",), about="Items sold")
    assert_type(sold, catalogue.CounterHandle)
    sold.add()
    sold.add(2, kind="book")
    catalogue.histogram("shop.weight", unit="kg", buckets=(1, 2.5)).record(1.5)
    catalogue.gauge("shop.open", attributes=["room"]).set(-1, room="a")
    catalogue.gauge("shop.one", observe=lambda: 1)
    catalogue.gauge("shop.pairs", observe=lambda: [(1.5, {"room": "a"})])
    catalogue.gauge("shop.none", observe=lambda: None)
