"""Labels of a series: made clean once, when the series is made, and told apart by a key that can be hashed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from otel_perf.redaction import MAX_LENGTH

__all__ = ["clean", "key", "widest"]


def clean(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Labels that every exporter can write: text of bounded length, numbers, and lists of them."""
    return {str(name): _clean_value(value) for name, value in attributes.items()}


def _clean_value(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_clean_value(each) for each in cast("Sequence[Any]", value))
    shown = str.__str__(value) if isinstance(value, str) else str(value)  # of an enumeration its value
    # Half a surrogate pair cannot be encoded, and would cost a whole export.
    return shown[:MAX_LENGTH].encode(errors="replace").decode()


def key(attributes: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    """What tells two sets of labels apart."""
    try:
        return frozenset(attributes.items())
    except TypeError:  # a list cannot be hashed
        return frozenset(clean(attributes).items())


def widest(series: Iterable[Mapping[str, Any]]) -> str:
    """The label with the most values."""
    values: dict[str, set[str]] = {}
    for attributes in series:
        for name, value in attributes.items():
            values.setdefault(name, set()).add(str(value))
    return max(values, key=lambda name: len(values[name]), default="")
