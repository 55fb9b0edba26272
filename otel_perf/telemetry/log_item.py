"""What of a logging record is sent: made in the thread that logs, so of plain values and of a bounded size."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from opentelemetry import trace

from otel_perf import conventions as c
from otel_perf import redaction
from otel_perf.telemetry import logs
from otel_perf.telemetry.otlp_logs import MAX_BODY, LogItem

__all__ = ["of_event", "of_record", "severity"]

_MOST_ATTRIBUTES = 128
_MOST_ITEMS = 64
_DEEPEST = 4
_LONGEST = 4096  # redacted and cut further when it is encoded

# What a record has of its own; `extra=` is the rest. The others are what formatters and instrumentation put there.
_OF_A_RECORD = frozenset({
    *vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message", "request_id", "trace_id",
    "span_id", "otelTraceID", "otelSpanID", "otelTraceSampled", "otelServiceName", "_logger", "_name", "_record",
    "_from_structlog",
})  # fmt: skip
_OF_AN_EVENT = frozenset({"event", "level", "log_level", "logger", "timestamp", "exc_info", "stack_info", "exception"})
_IDS = frozenset({"request_id", "trace_id", "span_id"})

_BY_NAME = {"debug": 5, "info": 9, "warning": 13, "warn": 13, "error": 17, "exception": 17, "critical": 21, "fatal": 21}


def severity(level: int) -> int:
    """OpenTelemetry's number of a level of `logging`: four of theirs for ten of its own."""
    if level < logging.DEBUG:
        return 0
    tens, ones = divmod(min(level, 53), 10)
    return tens * 4 + 1 + min(ones, 3)


def of_record(record: logging.LogRecord) -> LogItem:
    """What is sent of a record."""
    own = record.__dict__
    message: Any = record.msg
    pairs: list[tuple[str, Any]] = []
    if isinstance(message, Mapping) and not record.args:  # a record that structlog hands to its formatter
        body, more = _event(cast("Mapping[object, Any]", message))
        pairs += more
    else:
        body = _message(record)[: MAX_BODY * 2]
    pairs += [(key, value) for key, value in own.items() if key not in _OF_A_RECORD]
    name = record.levelname
    return _item(
        int(record.created * 1_000_000_000), severity(record.levelno), "WARN" if name == "WARNING" else name, body,
        pairs, _place(record), record.exc_info, own.get("request_id"), record.name,
    )  # fmt: skip


def of_event(event: Mapping[str, Any], method: str, scope: str) -> LogItem:
    """What is sent of an event of structlog that no record is made of."""
    body, pairs = _event(event)
    level = str(event.get("level") or method).lower()
    return _item(
        time.time_ns(), _BY_NAME.get(level, 0), "WARN" if level in {"warn", "warning"} else level.upper(), body, pairs,
        (), event.get("exc_info"), None, scope,
    )  # fmt: skip


def _event(event: Mapping[Any, Any]) -> tuple[Any, list[tuple[str, Any]]]:
    if "event" not in event:
        return _plain(event), []
    pairs = [(str(key), value) for key, value in event.items() if key not in _OF_AN_EVENT and key not in _IDS]
    body = event["event"]
    return (body[: MAX_BODY * 2] if isinstance(body, str) else redaction.as_text(body)), pairs


def _place(record: logging.LogRecord) -> Iterable[tuple[str, Any]]:
    own = record.__dict__
    place = (
        ("code.file.path", own["pathname"]), (c.CODE_FUNCTION, own["funcName"]), ("code.line.number", own["lineno"]),
    )  # fmt: skip
    # A slow query tells its own place.
    return [(key, value) for key, value in place if value is not None and key not in own]


def _item(  # noqa: PLR0917  # as many as a record has
    time_ns: int, number: int, named: str, body: Any, pairs: Sequence[tuple[str, Any]],
    place: Iterable[tuple[str, Any]], exc_info: Any, request_id: Any, scope: str,
) -> LogItem:  # fmt: skip
    attributes = [(key, _plain(value)) for key, value in pairs[:_MOST_ATTRIBUTES]]
    attributes += place
    request_id = request_id or logs.request_id.get()
    if request_id:
        attributes.append((c.REQUEST_ID, str(request_id)))
    error = _error(exc_info)
    if error is not None:
        attributes += redaction.exception(error).items()
    context = trace.get_current_span().get_span_context()
    return LogItem(
        time_ns, time.time_ns(), number, named, body, tuple(attributes), max(0, len(pairs) - _MOST_ATTRIBUTES),
        context.trace_id, context.span_id, int(context.trace_flags), scope,
    )  # fmt: skip


def _error(exc_info: Any) -> BaseException | None:
    if exc_info is True:  # as structlog takes it
        return sys.exc_info()[1]
    if isinstance(exc_info, tuple):
        told = cast("tuple[object, ...]", exc_info)
        exc_info = told[1] if len(told) > 1 else None
    return exc_info if isinstance(exc_info, BaseException) else None


def _plain(value: Any, depth: int = 0) -> Any:
    """A value that nobody writes to, of a bounded size."""
    kind = value.__class__
    if kind is str:
        return value if len(value) <= _LONGEST else value[:_LONGEST]
    if value is None or kind is int or kind is float or kind is bool:
        return value
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            some = cast("Mapping[object, Any]", value)
            pairs = list(some.items())[:_MOST_ITEMS]
            return {redaction.as_text(key)[:256]: _plain(each, depth + 1) for key, each in pairs}
        if isinstance(value, (list, tuple)):
            return [_plain(each, depth + 1) for each in cast("Sequence[Any]", value)[:_MOST_ITEMS]]
    return redaction.as_text(value)[:_LONGEST]


class _Formatted:
    """A message as a value, so that it is read like any other whose `__str__` may fail."""

    __slots__ = ("_record",)

    def __init__(self, record: logging.LogRecord) -> None:
        self._record = record

    def __str__(self) -> str:
        return self._record.getMessage()


_FAILED = f"<{_Formatted.__qualname__}>"


def _message(record: logging.LogRecord) -> str:
    said = redaction.as_text(_Formatted(record))
    return redaction.as_text(record.msg) if said == _FAILED else said  # its arguments do not fit, or one fails
