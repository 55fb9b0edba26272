"""How lean spans fit into the SDK that is installed: what they are built on is looked for before they are used."""

from __future__ import annotations

import dis
import logging
from collections.abc import Callable
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    ReadableSpan,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    Tracer,
    TracerProvider,
    sampling,
)
from opentelemetry.trace import (
    INVALID_SPAN,
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    SpanContext,
    get_current_span,
    set_span_in_context,
)

__all__ = ["acts", "counts_spans", "passes_on", "replace_tracer", "sampling_rule", "told", "works"]

_log = logging.getLogger("otel_perf")

_SPAN_NAMES = frozenset((
    "_attributes", "_context", "_end_time", "_events", "_instrumentation_info", "_instrumentation_scope", "_kind",
    "_links", "_name", "_parent", "_resource", "_start_time", "_status",
))  # fmt: skip
_TRACER_NAMES = (
    "_instrumentation_scope", "_set_resource", "_set_tracer_config", "_span_limits", "_tracer_config", "_tracer_metrics"
)  # fmt: skip

_works: bool | None = None


def works(provider: TracerProvider, tracer: Tracer) -> bool:
    """Whether this SDK's spans, tracers and providers are built as the lean ones expect; if not it is logged once."""
    global _works
    if _works is None:
        span = vars(ReadableSpan("", resource=Resource.get_empty())).keys()
        strange = sorted(span ^ _SPAN_NAMES)  # missing or new: both change what a span is
        strange += [name for name in _TRACER_NAMES if not hasattr(tracer, name)]
        strange += [name for name in ("_tracers", "_tracers_lock") if not hasattr(provider, name)]
        strange += [] if hasattr(Link(INVALID_SPAN_CONTEXT), "_attributes") else ["Link._attributes"]
        strange += [] if hasattr(NonRecordingSpan(INVALID_SPAN_CONTEXT), "_context") else ["NonRecordingSpan._context"]
        _works = not strange
        if strange:
            _log.warning(
                "otel_perf: this opentelemetry-sdk is built otherwise (%s): its own spans are used, which cost more",
                ", ".join(strange),
            )
    return _works


def counts_spans(tracer: Tracer) -> bool:
    """Whether the SDK counts the spans of this tracer in metrics of its own."""
    return not type(getattr(tracer, "_tracer_metrics", None)).__name__.startswith("NoOp")


def replace_tracer(provider: Any, made: Any, make: Callable[[Tracer], Tracer]) -> Tracer:
    """Makes another tracer of this one, and lets the provider answer and keep up that one from now on."""
    with provider._tracers_lock:
        scope = made._instrumentation_scope
        known: Any = provider._tracers.get(scope)
        if known is made:
            known = provider._tracers[scope] = make(made)
        found: Tracer = known or make(made)
        return found


def passes_on(processor: SpanProcessor) -> bool:
    """Whether this processor only hands spans on to those that it has, one after the other."""
    return type(processor) is SynchronousMultiSpanProcessor and hasattr(processor, "_span_processors")


def sampling_rule(sampler: sampling.Sampler) -> tuple[bool, int | None] | None:
    """How a usual sampler decides, None for any other.

    Answers:
        Whether the parent decides where there is one; and the bound that the lower 64 bits of other trace ids must be
        below, or None where the sampler is asked about those.
    """
    by_parent = getattr(sampler, "by_parent", None)
    if isinstance(by_parent, bool):  # ours; where there are rules it is asked about what no parent decides
        bound = _bound(getattr(sampler, "usual", None))
        return None if bound is None and not by_parent else (by_parent, bound)
    bound = _bound(sampler)
    if bound is not None:
        return False, bound
    names = ("_remote_parent_sampled", "_local_parent_sampled", "_remote_parent_not_sampled",
             "_local_parent_not_sampled")  # fmt: skip
    usual = (sampling.ALWAYS_ON, sampling.ALWAYS_ON, sampling.ALWAYS_OFF, sampling.ALWAYS_OFF)
    if (
        type(sampler).should_sample is not sampling.ParentBased.should_sample
        or tuple(getattr(sampler, name, None) for name in names) != usual
    ):
        return None
    bound = _bound(getattr(sampler, "_root", None))
    return None if bound is None else (True, bound)


def _bound(sampler: object) -> int | None:
    if sampler is sampling.ALWAYS_ON:
        return sampling.TraceIdRatioBased.TRACE_ID_LIMIT + 1
    if sampler is sampling.ALWAYS_OFF:
        return 0
    return sampler.bound if type(sampler) is sampling.TraceIdRatioBased else None


def told(context: Context | None, parent: SpanContext | None) -> Context | None:
    """The context for samplers and processors: the given one, if the parent is its span."""
    above: Any = get_current_span(context)
    known: SpanContext | None = above.get_span_context()  # a stranger's may have none
    if (known if known is not None and known.is_valid else None) == parent:
        return context
    return set_span_in_context(INVALID_SPAN if parent is None else NonRecordingSpan(parent), context)


def acts(processor: Any, name: str) -> bool:
    """Whether this method of a processor does anything but answer."""
    method = getattr(processor, name, None)
    code = getattr(method, "__code__", None)
    idle = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
    return method is not None and (code is None or any(each.opname not in idle for each in dis.get_instructions(code)))
