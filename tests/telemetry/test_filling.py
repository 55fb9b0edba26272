"""Slices of a batch: cut by size, none of them for ever in doubt, and the same spans in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from otel_perf import guard
from otel_perf.telemetry.filling import FIRST_LOOK, Filling, ItemSize, Slice, slices
from otel_perf.telemetry.otlp import spans_request


def spans(count: int) -> list[ReadableSpan]:
    return [ReadableSpan(str(n), SpanContext(1, n + 1, False), resource=Resource({})) for n in range(count)]


class Measured:
    """A way that tells how many it was asked to encode at once."""

    def __init__(self, bytes_each: int = 100, broken: str = "") -> None:
        self.asked: list[int] = []
        self._bytes_each = bytes_each
        self._broken = broken

    def encode(self, given: Sequence[ReadableSpan]) -> tuple[Any, int]:
        self.asked.append(len(given))
        if self._broken in [span.name for span in given]:
            raise TypeError("it cannot be encoded")
        return [span.name for span in given], self._bytes_each * len(given)


def test_what_fits_is_one_slice():
    """Encoded once."""
    way = Measured()
    assert list(slices(way, spans(5), 500)) == [Slice(["0", "1", "2", "3", "4"], 5, 500)]
    assert way.asked == [5]


def test_what_is_too_large_is_halved_when_it_is_asked_for():
    """Not all parts exist at once; one span is never parted."""
    way = Measured()
    parts = slices(way, spans(4), 150)
    assert next(parts) == Slice(["0"], 1, 100)
    assert way.asked == [4, 2, 1]
    assert [part.part for part in parts] == [["1"], ["2"], ["3"]]


def test_a_span_that_cannot_be_encoded_is_alone(monkeypatch):
    """The others are encoded, and the fault is noted once."""
    monkeypatch.setattr(guard, "strict", False)
    found = list(slices(Measured(broken="2"), spans(4), 1000))
    assert found == [Slice(["0", "1"], 2, 200), Slice(None, 1, 0), Slice(["3"], 1, 100)]
    assert guard.errors == 1


def test_slices_behind_each_other_are_one_request():
    """What protobuf reads of the bytes are all the spans, in their order."""
    filling = Filling()
    given = spans(5)
    for some in (given[:2], given[2:]):
        body = spans_request(some)
        filling.add(Slice(body, len(some), len(body)))
    request = ExportTraceServiceRequest.FromString(b"".join(filling.parts))
    found = [span.name for each in request.resource_spans for scope in each.scope_spans for span in scope.spans]
    assert found == ["0", "1", "2", "3", "4"]
    assert (filling.items, filling.size_bytes) == (5, sum(map(len, filling.parts)))


def test_the_first_look_is_at_few():
    """What nobody has seen may be of any size; what was seen decides about the next slice."""
    size = ItemSize(1 << 24)
    assert size.look == size.slice == FIRST_LOOK
    size.learn(1, 200 * 1024)
    assert size.each_bytes == pytest.approx(201 * 1024)
    assert (size.look, size.slice) == (64, 1)


def test_an_estimate_fades():
    """A giant among small spans is forgotten, and large spans are noticed at the first slice."""
    size = ItemSize(1 << 24)
    size.learn(1, 16 << 20)
    size.learn(64, 64 * 200)
    assert size.each_bytes < 300_000
    for _ in range(20):
        size.learn(64, 64 * 200)
    assert size.each_bytes < 1300
    size.learn(FIRST_LOOK, FIRST_LOOK * 200_000)
    assert size.slice < 16
