"""Hands the messages of batches to the push API, at least once; what it does not take is kept, and tried again."""

from __future__ import annotations

from collections.abc import Sequence

from .push import MAX_MESSAGES, PushClient
from .records import Message, Range
from .retries import Retries
from .stores import Runs

__all__ = ["NotTakenError", "Outbox"]

_BATCHES_AT_A_TIME = 20


class NotTakenError(Exception):
    """The push API did not take messages, or is left alone after failures in a row."""


class Outbox:
    """The messages of one run."""

    def __init__(self, runs: Runs, push: PushClient, run_id: str, retries: Retries) -> None:
        self._runs = runs
        self._push = push
        self._run_id = run_id
        self._retries = retries

    async def deliver(self, part: Range, messages: Sequence[Message]) -> int | None:
        """Send a batch's messages and write that they are sent; None when they are kept for later.

        A process that is ended between the two sends them once more.
        """
        if not messages:
            return 0
        notified = 0
        # Without a push API nobody will ever take them.
        if self._push.configured:
            for first in range(0, len(messages), MAX_MESSAGES):
                chunk = messages[first : first + MAX_MESSAGES]
                if not await self._push.send(*chunk):
                    self._retries.note("notify", NotTakenError())
                    return None
                notified += len(chunk)
        await self._retries("notify", lambda: self._runs.sent(self._run_id, part, notified))
        return notified

    async def deliver_kept(self) -> int:
        """Send what was kept, until the push API takes no more of it, and return how many were taken."""
        taken = 0
        while kept := await self._kept():
            before = taken
            for part, messages in kept:
                if not self._push.available:
                    return taken
                taken += await self.deliver(part, messages) or 0
            if taken == before and self._push.configured:
                break
        return taken

    async def drop_kept(self) -> int:
        """Forget what was kept: the day it was about is over. Return how many messages that were."""
        dropped = 0
        while kept := await self._kept():
            for part, messages in kept:
                await self._retries("notify", lambda part=part: self._runs.sent(self._run_id, part, 0))  # type: ignore[misc]
                dropped += len(messages)
        return dropped

    async def _kept(self) -> Sequence[tuple[Range, tuple[Message, ...]]]:
        return await self._retries("notify", lambda: self._runs.unsent(self._run_id, _BATCHES_AT_A_TIME))
