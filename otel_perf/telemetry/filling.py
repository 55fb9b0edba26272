"""How a batch fills up: items are encoded in slices, so that their size is known before many of them are taken.

The bytes of a slice are a whole OTLP request, and so are those of slices behind each other: a batch is its slices in
one piece. Nothing is encoded twice, and the items themselves can go as soon as their slice is encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from otel_perf import guard
from otel_perf.telemetry.ways import Way

__all__ = ["FIRST_LOOK", "Batch", "Filling", "ItemSize", "Slice", "slices"]

T = TypeVar("T")

FIRST_LOOK = 8  # items that are encoded to see how large they are
_LOOK = 64
_SLICE_BYTES = 256 * 1024
_OBJECT_BYTES = 1024


class Batch(NamedTuple):
    """Items that are sent together, and the bytes that they take while they wait."""

    encoded: Any
    items: int
    size_bytes: int


class Slice(NamedTuple):
    """Encoded items; `part` is None where that could not be done."""

    part: Any
    items: int
    size_bytes: int


class Filling:
    """The batch that fills up."""

    __slots__ = ("items", "parts", "size_bytes")

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.items = 0
        self.size_bytes = 0

    def add(self, more: Slice) -> None:
        """A slice comes behind the others."""
        self.parts.append(more.part)
        self.items += more.items
        self.size_bytes += more.size_bytes


class ItemSize:
    """What an item takes before it is encoded: the mean of the last 64 or so (what they say, and 1 KiB for each)."""

    __slots__ = ("_seen", "_slice_bytes", "each_bytes")

    def __init__(self, capacity_bytes: int) -> None:
        self.each_bytes = 2048.0
        self._seen = 0
        self._slice_bytes = min(_SLICE_BYTES, capacity_bytes // 4)

    @property
    def look(self) -> int:
        """After how many items their size is looked at."""
        return _LOOK if self._seen else FIRST_LOOK

    @property
    def slice(self) -> int:
        """How many items are encoded at once."""
        return max(1, min(self.look, int(self._slice_bytes / self.each_bytes)))

    def learn(self, items: int, size_bytes: int) -> None:
        """Items that were encoded had this size: whatever was thought of others fades with each of them."""
        whole = self.each_bytes * self._seen + size_bytes + _OBJECT_BYTES * items
        self.each_bytes = whole / (self._seen + items)
        self._seen = min(_LOOK, self._seen + items)


def slices(way: Way[T], items: Sequence[T], largest_bytes: int) -> Iterator[Slice]:
    """The items as one slice, or as more where one would be too large or an item cannot be encoded."""
    part, size_bytes = None, 0
    try:
        part, size_bytes = way.encode(items)
    except Exception:
        if len(items) == 1:
            guard.note(f"encoding {type(items[0]).__name__}")
    if len(items) == 1 or (part is not None and size_bytes <= largest_bytes):
        yield Slice(part, len(items), size_bytes)
        return
    del part
    half = len(items) // 2
    yield from slices(way, items[:half], largest_bytes)
    yield from slices(way, items[half:], largest_bytes)
