"""Spans on the wire: decoded by opentelemetry-proto they equal what the stock encoder makes of the same spans."""

from __future__ import annotations

import threading
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, SpanProcessor
from opentelemetry.sdk.trace import TracerProvider as StockProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from otel_perf.conventions import SCOPE
from otel_perf.telemetry.otlp import spans_request
from otel_perf.telemetry.provider import TracerProvider
from otel_perf.telemetry.span import LeanSpan

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain = texts | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False)
values = plain | st.lists(texts, max_size=3).map(tuple) | st.lists(st.integers(-9, 9), max_size=3).map(tuple)
attribute_sets = st.dictionaries(texts.filter(bool), values, max_size=6)
states = st.just(TraceState()) | st.just(TraceState([("a", "1"), ("b", "2")]))
contexts = st.builds(
    SpanContext, st.integers(1, (1 << 128) - 1), st.integers(1, (1 << 64) - 1), st.booleans(),
    st.just(TraceFlags(1)), states,
)  # fmt: skip
times = st.integers(1, (1 << 63) - 1)
statuses = st.just(Status()) | st.just(Status(StatusCode.OK)) | texts.map(lambda about: Status(StatusCode.ERROR, about))
scopes = st.sampled_from([
    InstrumentationScope(SCOPE), InstrumentationScope(SCOPE, "1", "http://s", {"a": True}),
])  # fmt: skip
resources = st.sampled_from([Resource({}), Resource({"service.name": "x", "n": 1}, "http://r")])
readable = st.builds(
    ReadableSpan, texts, contexts, st.none() | contexts, resources, st.none() | attribute_sets,
    st.lists(st.builds(Event, texts, attribute_sets, times), max_size=2),
    st.lists(st.builds(Link, contexts, attribute_sets), max_size=2), st.sampled_from(SpanKind), st.none(), statuses,
    times, times, scopes,
)  # fmt: skip


def ours(spans: list[ReadableSpan]) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest.FromString(spans_request(spans))


@settings(max_examples=100, deadline=None)
@given(st.lists(readable, max_size=5))
def test_random_spans_are_what_the_stock_encoder_sends(spans):
    """Byte for byte, whatever is in them."""
    assert ours(spans) == encode_spans(spans)
    assert spans_request(spans) == encode_spans(spans).SerializeToString()


