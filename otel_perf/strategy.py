"""Cache strategies: a declared name for a family of keys, with the lifetime and hit rate that are expected of it.

Hits and misses are counted per strategy, never per key, so the number of series stays bounded. Which strategy a key
belongs to is looked up by the text that patterns begin with, so a hundred strategies cost about as much as one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Strategy", "any_declared", "declare", "declared", "find", "matches", "split"]


@dataclass(frozen=True, slots=True)
class Strategy:
    """One family of keys: `pattern` has `*` or `{name}` for the parts that change."""

    name: str
    pattern: str
    ttl_s: float | None = None
    expected_hit_rate: float | None = None


_Parts = tuple[str, ...]

_strategies: dict[str, tuple[Strategy, _Parts]] = {}
_GAP = re.compile(r"\*|\{[^{}]*\}")


class _Index:
    """The strategies by what their patterns begin with: for each length of such a text, those that begin with it."""

    __slots__ = ("by_length", "of", "size")

    def __init__(self, of: dict[str, tuple[Strategy, _Parts]]) -> None:
        self.of = of
        self.size = len(of)
        lengths: dict[int, dict[str, list[tuple[int, Strategy, _Parts]]]] = {}
        for order, (strategy, parts) in enumerate(list(of.values())):
            first = parts[0]
            lengths.setdefault(len(first), {}).setdefault(first, []).append((order, strategy, parts))
        self.by_length = tuple(lengths.items())


_index = _Index(_strategies)


def declare(
    name: str | Strategy, pattern: str = "", *, ttl_s: float | None = None, expected_hit_rate: float | None = None
) -> Strategy:
    """Declares a strategy, by its parts or as a `Strategy`; declaring a name again replaces it.

    Raises:
        ValueError: for a hit rate outside 0 to 1, a lifetime that is not positive, or a pattern that matches all keys.
    """
    global _index
    strategy = name if isinstance(name, Strategy) else Strategy(name, pattern, ttl_s, expected_hit_rate)
    rate, lifetime_s = strategy.expected_hit_rate, strategy.ttl_s
    if rate is not None and not 0 <= rate <= 1:
        raise ValueError(f"expected_hit_rate of {strategy.name!r} is {rate}: give a share from 0 to 1, such as 0.9")
    if lifetime_s is not None and not lifetime_s > 0:
        raise ValueError(
            f"ttl_s of {strategy.name!r} is {lifetime_s}: give a lifetime in seconds above 0, or leave it out"
        )
    parts = split(strategy.pattern)
    if not any(parts):
        raise ValueError(
            f"pattern of {strategy.name!r} is {strategy.pattern!r}: it would match every key; begin it with a prefix"
        )
    _strategies[strategy.name] = (strategy, parts)
    _index = _Index(_strategies)
    return strategy


def find(key: str) -> Strategy | None:
    """The first declared strategy whose pattern the key matches."""
    global _index
    index = _index
    if index.of is not _strategies or index.size != len(_strategies):
        index = _index = _Index(_strategies)
    best, found = len(_strategies), None
    for length, by_first in index.by_length:
        for order, strategy, parts in by_first.get(key[:length], ()):
            if order < best and matches(key, parts):
                best, found = order, strategy
                break
    return found


def split(pattern: str) -> tuple[str, ...]:
    """The parts of a pattern that do not change, in their order."""
    return tuple(_GAP.split(pattern))


def matches(key: str, parts: tuple[str, ...]) -> bool:
    """Whether a key has these parts, with anything in between."""
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


def any_declared() -> bool:
    """Whether there is a strategy at all."""
    return bool(_strategies)


def declared() -> tuple[Strategy, ...]:
    """All strategies, in the order of their declaration."""
    return tuple(strategy for strategy, _ in _strategies.values())
