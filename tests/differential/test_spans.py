"""The same random programs run on the SDK's own spans and on lean ones: what comes out is the same, field by field.

What is compared: each span that `start_span` answers, sampled or not, of a tracer that is switched off too; what
processors are told; copies and the JSON of a live and of an ended span; what is raised and what is logged.
"""

from __future__ import annotations

import copy
import enum
import itertools
import json
import logging
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, _TracerConfig
from opentelemetry.sdk.trace import Span as StockSpan
from opentelemetry.sdk.trace import TracerProvider as Stock
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from otel_perf.telemetry.provider import TracerProvider, over
from otel_perf.telemetry.tracer import LeanTracer, SwitchedSampler

# What programs are made of -----------------------------------------------------------------------------------------


class Text(str):
    __slots__ = ()


class Colour(enum.IntEnum):
    RED = 1


class Named:
    def __str__(self) -> str:
        return "named"


class Nameless:
    pass


_plain = st.one_of(
    st.text(max_size=12), st.integers(-5, 5), st.booleans(), st.floats(), st.none(), st.binary(max_size=4),
    st.sampled_from([Text("text"), Text("a longer text than most"), Colour.RED, Named(), Nameless(), 1 << 70]),
)  # fmt: skip
_keys = st.one_of(
    st.sampled_from(["a", "b", "c", "d", "e", ""]), st.sampled_from([Text("t"), 1, None, 0.5, Named(), Nameless()])
)
_values = st.recursive(
    _plain,
    lambda of: st.lists(of, max_size=3) | st.dictionaries(_keys, of, max_size=3) | st.tuples(of, of),
    max_leaves=4,
)
_attributes = st.one_of(st.none(), st.dictionaries(_keys, _values, max_size=5))
_times = st.one_of(st.none(), st.integers(0, 10**18))
_names = st.sampled_from(["one", "two", "drop me", "record me", ""])
_states = st.sampled_from([None, TraceState([("k", "v")])])


@st.composite
def _contexts(draw: Any) -> SpanContext:
    return SpanContext(
        draw(st.sampled_from([0, 1, 5 << 60, 2**128 - 1])), draw(st.sampled_from([0, 3, 2**64 - 1])),
        draw(st.booleans()), TraceFlags(draw(st.integers(0, 3))), draw(_states),
    )  # fmt: skip


_links = st.tuples(_contexts(), _attributes)
_statuses = st.one_of(
    st.sampled_from(
        [(StatusCode.OK, None), (StatusCode.UNSET, None), (StatusCode.ERROR, "bad"), (StatusCode.OK, "no")]
    ),
    st.tuples(st.builds(Status, st.sampled_from(StatusCode), st.none()), st.sampled_from([None, "ignored"])),
)
_errors = st.sampled_from([ValueError, KeyError, StopIteration, KeyboardInterrupt, GeneratorExit])
_step = st.one_of(
    st.tuples(st.just("set"), _keys, _values),
    st.tuples(st.just("set"), st.sampled_from("ab"), st.integers(0, 9)),
    st.tuples(st.just("set all"), st.dictionaries(_keys, _values, max_size=5)),
    st.tuples(st.just("event"), st.sampled_from(["x", "y"]), _attributes, _times),
    st.tuples(st.just("link"), _links),
    st.tuples(st.just("status"), _statuses),
    st.tuples(st.just("name"), _names),
    st.tuples(st.just("exception"), _errors, _attributes, _times, st.booleans()),
    st.tuples(st.just("end"), _times),
    st.tuples(st.just("start"), _times),
    st.tuples(st.just("raise"), _errors),
)
_start = st.fixed_dictionaries({
    "name": _names, "kind": st.sampled_from(SpanKind), "attributes": _attributes,
    "links": st.one_of(st.none(), st.lists(_links, max_size=4)), "start_time": _times,
    "record_exception": st.booleans(), "set_status_on_exception": st.booleans(),
    # None is the current one, True an empty one, else that of a remote parent.
    "context": st.one_of(st.none(), st.none(), st.just(True), _contexts()),
})  # fmt: skip
_ways = st.sampled_from(["current", "current, not ended", "with", "by hand", "used"])
_program = st.recursive(
    st.tuples(_ways, _start, st.lists(_step, max_size=5)),
    lambda below: st.tuples(_ways, _start, st.lists(st.one_of(_step, below), max_size=5)),
    max_leaves=4,
)
_limit = st.sampled_from([SpanLimits.UNSET, 0, 1, 2, 128])
_limits = st.builds(
    SpanLimits, max_span_attributes=_limit, max_events=_limit, max_links=_limit, max_event_attributes=_limit,
    max_link_attributes=_limit, max_span_attribute_length=st.sampled_from([SpanLimits.UNSET, 0, 3]),
    max_attribute_length=st.sampled_from([SpanLimits.UNSET, 2]),
)  # fmt: skip


