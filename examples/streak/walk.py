"""Hands ranges of users to a few workers: so many at once and no more, however many there are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from .records import Range

__all__ = ["GIVE_UP_AFTER", "walk"]

Work = Callable[[Range], Awaitable[None]]

#: When so many ranges fail without one between them that does not, it is not the ranges.
GIVE_UP_AFTER = 10


@dataclass(slots=True)
class _Course:
    """How it goes."""

    ends_at_once: tuple[type[Exception], ...]
    failures: list[Exception] = field(default_factory=list)
    in_a_row: int = 0
    ended: bool = False

    def went_well(self) -> None:
        self.in_a_row = 0

    def went_wrong(self, failure: Exception) -> None:
        # The first is raised at the end; of the others it is enough to know that there were some.
        del self.failures[1:]
        if isinstance(failure, self.ends_at_once):
            self.failures.insert(0, failure)
            self.ended = True
        else:
            self.failures.append(failure)
        self.in_a_row += 1
        self.ended = self.ended or self.in_a_row >= GIVE_UP_AFTER


async def walk(
    ranges: AsyncGenerator[Range, None],
    work: Work,
    *,
    workers: int,
    ends_at_once: tuple[type[Exception], ...] = (),
) -> None:
    """Do the work for each range, `workers` at a time, and read no further ahead than that.

    A range that fails keeps nobody behind it waiting: the first failure is raised at the end. After ten in a row, or
    one of those that end it at once, no further range is begun; those that are under way are finished.
    """
    course = _Course(ends_at_once)
    sending, receiving = anyio.create_memory_object_stream[Range](workers)
    async with anyio.create_task_group() as tasks, sending, aclosing(ranges):
        async with receiving:
            for _ in range(workers):
                tasks.start_soon(_work, receiving.clone(), work, course)
        try:
            async for part in ranges:
                if course.ended:
                    break
                await sending.send(part)
        except Exception as failure:
            course.failures.append(failure)
    if course.failures:
        raise course.failures[0]


async def _work(receiving: MemoryObjectReceiveStream[Range], work: Work, course: _Course) -> None:
    async with receiving:
        async for part in receiving:
            if course.ended:
                # What was read ahead is left for the run that takes this one up.
                continue
            try:
                await work(part)
            except Exception as failure:
                course.went_wrong(failure)
            else:
                course.went_well()
