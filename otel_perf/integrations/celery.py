"""Celery workers and senders, through Celery's own signals.

`task_prerun` and `task_postrun` surround a task in its own thread, process or greenlet, so the run is current within
it; `task_failure` and `task_retry` say how it ended. `before_task_publish` writes the sender's trace and the time into
the headers of the message. A task that ends with its process (a hard time limit, a lost worker) is told by the main
process, where it has not begun: it is counted there, without a duration.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from celery import Celery, signals  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]  # no types
from celery.exceptions import Ignore, Reject, Retry, TimeLimitExceeded, WorkerLostError  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]  # no types

from otel_perf import guard, runs, triggers
from otel_perf.integrations import messages
from otel_perf.integrations.patch import Holds
from otel_perf.integrations.registry import Undo

__all__ = ["elsewhere", "instrument", "matches"]

_KILLED = (TimeLimitExceeded, WorkerLostError)
_UNDECIDED = frozenset({"IGNORED", "REJECTED"})
_UID = "otel_perf"
_TOLD_TWICE_WITHIN_S = 10.0
_REMEMBERED = 1000


class _Everything:
    """The target that stands for all apps."""


_connected = Holds()
_apps = Holds()
#: By the identity of the request, which is kept here with its run: one task may be delivered and run several times at
#: once, each time with a request of its own.
_open: dict[int, tuple[Any, runs.Run]] = {}
_lock = threading.Lock()
_wanted = False
#: When tasks ended with their process, by their id.
_killed: dict[str, float] = {}


def matches(target: object) -> bool:
    """Whether this is an app."""
    return isinstance(target, Celery)


def instrument(target: Celery | None = None) -> Undo:
    """Measures the tasks of one app, or with None of all apps there are and will be."""
    connected = _connected.take(_Everything, _connect, _disconnect)
    chosen = _apps.take(_Everything if target is None else target)
    return Undo(connected.undo, chosen.undo)


def elsewhere() -> str | None:
    """The upstream instrumentor, where it is switched on: its spans stay, our metrics are added."""
    module: Any = sys.modules.get("opentelemetry.instrumentation.celery")
    if module is not None and module.CeleryInstrumentor().is_instrumented_by_opentelemetry:
        return "opentelemetry-instrumentation-celery makes the spans"
    return None


def _connect() -> None:
    global _wanted
    with _lock:
        _wanted = True
        for signal, hook in (*_beginnings(), *_endings()):
            signal.connect(hook, weak=False, dispatch_uid=_UID)


def _disconnect() -> None:
    """Begins nothing any more; what ends runs goes when the last of those in flight has ended."""
    global _wanted
    with _lock:
        _wanted = False
        for signal, hook in _beginnings():
            signal.disconnect(hook, dispatch_uid=_UID)
    _leave()


def _leave() -> None:
    with _lock:
        if not _wanted and not _open:
            for signal, hook in _endings():
                signal.disconnect(hook, dispatch_uid=_UID)


def _beginnings() -> tuple[tuple[Any, Callable[..., None]], ...]:
    return (signals.before_task_publish, _published), (signals.task_prerun, _begun)


def _endings() -> tuple[tuple[Any, Callable[..., None]], ...]:
    return (
        (signals.task_postrun, _ended),
        (signals.task_retry, _retried),
        (signals.task_failure, _failed),
    )


def _measured(task: Any) -> bool:
    return _Everything in _apps or getattr(task, "app", None) in _apps


def _published(headers: dict[str, Any] | None = None, **_: Any) -> None:
    try:
        if headers is not None:
            messages.stamp(headers)
    except Exception:
        guard.note("sending a Celery task")


def _begun(task_id: str = "", task: Any = None, **_: Any) -> None:
    try:
        if _measured(task) and id(task.request) not in _open:
            request = task.request
            _open[id(request)] = request, _begin(task, task_id)
    except Exception:
        guard.note("starting a Celery task")


def _run_of(task: Any, task_id: str) -> runs.Run | None:
    """The run of the task that is current in this thread or greenlet."""
    found = _open.get(id(task.request))
    return found[1] if found is not None and found[0].id == task_id else None


def _name(task: Any) -> str:
    return runs.name_of(task.run) or task.name


def _begin(task: Any, task_id: str) -> runs.Run:
    request = task.request
    retries = request.retries or 0
    attributes: dict[str, Any] = {"messaging.system": "celery", "messaging.message.id": task_id}
    if retries:
        attributes[triggers.ATTEMPT] = retries + 1
    if request.is_eager:  # it runs where it was called, within what is current there
        return runs.begin(_name(task), attributes=attributes, for_another=True)
    delivery: dict[str, Any] = request.delivery_info or {}
    queue = delivery.get("routing_key")
    if queue:
        attributes[triggers.QUEUE_NAME] = str(queue)
    headers: Mapping[str, Any] = {**(request.headers or {}), **vars(request)}
    ours = elsewhere() is None
    return runs.begin(
        _name(task), trigger="queue", asked_at_s=_asked_at_s(headers), attributes=attributes,
        links=messages.links(headers), root=ours, outside=True, for_another=True, span=ours,
    )  # fmt: skip


def _asked_at_s(headers: Mapping[str, Any]) -> float | None:
    sent_s = messages.sent_s(headers)
    eta = headers.get("eta")
    if sent_s is None or not isinstance(eta, str):
        return sent_s
    due = datetime.fromisoformat(eta.replace("Z", "+00:00"))
    return max(sent_s, (due if due.tzinfo else due.replace(tzinfo=timezone.utc)).timestamp())


def _ended(task: Any = None, state: str | None = None, **_: Any) -> None:
    try:
        found = _open.pop(id(task.request), None)
        if found is None:
            return
        run = found[1]
        if not _wanted:
            _leave()
        # Where the caller wants exceptions as they are, this runs while one is on its way, and no signal told of it.
        error = sys.exc_info()[1] if state is None else None
        if isinstance(error, Retry):
            run.retry()
        elif state in _UNDECIDED or isinstance(error, (Ignore, Reject)):
            run.leave_open()
        run.stop(None if isinstance(error, (Retry, Ignore, Reject)) else error)
    except Exception:
        guard.note("ending a Celery task")


def _retried(sender: Any = None, request: Any = None, **_: Any) -> None:
    try:
        run = _run_of(sender, getattr(request, "id", ""))
        if run is not None:
            run.retry()
    except Exception:
        guard.note("retrying a Celery task")


def _failed(sender: Any = None, task_id: str = "", exception: Any = None, **_: Any) -> None:
    try:
        run = _run_of(sender, task_id)
        if run is not None:
            run.fail(_error(exception))
        elif isinstance(exception, _KILLED) and _measured(sender) and _is_new(task_id):
            runs.begin(_name(sender), trigger="queue", root=True, outside=True, activate=False).stop(exception)
    except Exception:
        guard.note("reading the failure of a Celery task")


def _is_new(task_id: str) -> bool:
    """Whether this is the first word of a task that was killed: the timeout and the end of its process both tell."""
    now_s = time.monotonic()
    if now_s - _killed.get(task_id, -math.inf) < _TOLD_TWICE_WITHIN_S:
        return False
    _killed[task_id] = now_s
    if len(_killed) > _REMEMBERED:
        _killed.pop(next(iter(_killed)))
    return True


def _error(exception: Any) -> BaseException | str:
    if not isinstance(exception, BaseException):
        return type(exception).__name__
    # What cannot be pickled comes wrapped.
    name = getattr(exception, "exc_cls_name", None)
    return exception if name is None else f"{getattr(exception, 'exc_module', '')}.{name}"
