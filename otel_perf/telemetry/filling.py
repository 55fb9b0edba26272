"""How a batch fills up: spans are encoded in slices, so that their size is known before many of them are taken.

The bytes of a slice are a whole OTLP request, and so are those of slices behind each other: a batch is its slices in
one piece. Nothing is encoded twice, and the spans themselves can go as soon as their slice is encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

from otel_perf import guard
from otel_perf.telemetry.ways import SpanWay

__all__ = ["FIRST_LOOK", "Batch", "Filling", "Slice", "SpanSize", "slices"]

FIRST_LOOK = 8  # spans that are encoded to see how large they are
_LOOK = 64
_SLICE_BYTES = 256 * 1024
_OBJECT_BYTES = 1024


class Batch(NamedTuple):
    """Spans that are sent together, and the bytes that they take while they wait."""

    encoded: Any
    spans: int
    size_bytes: int


class Slice(NamedTuple):
    """Encoded spans; `part` is None where that could not be done."""

    part: Any
    spans: int
    size_bytes: int


class Filling:
    """The batch that fills up."""

    __slots__ = ("parts", "size_bytes", "spans")

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.spans = 0
        self.size_bytes = 0

    def add(self, more: Slice) -> None:
        """A slice comes behind the others."""
        self.parts.append(more.part)
        self.spans += more.spans
        self.size_bytes += more.size_bytes


class SpanSize:
    """What a span takes before it is encoded: the mean of the last 64 or so (what they say, and 1 KiB for each)."""

    __slots__ = ("_seen", "_slice_bytes", "each_bytes")

    def __init__(self, capacity_bytes: int) -> None:
        self.each_bytes = 2048.0
        self._seen = 0
        self._slice_bytes = min(_SLICE_BYTES, capacity_bytes // 4)

    @property
    def look(self) -> int:
        """After how many spans their size is looked at."""
        return _LOOK if self._seen else FIRST_LOOK

    @property
    def slice(self) -> int:
        """How many spans are encoded at once."""
        return max(1, min(self.look, int(self._slice_bytes / self.each_bytes)))

    def learn(self, spans: int, size_bytes: int) -> None:
        """Spans that were encoded had this size: whatever was thought of others fades with each of them."""
        whole = self.each_bytes * self._seen + size_bytes + _OBJECT_BYTES * spans
        self.each_bytes = whole / (self._seen + spans)
        self._seen = min(_LOOK, self._seen + spans)


def slices(way: SpanWay, spans: Sequence[ReadableSpan], largest_bytes: int) -> Iterator[Slice]:
    """The spans as one slice, or as more where one would be too large or a span cannot be encoded."""
    part, size_bytes = None, 0
    try:
        part, size_bytes = way.encode(spans)
    except Exception:
        if len(spans) == 1:
            guard.note("encoding a span")
    if len(spans) == 1 or (part is not None and size_bytes <= largest_bytes):
        yield Slice(part, len(spans), size_bytes)
        return
    del part
    half = len(spans) // 2
    yield from slices(way, spans[:half], largest_bytes)
    yield from slices(way, spans[half:], largest_bytes)
