"""taskiq brokers, through a middleware of taskiq's own kind.

It stands first, so that its run is around those of the others. `pre_execute` and the task run in one asyncio task, and
sync tasks get a copy of its context: the run is current in them. The message's labels carry the sender's trace and the
time.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from taskiq import TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.abc.broker import AsyncBroker
from taskiq.exceptions import NoResultError

from otel_perf import guard, runs, triggers
from otel_perf.integrations import messages
from otel_perf.integrations.patch import Holds, Patch, Patches
from otel_perf.integrations.registry import Undo

__all__ = ["elsewhere", "instrument", "matches"]

_Entry = tuple[runs.Run, Any]


def matches(target: object) -> bool:
    """Whether this is a broker."""
    return isinstance(target, AsyncBroker)


def instrument(target: AsyncBroker | None = None) -> Undo:
    """Measures the tasks of one broker, or with None of all brokers that will be made."""
    if target is not None:
        return _brokers.take(target, lambda: _put_in(target), lambda: _take_out(target))
    made = _patches.take(None)
    return Undo(_take_out_all, made.undo)


def elsewhere() -> str | None:
    """The library's own instrumentor, where it is switched on: its spans stay, our metrics are added."""
    module: Any = sys.modules.get("taskiq.instrumentation")
    if module is not None and module.TaskiqInstrumentor().is_instrumented_by_opentelemetry:
        return "taskiq.instrumentation makes the spans"
    return None


def _spans_elsewhere(broker: AsyncBroker) -> bool:
    return any(type(each).__name__ == "OpenTelemetryMiddleware" for each in broker.middlewares)


class Middleware(TaskiqMiddleware):
    """What taskiq calls around each task."""

    def __init__(self) -> None:
        super().__init__()
        #: By the id of the task, which may be delivered twice: as many as run at once.
        self._open: dict[str, list[_Entry]] = {}
        #: How many asyncio tasks have runs in them; the last of them takes the middleware out, where it is to leave.
        self.in_flight = 0
        self.leaves = False

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        try:
            if not self.leaves:
                messages.stamp(message.labels)
        except Exception:
            guard.note("sending a taskiq task")
        return message

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        try:
            if not self.leaves:
                self._begin(message)
        except Exception:
            guard.note("starting a taskiq task")
        return message

    def _begin(self, message: TaskiqMessage) -> None:
        labels = message.labels
        attributes: dict[str, Any] = {"messaging.system": "taskiq", "messaging.message.id": message.task_id}
        retries = labels.get("_retries")
        if str(retries).isdecimal():
            attributes[triggers.ATTEMPT] = int(str(retries)) + 1
        task = self.broker.find_task(message.task_name)
        name = runs.name_of(getattr(task, "original_func", None)) or message.task_name
        ours = not _spans_elsewhere(self.broker)
        run = runs.begin(
            name, trigger="schedule" if "schedule_id" in labels else "queue", asked_at_s=messages.sent_s(labels),
            attributes=attributes, links=messages.links(labels), root=ours, outside=True, for_another=True, span=ours,
        )  # fmt: skip
        # Where a middleware of somebody else's raises, or the task is cancelled between the hooks, no other hook comes.
        mine = self._open.setdefault(message.task_id, [])

        def over(_: Any) -> None:
            self._forget(message.task_id, entry)
            run.fail("lost")
            run.stop(deactivate=False)
            self.in_flight -= 1
            if self.leaves:  # not in a hook: somebody goes through the list there
                _take_out(self.broker)

        current = asyncio.current_task()
        entry = (run, current)
        mine.append(entry)
        if current is not None:
            self.in_flight += 1
            current.add_done_callback(over)

    def _forget(self, task_id: str, entry: _Entry) -> None:
        mine = self._open.get(task_id, [])
        if entry in mine:
            mine.remove(entry)
        if not mine:
            self._open.pop(task_id, None)

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        mine = self._open.get(message.task_id)
        if not mine:
            return
        current = asyncio.current_task()
        run, _ = entry = next((each for each in mine if each[1] is current), mine[-1])
        self._forget(message.task_id, entry)
        try:
            error = result.error if result.is_err else None
            if isinstance(error, NoResultError):  # it is tried again, or wants no result
                run.retry()
                error = None
            run.stop(error)
        except Exception:
            guard.note("ending a taskiq task")


_brokers = Holds()
_made: WeakSet[Any] = WeakSet()


def _ours(broker: AsyncBroker) -> Middleware | None:
    return next((each for each in broker.middlewares if type(each) is Middleware), None)


def _put_in(broker: AsyncBroker) -> None:
    ours = _ours(broker)
    if ours is not None:
        ours.leaves = False
    else:
        middleware = Middleware()
        middleware.set_broker(broker)
        broker.middlewares.insert(0, middleware)


def _take_out(broker: AsyncBroker) -> None:
    ours = _ours(broker)
    if ours is not None and broker not in _brokers and not (_patches.everything and broker in _made):
        ours.leaves = True
        if not ours.in_flight:
            broker.middlewares.remove(ours)


def _take_out_all() -> None:
    if not _patches.everything:
        for broker in list(_made):
            _take_out(broker)
        _made.clear()


def _init(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def init(self: AsyncBroker, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        try:
            if _patches.everything:
                _made.add(self)
                _put_in(self)
        except Exception:
            guard.note("measuring a taskiq broker")

    return init


_patches = Patches(lambda: [Patch(AsyncBroker, "__init__", _init)])
