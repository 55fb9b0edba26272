"""What a task queue's message carries: the trace of whoever sent it, and when.

The run of a task is linked to who asked for it and is a trace of its own, as the conventions for messaging have it: it
may begin hours later, and many runs may come of one request.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from opentelemetry.trace import Link
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_perf.telemetry import propagation

__all__ = ["links", "sent_s", "stamp"]

_SENT = "otel_perf_sent"
_PROPAGATOR = TraceContextTextMapPropagator()


def stamp(headers: MutableMapping[str, Any]) -> None:
    """Writes the current trace and the time into the headers of a message that is about to be sent."""
    for name in ("traceparent", "tracestate"):  # of the message that this one repeats
        headers.pop(name, None)
    _PROPAGATOR.inject(headers)
    headers[_SENT] = f"{time.time():.6f}"


def links(headers: Mapping[str, Any]) -> list[Link]:
    """The trace of whoever sent a message, as links; none where it says nothing, or nonsense."""
    given, state = headers.get("traceparent"), headers.get("tracestate")
    if not isinstance(given, str):
        return []
    found = propagation.parent(given, state if isinstance(state, str) else None)
    return [] if found is None else [Link(found)]


def sent_s(headers: Mapping[str, Any]) -> float | None:
    """When it was sent, by Unix time."""
    try:
        value = float(headers.get(_SENT, math.nan))
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
