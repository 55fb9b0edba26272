"""A query below which nothing is measured, such as a Redis command: its start and its good end, written out.

It does what `operation.start` and `Operation.stop` do, step by step, for attributes that are known beforehand. Each
function and each object that is touched once costs more here than what it does: half of the time that measuring a
Redis command takes was spent on getting to the next line.
"""

from __future__ import annotations

import time
from typing import Any

from otel_perf import guard
from otel_perf.telemetry import operation, runtime, sdk
from otel_perf.telemetry.containers import Known
from otel_perf.telemetry.operation import QUERY, Operation
from otel_perf.telemetry.span import LeanSpan, UnsampledSpan

__all__ = ["Leaf", "start"]

_get_context = sdk.get_context
_now_ns, _wall_ns = time.perf_counter_ns, time.time_ns
_SUPPRESS_KEY, _SPAN_KEY = sdk.SUPPRESS_KEY, sdk.SPAN_KEY
_current = operation._current  # pyright: ignore[reportPrivateUsage]  # `current()` is a call more


class Leaf(Operation):
    """A query that is current for us alone: it has no context in which something below would find its span."""

    __slots__ = ()

    def stop(self, error: BaseException | None = None, *, ended_ns: int | None = None, deactivate: bool = True) -> None:
        """Ends the query; anything but a good end goes the usual way."""
        in_force = runtime.current
        if (
            error is not None or ended_ns is not None or self.stopped or self.error_type is not None
            or self.runtime is not in_force or in_force is None or not deactivate or self.last_error is not None
        ):  # fmt: skip
            super().stop(error, ended_ns=ended_ns, deactivate=deactivate)
            return
        self.stopped = True
        now_ns, wall_ns = _now_ns(), _wall_ns()
        self.seconds = (now_ns - self.started_ns) / 1e9
        span, token = self.span, self._token
        try:
            self._record(in_force, wall_ns)
        except Exception:
            guard.note("measuring a query")
        try:
            if span is not None and type(span) is not UnsampledSpan:
                span.end(wall_ns)
        except Exception:
            guard.note("ending the span of a query")
        self.unit = None
        parent = self.parent
        while parent is not None and parent.stopped:
            self.parent = parent = parent.parent
        self._token = None
        if token is not None:
            try:
                _current.reset(token)
            except ValueError:  # stopped in another context than it was started in
                self._leave_elsewhere(None)


def start(
    name: str, labels: list[Any], known: Known, template: str, *, span: bool = True, metrics: bool = True
) -> Leaf:  # fmt: skip
    """Starts a query; it never raises.

    Args:
        name: the span's name, short and printable.
        labels: those of `db.client.operation.duration`, all of them, in a list of the query's own.
        known: the span's attributes.
        template: what makes the query the same as another.
        span: False measures only.
        metrics: False makes a span only, where somebody else records the metric of this name.
    """
    query = Leaf(QUERY, name, labels)
    in_force = runtime.current
    if in_force is not None:
        try:
            if metrics:
                query.runtime = in_force
            query.template = template
            context = _get_context()
            if span and not context.get(_SUPPRESS_KEY):
                above: Any = context.get(_SPAN_KEY)
                # As `get_span_context` of these two does, without the call.
                ours = type(above) is LeanSpan or type(above) is UnsampledSpan
                parent = None if above is None else above._context if ours else above.get_span_context()  # pyright: ignore[reportPrivateUsage]
                made: Any = in_force.entry.begin(name, QUERY.span_kind, parent, known, context)
                query.span = made
                if type(made) is LeanSpan:
                    query.recorded = made._context  # pyright: ignore[reportPrivateUsage]
                    query.told = labels.copy()
                elif type(made) is not UnsampledSpan and made.is_recording():
                    query.recorded = made.get_span_context()
                    query.told = labels.copy()
        except Exception:
            guard.note("starting a query")
    query._token = _current.set(query)  # pyright: ignore[reportPrivateUsage]
    query.started_ns = _now_ns()
    return query
