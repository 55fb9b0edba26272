"""The handle as a decorator of generator functions, however they end."""

from __future__ import annotations

import asyncio
import gc
import inspect
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

import otel_perf
from otel_perf import measure
from tests.handles import BOOM, current_name, outcome


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


def test_streams_side_by_side(telemetry):
    """Steps of two generators in turn do not get into each other's trace."""
    for left, right in zip(generated(), generated(), strict=False):
        assert left == right
        assert current_name() is None
    gc.collect()
    roots = [span for span in telemetry.spans if span.parent is None]
    assert len(roots) == len(telemetry.spans) == 2


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
