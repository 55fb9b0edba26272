"""cachetools: caches, and the functions that its decorators made.

A cache has no counts of its own. It is given a class of ours that derives from its own and counts what is looked up
with `cache[key]` and `get`; undoing it gives the very class back. A function that was decorated with
`@cached(cache, info=True)`, or by `cachetools.func`, has counts, which are read.
"""

from __future__ import annotations

import functools
import threading
from typing import Any
from weakref import ref

import cachetools

from otel_perf.integrations.counted import Counts, observe
from otel_perf.integrations.patch import Holds
from otel_perf.integrations.registry import Undo

__all__ = ["instrument", "matches"]

_NOTHING = object()

_held = Holds()
#: Hits and misses of the caches that are counted, by their `id`: a mapping cannot be a key.
_tallies: dict[int, _Tally] = {}


class _Tally:
    """The counts of one cache; the cache's own lock, where it is shared by threads, guards them too."""

    __slots__ = ("cache", "hits", "misses")

    def __init__(self, cache: ref[Any]) -> None:
        self.cache = cache
        self.hits = 0
        self.misses = 0


class _Local(threading.local):
    quiet = False
    missed = False


_local = _Local()


def matches(target: object) -> bool:
    """Whether this is a cache, or a function that cachetools decorated and that keeps count."""
    if isinstance(target, cachetools.Cache):
        return True
    return callable(getattr(target, "cache_info", None)) and hasattr(target, "cache_key")


def instrument(target: Any, *, strategy: str | None = None) -> Undo:
    """Reports the hits, misses and entries of one cache, as `strategy` or by its name."""
    if not isinstance(target, cachetools.Cache):
        function = getattr(target, "__func__", target)
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
        return observe(function, "cachetools", strategy or name, _read_function)
    return _of_cache(target, strategy)


def _of_cache(cache: Any, strategy: str | None) -> Undo:
    counted = _held.take(cache, lambda: _put_in(cache), lambda: _take_out(cache))
    name = strategy or _kind(cache).__qualname__
    return Undo(counted.undo, observe(cache, "cachetools", name, _read_cache).undo)


def _kind(cache: Any) -> Any:
    return cache.__class__


def _put_in(cache: Any) -> None:
    key = id(cache)
    cache.__class__ = _counting(_kind(cache))
    _tallies[key] = _Tally(ref(cache, lambda _: _tallies.pop(key, None)))


def _take_out(cache: Any) -> None:
    kind = _kind(cache)
    if hasattr(kind, "_otel_perf_kind"):
        cache.__class__ = kind._otel_perf_kind
    _tallies.pop(id(cache), None)


def _read_function(function: Any) -> Counts:
    said = function.cache_info()
    return Counts(said.hits, said.misses, said.currsize, said.maxsize)


def _read_cache(cache: Any) -> Counts:
    tally = _tallies.get(id(cache))
    hits, misses = (0, 0) if tally is None else (tally.hits, tally.misses)
    # Its sizes are in units of its own where it has a `getsizeof`; entries are counted.
    plain: Any = cachetools.Cache
    most = int(cache.maxsize) if cache.getsizeof is plain.getsizeof and cache.maxsize < 2**63 else None
    return Counts(hits, misses, len(cache), most)


def _count(cache: object, hit: bool) -> None:
    tally = _tallies.get(id(cache))
    if tally is None or _local.quiet:
        return
    if hit:
        tally.hits += 1
    else:
        tally.misses += 1


@functools.lru_cache(maxsize=128)
def _counting(kind: Any) -> type:
    """A class like this one that counts."""

    class Counting(kind):  # type: ignore[misc]  # whichever it is
        _otel_perf_kind = kind

        def __getitem__(self, key: Any) -> Any:
            _local.missed = False
            try:
                value = kind.__getitem__(self, key)
            except KeyError:
                _count(self, False)
                raise
            _count(self, not _local.missed)
            _local.missed = False
            return value

        def __missing__(self, key: Any) -> Any:
            value = kind.__missing__(self, key)
            _local.missed = True
            return value

        def get(self, key: Any, default: Any = None) -> Any:
            value = kind.get(self, key, _NOTHING)
            if value is _NOTHING:
                _count(self, False)
                return default
            return value

        def pop(self, *args: Any, **options: Any) -> Any:
            # The cache itself takes out what it has no room for by this.
            before, _local.quiet = _local.quiet, True
            try:
                return kind.pop(self, *args, **options)
            finally:
                _local.quiet = before

        def popitem(self) -> Any:
            before, _local.quiet = _local.quiet, True
            try:
                return kind.popitem(self)
            finally:
                _local.quiet = before

        def setdefault(self, key: Any, default: Any = None) -> Any:
            # Who calls it has the value already: decorators with a lock do so after they looked with `cache[key]`.
            before, _local.quiet = _local.quiet, True
            try:
                return kind.setdefault(self, key, default)
            finally:
                _local.quiet = before

        def __reduce_ex__(self, protocol: Any) -> Any:
            # A copy, or what is read from a pickle, is of the cache's own class.
            ours = _kind(self)
            self.__class__ = kind
            try:
                made: Any = self.__reduce_ex__(protocol)
            finally:
                self.__class__ = ours
            # pickle compares the class of `__newobj__` with the object's, which is ours again.
            known = made[0].__name__ == "__newobj__"
            return (kind.__new__, *made[1:]) if known else made

    Counting.__name__, Counting.__qualname__, Counting.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Counting
