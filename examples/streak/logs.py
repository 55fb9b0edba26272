"""The log: one JSON object a line on stdout, as Cloud Logging reads it, or text where somebody watches a terminal.

structlog's events and the records of `logging` (uvicorn, SQLAlchemy, slow queries) come out in the same form:
`severity`, `message`, `time`, `service`, `logger`, the ids of the request and the trace, and whatever was said with
them. Of an exception there is its type and where it happened, never its text: that may repeat what a user sent.

    gcloud logging read 'severity>=ERROR AND jsonPayload.endpoint=~"/api/"'
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import traceback
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, TextIO

import structlog
from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from otel_perf import instrument

from .settings import Settings

__all__ = ["FAILURE", "RequestLog", "configure_logging"]

#: Where the scope of a request that failed has the kind of failure, when no exception tells it.
FAILURE = "streak.failure"

_Event = MutableMapping[str, Any]
_Render = Callable[[_Event], str]

_PACKAGE = __name__.rpartition(".")[0]
_SEVERITIES = {name: name.upper() for name in ("debug", "info", "warning", "error", "critical")}
_MAX_TEXT = 8_192
_MAX_FRAMES = 20
_TOLD = "_streak_told"
# What each record has by itself, is given later, or is uvicorn's own text again, in colours.
_OF_RECORDS = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"} - {
    "request_id",
    "trace_id",
    "span_id",
}
_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access")
_log = structlog.get_logger(__name__)


def configure_logging(settings: Settings, *, service: str = "streak", stream: TextIO | None = None) -> None:
    """Send the log to stdout, to a terminal or to a stream; called again, it takes the place of what it did before."""
    terminal = sys.stderr.isatty() and sys.stdout.isatty()
    out = _Out(stream or (sys.stderr if terminal else sys.stdout))
    render = _text if terminal else _JsonLines(service, settings.google_cloud_project)
    level = logging.getLevelName(settings.log_level.upper())
    structlog.configure(
        processors=[_Renderer(render)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: _Named(out, names[0] if names else _PACKAGE),
    )
    # Each event has the ids of the trace and of the request that it belongs to.
    instrument("structlog")
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(handler)
    root.addHandler(_Handler(render, out))
    # What libraries say below a warning is how they work; at debug, drivers would tell the values of queries.
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger(_PACKAGE).setLevel(level)
    # otel_perf prints no slow query unless it is asked to.
    logging.getLogger("otel_perf.slow_query").propagate = True
    # Where uvicorn has set up its own already (`uvicorn module:app`), what it says would be told in two forms, or none.
    for name in _UVICORN:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


class RequestLog:
    """One line for each request: failures as errors, of health as warnings; the page and healthy probes at debug."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and write its line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: int | None = None

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began_ns = time.perf_counter_ns()
        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            # Whoever is around answers 500, unless an answer was begun already.
            _write(scope, status or 500, began_ns, error)
            raise
        except BaseException:
            _write(scope, status, began_ns, None)  # the server goes down, or the client went away
            raise
        _write(scope, status, began_ns, None)


def _write(scope: Scope, status: int | None, began_ns: int, error: Exception | None) -> None:
    path = scope["path"]
    is_probe = path == "/api/health"
    if error is not None or (status is not None and status >= 500):
        # Probes come by themselves, each few seconds: of a failure that users meet, their own requests tell as errors.
        log = _log.warning if is_probe else _log.error
    elif path.startswith("/api/") and not is_probe:
        log = _log.info
    else:
        log = _log.debug
    # The template, never the path: that may name somebody, and there is no end of them.
    endpoint = getattr(scope.get("route"), "path", None)
    method = scope["method"]
    more: dict[str, Any] = {"error": scope[FAILURE]} if FAILURE in scope else {}
    if error is not None:
        # Not `exc_info`: of that, structlog as it is without `configure_logging` would show every variable.
        _add_problem(more, error)
        with suppress(AttributeError):
            setattr(error, _TOLD, True)
    log(
        f"{method} {endpoint or '(no route)'} {status}",
        endpoint=endpoint,
        method=method,
        status=status,
        duration_ms=round((time.perf_counter_ns() - began_ns) / 1e6, 3),
        **more,
    )


