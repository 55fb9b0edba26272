"""Tries again in the background what failed, until it works: nobody has to ask for it, and nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextvars import Context

__all__ = ["Mending"]

_EVERY_S = 1.0


class Mending:
    """One task at most, which lives for as long as something is broken."""

    def __init__(self, attempt: Callable[[], Awaitable[bool]], name: str) -> None:
        self._attempt = attempt
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def start(self) -> None:
        """Begin, unless it is under way. `attempt` is awaited every second until it returns true."""
        if self._ended or (self._task is not None and not self._task.done()):
            return
        # Not in the name of the request in which it broke: that one ends long before.
        self._task = Context().run(self._begin)

    async def end(self) -> None:
        """Stop for good."""
        self._ended = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._task])

    def _begin(self) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self._mend(), name=self._name)

    async def _mend(self) -> None:
        mended = False
        while not mended:
            await asyncio.sleep(_EVERY_S)
            mended = await self._attempt()
