"""One slow query, as it is kept, written and told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from otel_perf import conventions as c
from otel_perf.telemetry.callers import Place

__all__ = ["SlowQuery"]


@dataclass(frozen=True, slots=True)
class SlowQuery:
    """A query that took at least as long as the settings call slow. Its statement is masked."""

    #: When it ended, in seconds since 1970.
    time_s: float
    threshold: Literal["slow", "critical"]
    duration_s: float
    system: str | None
    operation: str | None
    collection: str | None
    namespace: str | None
    #: The masked text, or the name of the operation where there is none.
    statement: str
    summary: str
    #: How many rows came back, where that is known.
    rows: int | None
    error_type: str | None
    #: The line of the application that made the call, where there is one.
    caller: Place | None
    request_id: str | None
    trace_id: str | None
    span_id: str | None
    #: Whether the trace is sampled, so that it can be looked at.
    sampled: bool = False

    @property
    def attributes(self) -> dict[str, Any]:
        """What is known, by OpenTelemetry's names; these are the attributes of the log record."""
        known = {
            c.DB_THRESHOLD: self.threshold,
            "db.client.operation.duration": self.duration_s,
            c.DB_SYSTEM: self.system,
            c.DB_OPERATION: self.operation,
            c.DB_COLLECTION: self.collection,
            c.DB_NAMESPACE: self.namespace,
            c.DB_QUERY_TEXT: self.statement,
            c.DB_QUERY_SUMMARY: self.summary,
            c.DB_ROWS: self.rows,
            c.ERROR_TYPE: self.error_type,
            c.DB_CALLER_FILE: self.caller and self.caller.file,
            c.DB_CALLER_LINE: self.caller and self.caller.line,
        }
        return {key: value for key, value in known.items() if value is not None}

    def json(self) -> str:
        """One line of the slow-query log, without its end."""
        ended = datetime.fromtimestamp(self.time_s, timezone.utc)
        line = {
            "time": ended.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "threshold": self.threshold,
            "duration_s": round(self.duration_s, 6),
            "system": self.system,
            "operation": self.operation,
            "collection": self.collection,
            "namespace": self.namespace,
            "statement": self.statement,
            "summary": self.summary,
            "rows": self.rows,
            "error_type": self.error_type,
            "caller": None if self.caller is None else str(self.caller),
            "request_id": self.request_id,
            "trace_id": self.trace_id,
            "span_id": self.span_id,
        }
        return json.dumps(line, ensure_ascii=False, default=str)