class Choosy(Sampler):
    """Decides by the name, and adds an attribute and a state."""

    def should_sample(  # noqa: PLR0917  # the SDK's signature
        self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None,
    ) -> SamplingResult:  # fmt: skip
        parent = trace.get_current_span(parent_context).get_span_context()
        decision = {"drop me": Decision.DROP, "record me": Decision.RECORD_ONLY}.get(name, Decision.RECORD_AND_SAMPLE)
        told = f"{trace_id} {kind} {len(links)} {parent.span_id} {len(attributes or ())}"
        return SamplingResult(decision, {**(attributes or {}), "told": told}, TraceState([("s", "1")]))

    def get_description(self) -> str:
        return "choosy"


_samplers = st.sampled_from([
    ALWAYS_ON, ALWAYS_OFF, TraceIdRatioBased(0.5), ParentBased(ALWAYS_ON), ParentBased(ALWAYS_OFF),
    ParentBasedTraceIdRatio(0.5), ParentBased(TraceIdRatioBased(0)), Choosy(), ParentBased(Choosy()),
    ParentBased(ALWAYS_ON, remote_parent_not_sampled=ALWAYS_ON), SwitchedSampler(ALWAYS_ON), SwitchedSampler(Choosy()),
])  # fmt: skip


# Running them ------------------------------------------------------------------------------------------------------


class Ids(IdGenerator):
    """The same ids in the same order, of which about half are sampled at a ratio of 0.5."""

    def __init__(self, random: bool) -> None:
        self._numbers = itertools.count(1)
        self._random = random

    def generate_span_id(self) -> int:
        return next(self._numbers)

    def generate_trace_id(self) -> int:
        number = next(self._numbers)
        return (number << 64) + (number * 0x9E3779B97F4A7C15 & (1 << 64) - 1)

    def is_trace_id_random(self) -> bool:
        return self._random


class Told(SpanProcessor):
    """Keeps what a processor can see."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_start(self, span, parent_context=None) -> None:
        above = parent_context and trace.get_current_span(parent_context).get_span_context()
        self.seen.append(("start", span.name, _items(span.attributes), len(span.links), above, span.is_recording()))
        self.seen.append(("live", _copied(span), _json(span)))
        span.set_attribute("started", True)

    def _on_ending(self, span) -> None:
        self.seen.append(("ending", span.name, span.is_recording()))
        span.set_attribute("too late", True)

    def on_end(self, span) -> None:
        self.seen.append(("end", _fields(span), _copied(span), _json(span)))
        for other in (copy.copy(span), copy.deepcopy(span)):
            assert _copied(other) == _copied(span)
            assert _json(other) == _json(span)


def _items(attributes: Any) -> list[Any]:
    return [
        (key, type(value), "(stack)" if key == "exception.stacktrace" else repr(value))
        for key, value in (attributes or {}).items()
    ]


def _time(time: int | None) -> Any:
    return "now" if time is not None and time > 10**18 else time


def _fields(span: Any) -> dict[str, Any]:
    return {
        "name": span.name, "context": span.get_span_context(), "same context": span.context, "parent": span.parent,
        "flags": span.context.trace_flags, "valid": span.context.is_valid, "remote": span.context.is_remote,
        "state": dict(span.context.trace_state), "kind": span.kind, "attributes": _items(span.attributes),
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        "events": [(e.name, _time(e.timestamp), _items(e.attributes), e.dropped_attributes) for e in span.events],
        "links": [(link.context, _items(link.attributes), link.dropped_attributes) for link in span.links],
        "status": (span.status.status_code, span.status.description), "start": _time(span.start_time),
        "end": _time(span.end_time), "resource": span.resource, "scope": span.instrumentation_scope,
    }  # fmt: skip


def _copied(span: Any) -> dict[str, Any]:
    """Every field of the copy that the SDK's own span hands to its processors."""
    made = span._readable_span() if hasattr(span, "_readable_span") else span
    assert type(made) is ReadableSpan
    scope, info = made.instrumentation_scope, made._instrumentation_info
    return {
        **_fields(made),
        "info": (info.name, info.version, info.schema_url),
        "scope attributes": dict(scope.attributes),
    }


def _json(span: Any) -> Any:
    try:
        told = json.loads(span.to_json())
    except (TypeError, ValueError) as error:  # the SDK cannot write all that it takes
        return type(error)
    assert json.loads(span.to_json(indent=None)) == told
    for holder, key in ((told, "start_time"), (told, "end_time"), *((each, "timestamp") for each in told["events"])):
        if (holder[key] or "") > "2002":  # what programs give ends before that
            holder[key] = "now"
    for event in told["events"]:
        if "exception.stacktrace" in event["attributes"]:
            event["attributes"]["exception.stacktrace"] = "(stack)"
    return repr(told)


def _answered(span: Any) -> dict[str, Any]:
    """What everybody sees of a span that was just started, recorded or not."""
    context = span.get_span_context()
    return {
        "ids": (context.trace_id, context.span_id), "flags": (type(context.trace_flags), context.trace_flags),
        "state": (type(context.trace_state), dict(context.trace_state)), "remote": context.is_remote,
        "valid": context.is_valid, "context": type(context), "recording": span.is_recording(),
        "recorded": isinstance(span, StockSpan), "not recorded": isinstance(span, NonRecordingSpan),
    }  # fmt: skip


