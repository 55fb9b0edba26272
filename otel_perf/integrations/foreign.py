"""The server span of another instrumentation, where the span of a request is not ours: what we say on it."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from otel_perf import conventions as c
from otel_perf import guard, redaction
from otel_perf.integrations.routes import Scope
from otel_perf.integrations.tracebacks import CLIENT_LEFT, client_left, unhandled

__all__ = ["answered", "describe", "fail", "mark", "span"]


def span() -> Any:
    """The server span that another has made current, where it still records; else None."""
    current = trace.get_current_span()
    return current if current.is_recording() and getattr(current, "kind", None) is SpanKind.SERVER else None


def describe(on: Any, scope: Scope, request_id: str | None) -> None:
    """Puts the request id on it, and the query once more, without its values."""
    query = scope.get("query_string")
    added = {c.URL_QUERY: query.decode("latin-1")} if query else {}
    on.set_attributes(redaction.redact({**added, c.REQUEST_ID: request_id or ""}))


def answered(on: Any, status: int) -> None:
    """Says on it why the answer is a 5xx: it may end with the response, before the exception reaches us."""
    error = unhandled()
    failed = str(status) if error is None else redaction.exception_type(error)
    fail(on, CLIENT_LEFT if error is not None and client_left(error) else failed)


def fail(on: Any, error_type: str) -> None:
    """Says on it what our metric says of the request."""
    on.set_attribute(c.ERROR_TYPE, error_type)
    on.set_status(Status(StatusCode.ERROR))


@guard.safe("marking another's span", fallback=None)
def mark(error_type: str) -> None:
    """Says on it what the request failed with, where it still records."""
    on = span()
    if on is not None:
        fail(on, error_type)
