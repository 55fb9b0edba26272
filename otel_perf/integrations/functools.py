"""Functions with a cache that counts: `functools.lru_cache`, `functools.cache`, and whatever has their `cache_info()`.

Nothing is wrapped: the counts are read when metrics are collected, so a call costs what it always did.
"""

from __future__ import annotations

from typing import Any

from otel_perf.integrations.counted import Counts, observe
from otel_perf.integrations.registry import Undo

__all__ = ["instrument", "matches"]


def matches(target: object) -> bool:
    """Whether this is a function that has `cache_info()` and `cache_clear()`."""
    return all(callable(getattr(target, name, None)) for name in ("cache_info", "cache_clear", "__call__"))


def instrument(target: Any, *, strategy: str | None = None) -> Undo:
    """Reports the hits, misses and entries of one function's cache, as `strategy` or by the function's name."""
    function = getattr(target, "__func__", target)  # a bound method is made anew each time it is asked for
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    return observe(function, "functools", strategy or name, _read)


def _read(function: Any) -> Counts:
    said = function.cache_info()
    return Counts(said.hits, said.misses, said.currsize, said.maxsize)
