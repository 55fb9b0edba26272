"""What holds a span's attributes and lists for those who read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.util import BoundedList

__all__ = ["LiveAttributes", "bounded_list"]


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
