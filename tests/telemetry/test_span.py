"""Lean spans behave as an SDK's in public: over our own provider, and over one of the SDK."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import (
    ReadableSpan,
    Span,
    SpanLimits,
)
from opentelemetry.sdk.trace import Tracer as StockTracer
from opentelemetry.sdk.trace import TracerProvider as Stock
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_perf.telemetry.provider import TracerProvider, over
from otel_perf.telemetry.span import LeanSpan
from otel_perf.telemetry.tracer import LeanTracer, SwitchedSampler


class Made:
    """A provider, a lean tracer of it, and what ended."""

    def __init__(self, ours: bool, **arguments: Any) -> None:
        self.provider: Stock = (TracerProvider if ours else Stock)(shutdown_on_exit=False, **arguments)
        self.exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer: Any = self.provider.get_tracer("t", "1") if ours else over(self.provider, "t", "1")
        assert type(self.tracer) is LeanTracer

    @property
    def ended(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture(params=[True, False], ids=["our provider", "the SDK's provider"])
def make(request) -> Callable[..., Made]:
    return lambda **arguments: Made(request.param, **arguments)


def remote(flags: int = 1, state: TraceState | None = None) -> SpanContext:
    return SpanContext(0x5CE0 << 100 | 1, 0xABCDEF, True, TraceFlags(flags), state)


def within(parent: SpanContext) -> Context:
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())


# Who it is ---------------------------------------------------------------------------------------------------------


def test_it_is_a_span_of_the_sdk_to_everyone(make):
    """All who ask by class find what they know."""
    made = make()
    span = made.tracer.start_span("s")
    assert isinstance(span, Span)
    assert isinstance(span, ReadableSpan)
    assert isinstance(span, trace.Span)
    assert isinstance(made.provider, Stock)
    assert isinstance(made.tracer, StockTracer)
    assert 'name="s"' in repr(span)
    span.end()


def test_a_scope_has_one_tracer(make):
    """Asked again the provider answers the same tracer, and another one for another scope."""
    made = make()
    assert made.provider.get_tracer("t", "1") is made.tracer
    assert over(made.provider, "t", "1") is made.tracer
    assert made.provider.get_tracer("u") is not made.tracer


def test_parent_and_child(make):
    """A child has the parent's trace and its id; both have what the SDK's have."""
    made = make()
    with made.tracer.start_as_current_span("parent", kind=SpanKind.SERVER) as parent:
        assert trace.get_current_span() is parent
        made.tracer.start_span("child").end()
    root, child = made.ended["parent"], made.ended["child"]
    assert root.parent is None
    assert root.kind is SpanKind.SERVER
    assert child.parent == root.context
    assert child.context.trace_id == root.context.trace_id
    assert child.context.span_id != root.context.span_id
    assert child.context.is_valid
    assert child.context.trace_flags == TraceFlags.SAMPLED | TraceFlags.RANDOM_TRACE_ID
    assert root.start_time <= child.start_time <= child.end_time <= root.end_time


def test_a_remote_parent_and_its_state(make):
    """A caller's context is the parent, its trace state goes on, and so does what it says of the id's randomness."""
    made = make()
    state = TraceState([("vendor", "1")])
    made.tracer.start_span("s", within(remote(3, state))).end()
    made.tracer.start_span("t", within(remote(1))).end()
    span = made.ended["s"]
    assert span.parent == remote(3, state)
    assert span.parent.is_remote
    assert not span.context.is_remote
    assert span.context.trace_state == state
    assert span.context.trace_flags.random_trace_id
    assert not made.ended["t"].context.trace_flags.random_trace_id
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers, trace.set_span_in_context(NonRecordingSpan(span.context)))
    assert headers["traceparent"].startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")


def test_an_explicit_empty_context_makes_a_root(make):
    """Whatever is current."""
    made = make()
    with made.tracer.start_as_current_span("current") as current:
        assert made.tracer.start_span("root", Context()).parent is None
        assert made.tracer.start_span("root", within(trace.INVALID_SPAN_CONTEXT)).parent is None
        assert made.tracer.start_span("child").parent == current.get_span_context()


def test_a_parent_of_no_known_kind(make):
    """A stranger's span is asked for its context; one that answers something else is refused as by the SDK."""

    class Strange(NonRecordingSpan):
        def get_span_context(self) -> Any:
            return self._context

    made = make()
    assert made.tracer.start_span("s", trace.set_span_in_context(Strange(remote()))).parent == remote()
    with pytest.raises(TypeError, match="SpanContext"):
        made.tracer.start_span("s", trace.set_span_in_context(Strange("x")))  # type: ignore[arg-type]
    assert made.tracer.start_span("s", trace.set_span_in_context(Strange(None))).parent is None  # type: ignore[arg-type]
    assert made.tracer.start_span("s", otel_context.set_value(next(iter(within(remote()))), "no span")).parent is None


