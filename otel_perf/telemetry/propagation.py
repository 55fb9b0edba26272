"""The trace context that a caller sends, and that we send: our own code for W3C, the application's propagators else.

What arrives is a stranger's. `trust` says whether it is believed; what is not believed becomes a link, so that the
caller's trace can still be found from ours. Nothing here raises for what a header says.
Source: W3C Trace Context (level 2), W3C Baggage; limits and spaces as OpenTelemetry's own propagators have them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_plus

from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from otel_perf.telemetry import sdk

__all__ = ["BAGGAGE_KEY", "Caller", "Extractor", "Injector", "extractor", "injector"]

#: The context key of baggage, asked of the API itself: the name it has for it is private.
(BAGGAGE_KEY,) = baggage.set_baggage("key", "value", Context())

_TRACEPARENT = re.compile(r"[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:(-.*)|[ \t]*)")
_LONGEST_TRACEPARENT = 512
_LONGEST_TRACESTATE = 8192
_LONGEST_KEPT = 512
_LONGEST_BAGGAGE = 8192
_LONGEST_MEMBER = 4096
_MOST_MEMBERS = 180
_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = r"[!#-+\--:<-\[\]-~]*"
# No two runs of spaces meet in it, so a long one cannot be read in many ways.
_PROPERTY = rf"[ \t]*{_WORD}(?:[ \t]*=[ \t]*{_VALUE})?"
_MEMBER = re.compile(rf"[ \t]*({_WORD})[ \t]*=[ \t]*({_VALUE}(?:[ \t]*;{_PROPERTY})*)[ \t]*")
_NO_STATE = TraceState()
_new_context: Callable[..., SpanContext] = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # it is generic
_FLAGS = tuple(TraceFlags(number) for number in range(256))

#: The caller's span or None, and the context that the request starts with.
Caller = tuple[SpanContext | None, Context]


class Extractor:
    """Reads the W3C headers: `fields` are the headers that it wants."""

    fields: frozenset[str] = frozenset(("traceparent", "tracestate", "baggage"))

    def __call__(self, carrier: Mapping[str, str], context: Context) -> Caller:
        """The caller's span, and the context with it and its baggage."""
        found: dict[str, Any] = {}
        header = carrier.get("traceparent")
        span_context = None if header is None else parent(header, carrier.get("tracestate"))
        if span_context is not None:
            found[sdk.SPAN_KEY] = trace.NonRecordingSpan(span_context)
        header = carrier.get("baggage")
        if header:
            entries = members(header)
            if entries:
                before: Any = context.get(BAGGAGE_KEY)
                found[BAGGAGE_KEY] = {**(before or {}), **entries}
        return span_context, Context({**context, **found}) if found else context


class _ByPropagators:
    """Asks the propagators that the application has set."""

    def __init__(self, propagator: Any) -> None:
        self._propagator = propagator
        self.fields: frozenset[str] = frozenset(str(name) for name in propagator.fields)

    def __call__(self, carrier: Mapping[str, str], context: Context) -> Caller:
        """The caller's span, and the context that the propagators make."""
        # A span of the context is not the caller's.
        made: Context = self._propagator.extract(carrier, context)
        span_context = trace.get_current_span(made).get_span_context()
        if not span_context.is_valid or made.get(sdk.SPAN_KEY) is context.get(sdk.SPAN_KEY):
            return None, made
        return span_context, made


def extractor(propagator: Any) -> Extractor | _ByPropagators:
    """What reads a caller's headers as this propagator would: our own code where it is the usual pair."""
    return Extractor() if sdk.is_usual_propagator(propagator) else _ByPropagators(propagator)


#: The headers that carry a context on.
Injector = Callable[[Context], dict[str, str]]

_baggage = W3CBaggagePropagator()


def injector(propagator: Any) -> Injector:
    """What writes the headers as this propagator would: our own code where it is the usual pair."""
    if sdk.is_usual_propagator(propagator):
        return _w3c_headers

    def headers(context: Context) -> dict[str, str]:
        carrier: dict[str, str] = {}
        propagator.inject(carrier, context)
        return carrier

    return headers


def _w3c_headers(context: Context) -> dict[str, str]:
    headers: dict[str, str] = {}
    span: Any = context.get(sdk.SPAN_KEY)
    if span is not None:
        found: SpanContext = span.get_span_context()
        if found[0] and found[1]:
            headers["traceparent"] = f"00-{found[0]:032x}-{found[1]:016x}-{found[3]:02x}"
            if found[4] is not trace.DEFAULT_TRACE_STATE and found[4]:
                headers["tracestate"] = found[4].to_header()
    if context.get(BAGGAGE_KEY):
        _baggage.inject(headers, context)
    return headers


def parent(traceparent: str, tracestate: str | None) -> SpanContext | None:
    """The span that a `traceparent` header names; None where it is not well-formed."""
    if len(traceparent) > _LONGEST_TRACEPARENT:
        return None
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (rest and version == "00"):
        return None
    trace_number, span_number = int(trace_id, 16), int(span_id, 16)
    if not trace_number or not span_number:
        return None
    state = _NO_STATE
    if tracestate and len(tracestate) <= _LONGEST_TRACESTATE:
        state = (_state if len(tracestate) <= _LONGEST_KEPT else _state.__wrapped__)(tracestate)
    return _new_context(SpanContext, (trace_number, span_number, True, _FLAGS[int(flags, 16)], state, True))


@lru_cache(maxsize=256)
def _state(header: str) -> TraceState:
    return TraceState.from_header([header])


def members(header: str) -> dict[str, str]:
    """The entries of a `baggage` header, those that are well-formed; properties stay with their value, as upstream."""
    if len(header) > _LONGEST_BAGGAGE:
        return {}
    entries: dict[str, str] = {}
    for member in header.split(",", _MOST_MEMBERS)[:_MOST_MEMBERS]:
        found = _MEMBER.fullmatch(member)
        if found is not None and len(member) <= _LONGEST_MEMBER:
            name, value = found.groups()
            if "%" in member or "+" in member:
                name, value = unquote_plus(name).strip(), unquote_plus(value).strip()
            entries[name] = value
    return entries
