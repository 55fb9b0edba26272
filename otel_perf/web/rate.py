"""How much may come in: all clients together, and each by its address, in bounded memory."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

__all__ = ["Rate"]

_MOST_CLIENTS = 4096
_SHARE_OF_ONE = 4  # one client may use a quarter of what all may
_AT_ONCE = 8  # the figures of one report: with however small a limit, it comes through at some time


class _Bucket:
    """Tokens that come back evenly over a minute; a minute's worth, or a report's, may be used at once."""

    __slots__ = ("_at_s", "_most", "_per_minute", "left")

    def __init__(self, per_minute: float, now_s: float) -> None:
        self._per_minute = per_minute
        self._most = self.left = max(per_minute, _AT_ONCE) if per_minute else 0.0
        self._at_s = now_s

    def holds(self, count: int, now_s: float) -> bool:
        self.left = min(self._most, self.left + (now_s - self._at_s) * self._per_minute / 60)
        self._at_s = now_s
        return self.left >= count


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
        """Whether a client may send so many now; if so they are counted, else nothing is."""
        bucket = self._permitting(client, count)
        if bucket is None:
            return False
        bucket.left -= count
        self._all.left -= count
        return True

    def permits(self, client: str) -> bool:
        """Whether a client may send anything now."""
        return self._permitting(client, 1) is not None

    def _permitting(self, client: str, count: int) -> _Bucket | None:
        now_s = self._clock()
        client = _network(client)
        bucket = self._clients.get(client)
        if bucket is None:
            while len(self._clients) >= _MOST_CLIENTS:  # the oldest begins anew when it comes back
                self._clients.pop(next(iter(self._clients)))
            bucket = self._clients[client] = _Bucket(self._of_one, now_s)
        return bucket if bucket.holds(count, now_s) and self._all.holds(count, now_s) else None


def _network(client: str) -> str:
    """Whom an address is of: in IPv6 a whole network of 2^64 is one client."""
    if ":" not in client:
        return client
    try:
        address = ipaddress.IPv6Address(client.partition("%")[0])
    except ValueError:
        return client
    return str(address.ipv4_mapped or int(address) >> 64)