# Limits, links, events, status: the differential suite has them in all combinations -----------------------------


def test_the_oldest_attribute_goes_first_and_an_overwritten_one_is_new(make):
    """As the SDK has it; what was dropped is counted."""
    made = make(span_limits=SpanLimits(max_span_attributes=2, max_span_attribute_length=3))
    span = made.tracer.start_span("s", attributes={"a": 1, "b": "long"})
    span.set_attribute("a", 2)
    span.set_attributes({"c": [1, "long"]})
    span.end()
    assert dict(span.attributes) == {"a": 2, "c": (1, "lon")}
    assert span.dropped_attributes == 1


def test_links_and_events_have_limits_of_their_own(make):
    """The last ones stay, and those with nothing to say are left out."""
    made = make(span_limits=SpanLimits(max_links=1, max_events=1, max_event_attributes=1))
    span = made.tracer.start_span("s", links=[Link(remote(), {"n": 1}), Link(remote(), {"n": 2})])
    span.add_link(trace.INVALID_SPAN_CONTEXT)
    span.add_event("one")
    span.add_event("two", {"a": 1, "b": 2}, 5)
    span.end()
    (link,), (event,) = span.links, span.events
    assert (link.context, dict(link.attributes), span.dropped_links) == (remote(), {"n": 2}, 1)
    assert (event.name, event.timestamp, dict(event.attributes)) == ("two", 5, {"b": 2})
    assert (event.dropped_attributes, span.dropped_events) == (1, 1)


def test_what_was_given_cannot_be_changed_afterwards(make):
    """A list that is changed later, or a mapping, does not change the span; nor do its readers."""
    made = make()
    values, attributes = [1], {"a": 1}
    span = made.tracer.start_span("s", attributes=attributes)
    span.set_attribute("list", values)
    values.append(2)
    attributes["a"] = 2
    assert dict(span.attributes) == {"a": 1, "list": (1,)}
    with pytest.raises(TypeError):
        span.attributes["a"] = 3
    span.end()
    with pytest.raises(TypeError):
        span.attributes["a"] = 3


def test_the_attributes_of_a_live_span_can_be_watched(make):
    """What is read from a span that goes on shows what is written to it later, as the SDK's does."""
    span = make().tracer.start_span("s", attributes={"a": 1})
    seen = span.attributes
    span.set_attribute("b", 2)
    assert (dict(seen), len(seen), seen["b"], seen.copy()) == ({"a": 1, "b": 2}, 2, 2, {"a": 1, "b": 2})
    assert "'b': 2" in repr(seen)


@pytest.mark.parametrize("most", [None, 1, 0])
def test_a_value_that_contains_itself_is_dropped(make, most):
    """The SDK raises for it; here it is counted as dropped, and what came with it stays."""
    limits = SpanLimits(max_event_attributes=most, max_link_attributes=most) if most is not None else SpanLimits()
    made = make(span_limits=limits)
    loop: dict[str, Any] = {}
    loop["itself"] = loop
    also: list[Any] = []
    also.append(also)
    with made.tracer.start_as_current_span("s", attributes={"first": loop, "a": 1}) as span:
        span.set_attribute("x", loop)
        span.set_attributes({"y": also, "b": 2})
        span.add_event("e", {"x": loop, "a": 1})
        span.add_link(remote(), {"x": loop, "a": 1})
    ended = made.ended["s"]
    assert dict(ended.attributes) == {"a": 1, "b": 2}
    assert ended.dropped_attributes == 3
    kept = {} if most == 0 else {"a": 1}
    assert (dict(ended.events[0].attributes), ended.events[0].attributes.dropped) == (kept, 2 - len(kept))
    assert (dict(ended.links[0].attributes), ended.links[0].attributes.dropped) == (kept, 2 - len(kept))


def test_an_ended_span_takes_nothing_more(make, caplog):
    """Each late call is logged as by the SDK and changes nothing; the processors are told once."""
    made = make()
    span = made.tracer.start_span("s")
    span.start()
    span.end(5)
    before = span.to_json()
    span.end(6)
    made.tracer.finish(span)
    span.set_attribute("a", 1)
    span.set_attributes({"a": 1})
    span.add_event("e")
    span.add_link(remote())
    span.set_status(StatusCode.ERROR)
    span.update_name("t")
    assert span.to_json() == before
    assert len(made.exporter.get_finished_spans()) == 1
    assert not span.is_recording()
    assert [record.getMessage() for record in caplog.records] == [
        "Calling start() on a started span.", "Calling end() on an ended span.", "Calling end() on an ended span.",
        "Setting attribute on ended span.", "Setting attribute on ended span.",
        "Tried calling _add_event on an ended span.", "Tried calling _add_link on an ended span.",
        "Tried calling set_status on an ended span.", "Tried calling update_name on an ended span.",
    ]  # fmt: skip
    assert {record.name for record in caplog.records} == {"opentelemetry.sdk.trace"}


# Sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "root", "of_sampled", "of_unsampled"),
    [
        (ALWAYS_ON, True, True, True),
        (ALWAYS_OFF, False, False, False),
        (DEFAULT_ON, True, True, False),
        (DEFAULT_OFF, False, True, False),
        (ParentBased(TraceIdRatioBased(1)), True, True, False),
        (ParentBased(TraceIdRatioBased(0)), False, True, False),
        (TraceIdRatioBased(1), True, True, True),
        (TraceIdRatioBased(0), False, False, False),
        (ParentBased(ALWAYS_ON, remote_parent_sampled=ALWAYS_OFF), True, False, False),
        (ParentBased(ALWAYS_OFF, remote_parent_not_sampled=ALWAYS_ON), False, True, True),
        (SwitchedSampler(DEFAULT_OFF), False, True, False),
    ],
)
def test_each_sampler_decides_as_ever(make, sampler, root, of_sampled, of_unsampled):
    """Roots, children of what was sampled, and children of what was not."""
    made = make(sampler=sampler)
    for wanted, context in ((root, Context()), (of_sampled, within(remote(1))), (of_unsampled, within(remote(0)))):
        span = made.tracer.start_span("s", context, attributes={"a": 1})
        assert span.is_recording() is wanted
        assert span.get_span_context().trace_flags.sampled is wanted
        assert span.get_span_context().is_valid
        assert isinstance(span, LeanSpan if wanted else NonRecordingSpan)
        span.end()


def test_a_ratio_is_kept_by_the_trace_id(make):
    """About half of the roots at one half, and exactly those that the sampler itself would take."""
    sampler = TraceIdRatioBased(0.5)
    made = make(sampler=ParentBased(sampler))
    spans = [made.tracer.start_span("s") for _ in range(400)]
    taken = [span.is_recording() for span in spans]
    assert 120 < sum(taken) < 280
    asked = [sampler.should_sample(None, span.get_span_context().trace_id, "s").decision for span in spans]
    assert taken == [each is Decision.RECORD_AND_SAMPLE for each in asked]


class Custom(Sampler):
    """Keeps what it was asked."""

    def __init__(self, decision: Decision = Decision.RECORD_AND_SAMPLE) -> None:
        self.decision = decision
        self.asked: list[dict[str, Any]] = []

    def should_sample(self, *args: Any) -> SamplingResult:
        names = ("parent_context", "trace_id", "name", "kind", "attributes", "links")
        self.asked.append(dict(zip(names, args, strict=True)))
        return SamplingResult(self.decision, {"by": "sampler"}, TraceState([("s", "1")]))

    def get_description(self) -> str:
        return "custom"


def test_a_sampler_of_ones_own_is_asked_and_obeyed(make):
    """It sees all that there is, and its attributes and trace state are the span's."""
    made = make(sampler=(sampler := Custom()))
    links, context = [Link(remote())], within(remote())
    span = made.tracer.start_span("s", context, SpanKind.CLIENT, {"a": 1}, links)
    asked = {
        "parent_context": context, "trace_id": remote().trace_id, "name": "s", "kind": SpanKind.CLIENT,
        "attributes": {"a": 1}, "links": links,
    }  # fmt: skip
    assert sampler.asked == [asked]
    assert dict(span.attributes) == {"by": "sampler"}
    assert dict(span.get_span_context().trace_state) == {"s": "1"}
    sampler.decision = Decision.RECORD_ONLY
    recorded = made.tracer.start_span("s")
    assert recorded.is_recording()
    assert not recorded.get_span_context().trace_flags.sampled
    sampler.decision = Decision.DROP
    assert not made.tracer.start_span("s").is_recording()


def test_a_switched_sampler_is_followed_by_tracers_that_are_held(make):
    """Its target is what counts at each start."""
    sampler = SwitchedSampler(ALWAYS_ON)
    tracer = make(sampler=sampler).tracer
    assert tracer.start_span("s").is_recording()
    sampler.target = ALWAYS_OFF
    assert not tracer.start_span("s").is_recording()
    sampler.target = Custom()
    assert tracer.start_span("s").attributes == {"by": "sampler"}
    assert sampler.get_description() == "custom"
    tracer.sampler = ALWAYS_OFF
    assert tracer.sampler is ALWAYS_OFF
    assert not tracer.start_span("s").is_recording()


