"""Log records that carry `request_id`, `trace_id` and `span_id` of the work they were written in."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace

__all__ = ["correlate", "request_id"]

#: The id of the request in progress, or None.
request_id: ContextVar[str | None] = ContextVar("otel_perf_request_id", default=None)

_previous: Any = None
_on = False


class _Fields(dict[str, Any]):
    """The fields of a record, among which ours do not count as there.

    `logging` raises when `extra=` names a field that a record has already, and applications name these.
    """

    __slots__ = ()

    def __contains__(self, key: object) -> bool:
        return key not in _OURS and super().__contains__(key)

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # a record that is sent to another process is a plain one


_OURS = frozenset(("request_id", "trace_id", "span_id"))


def _make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record: logging.LogRecord = _previous(*args, **kwargs)
    if _on:
        context = trace.get_current_span().get_span_context()
        record.__dict__ = _Fields(
            record.__dict__,
            request_id=request_id.get(),
            trace_id=f"{context.trace_id:032x}" if context.is_valid else None,
            span_id=f"{context.span_id:016x}" if context.is_valid else None,
        )
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
