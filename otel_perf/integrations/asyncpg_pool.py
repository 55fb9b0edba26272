"""The pools of asyncpg: how many connections, who waits for one, how long, and who gave up.

asyncpg's pools take no weak references: a few are kept by their ids, until they or their event loops are closed.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

from otel_perf import guard
from otel_perf.integrations import pool as pools
from otel_perf.integrations.registry import Undo

__all__ = ["Pools"]

_MAX_POOLS = 64


class Pools:
    """The pools that are measured: all of them while `everything()` says so, else those that were chosen."""

    __slots__ = ("_chosen", "_everything", "_known", "_name")

    def __init__(self, everything: Callable[[], bool], name: Callable[[Any], str]) -> None:
        self._everything = everything
        #: Says by one of its connections what a pool is called.
        self._name = name
        self._known: dict[int, tuple[Any, pools.Pool]] = {}
        #: How many handles measure a pool, by its id.
        self._chosen: dict[int, int] = {}

    def take(self, pool: object) -> Undo:
        """Measures one pool until the answer is undone."""
        number = id(pool)
        self._chosen[number] = self._chosen.get(number, 0) + 1
        self.known(pool)  # which keeps it, so that nothing else gets its id

        def release() -> None:
            self._chosen[number] -= 1
            if not self._chosen[number]:
                del self._chosen[number]
                self._known.pop(number, None)

        return Undo(release)

    def lends(self, connection: Any) -> bool:
        """Whether a connection is lent by a pool that was chosen."""
        if not self._chosen:
            return False
        holder = getattr(connection._proxy, "_holder", None)
        return holder is not None and id(holder._pool) in self._chosen

    def known(self, pool: Any) -> pools.Pool | None:
        """What we keep of a pool, or None where it is not measured."""
        number = id(pool)
        if not (number in self._chosen or self._everything()):
            return None
        found = self._known.get(number)
        if found is None or found[0] is not pool:
            if len(self._known) >= _MAX_POOLS:
                del self._known[next(iter(self._known))]
            found = self._known[number] = (pool, pools.Pool(""))
        if not found[1].name:
            connected = [each._con for each in pool._holders if each._con is not None]
            if connected:
                found[1].name = self._name(connected[0])
        return found[1]

    def figures(self) -> Iterable[pools.Figures]:
        """What they hold at the moment."""
        for number, (pool, _) in list(self._known.items()):
            if pool._closed or pool._loop.is_closed():
                self._known.pop(number, None)
                continue
            watched = self.known(pool)
            if watched is not None and watched.name:
                size, idle = pool.get_size(), pool.get_idle_size()
                yield pools.Figures(watched.name, idle, size - idle, len(watched.waiting), pool.get_max_size())

    def acquired(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps the method by which a pool lends a connection."""

        @functools.wraps(original)
        async def _acquire(pool: Any, *args: Any, **options: Any) -> Any:
            watched = self._watched(pool)
            if watched is None:
                return await original(pool, *args, **options)
            token, began_ns = object(), time.perf_counter_ns()
            watched.waiting.add(token)
            try:
                lent = await original(pool, *args, **options)
            except (TimeoutError, asyncio.TimeoutError):  # two until Python 3.11
                _tell(watched, None)
                raise
            finally:
                watched.waiting.discard(token)
            self._watched(pool)  # which has a name now, where this was its first connection
            _tell(watched, began_ns)
            return lent

        return _acquire

    def _watched(self, pool: Any) -> pools.Pool | None:
        try:
            return self.known(pool)
        except Exception:
            guard.note("watching a pool")
            return None


def _tell(watched: pools.Pool, began_ns: int | None) -> None:
    try:
        if began_ns is None:
            watched.timed_out()
        else:
            watched.got(began_ns)
    except Exception:
        guard.note("measuring a pool")
