"""APScheduler 3 schedulers.

Its listeners run after the job, elsewhere, so the run cannot be current in the job through them: they tell of runs
that were missed, or skipped because too many were in flight. What surrounds the run is the job's function, which is
wrapped as a job is handed to its executor; the job in the store stays as it is. Runs in other processes
(`ProcessPoolExecutor`) get the job as it was and are not measured here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]  # no types
from apscheduler.executors.base import BaseExecutor  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]  # no types
from apscheduler.executors.pool import ProcessPoolExecutor  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]  # no types
from apscheduler.schedulers.base import BaseScheduler  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]  # no types
from apscheduler.util import iscoroutinefunction_partial  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]  # no types

from otel_perf import guard, jobs, runs
from otel_perf.integrations.patch import Patch, Patches
from otel_perf.integrations.registry import Undo

__all__ = ["instrument", "matches"]

_MAX_NAMES = 2000
#: Stands for the name of a job that runs in other processes: of its runs none is seen, so none is missed.
_UNMEASURED = ""
#: The names of the jobs that were handed out last, by their ids: the events have only those.
_names: dict[str, str] = {}


def matches(target: object) -> bool:
    """Whether this is a scheduler."""
    return isinstance(target, BaseScheduler)


def instrument(target: BaseScheduler | None = None) -> Undo:
    """Measures the jobs of one scheduler, or with None of all schedulers there are and will be."""
    return _patches.take(target)


class _Handed:
    """A job as an executor gets it: with another function, and as it was for whoever pickles it."""

    __slots__ = ("_job", "func")

    def __init__(self, job: Any, func: Callable[..., Any]) -> None:
        self._job = job
        self.func = func

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def __str__(self) -> str:
        return str(self._job)

    def __repr__(self) -> str:
        return repr(self._job)

    def __reduce__(self) -> Any:
        return _as_it_was, (self._job,)


def _as_it_was(job: Any) -> Any:
    return job


def _submit(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def submit_job(self: BaseExecutor, job: Any, run_times: list[datetime]) -> None:
        original(self, _handed(self, job, run_times), run_times)

    return submit_job


def _handed(executor: Any, job: Any, run_times: Sequence[datetime]) -> Any:
    try:
        if not _patches.measures(executor._scheduler):
            return job
        if isinstance(executor, ProcessPoolExecutor):
            _remember(job, _UNMEASURED)
            return job
        return _Handed(job, _wrapped(_named(job), job, list(run_times)))
    except Exception:
        guard.note("wrapping an APScheduler job")
        return job


def _wrapped(name: str, job: Any, run_times: list[datetime]) -> Callable[..., Any]:
    function = job.func

    def begin() -> runs.Run | None:
        try:
            due = _due(run_times, job.misfire_grace_time)
            asked_at_s = None if due is None else due.timestamp()
            return runs.begin(name, trigger="schedule", asked_at_s=asked_at_s, root=True, for_another=True)
        except Exception:
            guard.note("starting an APScheduler job")
            return None

    if iscoroutinefunction_partial(function):

        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            run = begin()
            try:
                answer = await function(*args, **kwargs)
            except BaseException as error:
                _stop(run, error)
                raise
            _stop(run)
            return answer

        return coroutine

    def plain(*args: Any, **kwargs: Any) -> Any:
        run = begin()
        try:
            answer = function(*args, **kwargs)
        except BaseException as error:
            _stop(run, error)
            raise
        _stop(run)
        return answer

    return plain


def _stop(run: runs.Run | None, error: BaseException | None = None) -> None:
    if run is not None:
        run.stop(error)


def _named(job: Any) -> str:
    name = runs.name_of(job.func) or str(job.name).replace("<locals>.", "")
    _remember(job, name)
    return name


def _remember(job: Any, name: str) -> None:
    if _names.get(job.id) != name:
        if len(_names) >= _MAX_NAMES:
            _names.pop(next(iter(_names)))
        _names[job.id] = name


def _due(run_times: list[datetime], grace_s: int | None) -> datetime | None:
    """The next of the times that this run is for; those that are too late come to no run."""
    while run_times:
        due = run_times.pop(0)
        if grace_s is None or datetime.now(timezone.utc) - due <= timedelta(seconds=grace_s + 1):
            return due
    return None


def _dispatch(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def dispatch(self: BaseScheduler, event: Any) -> None:
        try:
            if event.code & (EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES) and _patches.measures(self):
                _missed(event)
        except Exception:
            guard.note("counting a missed APScheduler job")
        original(self, event)

    return dispatch


def _missed(event: Any) -> None:
    name = _names.get(event.job_id, str(event.job_id))
    if name != _UNMEASURED:
        for _ in getattr(event, "scheduled_run_times", (None,)):
            jobs.miss(name)


_patches = Patches(
    lambda: [Patch(BaseExecutor, "submit_job", _submit), Patch(BaseScheduler, "_dispatch_event", _dispatch)]
)
