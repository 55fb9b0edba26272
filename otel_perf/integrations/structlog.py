"""structlog: the ids of the work in its events, and its events among the log records that are sent.

A processor is put in front of the renderer, in the very list that is configured: bound loggers that were cached before
hold that list too. Where the application configures structlog again, the new list gets it as well. Events that end in
`logging` are sent as records of that; all others are sent from here, when `logs_exporter` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, MutableSequence
from typing import Any, cast

import structlog
from opentelemetry import trace

from otel_perf import guard
from otel_perf.integrations.registry import Undo
from otel_perf.telemetry import log_export, logs

__all__ = ["add_ids", "instrument", "matches"]


def add_ids(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor: adds `request_id`, `trace_id` and `span_id`, where there are any and the event has none of its own.

    It stands before the renderer; whoever puts it there himself needs no `instrument("structlog")`.
    """
    try:
        context = trace.get_current_span().get_span_context()
        request_id = logs.request_id.get()
        if request_id is not None and event.get("request_id") is None:
            event["request_id"] = request_id
        if context.is_valid:
            if event.get("trace_id") is None:
                event["trace_id"] = f"{context.trace_id:032x}"
            if event.get("span_id") is None:
                event["span_id"] = f"{context.span_id:016x}"
        log_export.export_event(logger, method, event)
    except Exception:
        guard.note("adding ids to an event of structlog")
    return event


def matches(target: object) -> bool:
    """Whether this is the library, which is measured as a whole."""
    return target is structlog


class _Hook:
    """Keeps the processor in whatever list is configured, for as long as somebody wants it."""

    def __init__(self) -> None:
        self._holders = 0
        self._lists: list[tuple[Any, Any]] = []  # a list that ours was put in, or what was configured before ours
        self._original: Callable[..., None] | None = None

    def take(self) -> Undo:
        self._holders += 1
        if self._holders == 1:
            # Where somebody wrapped ours, it stayed below theirs: to wrap theirs again would be a circle.
            if self._original is None or structlog.configure is self._original:
                self._original = structlog.configure
                structlog.configure = self._configure
            self._put_in()
        return Undo(self._release)

    def _configure(self, *args: Any, **settings: Any) -> None:
        assert self._original is not None
        self._original(*args, **settings)
        if self._holders:
            self._put_in()

    def _put_in(self) -> None:
        present: Any = structlog.get_config()["processors"]
        if add_ids in present:
            return
        if isinstance(present, MutableSequence):
            kept = cast("MutableSequence[object]", present)
            kept.insert(max(0, len(kept) - 1), add_ids)
            self._lists.append((kept, None))
            return
        listed: list[Any] = list(present)
        listed.insert(max(0, len(listed) - 1), add_ids)
        self._set(listed)
        self._lists.append((listed, present))

    def _set(self, processors: Any) -> None:
        if self._original is not None:
            self._original(processors=processors)

    def _release(self) -> None:
        self._holders -= 1
        if self._holders:
            return
        configured: Any = structlog.get_config()["processors"]
        for ours, before in self._lists:
            if before is None:
                if add_ids in ours:
                    ours.remove(add_ids)
            elif configured is ours:
                self._set(before)
        self._lists.clear()
        if structlog.configure == self._configure and self._original is not None:
            structlog.configure = self._original
            self._original = None


_hook = _Hook()


def instrument(target: Any = None) -> Undo:  # noqa: ARG001  # it has no objects of its own
    """Adds the ids to the events of all loggers that go by the configuration."""
    return _hook.take()
