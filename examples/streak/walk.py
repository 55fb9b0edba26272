"""Hands ranges of users to a few workers: so many at once and no more, however many there are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from .records import Range

__all__ = ["walk"]

Work = Callable[[Range], Awaitable[None]]


async def walk(ranges: AsyncGenerator[Range, None], work: Work, *, workers: int) -> None:
    """Do the work for each range, `workers` at a time, and read no further ahead than that.

    After the first failure no further range is begun; those that are under way are finished, and then it is raised.
    """
    failures: list[Exception] = []
    sending, receiving = anyio.create_memory_object_stream[Range](workers)
    async with anyio.create_task_group() as tasks, sending, aclosing(ranges):
        async with receiving:
            for _ in range(workers):
                tasks.start_soon(_work, receiving.clone(), work, failures)
        try:
            async for part in ranges:
                if failures:
                    break
                await sending.send(part)
        except Exception as failure:
            failures.append(failure)
    if failures:
        raise failures[0]


async def _work(receiving: MemoryObjectReceiveStream[Range], work: Work, failures: list[Exception]) -> None:
    async with receiving:
        async for part in receiving:
            if failures:
                # What was read ahead is left for the run that takes this one up.
                continue
            try:
                await work(part)
            except Exception as failure:
                failures.append(failure)
