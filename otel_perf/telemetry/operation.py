"""The operation: the unit of work that every face and every integration of otel_perf is made of.

It times, finds its series and, when the trace is recorded, owns a span. `with` is sugar (see `measure`): event APIs
such as SQLAlchemy's start and stop operations by hand, with or without making them current.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from functools import partial
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode

from otel_perf import guard, redaction
from otel_perf.telemetry import runtime, sdk
from otel_perf.telemetry.kind import CACHE, EXTERNAL, HTTP_CLIENT, JOB, QUERY, REQUEST, STEP, Kind
from otel_perf.telemetry.numbers import plain
from otel_perf.telemetry.span import LeanSpan, UnsampledSpan

__all__ = [
    "CACHE",
    "EXTERNAL",
    "HTTP_CLIENT",
    "JOB",
    "QUERY",
    "REQUEST",
    "STEP",
    "Kind",
    "Operation",
    "current",
    "open_span",
    "start",
]

# Bound once: they are called for every operation.
_get_context, _set_context, _reset_context = sdk.get_context, sdk.set_context, sdk.reset_context
_now_ns, _wall_ns = time.perf_counter_ns, time.time_ns
_SUPPRESS_KEY, _SPAN_KEY = sdk.SUPPRESS_KEY, sdk.SPAN_KEY
_ERROR = Status(StatusCode.ERROR)


_current: ContextVar[Operation | None] = ContextVar("otel_perf_operation", default=None)


def current() -> Operation | None:
    """The innermost active operation, or None."""
    return _current.get()


class Operation:
    """Work in progress. Labels may be filled in until it stops; afterwards `seconds` says how long it took."""

    __slots__ = (
        "_context_token", "_token", "context", "error_type", "hit", "items", "kind", "labels", "last_error",
        "name", "parent", "recorded", "runtime", "seconds", "span", "started_ns", "stopped", "told", "waits",
    )  # fmt: skip

    def __init__(self, kind: Kind, name: str, labels: list[Any]) -> None:
        self.kind = kind
        self.name = name
        self.labels = labels
        self.parent: Operation | None = _current.get()
        self.span: Span | None = None
        #: The ids of its span while that is recorded; None without one, or where it keeps nothing.
        self.recorded: SpanContext | None = None
        self.context: Context | None = None
        self.seconds: float | None = None
        self.items: int | None = None
        #: For caches: True is a hit, False a miss, None neither.
        self.hit: bool | None = None
        self.error_type: str | None = None
        #: The `error.type` of the last call within, None after a good one: it counts unless something else failed.
        self.last_error: str | None = None
        #: Waiting is its job, as with a blocking pop: it is never counted as slow.
        self.waits = False
        self.stopped = False
        #: What it is measured by; None before `configure()`, and where its metric is recorded by somebody else.
        self.runtime: runtime.Runtime | None = None
        self._token: Token[Operation | None] | None = None
        self._context_token: Token[Context] | None = None
        #: The labels that the span knows from its start.
        self.told: list[Any] = []
        #: By `time.perf_counter_ns()`.
        self.started_ns = 0

    def within(self, layer: str) -> bool:
        """Whether an unfinished operation of this layer is above (this one included)."""
        operation: Operation | None = self
        while operation is not None:
            if operation.kind.layer == layer and not operation.stopped:
                return True
            operation = operation.parent
        return False

    def header(self, name: bytes) -> bytes | None:  # noqa: ARG002 -- a request has them
        """A header that the caller sent, where this is a request."""
        return None

    def label(self, key: str, value: Any) -> None:
        """Fills in a label of the operation's histogram, for example the status once it is known."""
        try:
            self.labels[self.kind.duration.attributes.index(key)] = value
        except Exception:
            guard.note("setting a label")

    def set(self, key: str, value: Any) -> None:
        """Puts an attribute on the span, redacted; never on metrics."""
        if self.span is not None and value is not None:
            try:
                self.span.set_attributes(redaction.redact({key: value}))
            except Exception:
                guard.note("setting an attribute")

    def fail(self, error: BaseException | str) -> None:
        """Marks the operation as failed, by an exception or by a short `error.type`; the first one counts."""
        if self.error_type is None:
            try:
                self._fail(error)
            except Exception:
                guard.note("marking a failure")

    def _fail(self, error: BaseException | str) -> None:
        if isinstance(error, str):
            self.error_type = error
            return
        self.error_type = redaction.exception_type(error)
        if self.span is not None and self.recorded is not None:
            self.span.add_event("exception", redaction.exception(error))

    def activate(self) -> None:
        """Makes this operation and its span current, until `deactivate` in the same context."""
        self._token = _current.set(self)
        if self.context is not None:
            self._context_token = _set_context(self.context)

    def deactivate(self) -> None:
        """Puts back what was current before."""
        token, self._token = self._token, None
        context_token, self._context_token = self._context_token, None
        try:
            if context_token is not None:
                # Not the API's `detach`, which logs an error where a stream was left from another task.
                _reset_context(context_token)
            if token is not None:
                _current.reset(token)
        except ValueError:
            self._leave_elsewhere(context_token)

    def _leave_elsewhere(self, context_token: Token[Context] | None) -> None:
        """Undoes the activation in a context that is a copy of the one it was made in: tokens are of no use there."""
        if _current.get() is self:
            _current.set(self.parent)
        if context_token is not None and trace.get_current_span() is self.span:
            before = context_token.old_value
            _set_context(before if isinstance(before, Context) else Context())

    def stop(self, error: BaseException | None = None, *, ended_ns: int | None = None, deactivate: bool = True) -> None:
        """Ends the operation: duration, series, span. The second call does nothing.

        Args:
            error: what it failed with.
            ended_ns: when it ended by `time.perf_counter_ns()`, where that was before this call.
            deactivate: False leaves it current: the caller deactivates it in the context that it was activated in.
        """
        if self.stopped:
            return
        self.stopped = True
        # Spans end by the wall clock, operations by the steady one.
        now_ns, wall_ns = _now_ns(), _wall_ns()
        if ended_ns is not None:
            wall_ns -= now_ns - ended_ns
            now_ns = ended_ns
        self.seconds = (now_ns - self.started_ns) / 1e9
        try:
            if error is not None:
                self.fail(error)
            elif self.last_error is not None:
                self.fail(self.last_error)
            try:
                self.labels[-1] = self.error_type
                # What began before `configure` was called again is not in its counts.
                if self.runtime is not None and self.runtime is runtime.current:
                    self._record(self.runtime, wall_ns)
            except Exception:
                guard.note(f"measuring a {self.kind.name}")
            span = self.span
            if span is not None and type(span) is not UnsampledSpan:  # of which nothing is kept
                self._end(span, wall_ns)
            # A chain of tasks that start one another must not keep all that ever ran.
            while self.parent is not None and self.parent.stopped:
                self.parent = self.parent.parent
        finally:
            if deactivate and (self._token is not None or self._context_token is not None):
                self.deactivate()

    def _record(self, in_force: runtime.Runtime, wall_ns: int) -> None:
        labels, recorded, kind = self.labels, self.recorded, self.kind
        if kind is CACHE and labels[3] is None:
            labels[3] = "none" if self.hit is None else "hit" if self.hit else "miss"
        value: Any = self.seconds
        if recorded is not None and recorded[3] & 1 and in_force.exemplars:
            value = (value, recorded[0], recorded[1], wall_ns)
        in_force.at(kind.duration, tuple(labels)).record(value)
        if not kind.alone:
            self._record_more(in_force)

    def _record_more(self, in_force: runtime.Runtime) -> None:
        kind, values = self.kind, tuple(self.labels[:-1])
        if kind.active is not None:
            in_force.at(kind.active, values).record(-1)
        if kind.items is not None and self.items and 0 < self.items < math.inf:
            in_force.at(kind.items, values).record(plain(self.items))
        if kind.last_success is not None and self.error_type is None:
            in_force.at(kind.last_success, values).record(time.time())
        seconds = None if self.waits else self.seconds
        if kind.slow is not None and seconds is not None and seconds >= in_force.slow_query_s:
            threshold = "critical" if seconds >= in_force.critical_query_s else "slow"
            in_force.at(kind.slow, (*values, threshold)).record(1)

    def _end(self, span: Span, wall_ns: int) -> None:
        try:
            try:
                if self.recorded is not None and (
                    self.labels != self.told or self.error_type is not None or self.items is not None
                ):
                    self._describe(span)
            finally:
                span.end(wall_ns)
        except Exception:
            guard.note(f"ending the span of a {self.kind.name}")

    def _describe(self, span: Span) -> None:
        """Says what became known after the start."""
        if self.error_type is not None:
            span.set_status(_ERROR)
        keys, told = self.kind.duration.attributes, self.told
        attributes: dict[str, Any] = {}
        for index, value in enumerate(self.labels):
            if value is not None and value is not told[index]:
                attributes[keys[index]] = value
        if self.items is not None and self.kind.items is not None:
            attributes[self.kind.items.name] = plain(self.items)
        if attributes:
            span.set_attributes(redaction.redact(attributes))


