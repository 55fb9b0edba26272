"""Caches that only keep count, as `functools.lru_cache` does: their counts are read when metrics are collected.

They are held weakly. What is reported never falls: a cache may begin its counts anew, and one of several that go by
the same name may be gone, with what it had counted staying in the sum.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import ref

from otel_perf import catalogue, guard, redaction
from otel_perf import conventions as c
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.rising import Rising

__all__ = ["Counts", "observe"]

_PAST = 1000  # so many names of caches that are gone are kept

_Name = tuple[str, str]


class Counts(NamedTuple):
    """What a cache says of itself."""

    hits: int
    misses: int
    entries: int | None
    most: int | None


class _Observed:
    """One cache, and what it said last."""

    __slots__ = ("hits", "holders", "misses", "name", "read", "target", "totals")

    def __init__(self, target: ref[Any], name: _Name, read: Callable[[Any], Counts]) -> None:
        self.target = target
        self.name = name
        self.read = read
        self.holders = 0
        self.hits = Rising()
        self.misses = Rising()
        self.totals = (0, 0)

    def look(self) -> Counts | None:
        """What it says now, its hits and misses as totals."""
        target = self.target()
        if target is None:
            return None
        try:
            with _reading:  # of two readers the later one must not seem to have begun anew
                counts = self.read(target)
                self.totals = (self.hits.total(counts.hits), self.misses.total(counts.misses))
        except Exception:
            guard.note(f"reading the counts of a {self.name[0]} cache")
            return None
        return counts


_observed: dict[int, _Observed] = {}
_past: dict[_Name, tuple[int, int]] = {}
_lock = threading.Lock()
_reading = threading.Lock()
_watching: list[bool] = []


def observe(target: Any, system: str, strategy: str, read: Callable[[Any], Counts]) -> Undo:
    """Reports a cache from now on, until the answer is undone or it is gone."""
    key = id(target)

    def gone(_: object) -> None:  # no lock: it comes at any moment
        last = _observed.pop(key, None)
        if last is not None and (last.name in _past or len(_past) < _PAST):
            hits, misses = _past.get(last.name, (0, 0))
            _past[last.name] = (hits + last.totals[0], misses + last.totals[1])

    with _lock:
        if not _watching:
            _watching.append(True)
            catalogue.watch(c.CACHE_REQUESTS, _requests)
            catalogue.watch(c.CACHE_ENTRIES, lambda: _sizes(lambda counts: counts.entries))
            catalogue.watch(c.CACHE_ENTRIES_MAX, lambda: _sizes(lambda counts: counts.most))
        found = _observed.get(key)
        if found is None:
            found = _Observed(ref(target, gone), (system, redaction.text(strategy, 128)), read)
            _observed[key] = found
        found.holders += 1

    def release() -> None:
        with _lock:
            found.holders -= 1
            if not found.holders and _observed.get(key) is found:
                del _observed[key]

    return Undo(release)


def _requests() -> list[tuple[int, dict[str, Any]]]:
    totals = {name: list(counts) for name, counts in list(_past.items())}
    for each in list(_observed.values()):
        if each.look() is not None:
            sums = totals.setdefault(each.name, [0, 0])
            sums[0] += each.totals[0]
            sums[1] += each.totals[1]
    return [
        (count, {c.CACHE_SYSTEM: system, c.CACHE_STRATEGY: strategy, c.CACHE_RESULT: result})
        for (system, strategy), sums in totals.items()
        for result, count in zip(("hit", "miss"), sums, strict=True)
    ]


def _sizes(what: Callable[[Counts], int | None]) -> list[tuple[int, dict[str, Any]]]:
    sizes: dict[_Name, int] = {}
    for each in list(_observed.values()):
        counts = each.look()
        size = None if counts is None else what(counts)
        if size is not None:
            sizes[each.name] = sizes.get(each.name, 0) + size
    return [(size, {c.CACHE_SYSTEM: system, c.CACHE_STRATEGY: name}) for (system, name), size in sizes.items()]
