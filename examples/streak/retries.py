"""Tries again what may succeed a moment later, and counts what went wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina

from .metrics import record_error
from .stores import StoreUnavailableError

__all__ = ["Retries"]

T = TypeVar("T")

_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 2.0
# asyncio.TimeoutError is not the builtin one before Python 3.11.
_TRANSIENT = (StoreUnavailableError, OSError, asyncio.TimeoutError)


class Retries:
    """What a run tries again. A store does so by itself for what is over in a blink; this is for a longer while."""

    def __init__(self) -> None:
        self.errors = 0
        """How often something went wrong, what was made good included."""

    def note(self, step: str, error: BaseException) -> None:
        """Count something that went wrong."""
        self.errors += 1
        record_error(step, error)

    async def __call__(self, step: str, call: Callable[[], Awaitable[T]]) -> T:
        """Await the call, up to five times with growing pauses, for as long as its failures are transient."""

        def is_transient(error: Exception) -> bool:
            self.note(step, error)
            return isinstance(error, _TRANSIENT)

        waits = stamina.retry_context(
            on=is_transient,
            attempts=_ATTEMPTS,
            timeout=None,
            wait_initial=_FIRST_PAUSE_S,
            wait_max=_LONGEST_PAUSE_S,
            wait_jitter=_FIRST_PAUSE_S,
        )
        async for attempt in waits:
            with attempt:
                return await call()
        raise AssertionError("stamina raises what the last attempt raised")
