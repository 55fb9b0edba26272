"""Tracers that make lean spans: the SDK's to everyone, by its samplers, processors, limits and ids.

What a tracer has to ask on each span is learned once and kept: which way a usual sampler decides, and which processors
do anything at all when a span starts and ends. One identity check for each notices when they are others.
"""

# A span and its tracer are one thing in two modules, and attributes are of any type.
# pyright: reportPrivateUsage=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from time import time_ns
from types import SimpleNamespace
from typing import Any, Protocol, TypeAlias, cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk import trace as stock
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from otel_perf.redaction import MAX_LENGTH
from otel_perf.telemetry import lean, sdk
from otel_perf.telemetry.current_span import CurrentSpan
from otel_perf.telemetry.span import LeanSpan, UnsampledSpan

__all__ = ["Attributes", "Entry", "LeanTracer", "SwitchedSampler", "entry"]

#: What `start_span` was given beside the usual: attributes, links, record_exception, set_status_on_exception.
_Given = tuple[Mapping[str, Any] | None, Sequence[Link] | None, bool, bool]

_NO_FLAGS, _SAMPLED, _RANDOM, _SAMPLED_RANDOM = (TraceFlags(number) for number in range(4))
_NO_STATE = trace.DEFAULT_TRACE_STATE
_ID_BITS = (1 << 64) - 1
_EVERY = _ID_BITS + 1  # a bound that all ids are below

# Bound once: they are called for every span.
_get_context = sdk.get_context
_SPAN_KEY = sdk.SPAN_KEY
_new: Any = object.__new__
_new_context: Callable[..., SpanContext] = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # it is generic
_bits = random.getrandbits


class SwitchedSampler(Sampler):
    """Asks another sampler, which may be exchanged: tracers that libraries hold follow each `configure`."""

    def __init__(self, target: Sampler) -> None:
        self.target = target

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return self.target.should_sample(*args, **kwargs)

    def get_description(self) -> str:
        return self.target.get_description()


#: The attributes that a span starts with, or what makes them.
Attributes: TypeAlias = "dict[str, Any] | Callable[[], dict[str, Any]]"


class Entry(Protocol):
    """The short way to a span, for hot paths of our own."""

    def begin(
        self, name: str, kind: SpanKind, parent: SpanContext | None, attributes: Attributes,
        context: Context | None = None,
    ) -> Span:  # fmt: skip
        """Starts a span; see `LeanTracer.begin`."""
        ...

    def finish(self, span: Span, end_time: int | None = None) -> None:
        """Ends a span that `begin` made."""
        ...


