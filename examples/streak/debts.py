"""What a write made old and the cache has not dropped yet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from itertools import islice

__all__ = ["CHUNK", "Debts"]

CHUNK = 100
"""So many keys are dropped by one command."""

_MAX_NAMED = 20_000


class Debts:
    """Keys that are to be dropped; once there are too many to name, all keys there are."""

    def __init__(self) -> None:
        self._named: dict[str, None] = {}
        self._all = False

    def __len__(self) -> int:
        """Return how many there are; one more than can be named when it is all of them."""
        return _MAX_NAMED + 1 if self._all else len(self._named)

    def owe(self, keys: Iterable[str]) -> None:
        """Add keys."""
        self._named.update(dict.fromkeys(keys))
        if len(self._named) > _MAX_NAMED:
            self.owe_all()

    def owe_all(self) -> None:
        """Add all keys there are."""
        self._named.clear()
        self._all = True

    async def pay(
        self, drop: Callable[[list[str]], Awaitable[object]], drop_all: Callable[[], Awaitable[object]]
    ) -> None:
        """Drop them. Each is struck off first: what is owed anew meanwhile is another debt."""
        if self._all:
            self._all = False
            try:
                await drop_all()
            except BaseException:
                self.owe_all()
                raise
        while chunk := list(islice(self._named, CHUNK)):
            for key in chunk:
                del self._named[key]
            try:
                await drop(chunk)
            except BaseException:
                self.owe(chunk)
                raise
