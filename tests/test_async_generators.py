"""The handle as a decorator of async generator functions, however they end."""

from __future__ import annotations

import asyncio
import gc
import inspect

import pytest

from otel_perf import measure
from tests.handles import BOOM, current_name, outcome


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
