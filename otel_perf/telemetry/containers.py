"""What holds a span's attributes and lists for those who read them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.util import BoundedList

__all__ = ["Known", "LiveAttributes", "bounded_attributes", "bounded_list", "put_each"]

_log = logging.getLogger("opentelemetry.attributes")  # the SDK's, which says there what else it drops


class Known(dict[str, Any]):
    """Attributes that many spans start with: redacted, within the limits, and never written to.

    A span copies them before it writes, and whoever encodes them keeps the bytes here.
    """

    __slots__ = ("encoded",)

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        super().__init__(attributes)
        self.encoded: bytes | None = None


class LiveAttributes(Mapping[str, Any]):
    """The attributes of a span that goes on, whoever else writes to it while they are read."""

    __slots__ = ("_of",)

    def __init__(self, of: dict[str, Any]) -> None:
        self._of = of

    def __getitem__(self, key: str) -> Any:
        return self._of[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of.copy())

    def __len__(self) -> int:
        return len(self._of)

    def __repr__(self) -> str:
        return repr(self._of.copy())

    def copy(self) -> dict[str, Any]:
        """The attributes as they are now."""
        return self._of.copy()


def bounded_list(items: Sequence[Any], dropped: int) -> Any:
    """The SDK's own list of them, with the count of those that are not in it."""
    made: BoundedList[Any] = BoundedList(None)
    made.extend(items)
    made.dropped = dropped
    return made


def bounded_attributes(
    most: int | None, attributes: Mapping[Any, Any] | None, longest: int | None
) -> BoundedAttributes:
    """The SDK's own container of them, not to be written to; a value that it cannot take is dropped and counted."""
    try:
        return BoundedAttributes(most, attributes, max_value_len=longest)
    except RecursionError:
        readable = BoundedAttributes(immutable=False, max_value_len=longest)
        put_each(readable, attributes or {})
        made = BoundedAttributes(most, readable.copy(), max_value_len=longest)
        made.dropped += readable.dropped
        return made


def put_each(into: BoundedAttributes, attributes: Mapping[Any, Any]) -> None:
    """Puts them in; where the SDK would raise, for a value that contains itself, it is dropped and counted."""
    for key, value in attributes.items():
        try:
            into[key] = value
        except RecursionError:
            into.dropped += 1
            _log.warning("The value of attribute `%s` contains itself, or is too deep. Dropping it.", key)