class LeanTracer(stock.Tracer):
    """Makes lean spans by the sampler, resource, limits, ids and processors of a tracer of the SDK."""

    def __init__(self, of: stock.Tracer) -> None:
        # Deliberately without the SDK's own constructor: all that it would make is there.
        self._of = of
        self.resource = of.resource
        self.span_processor = of.span_processor
        self.id_generator = of.id_generator
        self.instrumentation_info = of.instrumentation_info
        self.scope = self._instrumentation_scope = of._instrumentation_scope
        self._tracer_config = of._tracer_config
        self._tracer_metrics = of._tracer_metrics
        self.limits: SpanLimits = of._span_limits
        self._span_limits = self.limits
        most, longest = self.limits.max_span_attributes, self.limits.max_span_attribute_length
        self.most_attributes = sys.maxsize if most is None else most
        self.longest_attribute = sys.maxsize if longest is None else longest
        self._inline_ids = type(of.id_generator) is RandomIdGenerator
        self.sampler = of.sampler
        # One that does more than to pass on to its processors (in threads, say) is itself the one to be told.
        flat = lean.passes_on(self.span_processor)
        self.hub: Any = self.span_processor if flat else SimpleNamespace(_span_processors=(self.span_processor,))
        self.processors: tuple[SpanProcessor, ...] | None = None
        self.starts: tuple[SpanProcessor, ...] = ()
        self.endings: tuple[Callable[[Any], None], ...] = ()
        self.ends: tuple[SpanProcessor, ...] = ()

    @property
    def sampler(self) -> Sampler:
        return self._sampler

    @sampler.setter
    def sampler(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._switch = sampler if isinstance(sampler, SwitchedSampler) else SwitchedSampler(sampler)
        self._learn_sampler()

    def _set_resource(self, resource: Resource) -> None:
        self.resource = resource
        self._of._set_resource(resource)

    def _set_tracer_config(self, tracer_config: Any) -> None:
        self._tracer_config = tracer_config
        self._of._set_tracer_config(tracer_config)

    def begin(  # noqa: PLR0917  # by position they cost less
        self, name: str, kind: SpanKind, parent: SpanContext | None, attributes: Attributes,
        context: Context | None = None, start_time: int | None = None, given: _Given | None = None,
    ) -> Span:  # fmt: skip
        """Starts a span in one call: sampling, ids, processors. `start_span` does it by this.

        Args:
            name: the span's name.
            kind: the span's kind.
            parent: what it is a child of; None, or one that is not valid, makes a root.
            attributes: the span's from now on, so nobody else may keep them. They are taken as they are: clean, within
                the limits. A function that makes them is called only where somebody sees them.
            context: what samplers and processors are told. Where it has another span than the parent, they are told
                of one that is made of it; None is the current one.
            start_time: in ns since 1970; now, where there is none.
            given: further attributes, of any kind, and the rest of what `start_span` takes.
        """
        if not self._tracer_config.is_enabled:
            return NonRecordingSpan(trace.INVALID_SPAN_CONTEXT if parent is None else parent)
        if self._switch.target is not self._target:
            self._learn_sampler()
        bound = self._bound
        if parent is None or not parent[5]:
            parent = None
            trace_id = (_bits(128) or 1) if self._inline_ids else self.id_generator.generate_trace_id()
            random_id: int = self._inline_ids or self.id_generator.is_trace_id_random()
            state = _NO_STATE
        else:
            trace_id, _, _, flags, state, _ = parent
            random_id = flags & 2
            if self._by_parent:
                bound = _EVERY if flags & 1 else 0
        if bound is None:
            return self._ask(name, kind, parent, attributes, context, start_time, given, trace_id)
        span_id = (_bits(64) or 1) if self._inline_ids else self.id_generator.generate_span_id()
        sampled = bound is _EVERY or trace_id & _ID_BITS < bound
        if not sampled and not self._records:
            unsampled: UnsampledSpan = _new(UnsampledSpan)
            made = (trace_id, span_id, False, _RANDOM if random_id else _NO_FLAGS, state, True)
            unsampled._context = _new_context(SpanContext, made)
            return unsampled
        span: LeanSpan = _new(LeanSpan)
        made = (trace_id, span_id, False, _SAMPLED_RANDOM if random_id else _SAMPLED, state, True)
        if not sampled:
            made = (trace_id, span_id, False, _RANDOM if random_id else _NO_FLAGS, state, True)
        span._context = _new_context(SpanContext, made)
        span._parent = parent
        span._name = name
        span._kind = kind
        span._tracer = self
        span._resource = self.resource
        span._attributes = attributes if isinstance(attributes, dict) else attributes()
        span._end_time = None
        span._live = True
        if given is not None:
            _fill(span, given[0], given)
        span._start_time = time_ns() if start_time is None else start_time
        if self.hub._span_processors is not self.processors:
            self.learn_processors()
        if self.starts:
            self._tell(span, context)
        return span

    #: Ends a span of this tracer, in one call; any other span is left as it is.
    finish: Callable[..., None] = staticmethod(LeanSpan.end)

    def _ask(  # noqa: PLR0917  # as begin's
        self, name: str, kind: SpanKind, parent: SpanContext | None, attributes: Attributes,
        context: Context | None, start_time: int | None, given: _Given | None, trace_id: int,
    ) -> Span:  # fmt: skip
        """What `begin` does, by a sampler whose rules are its own."""
        context = lean.told(context, parent)
        given = given or (attributes if isinstance(attributes, dict) else attributes(), (), True, True)
        decided: Any = self._target.should_sample(context, trace_id, name, kind, given[0], given[1] or ())
        decision = decided.decision
        random_id = self.id_generator.is_trace_id_random() if parent is None else parent.trace_flags.random_trace_id
        flags = TraceFlags((1 if decision.is_sampled() else 0) | (2 if random_id else 0))
        made = SpanContext(trace_id, self.id_generator.generate_span_id(), False, flags, decided.trace_state)
        if not decision.is_recording():
            return NonRecordingSpan(made)
        span: LeanSpan = _new(LeanSpan)
        span._context, span._parent, span._name, span._kind = made, parent, name, kind
        span._tracer, span._resource, span._attributes = self, self.resource, {}
        span._end_time, span._live = None, True
        _fill(span, cast("Mapping[str, Any]", decided.attributes), given)
        span._start_time = time_ns() if start_time is None else start_time
        if self.hub._span_processors is not self.processors:
            self.learn_processors()
        self._tell(span, context)
        return span

    def _tell(self, span: Any, context: Context | None) -> None:
        context = lean.told(context, span._parent)
        for processor in self.starts:
            processor.on_start(span, parent_context=context)

    def _learn_sampler(self) -> None:
        target = self._switch.target
        rule = lean.sampling_rule(target)
        self._by_parent, bound = (False, None) if rule is None else rule
        self._bound = _EVERY if bound == _EVERY else bound
        # Late rules want to see what is not sampled.
        self._records = getattr(target, "records", None) is True
        self._target = target

    def learn_processors(self) -> None:
        """Finds out which of the processors in force do anything, and when."""
        processors: tuple[Any, ...] = self.hub._span_processors
        self.starts = tuple(each for each in processors if lean.acts(each, "on_start"))
        self.endings = tuple(each._on_ending for each in processors if lean.acts(each, "_on_ending"))
        self.ends = tuple(each for each in processors if lean.acts(each, "on_end"))
        self.processors = processors

    def start_span(  # noqa: PLR0917  # the SDK's signature
        self, name: str, context: Context | None = None, kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None, links: Sequence[Link] | None = (), start_time: int | None = None,
        record_exception: bool = True, set_status_on_exception: bool = True,
    ) -> Span:  # fmt: skip
        above: Any = (_get_context() if context is None else context).get(_SPAN_KEY)
        # One after the other: these few steps are taken for every span.
        parent = None if above is None else above._context if type(above) is LeanSpan else _parent(above)
        if attributes or links or not record_exception or not set_status_on_exception:
            given = (attributes, links, record_exception, set_status_on_exception)
            return self.begin(name, kind, parent, {}, context, start_time, given)
        if (
            parent is not None or self._bound is not _EVERY or self._switch.target is not self._target
            or not self._inline_ids or not self._tracer_config.is_enabled
        ):  # fmt: skip
            return self.begin(name, kind, parent, {}, context, start_time)
        # What `begin` comes to for a plain root that is sampled, written out: one call less for each.
        span: LeanSpan = _new(LeanSpan)
        made = (_bits(128) or 1, _bits(64) or 1, False, _SAMPLED_RANDOM, _NO_STATE, True)
        span._context = _new_context(SpanContext, made)
        span._parent = None
        span._name = name
        span._kind = kind
        span._tracer = self
        span._resource = self.resource
        span._attributes = {}
        span._end_time = None
        span._live = True
        span._start_time = time_ns() if start_time is None else start_time
        if self.hub._span_processors is not self.processors:
            self.learn_processors()
        if self.starts:
            self._tell(span, context)
        return span

    def start_as_current_span(  # type: ignore[override]  # noqa: PLR0917  # as the SDK's, which answers a generator's
        self, name: str, context: Context | None = None, kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None, links: Sequence[Link] | None = (), start_time: int | None = None,
        record_exception: bool = True, set_status_on_exception: bool = True, end_on_exit: bool = True,
    ) -> CurrentSpan:  # fmt: skip
        arguments = (name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception)
        return CurrentSpan(self, arguments, end_on_exit)


class _Plain:
    """The short way over a tracer that is not lean: the same, at the cost of that tracer."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def begin(
        self, name: str, kind: SpanKind, parent: SpanContext | None, attributes: Attributes,
        context: Context | None = None,
    ) -> Span:  # fmt: skip
        return self._tracer.start_span(
            name, lean.told(context, parent), kind, attributes if isinstance(attributes, dict) else attributes(),
            record_exception=False, set_status_on_exception=False,
        )  # fmt: skip

    def finish(self, span: Span, end_time: int | None = None) -> None:
        span.end(end_time)


def entry(tracer: trace.Tracer) -> Entry:
    """The short way to the spans of any tracer."""
    # What our own hot paths put in is always within these.
    if isinstance(tracer, LeanTracer) and tracer.most_attributes >= 64 and tracer.longest_attribute >= MAX_LENGTH:
        return tracer
    return _Plain(tracer)


def _parent(above: Any) -> SpanContext | None:
    if not isinstance(above, Span):
        return None
    found: Any = above.get_span_context()
    if found is not None and not isinstance(found, SpanContext):
        raise TypeError("parent_span_context must be a SpanContext or None.")
    return found


def _fill(span: Any, attributes: Mapping[str, Any] | None, given: _Given) -> None:
    if attributes:
        span.put(attributes, whole=True)
    if given[1]:
        span.start_links(given[1])
    if not given[2]:
        span._record_exception = False
    if not given[3]:
        span._set_status_on_exception = False
