"""The server span of another instrumentation, where the span of a request is not ours: what we say on it."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from otel_perf import conventions as c
from otel_perf import redaction
from otel_perf.integrations.routes import Scope

__all__ = ["describe", "fail", "span"]


def span() -> Any:
    """The server span that another has made current, where it still records; else None."""
    current = trace.get_current_span()
    return current if current.is_recording() and getattr(current, "kind", None) is SpanKind.SERVER else None


def describe(on: Any, scope: Scope, request_id: str | None) -> None:
    """Puts the request id on it, and the query once more, without its values."""
    query = scope.get("query_string")
    added = {c.URL_QUERY: query.decode("latin-1")} if query else {}
    on.set_attributes(redaction.redact({**added, c.REQUEST_ID: request_id or ""}))


def fail(on: Any, error_type: str) -> None:
    """Says on it what our metric says of the request."""
    on.set_attribute(c.ERROR_TYPE, error_type)
    on.set_status(Status(StatusCode.ERROR))