class Kept(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def recorded(provider: StockProvider, program) -> list[ReadableSpan]:
    kept = Kept()
    provider.add_span_processor(kept)
    program(provider.get_tracer(SCOPE, "1", "http://s"))
    return kept.spans


lean_programs = st.lists(
    st.tuples(texts, st.sampled_from(SpanKind), attribute_sets, st.none() | contexts, st.integers(0, 7)), max_size=4
)


@settings(max_examples=80, deadline=None)
@given(lean_programs)
def test_lean_spans_are_what_the_stock_encoder_sends(program):
    """The spans of our own provider, with and without what is rare: parents, events, links, a status, losses."""

    def run(tracer) -> None:
        for name, kind, attributes, parent, rare in program:
            above = None if parent is None else set_span_in_context(NonRecordingSpan(parent))
            span = tracer.start_span(name, above, kind, attributes)
            if rare & 1:
                for number in range(3):
                    span.add_event(f"e{number}", {"n": number, "m": "x"})
            if rare & 2:
                span.add_link(SpanContext(1, 2, True), {"l": "k"})
                span.set_status(StatusCode.ERROR, name)
            if rare & 4:
                span.set_attributes({f"more {number}": number for number in range(8)})
            span.end()

    limits = SpanLimits(max_span_attributes=8, max_events=2, max_event_attributes=1)
    spans = recorded(TracerProvider(resource=Resource({}), shutdown_on_exit=False, span_limits=limits), run)
    assert spans_request(spans) == encode_spans(spans).SerializeToString()


def test_the_spans_of_a_stock_provider():
    """They have bounded containers and counts of their own."""
    limits = SpanLimits(max_span_attributes=2, max_events=1, max_links=1, max_event_attributes=1)

    def run(tracer) -> None:
        with tracer.start_as_current_span("a", attributes={"a": 1, "b": 2, "c": 3}) as span:
            for number in range(3):
                span.add_event("e", {"x": number, "y": 1})
                span.add_link(SpanContext(7, number + 1, False), {"x": 1})
            with tracer.start_as_current_span("b"):
                pass

    spans = recorded(StockProvider(resource=Resource({}), shutdown_on_exit=False, span_limits=limits), run)
    assert spans[1].dropped_attributes == 1
    assert spans_request(spans) == encode_spans(spans).SerializeToString()


def test_the_lean_spans_are_lean():
    """What this module tests as lean spans are those of the fast path."""
    spans = recorded(TracerProvider(shutdown_on_exit=False), lambda tracer: tracer.start_span("s").end())
    assert type(spans[0]) is LeanSpan
    assert not spans[0].__dict__


def test_spans_are_grouped_by_resource_and_scope():
    """In the order of their first appearance, however they alternate."""
    made = [
        ReadableSpan(
            str(number), SpanContext(1, number + 1, False), resource=Resource({"r": number % 2}),
            instrumentation_scope=InstrumentationScope(SCOPE, str(number % 3)), attributes=MappingProxyType({}),
        )
        for number in range(12)
    ]  # fmt: skip
    request = ours(made)
    assert [len(each.scope_spans) for each in request.resource_spans] == [3, 3]
    assert request == encode_spans(made)


def test_a_hostile_name_costs_nobody_else():
    """Half a surrogate pair in every text there is: the batch is sent, with a question mark there."""
    bad = "a\ud800"
    span = ReadableSpan(
        bad, SpanContext(1, 1, False), attributes={bad: bad}, events=[Event(bad, {bad: bad}, 1)],
        status=Status(StatusCode.ERROR, bad), instrumentation_scope=InstrumentationScope(SCOPE),
    )  # fmt: skip
    decoded = ours([span]).resource_spans[0].scope_spans[0].spans[0]
    assert (decoded.name, decoded.attributes[0].key, decoded.events[0].name) == ("a?", "a?", "a?")
    assert decoded.status.message == "a?"


def test_spans_of_others_are_redacted():
    """Attributes, events, links and the status of a foreign scope; ours were redacted where the value entered."""

    def made(scope: str) -> ReadableSpan:
        return ReadableSpan(
            "GET", SpanContext(1, 1, False), attributes={"url.query": "token=geheim", "n": 1},
            events=[Event("exception", {"exception.message": "password=geheim"}, 1)],
            links=[Link(SpanContext(1, 2, False), {"url.full": "http://u:geheim@h/"})],
            status=Status(StatusCode.ERROR, "secret: geheim"), instrumentation_scope=InstrumentationScope(scope),
            resource=Resource({}),
        )  # fmt: skip

    for _ in range(2):  # the second time from memory
        assert b"geheim" not in spans_request([made("theirs")])
        assert spans_request([made("theirs"), made(SCOPE)]).count(b"geheim") == 4
        assert spans_request([made(SCOPE), made("theirs")]).count(b"geheim") == 4


def test_an_ended_span_may_still_be_written_to():
    """Late writes of another thread do not break the encoding."""
    tracer = TracerProvider(shutdown_on_exit=False, resource=Resource({})).get_tracer(SCOPE)
    span = tracer.start_span("s", attributes={f"k{number}": number for number in range(50)})
    span.end()
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            span._attributes.pop(f"k{number % 50}", None)
            span._attributes[f"k{number % 50}"] = number
            span._attributes[f"more{number % 7}"] = number
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(2000):
            assert spans_request([span])
    finally:
        stop.set()
        thread.join()


def test_a_span_without_times():
    """They go out as zero, which is what is read where they are missing."""
    span = ReadableSpan("s", SpanContext(1, 1, False), instrumentation_scope=InstrumentationScope(SCOPE))
    assert ours([span]) == encode_spans([span])


def test_a_span_without_a_context_is_refused():
    """It has no id to be sent with; the sender counts it."""
    with pytest.raises(ValueError, match="context"):
        spans_request([ReadableSpan("s")])
