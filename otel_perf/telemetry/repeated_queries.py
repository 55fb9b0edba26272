"""Queries that one request, job or outermost operation repeats: candidates for N+1, which insight judges.

Operations count the queries of their unit by template as these end (see `Operation.unit`); nothing is done here
before one of them came often.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otel_perf import conventions as c
from otel_perf import guard, redaction
from otel_perf.telemetry.callers import Place

if TYPE_CHECKING:
    from otel_perf.telemetry.operation import Operation
    from otel_perf.telemetry.runtime import Runtime

__all__ = ["EVENT", "Counted", "RepeatedQueries", "RepeatedQuery"]

#: The span event that a unit gets for each template that it repeated.
EVENT = "db.repeated_query"
_COUNT, _SECONDS = "db.repeated_query.count", "db.repeated_query.duration"
_EVENTS = 16  # so many of them on one span

#: Queries of one template: how many, their seconds, the labels and the name of the first, the place of the last slow.
#: A list, since it is made for each template of each request.
Counted = list[Any]


@dataclass(frozen=True, slots=True)
class RepeatedQuery:
    """One template that one unit of work repeated."""

    time_s: float
    template: str
    summary: str
    system: str | None
    operation: str | None
    collection: str | None
    count: int
    total_s: float
    #: Of the request; `unit` is the name of a job or another piece of work.
    route: str | None
    unit: str
    trace_id: str | None
    span_id: str | None
    #: Where the last slow one of them was called.
    caller: Place | None


class RepeatedQueries:
    """The candidates of late, and what is measured of them."""

    def __init__(self, keep: int = 256) -> None:
        self._recent: deque[RepeatedQuery] = deque(maxlen=keep)

    def recent(self) -> list[RepeatedQuery]:
        """What was repeated of late, the newest last."""
        return list(self._recent)

    def clear(self) -> None:
        """Forgets them, as a forked child does."""
        self._recent.clear()

    def judge(self, unit: Operation, queries: dict[str, Counted], in_force: Runtime) -> None:
        """Emits those of a unit's queries that came at least so often as the settings say; it never raises."""
        try:
            least = in_force.repeated_query_count
            often = [(template, each) for template, each in list(queries.items()) if each[0] >= least]
            for number, (template, counted) in enumerate(often):
                found = _candidate(unit, template, counted)
                self._recent.append(found)
                labels = (*counted[2][:3], found.route)
                in_force.at(c.QUERY_REPEATED, labels).record(found.count)
                if unit.recorded is not None and unit.span is not None and number < _EVENTS:
                    told: dict[str, Any] = {
                        c.DB_QUERY_SUMMARY: found.summary,
                        _COUNT: found.count,
                        _SECONDS: found.total_s,
                    }
                    unit.span.add_event(EVENT, told)
        except Exception:
            guard.note("judging repeated queries")


def _candidate(unit: Operation, template: str, counted: Counted) -> RepeatedQuery:
    labels = [None if each is None else redaction.text(str(each), 256) for each in counted[2]]
    context = None if unit.span is None else unit.span.get_span_context()
    keys = unit.kind.duration.attributes
    route = unit.labels[keys.index(c.HTTP_ROUTE)] if c.HTTP_ROUTE in keys else None
    return RepeatedQuery(
        time_s=time.time(), template=redaction.text(template), summary=redaction.text(counted[3], 256),
        system=labels[0], operation=labels[1], collection=labels[2], count=counted[0], total_s=counted[1], route=route,
        unit=redaction.text(unit.name, 256),
        trace_id=f"{context.trace_id:032x}" if context is not None and context.is_valid else None,
        span_id=f"{context.span_id:016x}" if context is not None and context.is_valid else None,
        caller=counted[4],
    )  # fmt: skip
