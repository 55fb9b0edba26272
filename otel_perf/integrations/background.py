"""Background tasks of Starlette and FastAPI: each is a job run of its own, after the response and no part of it.

The span begins a trace and links to that of the request; the wait is from the last byte of the response to the start.
Starlette has no hook for them, so `BackgroundTask.__call__` is wrapped while an app is measured; the request ends where
the first one begins. A list of tasks calls its tasks, so each of them is a run and the list is none.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Link

from otel_perf import conventions as c
from otel_perf import guard, runs
from otel_perf.integrations import native
from otel_perf.integrations.functions import innermost, qualified_name
from otel_perf.integrations.patch import Patch, Patches
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.request import Request, in_progress
from otel_perf.telemetry import runtime

__all__ = ["take"]

_MODULE = "starlette.background"


def take() -> Undo:
    """Measures background tasks of measured requests, until the answer is undone."""
    return Undo() if sys.modules.get(_MODULE) is None else _patches.take(None)


def _make() -> Sequence[Patch]:
    return (Patch(sys.modules[_MODULE].BackgroundTask, "__call__", _wrap),)


_patches = Patches(_make)


def _wrap(original: Any) -> Any:
    @functools.wraps(original)
    async def measured(self: Any) -> None:
        run = _begin(self)
        if run is None:
            await original(self)
            return
        try:
            await original(self)
        except BaseException as error:
            run.stop(error)
            raise
        run.stop()

    return measured


def _begin(task: Any) -> runs.Run | None:
    try:
        return _run(task)
    except Exception:
        guard.note("beginning a background task")
        return None


def _run(task: Any) -> runs.Run | None:
    request = in_progress()
    if request is not None:
        request.complete()  # it must not stay open for as long as its tasks run
    function = getattr(task, "func", None)
    if request is None or function is None or runtime.current is None:
        return None
    name = qualified_name(function)
    # What `measure.job` decorates is a run already: it is the same one by the same name.
    return runs.begin(
        runs.name_of(innermost(function)) or name, trigger="request", asked_at_s=_completed_at_s(request),
        attributes={c.CODE_FUNCTION: name},
        links=_links(request), root=True, outside=True, span=not _shown_elsewhere(task, request), for_another=True,
    )  # fmt: skip


def _completed_at_s(request: Request) -> float | None:
    completed_ns = request.completed_ns
    return None if completed_ns is None else time.time() - (time.perf_counter_ns() - completed_ns) / 1e9


def _links(request: Request) -> tuple[Link, ...]:
    span = request.span or trace.get_current_span()
    of = span.get_span_context()
    return (Link(of),) if of.is_valid else ()


def _shown_elsewhere(task: Any, request: Request) -> bool:
    """Whether FastAPI's own telemetry or the upstream instrumentor, which wraps the same method, makes a span of it."""
    return hasattr(task, "_otel_original_call") or native.shows_parts(request.routed)