def _starting(start: dict[str, Any]) -> dict[str, Any]:
    context = start["context"]
    if context is True:
        context = Context()
    elif context is not None:
        context = trace.set_span_in_context(NonRecordingSpan(context), Context())
    links = start["links"]
    return {**start, "context": context, "links": links and [Link(*each) for each in links]}


def _do(tracer: trace.Tracer, span: Any, step: Any, answers: list[Any]) -> None:
    what, *rest = step
    if what == "set":
        span.set_attribute(*rest)
    elif what == "set all":
        span.set_attributes(*rest)
    elif what == "event":
        span.add_event(*rest)
    elif what == "link":
        span.add_link(*rest[0])
    elif what == "status":
        span.set_status(*rest[0])
    elif what == "name":
        span.update_name(*rest)
    elif what == "exception":
        span.record_exception(rest[0]("recorded"), rest[1], rest[2], rest[3])
    elif what == "end":
        span.end(*rest)
    elif what == "start":
        if isinstance(span, StockSpan):
            span.start(*rest)
    elif what == "raise":
        raise rest[0]("raised")
    else:
        _run(tracer, step, answers)


def _run(tracer: trace.Tracer, program: Any, answers: list[Any]) -> None:
    way, start, steps = program
    arguments = _starting(start)
    if way.startswith("current"):
        with tracer.start_as_current_span(**arguments, end_on_exit=way == "current") as span:
            assert trace.get_current_span() is span
            answers.append(_answered(span))
            for step in steps:
                _do(tracer, span, step, answers)
        span.end()
        return
    span = tracer.start_span(**arguments)
    answers.append(_answered(span))
    if way == "with":
        with span:
            for step in steps:
                _do(tracer, span, step, answers)
    elif way == "used":
        with trace.use_span(span, end_on_exit=True):
            for step in steps:
                _do(tracer, span, step, answers)
    else:
        for step in steps:
            _do(tracer, span, step, answers)
        span.end()


class Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"{record.name} {record.levelname} {record.getMessage()}")


RESOURCE = Resource({"service.name": "differential"})


def _outcome(make: Any, programs: Any, sampler: Sampler, limits: SpanLimits, *, random: bool, enabled: bool) -> Any:
    provider, tracer = make(sampler=sampler, resource=RESOURCE, span_limits=limits, id_generator=Ids(random),
                            shutdown_on_exit=False)  # fmt: skip
    told, said, raised, answers = Told(), Said(), [], []
    tracer._set_tracer_config(_TracerConfig(is_enabled=enabled))
    provider.add_span_processor(told)
    log = logging.getLogger("opentelemetry")
    log.addHandler(said)
    try:
        for program in programs:
            try:
                _run(tracer, program, answers)
            except (Exception, KeyboardInterrupt, GeneratorExit) as error:
                raised.append((type(error), str(error)))
    finally:
        log.removeHandler(said)
    assert trace.get_current_span() is trace.INVALID_SPAN
    return {"answers": answers, "told": told.seen, "said": said.said, "raised": raised}


def _stock(**arguments: Any) -> Any:
    provider = Stock(**arguments)
    return provider, provider.get_tracer("t", "1", "http://schema", {"a": 1})


def _ours(**arguments: Any) -> Any:
    provider = TracerProvider(**arguments)
    tracer = provider.get_tracer("t", "1", "http://schema", {"a": 1})
    assert type(tracer) is LeanTracer
    return provider, tracer


def _over_the_sdks(**arguments: Any) -> Any:
    provider = Stock(**arguments)
    tracer = over(provider, "t", "1", "http://schema")
    assert type(tracer) is LeanTracer
    return provider, tracer


def _stock_alike(**arguments: Any) -> Any:
    provider = Stock(**arguments)
    return provider, provider.get_tracer("t", "1", "http://schema")


_enabled = st.sampled_from([True, True, True, True, False])


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_program, min_size=1, max_size=2), _samplers, _limits, st.booleans(), _enabled)
def test_lean_spans_are_the_sdks(programs, sampler, limits, random, enabled):
    """What is answered, what processors and exporters see, what is raised and what is logged are the same."""
    lean = _outcome(_ours, programs, sampler, limits, random=random, enabled=enabled)
    assert lean == _outcome(_stock, programs, sampler, limits, random=random, enabled=enabled)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_program, min_size=1, max_size=2), _samplers, _limits, _enabled)
def test_lean_spans_over_a_provider_of_the_sdk_are_its_own(programs, sampler, limits, enabled):
    """A lean tracer over an application's provider goes by that one's sampler, ids, limits, resource, processors."""
    lean = _outcome(_over_the_sdks, programs, sampler, limits, random=True, enabled=enabled)
    assert lean == _outcome(_stock_alike, programs, sampler, limits, random=True, enabled=enabled)
