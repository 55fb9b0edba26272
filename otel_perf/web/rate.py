"""How much may come in: all clients together, and each by its address, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Rate"]

_MOST_CLIENTS = 4096
_SHARE_OF_ONE = 4  # one client may use a quarter of what all may


class _Bucket:
    """Tokens that come back evenly over a minute; a minute's worth may be used at once."""

    __slots__ = ("_at_s", "_left", "_per_minute")

    def __init__(self, per_minute: float, now_s: float) -> None:
        self._per_minute = self._left = per_minute
        self._at_s = now_s

    def take(self, count: int, now_s: float) -> bool:
        self._left = min(self._per_minute, self._left + (now_s - self._at_s) * self._per_minute / 60)
        self._at_s = now_s
        if self._left < count:
            return False
        self._left -= count
        return True


class Rate:
    """The limit of one mount."""

    __slots__ = ("_all", "_clients", "_clock", "_of_one", "per_minute")

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._of_one = max(per_minute / _SHARE_OF_ONE, min(per_minute, 1))
        self._all = _Bucket(per_minute, clock())
        self._clients: dict[str, _Bucket] = {}

    def take(self, client: str, count: int = 1) -> bool:
        """Whether a client may send so many now; if so they are counted."""
        now_s = self._clock()
        bucket = self._clients.get(client)
        if bucket is None:
            while len(self._clients) >= _MOST_CLIENTS:  # the oldest begins anew when it comes back
                self._clients.pop(next(iter(self._clients)))
            bucket = self._clients[client] = _Bucket(self._of_one, now_s)
        # In this order: who is over the limit takes nothing from the others.
        return bucket.take(count, now_s) and self._all.take(count, now_s)