# Current spans -----------------------------------------------------------------------------------------------------


def test_an_exception_marks_the_span_and_goes_on(make):
    """It is recorded and makes the status an error; what is no error, such as an exit, does neither."""
    made = make()
    for error in (ValueError("no"), KeyboardInterrupt()):
        with pytest.raises(type(error)), made.tracer.start_as_current_span(type(error).__name__):
            raise error
    failed, left = made.ended["ValueError"], made.ended["KeyboardInterrupt"]
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "ValueError: no")
    (event,) = failed.events
    assert event.attributes["exception.type"] == "ValueError"
    assert event.attributes["exception.escaped"] == "False"
    assert "raise error" in event.attributes["exception.stacktrace"]
    assert left.status.status_code is StatusCode.UNSET
    assert not left.events


def test_what_is_to_be_recorded_can_be_chosen(make):
    """Neither the event nor the status, if not wanted; a status that was set stays."""
    made = make()
    with (
        pytest.raises(ValueError, match="no"),
        made.tracer.start_as_current_span("s", record_exception=False, set_status_on_exception=False),
    ):
        raise ValueError("no")
    with pytest.raises(ValueError, match="no"), made.tracer.start_as_current_span("ok") as span:  # noqa: PT012  # it is the block
        span.set_status(StatusCode.OK)
        raise ValueError("no")
    assert not made.ended["s"].events
    assert made.ended["s"].status.status_code is StatusCode.UNSET
    assert made.ended["ok"].status.status_code is StatusCode.OK


def test_a_span_as_a_block_of_its_own_records_whatever_leaves_it(make):
    """`with tracer.start_span()` takes all exceptions, and says that they escaped."""
    made = make()
    with pytest.raises(KeyboardInterrupt), made.tracer.start_span("s"):
        raise KeyboardInterrupt
    span = made.ended["s"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.events[0].attributes["exception.escaped"] == "True"
    with (
        pytest.raises(ValueError, match="no"),
        made.tracer.start_span("quiet", record_exception=False, set_status_on_exception=False),
    ):
        raise ValueError("no")
    assert not made.ended["quiet"].events


def test_a_span_that_goes_on_after_its_block(make):
    """`end_on_exit=False` leaves the end to the caller."""
    made = make()
    with made.tracer.start_as_current_span("s", end_on_exit=False) as span:
        pass
    assert span.is_recording()
    assert trace.get_current_span() is trace.INVALID_SPAN
    span.end()


def test_functions_and_coroutine_functions_are_decorated(make):
    """Each call is a span of its own, which is current meanwhile and as long as the call; names and kinds stay."""
    made = make()

    @made.tracer.start_as_current_span("plain", attributes={"a": 1})
    def plain(x: int) -> Any:
        return x, trace.get_current_span()

    @made.tracer.start_as_current_span("waited")
    async def waited(x: int) -> Any:
        await asyncio.sleep(0)
        return x, trace.get_current_span()

    assert (plain.__name__, inspect.iscoroutinefunction(waited)) == ("plain", True)
    first, second = plain(1), plain(2)
    assert (first[0], second[0]) == (1, 2)
    assert first[1] is not second[1]
    assert asyncio.run(waited(3))[1].name == "waited"
    assert [span.name for span in made.exporter.get_finished_spans()] == ["plain", "plain", "waited"]


def test_a_block_left_in_another_context_says_so_and_ends_the_span(make, caplog):
    """As the SDK: an error is logged, nothing is raised."""
    made = make()
    block = made.tracer.start_as_current_span("s")
    contextvars.copy_context().run(block.__enter__)
    block.__exit__(None, None, None)
    assert "s" in made.ended
    assert [record.getMessage() for record in caplog.records] == ["Failed to detach context"]


def test_tasks_and_threads_have_their_own_current_span(make):
    """A task inherits what is current where it is made; a thread begins with nothing."""
    made = make()

    async def one(name: str) -> None:
        with made.tracer.start_as_current_span(name):
            await asyncio.sleep(0.001)
            made.tracer.start_span(f"below {name}").end()

    async def all_of_them() -> None:
        with made.tracer.start_as_current_span("root"):
            await asyncio.gather(*(one(str(number)) for number in range(5)))

    asyncio.run(all_of_them())
    thread = threading.Thread(target=lambda: made.tracer.start_span("thread").end())
    thread.start()
    thread.join()
    for number in range(5):
        assert made.ended[str(number)].parent == made.ended["root"].context
        assert made.ended[f"below {number}"].parent == made.ended[str(number)].context
    assert made.ended["thread"].parent is None
