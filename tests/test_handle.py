"""The handle: context manager, async context manager and decorator of every kind of callable, however it ends."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry import trace

import otel_perf
from otel_perf import conventions as c
from otel_perf import measure
from otel_perf.telemetry import operation

BOOM = ValueError("boom")


def current_name() -> str | None:
    current = operation.current()
    assert (current is None) == (trace.get_current_span() is trace.INVALID_SPAN)
    return current.name if current is not None else None


def outcome(telemetry, name: str = "work") -> tuple[int, str | None]:
    """How often it was measured, and the one `error.type`."""
    spans = [span for span in telemetry.spans if span.name == name]
    points = telemetry.points(c.STEP_DURATION.name, operation__name=name)
    assert sum(point.count for point in points) == len(spans)
    [error] = {span.attributes.get(c.ERROR_TYPE) for span in spans}
    return len(spans), error


# Blocks ---------------------------------------------------------------------------------------------------------------


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


# Decorators -----------------------------------------------------------------------------------------------------------


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


# Generators -----------------------------------------------------------------------------------------------------------


@measure("work")
def generated(fail: bool = False):
    """Yields what is sent, catches what is thrown in as a KeyError."""
    got = None
    for index in range(3):
        assert current_name() == "work"
        try:
            got = yield (index, got)
        except KeyError:
            got = "caught"
    if fail:
        raise BOOM
    return "returned"


def test_a_generator_to_its_end(telemetry):
    """Values go out and in, the returned value comes back, and nothing is current between the steps."""
    assert inspect.isgeneratorfunction(generated)
    running = generated()
    assert telemetry.spans == []
    assert next(running) == (0, None)
    assert current_name() is None
    assert running.send("in") == (1, "in")
    assert running.throw(KeyError("k")) == (2, "caught")
    with pytest.raises(StopIteration) as stop:
        next(running)
    assert stop.value.value == "returned"
    assert outcome(telemetry) == (1, None)


def test_a_generator_delegated_to(telemetry):
    """`yield from` gets the returned value."""

    def outer():
        result = yield from generated()
        assert result == "returned"

    assert len(list(outer())) == 3
    assert outcome(telemetry) == (1, None)


def test_a_generator_that_fails(telemetry):
    """Its own exception, and one that is thrown in and not caught, are failures."""
    with pytest.raises(ValueError, match="boom"):
        list(generated(fail=True))
    assert outcome(telemetry) == (1, "ValueError")
    telemetry.restart()
    running = generated()
    next(running)
    with pytest.raises(OSError, match="in"):
        running.throw(OSError("in"))
    assert outcome(telemetry) == (1, "OSError")
    assert current_name() is None


@pytest.mark.parametrize("leave", ["break", "close", "collect"])
def test_a_generator_that_is_left_early(telemetry, leave):
    """Leaving is no failure, the generator's own `finally` runs within the operation, and nothing stays current."""
    left = []

    @measure("work")
    def source():
        try:
            yield 1
            yield 2
        finally:
            left.append(current_name())

    running = source()
    if leave == "break":
        for _ in running:
            break
        running.close()
    else:
        next(running)
        if leave == "close":
            running.close()
    del running
    gc.collect()
    assert left == ["work"]
    assert outcome(telemetry) == (1, None)
    assert current_name() is None


def test_a_generator_that_is_never_started_is_not_measured(telemetry):
    """Work that did not happen has no duration."""
    generated().close()
    assert telemetry.spans == []


def test_a_generator_that_refuses_to_close(telemetry):
    """What Python raises for it goes through, and is the failure."""

    @measure("work")
    def stubborn():
        try:
            yield 1
        except GeneratorExit:
            yield 2

    running = stubborn()
    next(running)
    with pytest.raises(RuntimeError, match="generator ignored GeneratorExit"):
        running.close()
    assert outcome(telemetry) == (1, "RuntimeError")


def test_a_generator_driven_by_several_threads(telemetry):
    """Each step may run in another thread; nothing is left current in any of them."""
    running = generated()

    def step() -> str | None:
        next(running, None)
        return current_name()

    for _ in range(4):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(step).result() is None
    assert outcome(telemetry) == (1, None)


@measure("work")
async def generated_later(fail: bool = False):
    got = None
    for index in range(3):
        await asyncio.sleep(0)
        assert current_name() == "work"
        try:
            got = yield (index, got)
        except KeyError:
            got = "caught"
    if fail:
        raise BOOM


