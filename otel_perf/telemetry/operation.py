"""The operation: the unit of work that every face and every integration of otel_perf is made of.

It times, finds its series and, when the trace is recorded, owns a span. `with` is sugar (see `measure`): event APIs
such as SQLAlchemy's start and stop operations by hand, with or without making them current.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token
from functools import partial
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext

from otel_perf import conventions as c
from otel_perf import guard, redaction
from otel_perf.telemetry import repeated_queries, runtime, sdk
from otel_perf.telemetry.kind import CACHE, EXTERNAL, HTTP_CLIENT, JOB, QUERY, REQUEST, STEP, Kind
from otel_perf.telemetry.numbers import plain
from otel_perf.telemetry.opening import Known, describe, known, open_span
from otel_perf.telemetry.span import LeanSpan, UnsampledSpan

__all__ = [
    "CACHE", "EXTERNAL", "HTTP_CLIENT", "JOB", "QUERY", "REQUEST", "STEP", "Kind", "Known", "Operation",
    "current", "open_span", "start",
]  # fmt: skip

# Bound once: they are called for every operation.
_get_context, _set_context, _reset_context = sdk.get_context, sdk.set_context, sdk.reset_context
_now_ns, _wall_ns = time.perf_counter_ns, time.time_ns
_SUPPRESS_KEY, _SPAN_KEY = sdk.SUPPRESS_KEY, sdk.SPAN_KEY
_ROWS, _QUERY_TEXT = c.DB_ROWS, c.DB_QUERY_TEXT
_TEMPLATES_PER_UNIT = 256
_LONGEST_NAME = 256


_current: ContextVar[Operation | None] = ContextVar("otel_perf_operation", default=None)


def current() -> Operation | None:
    """The innermost active operation, or None."""
    return _current.get()


class Operation:
    """Work in progress. Labels may be filled in until it stops; afterwards `seconds` says how long it took."""

    __slots__ = (
        "_context_token", "_token", "context", "error_type", "failed_ns", "hit", "items", "kind", "labels",
        "last_error", "name", "parent", "queries", "recorded", "repeats", "rows", "runtime", "seconds", "span",
        "started_ns", "stopped", "template", "told", "unit", "waits",
    )  # fmt: skip

    def __init__(self, kind: Kind, name: str, labels: list[Any]) -> None:
        self.kind = kind
        self.name = name
        self.labels = labels
        self.stopped: bool = False
        self.parent: Operation | None = _current.get()
        parent = self.parent
        #: The request, job or outermost operation that a query in here belongs to; None where it is that itself.
        self.unit: Operation | None = None
        if parent is not None and not kind.unit:
            unit = parent.unit or parent
            self.unit = unit if not unit.stopped else None if parent.stopped else parent
        #: Of a unit: its queries by template, once there was one. `repeats` says that one of them came often.
        self.queries: dict[str, repeated_queries.Counted] | None = None
        self.repeats = False
        #: Of a query: what makes it the same as another. `start` takes it from the query text, masked.
        self.template: str | None = None
        #: Of a query: how many rows came back; `set(c.DB_ROWS, n)` fills it in.
        self.rows: int | None = None
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
        #: When that call ended, where `last_error` is not None.
        self.failed_ns: int
        #: Waiting is its job, as with a blocking pop: it is never counted as slow.
        self.waits = False
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
        if key == _ROWS:
            self.rows = value
        if self.recorded is not None and self.span is not None and value is not None:
            try:
                if value.__class__ is int:
                    self.span.set_attribute(key, value)
                else:
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
                in_force = runtime.current
                if in_force is not None:
                    # What began before `configure` was called again is not in its counts. Queries are watched also
                    # where somebody else measures their duration.
                    if self.runtime is in_force or (self.runtime is None and self.kind.slow is not None):
                        self._record(in_force, wall_ns)
                    if self.repeats and self.queries is not None:
                        in_force.repeated_queries.judge(self, self.queries, in_force)
            except Exception:
                guard.note(f"measuring a {self.kind.name}")
            span = self.span
            if span is not None and type(span) is not UnsampledSpan:  # of which nothing is kept
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
            # A chain of tasks that start one another must not keep all that ever ran.
            self.unit = None
            while self.parent is not None and self.parent.stopped:
                self.parent = self.parent.parent
        finally:
            token = self._token
            if deactivate and token is not None:  # as `deactivate` does, without the call
                context_token, self._token, self._context_token = self._context_token, None, None
                try:
                    if context_token is not None:
                        _reset_context(context_token)
                    _current.reset(token)
                except ValueError:
                    self._leave_elsewhere(context_token)

    def _record(self, in_force: runtime.Runtime, wall_ns: int) -> None:
        labels, recorded, kind = self.labels, self.recorded, self.kind
        if kind is CACHE and labels[3] is None:
            labels[3] = "none" if self.hit is None else "hit" if self.hit else "miss"
        value: Any = self.seconds
        if recorded is not None and recorded[3] & 1 and in_force.exemplars:
            value = (value, recorded[0], recorded[1], wall_ns)
        if self.runtime is not None:
            in_force.at(kind.duration, tuple(labels)).record(value)
        if kind.slow is None:
            if not kind.alone:
                self._record_more(in_force)
            return
        if self.waits:
            return
        # A query. What follows is written out here, since it is done for each.
        seconds = self.seconds or 0.0
        slow = in_force.slow_queries.record(self, in_force) if seconds >= in_force.slow_query_s else None
        unit = self.unit
        if unit is None or unit.stopped:
            return
        queries = unit.queries
        if queries is None:
            queries = unit.queries = {}
        template = self.template or self.name
        counted: repeated_queries.Counted | None = queries.get(template)
        if counted is None:
            if len(queries) >= _TEMPLATES_PER_UNIT:
                return
            # As a literal: a class of its own would be a call.
            queries[template] = counted = [0, 0.0, labels, self.name, None]
        counted[0] += 1
        counted[1] += seconds
        if slow is not None:
            counted[4] = slow
        if counted[0] == in_force.repeated_query_count:
            unit.repeats = True

    def _record_more(self, in_force: runtime.Runtime) -> None:
        kind, values = self.kind, tuple(self.labels[:-1])
        if kind.active is not None:
            in_force.at(kind.active, values).record(-1)
        if kind.items is not None and self.items and 0 < self.items < math.inf:
            in_force.at(kind.items, values).record(plain(self.items))
        if kind.last_success is not None and self.error_type is None:
            in_force.at(kind.last_success, values).record(time.time())

    def _describe(self, span: Span) -> None:
        """Says what became known after the start."""
        describe(self, span)


def start(
    kind: Kind, name: str, labels: Sequence[Any], attributes: Mapping[str, Any] | None = None, *,
    context: Context | None = None, links: Sequence[Link] = (), activate: bool = True, span: bool = True,
    metrics: bool = True, made: type[Operation] = Operation,
) -> Operation:  # fmt: skip
    """Starts an operation; it always answers one, also before `configure()`, and never raises.

    Args:
        kind: what it is.
        name: the span's name, of low cardinality.
        labels: the label values in the order of `kind.duration.attributes`, None where not known (yet). `error.type`
            may be left out.
        attributes: span attributes, redacted here. They are there at the start, so that samplers see them. By its
            `db.query.text` a query is known again: give `redaction.sql(statement).text`, which is masked once for all
            times (so are `redaction.document` and `redis_command`), or the statement as it is.
        context: the parent's, where that is not the current one: a remote caller's.
        links: other traces that it has to do with.
        activate: makes the operation current in this context; otherwise `activate()` and `deactivate()` do.
        span: False measures only.
        metrics: False makes a span only, where somebody else records the metric of this name.
        made: the class of what is answered.
    """
    keys = kind.duration.attributes
    values = [*labels, *(None,) * (len(keys) - len(labels))]
    operation = made(kind, name, values)
    in_force = runtime.current
    try:
        if in_force is not None:
            if metrics:
                operation.runtime = in_force
                if kind.active is not None:
                    in_force.at(kind.active, tuple(values[:-1])).record(1)
            if attributes and kind.slow is not None and _QUERY_TEXT in attributes:
                shown: Any = attributes[_QUERY_TEXT]
                if attributes.__class__ is not Known and shown.__class__ is not redaction.Masked:
                    shown = redaction.query_text(redaction.as_text(shown))
                    attributes = {**attributes, _QUERY_TEXT: shown}
                operation.template = shown
            context = _get_context() if context is None else context
            if span and not context.get(_SUPPRESS_KEY):
                if len(name) > _LONGEST_NAME or not name.isprintable():
                    operation.name = redaction.text(name, _LONGEST_NAME)
                above: Any = context.get(_SPAN_KEY)
                # As `get_span_context` of these two does, without the call.
                ours = type(above) is LeanSpan or type(above) is UnsampledSpan
                parent = None if above is None else above._context if ours else above.get_span_context()  # pyright: ignore[reportPrivateUsage]
                given = attributes if isinstance(attributes, Known) else partial(known, keys, values, attributes)
                open_span(operation, in_force, parent, context, given, links=links)
    except Exception:
        guard.note(f"starting a {kind.name}")
    if activate:  # also before `configure()`, so that a handle that several share finds its own again
        # As `activate` does, without the call.
        operation._token = _current.set(operation)  # pyright: ignore[reportPrivateUsage]
        if operation.context is not None:
            operation._context_token = _set_context(operation.context)  # pyright: ignore[reportPrivateUsage]
    operation.started_ns = _now_ns()
    return operation