class _Out:
    """Writes whole lines; that nobody reads them is no reason to fail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def line(self, line: str) -> None:
        """Write one, and let it go at once."""
        with suppress(OSError, ValueError):
            self._stream.write(line)
            self._stream.flush()


class _Named:
    """What structlog's loggers end in."""

    def __init__(self, out: _Out, name: str) -> None:
        self.name = name
        self.debug = self.info = self.warning = self.error = self.critical = out.line


class _Renderer:
    """structlog's last processor."""

    def __init__(self, render: _Render) -> None:
        self._render = render

    def __call__(self, logger: Any, method: str, event: _Event) -> str:
        event.setdefault("logger", logger.name)
        event["severity"] = _SEVERITIES.get(method, "INFO")
        event["message"] = str(event.pop("event", ""))
        problem = event.pop("exc_info", None)
        if problem:
            _add_problem(event, problem)
        return self._render(event)


class _Handler(logging.Handler):
    """Writes the records of `logging` as events."""

    def __init__(self, render: _Render, out: _Out) -> None:
        super().__init__()
        self._render = render
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        try:
            problem = record.exc_info[1] if record.exc_info else None
            if hasattr(problem, _TOLD) and record.name == "uvicorn.error":
                return  # the request's own line has told it
            event: _Event = {
                "severity": _SEVERITIES.get(record.levelname.lower(), "INFO"),
                "message": record.getMessage(),
                "logger": record.name,
                "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            }
            # What was given as `extra`, and the ids, which otel_perf's log_correlation has set.
            for key, value in vars(record).items():
                if key not in _OF_RECORDS and value is not None:
                    event[key] = value
            if problem is not None:
                _add_problem(event, problem)
            self._out.line(self._render(event))
        except Exception:
            self.handleError(record)


class _JsonLines:
    """Renders events as Cloud Logging wants them."""

    def __init__(self, service: str, project: str | None) -> None:
        self._service = service
        self._traces = f"projects/{project}/traces/" if project else ""
        # Escaped, so that it can be written whatever the encoding of stdout is.
        self._encode = json.JSONEncoder(separators=(",", ":"), default=str, allow_nan=False).encode

    def __call__(self, event: _Event) -> str:
        line: dict[str, Any] = {
            "severity": event.pop("severity"),
            "message": event.pop("message"),
            "time": event.pop("time", None) or datetime.now(timezone.utc).isoformat(),
            "service": self._service,
        }
        request_id = event.pop("request_id", None)
        if request_id is not None:
            line["request"] = request_id
        line.update(event)
        trace_id = event.get("trace_id")
        if trace_id is not None:
            if self._traces:
                line["logging.googleapis.com/trace"] = self._traces + trace_id
            line["logging.googleapis.com/spanId"] = event.get("span_id")
            sampled = trace.get_current_span().get_span_context().trace_flags.sampled
            line["logging.googleapis.com/trace_sampled"] = sampled
        for key, value in line.items():
            if type(value) is str and len(value) > _MAX_TEXT:
                line[key] = value[:_MAX_TEXT] + "..."
        try:
            return self._encode(line) + "\n"
        except Exception:
            # A value that cannot be shown costs itself, not the line.
            return self._encode({key: _plain(value) for key, value in line.items()}) + "\n"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return f"({type(value).__name__})"


def _text(event: _Event) -> str:
    severity, message = event.pop("severity"), event.pop("message")
    event.pop("time", None)
    stack = event.pop("stack_trace", None)
    shown = " ".join(f"{key}={value}" for key, value in event.items() if value is not None)
    clock = datetime.now().astimezone().strftime("%H:%M:%S")
    line = f"{clock} {severity:<8} {message[:_MAX_TEXT]}  {shown[:_MAX_TEXT]}".rstrip()
    return f"{line}\n{stack}\n" if stack else f"{line}\n"


def _add_problem(event: _Event, problem: Any) -> None:
    """Add what went wrong and where, in a form that Error Reporting knows too, and without the exception's text."""
    error: Any = problem
    if problem is True:
        error = sys.exc_info()[1]
    elif isinstance(problem, tuple):
        error = problem[1]
    if not isinstance(error, BaseException):
        return
    kind = type(error).__qualname__
    event["error"] = kind
    event["stack_trace"] = f"Traceback (most recent call last):\n{_places(error.__traceback__)}{kind}"


def _places(where: TracebackType | None) -> str:
    summary = traceback.StackSummary.extract(traceback.walk_tb(where), limit=-_MAX_FRAMES, lookup_lines=False)
    return "".join(f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}\n' for frame in summary)
