"""The account of spans or log records: each is in one place; `made` is the sum of the places, so that it balances."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

__all__ = ["Account", "Tally", "emptied"]

T = TypeVar("T")


class Tally(NamedTuple):
    """What became of all of them, at one moment: `made` is the sum of the others."""

    made: int
    delivered: int
    lost: int
    queued: int


class Account(Generic[T]):
    """The places where items can be: a queue, in hand, delivered, lost. Moves between them are made under one lock."""

    def __init__(self) -> None:
        self._closed = False
        self._open()

    def _open(self) -> None:
        """Everything at zero, with a new lock."""
        # Re-entrant: while it is held, garbage collection may run code that asks for the counts.
        self._changed = threading.Condition(threading.RLock())
        self._queue: deque[T] = deque()
        self._refused: deque[None] = deque()  # one for each, so that refusing takes no lock either
        self._in_hand: int = 0  # items that were taken from the queue and are not done with
        self._done: int = 0  # items that were ever queued and are done with, and how many of those were lost
        self._failed: int = 0
        self._encoded_all = False  # nobody takes from the queue any more
        self.delivered = 0
        self._lost: dict[str, int] = {}

    @property
    def queued(self) -> int:
        """Items that wait or are on their way."""
        return self.tally().queued

    @property
    def made(self) -> int:
        """Items that were ever handed over."""
        return self.tally().made

    @property
    def lost(self) -> dict[str, int]:
        """Items that were lost, by the reason."""
        with self._changed:
            self._count_refused()
            return dict(self._lost)

    def tally(self) -> Tally:
        """All counts at one moment."""
        with self._changed:
            self._count_refused()
            queued, lost = len(self._queue) + self._in_hand, sum(self._lost.values())
            return Tally(self.delivered + lost + queued, self.delivered, lost, queued)

    def _count_refused(self) -> None:
        refused = emptied(self._refused)
        if self._encoded_all:
            refused += emptied(self._queue)  # put there by a thread that was held up since before the end
        if refused:
            reason = "closed" if self._closed else "queue_full"
            self._lost[reason] = self._lost.get(reason, 0) + refused

    def _settle(self, count: int, lost: int, reason: str) -> None:
        """Items in hand are done with, `lost` of them for a reason."""
        self._in_hand -= count
        self._done += count
        self._failed += lost
        self.delivered += count - lost
        if lost:
            self._lost[reason] = self._lost.get(reason, 0) + lost
        self._make_room()
        self._changed.notify_all()

    def _make_room(self) -> None:
        """Something left: there may be room for more."""


def emptied(queue: deque[Any]) -> int:
    """How many there were in a queue that others may be adding to; there are none now."""
    count = 0
    with suppress(IndexError):
        while True:
            queue.popleft()
            count += 1
    return count
