"""Answers that come piece by piece: measured to their end, counted, and current only while the source itself runs.

Held across a `yield` an operation would leak into the caller, and a stream that is left early would leave it there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

from otel_perf.telemetry.operation import Operation

__all__ = ["End", "drain", "drain_later"]

#: Ends an operation, given what it failed with and how many pieces came.
End = Callable[[Operation, "BaseException | None", int], None]


def drain(source: Generator[Any, Any, Any], begun: Operation, end: End) -> Generator[Any, Any, Any]:
    """Hands on what a generator yields and returns; leaving it early is no failure."""
    failure: BaseException | None = None
    count = 0
    try:
        while True:
            begun.activate()
            try:
                item = next(source)
            except StopIteration as stop:
                return stop.value
            finally:
                begun.deactivate()
            count += 1
            yield item
    except GeneratorExit:
        source.close()
        raise
    except BaseException as error:
        failure = error
        raise
    finally:
        end(begun, failure, count)
        failure = None  # a failure and this frame must not keep each other alive


async def drain_later(
    source: AsyncGenerator[Any, Any], begun: Operation, end: End, last: type | None = None
) -> AsyncGenerator[Any, Any]:
    """The same for an async generator; an item of the class `last` ends it, and is no piece of the answer."""
    failure: BaseException | None = None
    count = 0
    ended = False
    try:
        while True:
            begun.activate()
            try:
                item = await source.__anext__()
            except StopAsyncIteration:
                return
            finally:
                begun.deactivate()
            if last is not None and item.__class__ is last:
                end(begun, None, count)  # who reads it asks for no more
                ended = True
            else:
                count += 1
            yield item
    except GeneratorExit:
        await source.aclose()
        raise
    except BaseException as error:
        failure = error
        raise
    finally:
        if not ended:
            end(begun, failure, count)
        failure = None
