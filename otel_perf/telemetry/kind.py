"""The kinds of work: which histogram an operation feeds, and what else is measured of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from opentelemetry.trace import SpanKind

from otel_perf import conventions as c
from otel_perf.conventions import Metric

__all__ = [
    "CACHE",
    "EXTERNAL",
    "HTTP_CLIENT",
    "JOB",
    "PHASE",
    "QUERY",
    "REQUEST",
    "STEP",
    "WEBSOCKET",
    "Kind",
]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of work: which histogram it feeds, in which label order, and which other metrics go with it."""

    name: str
    duration: Metric
    span_kind: SpanKind = SpanKind.INTERNAL
    #: Of operations of one layer that stand on each other only the outermost measures.
    layer: str | None = None
    active: Metric | None = None
    items: Metric | None = None
    last_success: Metric | None = None
    slow: Metric | None = None
    #: Queries are counted per piece of work of this kind, wherever it stands: they belong to nothing above it.
    unit: bool = False
    #: Whether the duration is all that is measured of it.
    alone: bool = field(init=False)

    def __post_init__(self) -> None:
        more = (self.active, self.items, self.last_success, self.slow)
        object.__setattr__(self, "alone", more == (None, None, None, None))


REQUEST = Kind("request", c.REQUEST_DURATION, SpanKind.SERVER, unit=True)
QUERY = Kind("query", c.QUERY_DURATION, SpanKind.CLIENT, layer="query", slow=c.QUERY_SLOW)
CACHE = Kind("cache", c.CACHE_DURATION, SpanKind.CLIENT, layer="cache")
EXTERNAL = Kind("external", c.EXTERNAL_DURATION, SpanKind.CLIENT, layer="external")
HTTP_CLIENT = Kind("http_client", c.HTTP_CLIENT_DURATION, SpanKind.CLIENT, layer="http_client")
JOB = Kind("job", c.JOB_DURATION, SpanKind.INTERNAL, active=c.JOBS_ACTIVE, items=c.JOB_ITEM_COUNT,
           last_success=c.JOB_LAST_SUCCESS, unit=True)  # fmt: skip
STEP = Kind("step", c.STEP_DURATION, SpanKind.INTERNAL, items=c.STEP_ITEM_COUNT)
#: A part of a request, such as its dependencies.
PHASE = Kind("phase", c.PHASE_DURATION)
#: One connection; what is active has other labels and is counted beside it.
WEBSOCKET = Kind("websocket", c.WEBSOCKET_DURATION, SpanKind.SERVER, unit=True)
