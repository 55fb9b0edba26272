"""Who is told of slow queries: a logger, hooks of the application's own, and Sentry where the application uses it.

All of it runs in the thread that writes slow queries.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_perf import guard
from otel_perf.telemetry import sdk
from otel_perf.telemetry.slow_query import SlowQuery

__all__ = ["LOGGER", "Hook", "hooks", "on_critical_query", "tell"]

#: Its records have the query's attributes; nobody gets them who does not ask for this logger by its name.
LOGGER = "otel_perf.slow_query"

Hook = Callable[[SlowQuery], object]
_H = TypeVar("_H", bound=Hook)

_log = logging.getLogger(LOGGER)
_log.propagate = False  # the root logger's handlers would print them on stderr,
_log.addHandler(logging.NullHandler())  # and Python's last resort as well

hooks: list[Hook] = []
_heard_by_sentry = False


def on_critical_query(hook: _H) -> _H:
    """Calls the hook with each critical query from now on; it answers the hook, so that it decorates as well.

    It is called in a thread of otel_perf's. What it raises is logged and goes no further.
    """
    if hook not in hooks:
        hooks.append(hook)
    return hook


def tell(query: SlowQuery) -> None:
    """Tells all who want to know of a slow query, none of whom keeps it from the others."""
    critical = query.threshold == "critical"
    _guarded(_tell_sentry if critical else _quieten_sentry, query)
    _guarded(_write, query)
    if critical:
        for hook in tuple(hooks):
            _guarded(hook, query)


def _guarded(call: Hook, query: SlowQuery) -> None:
    try:
        call(query)
    except Exception:
        guard.note("telling of a slow query")


def _write(query: SlowQuery) -> None:
    level = logging.ERROR if query.threshold == "critical" else logging.WARNING
    if not _log.isEnabledFor(level):
        return
    record = _log.makeRecord(
        LOGGER, level, query.caller.file if query.caller else "", query.caller.line if query.caller else 0,
        "%s query took %.3f s: %s", (query.threshold, query.duration_s, query.summary), None,
    )  # fmt: skip
    record.__dict__.update(query.attributes)
    # Past the record factory, which knows the context of this thread and not that of the query.
    record.request_id, record.trace_id, record.span_id = query.request_id, query.trace_id, query.span_id
    record.created, record.msecs = query.time_s, query.time_s % 1 * 1000
    token = sdk.set_context(_context(query))  # for handlers that read the current span
    try:
        _log.handle(record)
    finally:
        sdk.reset_context(token)


def _context(query: SlowQuery) -> Context:
    if query.trace_id is None or query.span_id is None:
        return Context()
    ids = SpanContext(int(query.trace_id, 16), int(query.span_id, 16), False, TraceFlags(int(query.sampled)))
    return Context({sdk.SPAN_KEY: NonRecordingSpan(ids)})


def _sentry() -> Any:
    """Sentry, where the application has imported and initialised it."""
    global _heard_by_sentry
    module: Any = sys.modules.get("sentry_sdk")
    get_client = getattr(module, "get_client", None)  # Sentry 2; it may be half imported
    if get_client is None or not get_client().is_active():
        return None
    if not _heard_by_sentry:
        _heard_by_sentry = True
        # It takes every record of level ERROR for an event, and would have each critical query twice.
        integration: Any = sys.modules.get("sentry_sdk.integrations.logging")
        if integration is not None:
            integration.ignore_logger(LOGGER)
    return module


def _quieten_sentry(_query: SlowQuery) -> None:
    _sentry()


def _tell_sentry(query: SlowQuery) -> None:
    sentry = _sentry()
    if sentry is None:
        return
    with sentry.new_scope() as scope:
        scope.fingerprint = [LOGGER, query.statement]
        scope.set_context("query", query.attributes)
        if query.trace_id:
            scope.set_tag("trace_id", query.trace_id)
        if query.request_id:
            scope.set_tag("request_id", query.request_id)
        sentry.capture_message(f"Critical query: {query.summary}", level="error")
