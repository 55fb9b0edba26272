"""What a Firestore query looks like, without the values in it: `FROM trips WHERE points > ? ORDER BY points DESC`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["collection", "shape"]

_SIGNS = {
    "LESS_THAN": "<", "LESS_THAN_OR_EQUAL": "<=", "GREATER_THAN": ">", "GREATER_THAN_OR_EQUAL": ">=", "EQUAL": "=",
    "NOT_EQUAL": "!=",
}  # fmt: skip
_MOST_FILTERS = 30
_DEEPEST = 6
_NAME = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
_LONGEST_WITH_DIGITS = 20


def collection(path: tuple[str, ...]) -> str | None:
    """The path of a collection with `{id}` for each document on the way: `users/{id}/activities`."""
    if len(path) == 1:
        return path[0] or None
    return "/".join("{id}" if place % 2 else part for place, part in enumerate(path)) or None


def shape(query: Any, aggregations: Iterable[Any] = (), nearest: Any = None) -> str:
    """A query with its values masked; `aggregations` and `nearest` are what stands around it."""
    found = [f"{_kind(each)}({_field(getattr(each, 'field_ref', '') or '')})" for each in aggregations]
    parts = [f"SELECT {', '.join(found)}"] if found else []
    parts.append(f"FROM {collection(query._parent._path) or '*'}")
    filters = [_filter(each._pb) for each in query._field_filters[:_MOST_FILTERS]]
    if filters:
        parts.append(f"WHERE {' AND '.join(filters)}")
    if nearest is not None:
        parts.append("NEAREST ?")
    orders = [f"{_field(each.field.field_path)} {each.direction.name[:-6]}" for each in query._orders]
    if orders:
        parts.append(f"ORDER BY {', '.join(orders)}")
    for name, value in (("START", query._start_at), ("END", query._end_at), ("OFFSET", query._offset)):
        if value is not None:
            parts.append(f"{name} ?")
    if query._limit is not None:
        parts.append("LIMIT ?")
    return " ".join(parts)


def _filter(found: Any, depth: int = 0) -> str:
    kind = found.DESCRIPTOR.name
    if kind == "Filter":
        found = getattr(found, found.WhichOneof("filter_type"))
        kind = found.DESCRIPTOR.name
    name = found.DESCRIPTOR.fields_by_name["op"].enum_type.values_by_number[found.op].name
    if kind == "CompositeFilter":
        return f"({f' {name} '.join(_inner(found, depth))})" if depth < _DEEPEST else "(...)"
    if kind == "UnaryFilter":
        return f"{_field(found.field.field_path)} {name.replace('_', ' ')}"
    return f"{_field(found.field.field_path)} {_SIGNS.get(name, name)} ?"


def _inner(found: Any, depth: int) -> Iterator[str]:
    for place, each in enumerate(found.filters):
        if place == _MOST_FILTERS:
            break
        yield _filter(each, depth + 1)


def _field(path: str) -> str:
    """A field path; keys of maps can be data: an address, an id."""
    return ".".join(part if _is_name(part) else "?" for part in path.split(".", 8)) if path else ""


def _is_name(part: str) -> bool:
    if _NAME.fullmatch(part) is None:
        return part == "__name__"
    return len(part) < _LONGEST_WITH_DIGITS or not any(map(str.isdigit, part))


def _kind(aggregation: Any) -> str:
    return type(aggregation).__name__.removesuffix("Aggregation").upper()
