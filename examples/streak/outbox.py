"""Hands the messages of batches to the push API, at least once; what it does not take is kept, and tried again."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import structlog

from .push import MAX_MESSAGES, PushClient
from .records import Message, Range
from .retries import Retries
from .stores import Runs

__all__ = ["FOR_S", "NotTakenError", "Outbox", "RefusedByPushError"]

#: How long a run goes on trying at its end.
FOR_S = 60.0
_BATCHES_AT_A_TIME = 20
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 15.0
_pause = asyncio.sleep

_log = structlog.get_logger("streak.maintenance")


class NotTakenError(Exception):
    """The push API did not take messages, or is left alone after failures in a row."""


class RefusedByPushError(Exception):
    """The push API works and will not take these messages: they are given up."""


class Outbox:
    """The messages of one run."""

    def __init__(self, runs: Runs, push: PushClient, run_id: str, retries: Retries) -> None:
        self._runs = runs
        self._push = push
        self._run_id = run_id
        self._retries = retries
        self._asked_to_wait_s = 0.0

    async def deliver(self, part: Range, messages: Sequence[Message]) -> int:
        """Send a batch's messages, a call after the other, and write of each that it was taken; return how many were.

        What is not taken is kept, and what is refused is given up. A process that is ended between a call and the
        writing makes the call once more, with the same key.
        """
        if not self._push.configured:
            # Nobody will ever take them.
            if messages:
                await self._sent(part, 0, ())
            return 0
        notified = 0
        for first in range(0, len(messages), MAX_MESSAGES):
            chunk, left = messages[first : first + MAX_MESSAGES], messages[first + MAX_MESSAGES :]
            answer = await self._push.offer(chunk, self._key(part, chunk))
            if answer.refused:
                self._retries.note("notify", RefusedByPushError())
                _log.error("Notifications given up", run_id=self._run_id, messages=len(chunk), reason="refused")
            elif not answer.taken:
                self._asked_to_wait_s = answer.retry_after_s or 0.0
                self._retries.note("notify", NotTakenError())
                break
            taken = len(chunk) if answer.taken else 0
            await self._sent(part, taken, left)
            notified += taken
        return notified

    async def deliver_kept(self, for_s: float = 0.0) -> int:
        """Send what was kept, and return how many were taken. What is not taken is tried again, for so long."""
        taken, until_s, pause_s = 0, time.monotonic() + for_s, _FIRST_PAUSE_S
        while True:
            taken += await self._sweep()
            wait_s = max(pause_s, self._asked_to_wait_s)
            if time.monotonic() + wait_s >= until_s or not await self._is_left():
                return taken
            await _pause(wait_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def drop_kept(self) -> int:
        """Forget what was kept: the day it was about is over. Return how many messages that were."""
        dropped = 0
        async with aclosing(self._kept()) as kept:
            async for part, messages in kept:
                await self._sent(part, 0, ())
                dropped += len(messages)
        return dropped

    async def _sweep(self) -> int:
        taken = 0
        self._asked_to_wait_s = 0.0
        async with aclosing(self._kept()) as kept:
            async for part, messages in kept:
                if not self._push.available:
                    break
                taken += await self.deliver(part, messages)
                if self._asked_to_wait_s:
                    break
        return taken

    async def _kept(self) -> AsyncGenerator[tuple[Range, tuple[Message, ...]], None]:
        # Each batch once: one that is not taken keeps none behind it waiting.
        after = ""
        while True:
            page = await self._page(after, _BATCHES_AT_A_TIME)
            for part, messages in page:
                yield part, messages
                after = part.until
            if len(page) < _BATCHES_AT_A_TIME:
                return

    async def _is_left(self) -> bool:
        return bool(await self._page("", 1))

    async def _page(self, after: str, limit: int) -> Sequence[tuple[Range, tuple[Message, ...]]]:
        return await self._retries("notify", lambda: self._runs.unsent(self._run_id, limit, after))

    async def _sent(self, part: Range, notified: int, left: Sequence[Message]) -> None:
        await self._retries("notify", lambda: self._runs.sent(self._run_id, part, notified, left))

    def _key(self, part: Range, chunk: Sequence[Message]) -> str:
        # The same for the same call of the same run, whichever process makes it; it tells no names.
        text = f"{self._run_id}\n{part.after}\n{part.until}\n{chunk[0].user}\n{chunk[-1].user}"
        return hashlib.sha256(text.encode()).hexdigest()
