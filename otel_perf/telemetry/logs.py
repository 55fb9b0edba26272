"""Log records that carry `request_id`, `trace_id` and `span_id` of the work they were written in."""

from __future__ import annotations

import inspect
import logging
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace

__all__ = ["correlate", "request_id"]

#: The id of the request in progress, or None.
request_id: ContextVar[str | None] = ContextVar("otel_perf_request_id", default=None)

_previous: Any = None
_on = False


_OURS = frozenset(("request_id", "trace_id", "span_id"))


class _Fields(dict[str, Any]):
    """The fields of a record, among which `Logger.makeRecord` alone does not find ours.

    It raises when `extra=` names a field that a record has already, and applications name these.
    """

    __slots__ = ()

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key):
            return False
        if key not in _OURS:
            return True
        frame = inspect.currentframe()
        caller = frame and frame.f_back
        return caller is None or caller.f_code.co_name != "makeRecord"

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # a record that is sent to another process is a plain one


def _make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record: logging.LogRecord = _previous(*args, **kwargs)
    if _on:
        context = trace.get_current_span().get_span_context()
        fields = _Fields(record.__dict__)
        # What the application's own factory set is the application's.
        if fields.get("request_id") is None:
            fields["request_id"] = request_id.get()
        if fields.get("trace_id") is None:
            fields["trace_id"] = f"{context.trace_id:032x}" if context.is_valid else None
        if fields.get("span_id") is None:
            fields["span_id"] = f"{context.span_id:016x}" if context.is_valid else None
        record.__dict__ = fields
    return record


def correlate(on: bool) -> None:
    """Switches the fields on or off; where another factory was set meanwhile, ours stays below it and does nothing."""
    global _previous, _on
    _on = on
    if on and _previous is None:
        _previous = logging.getLogRecordFactory()
        logging.setLogRecordFactory(_make_record)
    elif not on and _previous is not None and logging.getLogRecordFactory() is _make_record:
        logging.setLogRecordFactory(_previous)
        _previous = None
