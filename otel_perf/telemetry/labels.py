"""Labels of a series: made clean once, when the series is made, and told apart by a key that can be hashed."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

from otel_perf.redaction import MAX_LENGTH

__all__ = ["Key", "clean", "clean_value", "is_plain", "key", "widest"]

#: Name, value and type of each label: to Python `1`, `1.0` and `True` are the same, to OpenTelemetry they are not.
Key: TypeAlias = "frozenset[tuple[str, Hashable, type]]"

_PLAIN: frozenset[type] = frozenset({str, bool, int, float, type(None)})


def clean(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Labels that every exporter can write: text of bounded length, numbers, and lists of them.

    Names are those that the SDK keeps: empty ones go, and what says nothing of itself but its address.
    """
    return {str(name): clean_value(value) for name, value in attributes.items() if name and _shown(name)}


def clean_value(value: Any) -> Any:
    """One value as every exporter can write it; None for what says nothing of itself, as in the SDK."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(clean_value(each) for each in cast("Sequence[Any]", value))
    if not _shown(value):  # each object would make a series of its own
        return None
    shown = str.__str__(value) if isinstance(value, str) else str(value)  # of an enumeration its value
    # Half a surrogate pair cannot be encoded, and would cost a whole export.
    return shown[:MAX_LENGTH].encode(errors="replace").decode()


def _shown(value: object) -> bool:
    kind = type(value)
    return kind.__str__ is not object.__str__ or kind.__repr__ is not object.__repr__


def is_plain(values: Iterable[Any]) -> bool:
    """Whether these are values that Python tells apart by value and type."""
    return _PLAIN.issuperset(map(type, values))


def key(attributes: Mapping[str, Any]) -> Key:
    """What tells two sets of labels apart."""
    values = attributes.values()
    types = tuple(map(type, values))
    if _PLAIN.issuperset(types):
        return frozenset(zip(attributes, values, types, strict=True))
    # A list cannot be hashed, and the types within it count too.
    return frozenset((name, _typed(value), value.__class__) for name, value in clean(attributes).items())


def _typed(value: object) -> Hashable:
    # `clean` has made tuples of all sequences.
    return tuple(_pair(each) for each in cast("Sequence[object]", value)) if isinstance(value, tuple) else value


def _pair(value: object) -> tuple[type, Hashable]:
    return type(value), _typed(value)


def widest(series: Iterable[Mapping[str, Any]]) -> str:
    """The label with the most values."""
    values: dict[str, set[str]] = {}
    for attributes in series:
        for name, value in attributes.items():
            values.setdefault(name, set()).add(str(value))
    return max(values, key=lambda name: len(values[name]), default="")
