"""The handle as a context manager, and as a decorator of functions and coroutine functions."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import otel_perf
from otel_perf import conventions as c
from otel_perf import measure
from otel_perf.telemetry import operation
from tests.handles import BOOM, current_name, outcome


def test_a_block(telemetry):
    """`with` times, the operation is current within, and its seconds can be read afterwards."""
    with measure("work", category="x", attributes={"a": 1}) as op:
        assert current_name() == "work"
        op.items = 3
    assert op.seconds > 0
    assert current_name() is None
    assert outcome(telemetry) == (1, None)
    assert telemetry.span("work").attributes["a"] == 1
    assert telemetry.points(c.STEP_ITEM_COUNT.name, operation__category="x")[0].value == 3


def test_a_block_that_fails(telemetry):
    """The exception goes through as it is, and is on the measurement."""
    with pytest.raises(ValueError, match="boom") as caught, measure("work"):
        raise BOOM
    assert caught.value is BOOM
    assert outcome(telemetry) == (1, "ValueError")


def test_an_async_block(telemetry):
    """`async with` does the same."""

    async def main() -> float:
        async with measure("work") as op:
            assert current_name() == "work"
            await asyncio.sleep(0)
        return op.seconds

    assert asyncio.run(main()) > 0
    assert outcome(telemetry) == (1, None)


def test_an_async_block_that_is_cancelled(telemetry):
    """A cancelled task is a failure, and the cancellation goes through."""

    async def work() -> None:
        async with measure("work"):
            await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert outcome(telemetry) == (1, "asyncio.exceptions.CancelledError")


def test_one_handle_nests(telemetry):
    """The same handle entered twice is two measurements, the inner one below the outer."""
    handle = measure("work")
    with handle as outer, handle as inner:
        assert inner is not outer
        assert inner.parent is outer
    assert outer.seconds >= inner.seconds
    assert outcome(telemetry) == (2, None)


@pytest.mark.parametrize("configured", [True, False])
def test_one_handle_is_shared_by_threads(telemetry, configured):
    """Each thread gets its own operation back, also before `configure()`."""
    if not configured:
        otel_perf.shutdown()
    handle = measure("work")
    together = threading.Barrier(8)

    def work(_) -> bool:
        together.wait()
        with handle as op:
            together.wait()
            mine = operation.current() is op
        return mine and op.seconds is not None and op.stopped

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert not handle._open
    if configured:
        assert outcome(telemetry) == (8, None)


def test_one_handle_is_shared_by_tasks(telemetry):
    """Each task gets its own operation back, in whatever order they end."""
    handle = measure("work")

    async def work(turns: int) -> bool:
        async with handle as op:
            for _ in range(turns):
                await asyncio.sleep(0)
            assert operation.current() is op
        return op.stopped

    async def main() -> list[bool]:
        return await asyncio.gather(*(work(turns) for turns in (5, 1, 3, 2, 4)))

    assert all(asyncio.run(main()))
    assert outcome(telemetry) == (5, None)


def test_left_in_another_context_than_it_was_entered_in(telemetry):
    """A generator-based fixture may be left elsewhere: the operation ends all the same and nothing stays current."""
    handle = measure("work")
    entered = contextvars.copy_context()
    op = entered.run(handle.__enter__)
    contextvars.copy_context().run(handle.__exit__, None, None, None)
    assert op.stopped
    assert current_name() is None
    assert outcome(telemetry) == (1, None)


class Owner:
    """Has methods of all kinds."""

    @measure("work")
    def method(self, fail: bool = False) -> str:
        """Works."""
        if fail:
            raise BOOM
        return current_name() or ""

    @classmethod
    @measure("work")
    def of_class(cls, fail: bool = False) -> str:
        if fail:
            raise BOOM
        return current_name() or ""

    @staticmethod
    @measure("work")
    def static(fail: bool = False) -> str:
        if fail:
            raise BOOM
        return current_name() or ""


class Called:
    def __call__(self, fail: bool = False) -> str:
        if fail:
            raise BOOM
        return current_name() or ""


class CalledLater:
    async def __call__(self, fail: bool = False) -> str:
        await asyncio.sleep(0)
        if fail:
            raise BOOM
        return current_name() or ""


def function(fail: bool = False) -> str:
    """Works."""
    if fail:
        raise BOOM
    return current_name() or ""


async def coroutine(fail: bool = False) -> str:
    await asyncio.sleep(0)
    if fail:
        raise BOOM
    return current_name() or ""


PLAIN = {
    "function": measure("work")(function),
    "method": Owner().method,
    "classmethod": Owner.of_class,
    "staticmethod": Owner.static,
    "partial": measure("work")(functools.partial(function)),
    "callable object": measure("work")(Called()),
}


LATER = {
    "coroutine": measure("work")(coroutine),
    "partial of a coroutine": measure("work")(functools.partial(coroutine)),
    "callable object with a coroutine": measure("work")(CalledLater()),
}


@pytest.mark.parametrize("call", PLAIN.values(), ids=PLAIN)
def test_callables(telemetry, call):
    """What returns is returned, what is raised is raised, and both are measured."""
    assert not inspect.iscoroutinefunction(call)
    assert call() == "work"
    assert outcome(telemetry) == (1, None)
    telemetry.restart()
    with pytest.raises(ValueError, match="boom") as caught:
        call(fail=True)
    assert caught.value is BOOM
    assert outcome(telemetry) == (1, "ValueError")
    assert current_name() is None


@pytest.mark.parametrize("call", LATER.values(), ids=LATER)
def test_coroutines(telemetry, call):
    """They stay coroutine functions and are measured while they are awaited."""
    assert inspect.iscoroutinefunction(call)
    waiting = call()
    assert not telemetry.points(c.STEP_DURATION.name)
    assert asyncio.run(waiting) == "work"
    assert outcome(telemetry) == (1, None)
    telemetry.restart()
    with pytest.raises(ValueError, match="boom"):
        asyncio.run(call(fail=True))
    assert outcome(telemetry) == (1, "ValueError")


def test_a_cancelled_coroutine(telemetry):
    """Cancelling ends the measurement as a failure."""

    @measure("work")
    async def work() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())
    assert outcome(telemetry) == (1, "asyncio.exceptions.CancelledError")


def test_a_decorated_function_stays_what_it_was():
    """Name, docstring, module, signature and annotations are kept."""
    decorated = measure("work")(function)
    for name in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__"):
        assert getattr(decorated, name) == getattr(function, name)
    assert inspect.signature(decorated) == inspect.signature(function)
    assert decorated.__wrapped__ is function
    assert inspect.signature(Owner().method) == inspect.signature(Owner().method.__wrapped__.__get__(Owner()))


def test_without_a_name_the_qualified_name_counts(telemetry):
    """`@measure` and `@measure(category=...)` name the operation after the function, without `<locals>`."""

    @measure
    def bare() -> None: ...

    @measure(category="cat")
    def with_category() -> None: ...

    bare()
    with_category()
    measure(Called())()
    measure(functools.partial(function))()
    prefix = f"{__name__}.test_without_a_name_the_qualified_name_counts"
    names = [f"{prefix}.bare", f"{prefix}.with_category", f"{__name__}.Called", f"{__name__}.function"]
    assert [span.name for span in telemetry.spans] == names
    assert [span.attributes[c.CODE_FUNCTION] for span in telemetry.spans] == names
    assert telemetry.points(c.STEP_DURATION.name, operation__name=names[1], operation__category="cat")


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (int, "a class"),
        (staticmethod(function), "a staticmethod object"),
        (classmethod(function), "a classmethod object"),
        (5, "a int object"),
        (property(function), "a property object"),
    ],
)
def test_what_cannot_be_decorated_is_named(wrong, what):
    """The mistake is told when the decorator runs, with what to do."""
    with pytest.raises(TypeError, match=f"measure cannot decorate {what}: put it on the function itself"):
        measure("work")(wrong)


def test_a_block_that_was_stopped_by_hand(telemetry):
    """Leaving it does not end what another task has open under the same handle."""
    handle = measure("work")

    async def early(other: asyncio.Event) -> None:
        async with handle as op:
            await other.wait()
            op.stop()

    async def late(entered: asyncio.Event, first: asyncio.Task) -> bool:
        async with handle as op:
            entered.set()
            await first
            still = not op.stopped
        return still and op.stopped

    async def main() -> bool:
        entered = asyncio.Event()
        first = asyncio.create_task(early(entered))
        await asyncio.sleep(0)
        return await late(entered, first)

    assert asyncio.run(main())
    assert not handle._open
    assert outcome(telemetry) == (2, None)


def test_left_without_having_been_entered(telemetry):
    """Somebody's exit stack that is wrong about us gets no exception of ours."""
    handle = measure("work")
    handle.__exit__(None, None, None)
    asyncio.run(handle.__aexit__(None, None, None))
    assert telemetry.spans == []


def test_an_inner_operation_that_was_never_stopped(telemetry):
    """Leaving the outer block ends the outer one, whatever was left current in it."""

    def main() -> bool:
        with measure("work") as op:
            measure("forgotten").begin()
        return op.stopped

    assert contextvars.copy_context().run(main)
    assert [span.name for span in telemetry.spans] == ["work"]
