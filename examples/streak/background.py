"""What the service does beside its requests: KPIs are counted, the cache is warmed up, the maintenance has its time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from .parts import Parts
from .schedule import scheduled
from .warm_up import warm_up

__all__ = ["Background", "in_background"]


class Background:
    """Tasks that end with the service."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, object], name: str) -> None:
        """Begin something that looks after its own failures."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Cancel what is under way, and wait until it has ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def in_background(parts: Parts) -> AsyncIterator[None]:
    """Do all of it for the length of a block."""
    settings = parts.settings
    background = Background()

    def warm() -> None:
        work = warm_up(parts.streaks, parts.database.store, parts.cache, parts.today, settings.warm_up)
        background.start(work, "streak warm-up")

    async with AsyncExitStack() as stack:
        stack.push_async_callback(background.end)
        if settings.kpis_every_s:
            background.start(parts.kpis.keep_counting(settings.kpis_every_s, parts.clock), "streak KPIs")
        if settings.warm_up:
            warm()
            # A run makes many values old.
            stack.callback(parts.maintenance.when_completed(warm))
        if settings.maintenance_at is not None:
            await stack.enter_async_context(scheduled(parts.maintenance, settings.maintenance_at, parts.clock))
        yield