def start(
    kind: Kind, name: str, labels: Sequence[Any], attributes: Mapping[str, Any] | None = None, *,
    context: Context | None = None, links: Sequence[Link] = (), activate: bool = True, span: bool = True,
    metrics: bool = True,
) -> Operation:  # fmt: skip
    """Starts an operation; it always answers one, also before `configure()`, and never raises.

    Args:
        kind: what it is.
        name: the span's name, of low cardinality.
        labels: the label values in the order of `kind.duration.attributes`, None where not known (yet). `error.type`
            may be left out.
        attributes: span attributes, redacted here. They are there at the start, so that samplers see them.
        context: the parent's, where that is not the current one: a remote caller's.
        links: other traces that it has to do with.
        activate: makes the operation current in this context; otherwise `activate()` and `deactivate()` do.
        span: False measures only.
        metrics: False makes a span only, where somebody else records the metric of this name.
    """
    keys = kind.duration.attributes
    values = [*labels, *(None,) * (len(keys) - len(labels))]
    operation = Operation(kind, name, values)
    in_force = runtime.current
    try:
        if in_force is not None:
            if metrics:
                operation.runtime = in_force
                if kind.active is not None:
                    in_force.at(kind.active, tuple(values[:-1])).record(1)
            context = _get_context() if context is None else context
            if span and not context.get(_SUPPRESS_KEY):
                operation.name = redaction.text(name, 256)
                above: Any = context.get(_SPAN_KEY)
                parent = None if above is None else above.get_span_context()
                known = partial(_known, keys, values, attributes)
                open_span(operation, in_force, parent, context, known, links=links)
    except Exception:
        guard.note(f"starting a {kind.name}")
    if activate:  # also before `configure()`, so that a handle that several share finds its own again
        operation.activate()
    operation.started_ns = _now_ns()
    return operation


def _known(keys: Sequence[str], labels: list[Any], attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The attributes that a span starts with, redacted."""
    known = {key: value for key, value in zip(keys, labels, strict=True) if value is not None}
    if attributes:
        known.update(attributes)
    return redaction.redact(known)


def open_span(
    operation: Operation, in_force: runtime.Runtime, parent: SpanContext | None, context: Context,
    attributes: Callable[[], dict[str, Any]], *, links: Sequence[Link] = (),
) -> None:  # fmt: skip
    """Gives an operation its span; the attributes are redacted, and asked for only where somebody sees them."""
    kind = operation.kind.span_kind
    if links:
        span = in_force.tracer.start_span(
            operation.name, context, kind, attributes(), links, record_exception=False, set_status_on_exception=False
        )
    else:
        span = in_force.entry.begin(operation.name, kind, parent, attributes, context)
    operation.span = span
    if type(span) is LeanSpan:
        operation.recorded = span._context  # pyright: ignore[reportPrivateUsage]  # its own method is one call more
        operation.told = operation.labels.copy()
    elif type(span) is not UnsampledSpan and span.is_recording():
        operation.recorded = span.get_span_context()
        operation.told = operation.labels.copy()
    operation.context = Context({**context, _SPAN_KEY: span})
