"""Cache strategies: a declared name for a family of keys, with the lifetime and hit rate that are expected of it.

Hits and misses are counted per strategy, never per key, so the number of series stays bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Strategy", "declare", "declared", "find"]


@dataclass(frozen=True, slots=True)
class Strategy:
    """One family of keys: `pattern` has `*` or `{name}` for the parts that change."""

    name: str
    pattern: str
    ttl_s: float | None = None
    expected_hit_rate: float | None = None


_strategies: dict[str, tuple[Strategy, tuple[str, ...]]] = {}
_GAP = re.compile(r"\*|\{[^{}]*\}")


def declare(name: str, pattern: str, *, ttl_s: float | None = None, expected_hit_rate: float | None = None) -> Strategy:
    """Declares a strategy; declaring a name again replaces it.

    Raises:
        ValueError: for a hit rate outside 0 to 1, a lifetime that is not positive, or a pattern that matches all keys.
    """
    if expected_hit_rate is not None and not 0 <= expected_hit_rate <= 1:
        raise ValueError(f"expected_hit_rate of {name!r} is {expected_hit_rate}: give a share from 0 to 1, such as 0.9")
    if ttl_s is not None and not ttl_s > 0:
        raise ValueError(f"ttl_s of {name!r} is {ttl_s}: give a lifetime in seconds above 0, or leave it out")
    parts = tuple(_GAP.split(pattern))
    if not any(parts):
        raise ValueError(f"pattern of {name!r} is {pattern!r}: it would match every key; begin it with a prefix")
    strategy = Strategy(name, pattern, ttl_s, expected_hit_rate)
    _strategies[name] = (strategy, parts)
    return strategy


def find(key: str) -> Strategy | None:
    """The first declared strategy whose pattern the key matches."""
    for strategy, parts in list(_strategies.values()):
        if _matches(key, parts):
            return strategy
    return None


def _matches(key: str, parts: tuple[str, ...]) -> bool:
    # Each part is sought once, behind the one before: a hostile key costs no more than its length times the parts.
    first, *middle = parts
    if not middle:
        return key == first
    last = middle.pop()
    end = len(key) - len(last)
    if not (key.startswith(first) and key.endswith(last) and len(first) <= end):
        return False
    position = len(first)
    for part in middle:
        found = key.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return True


def declared() -> tuple[Strategy, ...]:
    """All strategies, in the order of their declaration."""
    return tuple(strategy for strategy, _ in _strategies.values())