def test_an_async_generator_to_its_end(telemetry):
    """Values go out and in, and nothing is current between the steps."""
    assert inspect.isasyncgenfunction(generated_later)

    async def main() -> None:
        running = generated_later()
        assert await running.__anext__() == (0, None)
        assert current_name() is None
        assert await running.asend("in") == (1, "in")
        assert await running.athrow(KeyError("k")) == (2, "caught")
        with pytest.raises(StopAsyncIteration):
            await running.__anext__()
        assert [value async for value, _ in generated_later()] == [0, 1, 2]

    asyncio.run(main())
    assert outcome(telemetry) == (2, None)


def test_an_async_generator_that_fails(telemetry):
    """Its own exception, and one that is thrown in and not caught, are failures."""

    async def main() -> None:
        with pytest.raises(ValueError, match="boom"):
            async for _ in generated_later(fail=True):
                pass
        assert outcome(telemetry) == (1, "ValueError")
        telemetry.restart()
        running = generated_later()
        await running.__anext__()
        with pytest.raises(OSError, match="in"):
            await running.athrow(OSError("in"))
        assert outcome(telemetry) == (1, "OSError")

    asyncio.run(main())


@pytest.mark.parametrize("leave", ["aclose", "break", "collect"])
def test_an_async_generator_that_is_left_early(telemetry, leave):
    """Leaving is no failure, its `finally` may await within the operation, and nothing stays current."""
    left = []

    @measure("work")
    async def source():
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            left.append(current_name())

    async def main() -> None:
        running = source()
        if leave == "break":
            async for _ in running:
                break
            await running.aclose()
        else:
            await running.__anext__()
            if leave == "aclose":
                await running.aclose()
        del running
        gc.collect()
        assert current_name() is None
        await asyncio.sleep(0.01)  # the loop closes what was collected

    asyncio.run(main())
    assert left == ["work"]
    assert outcome(telemetry) == (1, None)


def test_an_async_generator_that_is_cancelled(telemetry):
    """Cancelling the task that waits for the next value is a failure of the generator."""

    @measure("work")
    async def source():
        yield 1
        await asyncio.sleep(60)
        yield 2

    async def consume() -> None:
        async for _ in source():
            pass

    async def main() -> None:
        task = asyncio.create_task(consume())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert outcome(telemetry) == (1, "asyncio.exceptions.CancelledError")


def test_streams_side_by_side(telemetry):
    """Steps of two generators in turn do not get into each other's trace."""
    for left, right in zip(generated(), generated(), strict=False):
        assert left == right
        assert current_name() is None
    gc.collect()
    roots = [span for span in telemetry.spans if span.parent is None]
    assert len(roots) == len(telemetry.spans) == 2


# Corners --------------------------------------------------------------------------------------------------------------


class FailureError(Exception):
    """Can be referred to weakly."""


def fails_in_a_generator() -> weakref.ref:
    @measure("work")
    def source():
        yield 1
        raise FailureError

    try:
        list(source())
    except FailureError as error:
        return weakref.ref(error)
    raise AssertionError


def fails_in_an_async_generator() -> weakref.ref:
    @measure("work")
    async def source():
        yield 1
        raise FailureError

    async def main() -> weakref.ref:
        try:
            async for _ in source():
                pass
        except FailureError as error:
            return weakref.ref(error)
        raise AssertionError

    return asyncio.run(main())


def fails_by_what_is_thrown_in() -> weakref.ref:
    @measure("work")
    def source():
        yield 1

    running = source()
    next(running)
    try:
        running.throw(FailureError())
    except FailureError as error:
        return weakref.ref(error)
    raise AssertionError


@pytest.mark.parametrize("fail", [fails_in_a_generator, fails_in_an_async_generator, fails_by_what_is_thrown_in])
def test_a_failure_is_freed_with_its_last_user(fail):
    """No cycle through our frame keeps an exception, and all that its frames hold, until the next collection."""
    otel_perf.shutdown()
    gc.collect()
    gc.disable()
    try:
        assert fail()() is None
    finally:
        gc.enable()


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


def test_what_a_generator_answers_when_it_is_closed():
    """From Python 3.13 `close` gives the returned value; before, None: as without us."""

    def source():
        try:
            yield 1
        except GeneratorExit:
            return "closed"

    def close(running):
        next(running)
        return running.close()

    assert close(measure("work")(source)()) == close(source())


def test_an_inner_operation_that_was_never_stopped(telemetry):
    """Leaving the outer block ends the outer one, whatever was left current in it."""

    def main() -> bool:
        with measure("work") as op:
            measure("forgotten").begin()
        return op.stopped

    assert contextvars.copy_context().run(main)
    assert [span.name for span in telemetry.spans] == ["work"]
