"""Filters of document stores without their values: pure functions, bounded in depth, breadth and length.

Keys stay where they look like names of fields or operators; a key that may be a value (an address, an id) is masked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, cast

__all__ = ["is_masked", "masked"]

_DEPTH = 5
_BREADTH = 20
_MAX_KEY = 64
_KEY = re.compile(r"\$?[A-Za-z_][A-Za-z_]*(?:\d{1,3}[A-Za-z_]+)*\d{0,3}(?:\.\$?(?:[A-Za-z_]+\d{0,3}|\d{1,3}))*")
_OPERATORS = frozenset(
    ("==", "!=", "<", "<=", ">", ">=", "=", "<>", "in", "not-in", "not in", "array_contains", "array-contains",
     "array_contains_any", "array-contains-any", "like")
)  # fmt: skip
# What `masked` answers, and nothing that holds a value: names are followed by a colon or an operator.
_OPERATOR = "|".join(map(re.escape, sorted(_OPERATORS)))
_MASKED = re.compile(rf"""(?:(?:"(?:{_KEY.pattern})"|\?)(?:: | (?:{_OPERATOR}) )|[{{}}\[\]?]|, |\.\.\.)*""")


def masked(value: object, limit: int) -> str:
    """A filter with `?` for each value, cut at the limit.

    Taken are mappings (`{"age": {"$gt": 5}}` says `{"age": {"$gt": ?}}`), lists of these, and lists of
    `(field, operator, value)`, of which `[("age", ">", 5)]` says `["age" > ?]`. Anything else is a value.
    """
    kept: list[str] = []
    length = 0
    for part in _parts(value, _DEPTH):
        length += len(part)
        if length > limit - 3:
            kept.append("...")
            break
        kept.append(part)
    return "".join(kept)


def is_masked(text: str) -> bool:
    """Whether this is what `masked` answers: to mask it as SQL would take the names out of it."""
    return _MASKED.fullmatch(text) is not None


def _parts(value: object, depth: int) -> Iterator[str]:
    if not depth:
        yield "?"
    elif isinstance(value, Mapping):
        yield from _mapping(cast("Mapping[object, object]", value), depth)
    elif isinstance(value, (list, tuple)):
        items = cast("Sequence[Any]", value)
        condition = _condition(items)
        if condition:
            yield condition
        elif any(isinstance(item, (Mapping, list, tuple)) for item in islice(items, _BREADTH)):
            yield "["
            yield from _separated(items, len(items), partial(_parts, depth=depth - 1))
            yield "]"
        else:
            yield "[?]" if items else "[]"
    else:
        yield "?"


def _mapping(value: Mapping[object, object], depth: int) -> Iterator[str]:
    def pair(item: tuple[object, object]) -> Iterator[str]:
        yield f"{_name(item[0])}: "
        yield from _parts(item[1], depth - 1)

    yield "{"
    yield from _separated(value.items(), len(value), pair)
    yield "}"


def _separated(items: Iterable[Any], count: int, parts: Any) -> Iterator[str]:
    for number, item in enumerate(islice(items, _BREADTH)):
        if number:
            yield ", "
        yield from parts(item)
    if count > _BREADTH:
        yield ", ..."


def _condition(items: Sequence[Any]) -> str | None:
    """What a `(field, operator, value)` says; None for another list."""
    if len(items) != 3 or not isinstance(items[0], str) or not isinstance(items[1], str):
        return None
    operator = items[1].lower()
    return f"{_name(items[0])} {operator} ?" if operator in _OPERATORS else None


def _name(key: object) -> str:
    if isinstance(key, str) and len(key) <= _MAX_KEY and _KEY.fullmatch(key):
        return f'"{key}"'
    return "?"
