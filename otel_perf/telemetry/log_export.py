"""Sending log records, when the settings ask for it: all that loggers hand to handlers, whichever handlers there are.

`Logger.callHandlers` is wrapped while it is on. A handler on the root logger would be the official way, but it changes
what the application sees: `logging.basicConfig()` does nothing once there is one, the last resort that prints warnings
is gone, `dictConfig` removes it, and loggers that do not propagate pass it by.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from otel_perf import guard
from otel_perf.settings import Settings
from otel_perf.telemetry import log_item
from otel_perf.telemetry.exporter import Sender
from otel_perf.telemetry.otlp_logs import LogItem
from otel_perf.telemetry.ways import LogWay, is_ours, unobserved

__all__ = ["LogSender", "export_event", "hand_to", "log_sender"]

#: Ours that are sent like an application's.
_SENT_OF_OURS = frozenset({"otel_perf.slow_query"})
_MOST_LOGGERS = 4096

_log = logging.getLogger("otel_perf")


class LogSender(Sender[LogItem]):
    """Queues log records and sends them; what is logged by the threads that do so is not sent."""

    what = "log records"
    signal = "logs"

    def __init__(
        self, make_way: Callable[[], LogWay], queue_size: int, interval_s: float, queue_size_bytes: int = 1 << 24,
        level: int = logging.INFO,
    ) -> None:  # fmt: skip
        self.level = level
        self._unsent: dict[str, bool] = {}  # by the name of a logger
        self._handlers = -1
        self._said = False
        #: What hands on records of its own when it is flushed, before ours are.
        self.first: Callable[[float], bool] | None = None
        super().__init__(make_way, queue_size, interval_s, queue_size_bytes)

    def _encode_all(self) -> None:
        with unobserved():
            super()._encode_all()

    def flush(self, timeout_s: float) -> bool:
        """Sends what is queued now, and what others hand on when they are flushed, within the time."""
        deadline = time.monotonic() + timeout_s
        done = self._closed or self._handed_on(timeout_s / 2)
        return super().flush(max(0.0, deadline - time.monotonic())) and done

    def shutdown(self, timeout_s: float = 5.0) -> bool:
        """Flushes and stops; what could not be sent within the time is counted as lost."""
        deadline = time.monotonic() + timeout_s
        done = self._closed or self._handed_on(timeout_s / 2)
        return super().shutdown(max(0.0, deadline - time.monotonic())) and done

    def _handed_on(self, limit_s: float) -> bool:
        """Whether all that others had for us is here; in a thread, since they may call what hangs."""
        first, answers = self.first, list[bool]()
        if first is None:
            return True
        thread = threading.Thread(
            target=lambda: answers.append(first(limit_s)), name="otel_perf-logs-first", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the interpreter goes down
            return first(limit_s)
        thread.join(limit_s)
        return answers == [True]

    def take(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        """Queues what is to be sent of a record."""
        if record.levelno < self.level or is_ours():
            return
        name = record.name
        unsent = self._unsent.get(name)
        if unsent is None or len(logging.root.handlers) != self._handlers:
            unsent = self._look(logger, name)
        if not unsent:
            self.put(log_item.of_record(record))

    def take_event(self, event: Mapping[str, Any], method: str, scope: str) -> None:
        """Queues what is to be sent of an event of structlog."""
        if (
            not is_ours()
            and log_item.severity(self.level) <= (item := log_item.of_event(event, method, scope)).severity
        ):
            self.put(item)

    def _look(self, logger: logging.Logger, name: str) -> bool:
        """Whether records of a logger are not sent: they are ours, or another's handler sends them already."""
        handlers = len(logging.root.handlers)
        if handlers != self._handlers or len(self._unsent) >= _MOST_LOGGERS:
            self._unsent.clear()
            self._handlers = handlers
        ours = name.partition(".")[0] == "otel_perf" and name not in _SENT_OF_OURS
        other = None if ours else _other(logger)
        if other is not None and not self._said:
            self._said = True
            _log.info("otel_perf: log records are not sent by us where %s is a handler", other)
        unsent = self._unsent[name] = ours or other is not None
        return unsent


def _other(logger: logging.Logger) -> str | None:
    """A handler of OpenTelemetry's, or of its instrumentation, that a logger's records come by."""
    at: logging.Logger | None = logger
    while at is not None:
        for each in at.handlers:
            for kind in type(each).__mro__:
                if kind.__name__ == "LoggingHandler" and kind.__module__.startswith("opentelemetry."):
                    return f"{kind.__module__}.{kind.__name__}"
        at = at.parent if at.propagate else None
    return None


def log_sender(settings: Settings, make_way: Callable[[], LogWay] | None) -> LogSender | None:
    """What sends log records, or None where the settings do not ask for it."""
    if make_way is None:
        return None
    level = int(getattr(logging, settings.logs_level.upper()))
    return LogSender(make_way, settings.queue_size, settings.span_interval_s, settings.queue_size_bytes, level)


# The hook ------------------------------------------------------------------------------------------------------------

_sender: LogSender | None = None
_original: Any = None


def _call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
    sender = _sender
    if sender is not None:
        try:
            sender.take(self, record)
        except Exception:
            guard.note("sending a log record")
    _original(self, record)


def hand_to(sender: LogSender | None) -> None:
    """From now on records go there. Where somebody wrapped ours meanwhile, it stays below and passes records on."""
    global _sender, _original
    _sender = sender
    present = logging.Logger.callHandlers
    if sender is not None and _original is None:
        _original = present
        logging.Logger.callHandlers = _call_handlers  # type: ignore[method-assign]  # see above
    elif sender is None and present is _call_handlers:
        logging.Logger.callHandlers = _original  # type: ignore[method-assign]  # what was there
        _original = None


def export_event(logger: Any, method: str, event: Mapping[str, Any]) -> None:
    """Hands on an event of structlog, unless the logger that it goes to is one of `logging`, which does so itself."""
    sender = _sender
    if sender is not None and not isinstance(logger, logging.Logger):
        sender.take_event(event, method, str(event.get("logger") or "structlog"))
