"""Pools of connections: who waits, for how long, who gave up, and how many connections there are.

Each library tells here what its pools look like at the moment; pools of one name are added up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from otel_perf import catalogue
from otel_perf import conventions as c
from otel_perf.telemetry import runtime

__all__ = ["Figures", "Pool", "tell"]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a pool holds at the moment."""

    name: str
    idle: int
    used: int
    waiting: int
    #: How many connections it may open; None where there is no limit.
    limit: int | None


class Pool:
    """One pool that is watched."""

    __slots__ = ("name", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        #: One token for each request that waits now: putting in and taking out needs no lock.
        self.waiting: set[object] = set()

    def got(self, began_ns: int) -> None:
        """Records that a request that began to wait then has its connection."""
        in_force = runtime.current
        if in_force is not None:
            in_force.at(c.POOL_WAIT, (self.name,)).record((time.perf_counter_ns() - began_ns) / 1e9)

    def timed_out(self) -> None:
        """Counts a request that got no connection in time."""
        in_force = runtime.current
        if in_force is not None:
            in_force.at(c.POOL_TIMEOUTS, (self.name,)).record(1)


_sources: list[Callable[[], Iterable[Figures]]] = []
_Observed = list[tuple[int, Mapping[str, Any]]]


def tell(source: Callable[[], Iterable[Figures]]) -> None:
    """Connects what knows the pools of a library, for the life of the process."""
    if not _sources:
        catalogue.watch(c.POOL_COUNT, _counts)
        catalogue.watch(c.POOL_MAX, _limits)
        catalogue.watch(c.POOL_PENDING, _waiting)
    if source not in _sources:
        _sources.append(source)


def _figures() -> Iterable[Figures]:
    for source in _sources:
        yield from source()


def _counts() -> _Observed:
    counts: dict[tuple[str, str], int] = {}
    for each in _figures():
        for state, count in (("idle", each.idle), ("used", each.used)):
            counts[each.name, state] = counts.get((each.name, state), 0) + count
    return [(count, {c.DB_POOL_NAME: name, c.DB_POOL_STATE: state}) for (name, state), count in counts.items()]


def _limits() -> _Observed:
    limits: dict[str, int] = {}
    for each in _figures():
        if each.limit is not None:
            limits[each.name] = limits.get(each.name, 0) + each.limit
    return [(limit, {c.DB_POOL_NAME: name}) for name, limit in limits.items()]


def _waiting() -> _Observed:
    waiting: dict[str, int] = {}
    for each in _figures():
        waiting[each.name] = waiting.get(each.name, 0) + each.waiting
    return [(count, {c.DB_POOL_NAME: name}) for name, count in waiting.items()]
