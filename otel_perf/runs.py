"""Runs of background jobs: how each begins, what it waited for, and how it ends.

All ways to a job (`measure.job`, Celery, APScheduler, arq, taskiq) come through `begin`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span

from otel_perf import conventions as c
from otel_perf import guard, jobs, triggers
from otel_perf.handle import Measured
from otel_perf.telemetry import operation, runtime
from otel_perf.telemetry.numbers import plain
from otel_perf.telemetry.operation import JOB, Operation

__all__ = ["JOB_OVERLAP", "JOB_RATE", "JOB_RETRIED", "JOB_WAITED", "JobHandle", "Run", "begin", "name_of"]

F = TypeVar("F", bound=Callable[..., Any])

#: Of our own, on spans only.
JOB_RATE = "background.job.items_per_second"
JOB_OVERLAP = "background.job.overlap"
JOB_WAITED = "background.job.queue.wait"
JOB_RETRIED = "background.job.retried"

_OTHER = "_OTHER"
# Whoever waited longer has a clock that is wrong, or is a stranger.
_LONGEST_WAIT_S = 30 * 86400.0
#: A run that will be tried again, say, has neither failed nor succeeded.
_OPEN = replace(JOB, last_success=None)
#: On what `measure.job` has decorated: whoever runs it for somebody knows the job's name by it.
_MARK = "__otel_perf_job__"


class Run(Operation):
    """One run of a job. `items` says how many things it worked on; `rate` is how many in a second."""

    __slots__ = ("entry", "for_another", "outer", "seen")

    def __init__(self, kind: operation.Kind, name: str, labels: list[Any]) -> None:
        super().__init__(kind, name, labels)
        self.seen: jobs.Seen | None = None
        self.entry: object = None
        #: Begun by what runs the job for somebody: a `measure.job` of the same name within is the same run.
        self.for_another = False
        self.outer: Run | None = None

    @property
    def rate(self) -> float | None:
        """Items per second, once it has stopped; None where no items were counted."""
        try:
            items, seconds = plain(self.items or 0), self.seconds
        except (TypeError, ValueError, OverflowError):  # no number, which is noted where it is counted
            return None
        return float(items / seconds) if seconds and 0 < items < math.inf else None

    def set(self, key: str, value: Any) -> None:
        """Puts an attribute on the span, redacted; never on metrics."""
        if self.outer is not None:
            self.outer.set(key, value)
        else:
            super().set(key, value)

    def leave_open(self) -> None:
        """Says that it has not succeeded, although it did not fail."""
        self.kind = _OPEN

    def retry(self) -> None:
        """Says that it will be tried again: it has not failed, and it has not succeeded."""
        self.leave_open()
        self.set(JOB_RETRIED, True)

    def stop(self, error: BaseException | None = None, *, ended_ns: int | None = None, deactivate: bool = True) -> None:
        """Ends the run; the second call does nothing."""
        try:
            if not self.stopped and self.outer is not None:
                self.outer.take(self)
            if not self.stopped and self.seen is not None:
                jobs.leave(self.seen, self.entry)
        except Exception:
            guard.note("ending a job")
        super().stop(error, ended_ns=ended_ns, deactivate=deactivate)

    def take(self, inner: Run) -> None:
        """Takes over what the same run was told further in; what is raised there comes by itself."""
        if inner.items is not None:
            self.items = inner.items
        if inner.error_type is not None:
            self.fail(inner.error_type)

    def _describe(self, span: Span) -> None:
        super()._describe(span)
        if self.rate is not None:
            span.set_attribute(JOB_RATE, self.rate)


class JobHandle(Measured):
    """What `measure.job` answers: each time it is entered or called there is a run."""

    __slots__ = ()

    def begin(self, *, activate: bool = True) -> Run:
        """Begins a run by hand; the caller stops it."""
        return begin(self._name or "job", attributes=self._attributes, activate=activate)

    def __enter__(self) -> Run:
        return cast("Run", super().__enter__())

    async def __aenter__(self) -> Run:
        return self.__enter__()

    def __call__(self, function: F) -> F:
        """Decorates a function: each call is a run."""
        made = super().__call__(function)
        setattr(made, _MARK, self._name)
        return made


def name_of(function: object) -> str | None:
    """The name of the job that `measure.job` made of this function."""
    found: object = getattr(function, _MARK, None)
    return found if isinstance(found, str) else None


def begin(
    name: str, *, trigger: str | None = None, asked_at_s: float | None = None,
    attributes: Mapping[str, Any] | None = None, links: Sequence[Link] = (), root: bool = False, outside: bool = False,
    activate: bool = True, span: bool = True, for_another: bool = False,
) -> Run:  # fmt: skip
    """Begins a run of a job; it always answers one, also before `configure()`.

    Args:
        name: the job's; beyond 1990 of them runs are of `_OTHER`.
        trigger: what had it begin: schedule, queue, http. Without it a request above tells, by its headers.
        asked_at_s: when the run was asked for, or due, by Unix time: it waited since then.
        attributes: span attributes.
        links: other traces, such as that of whoever asked for the run.
        root: begins a trace of its own, whatever is current: a worker has nothing to do with who started it.
        outside: what had it begin is not in this process, so that the next run may be another worker's.
        activate: makes the run current.
        span: False measures only, where somebody else makes a span of it.
        for_another: what begins it is no `measure.job`, and one of the same name within is the same run.
    """
    name = name[: jobs.LONGEST_NAME]
    same = None if for_another else _same(name)
    if same is not None:
        inner = cast("Run", operation.start(JOB, name, (name,), activate=activate, span=False, metrics=False, made=Run))
        inner.outer = same
        return inner
    known, entry = dict(attributes or {}), object()
    entered: tuple[jobs.Seen, bool] | None = None
    wait_s: float | None = None
    try:
        above = operation.current()
        found = triggers.above(above) if trigger is None and not root else None
        if found is not None:
            trigger, asked_at_s, outside = found.kind, found.asked_at_s, True
            known.update(found.attributes)
        entered = jobs.enter(name, entry, outside=outside)
        wait_s = _waited(asked_at_s)
        more = {c.JOB_TRIGGER: trigger, JOB_WAITED: wait_s, JOB_OVERLAP: True if entered and entered[1] else None}
        known.update((key, value) for key, value in more.items() if value is not None)
    except Exception:
        guard.note("beginning a job")
    name = name if entered else _OTHER
    try:
        run = operation.start(
            JOB, name, (name,), known, context=Context() if root else None, links=links, activate=activate, span=span,
            made=Run,
        )  # fmt: skip
    except BaseException:
        if entered:
            jobs.leave(entered[0], entry)
        raise
    begun = cast("Run", run)
    begun.for_another = for_another
    if root:
        begun.parent = None
    if entered:
        begun.seen, begun.entry = entered[0], entry
    _count(name, entered is not None and entered[1], wait_s)
    return begun


def _same(name: str) -> Run | None:
    try:
        above = operation.current()
        while above is not None and above.kind is not JOB:
            above = above.parent
        same = isinstance(above, Run) and above.for_another and above.labels[0] == name and not above.stopped
        return cast("Run", above) if same else None
    except Exception:
        guard.note("looking for the run of a job")
        return None


def _waited(asked_at_s: float | None) -> float | None:
    if asked_at_s is None:
        return None
    wait_s = time.time() - asked_at_s
    return wait_s if 0 <= wait_s <= _LONGEST_WAIT_S else None


def _count(name: str, overlaps: bool, wait_s: float | None) -> None:
    in_force = runtime.current
    if in_force is None:
        return
    try:
        if overlaps:
            in_force.at(c.JOB_OVERLAPS, (name,)).record(1)
        if wait_s is not None:
            in_force.at(c.JOB_WAIT, (name,)).record(wait_s)
    except Exception:
        guard.note("counting a job")
