"""arq workers, and their cron jobs.

`on_job_start` and `on_job_end` run in another task than the job, so nothing that they make current is current in it,
and they are not told how it ended. So while a worker runs, the functions in its table are wrapped; the very same table
is put back when it stops. A job carries nothing but its arguments: its run has no link to who asked for it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

from arq.jobs import deserialize_result
from arq.worker import JobExecutionFailed, Retry, RetryJob, Worker

from otel_perf import guard, runs, triggers
from otel_perf.integrations.patch import Patch, Patches
from otel_perf.integrations.registry import Undo

__all__ = ["instrument", "matches"]


def matches(target: object) -> bool:
    """Whether this is a worker."""
    return isinstance(target, Worker)


def instrument(target: Worker | None = None) -> Undo:
    """Measures the jobs of one worker, or with None of all workers; those that run already are not measured."""
    return _patches.take(target)


def _main(original: Callable[[Worker], Any]) -> Callable[[Worker], Any]:
    @functools.wraps(original)
    async def main(self: Worker) -> None:
        theirs = self.functions
        try:
            ours = {name: _wrapped(self, name, each) for name, each in theirs.items()}
        except Exception:
            guard.note("wrapping the functions of an arq worker")
            ours = theirs
        self.functions = ours
        try:
            await original(self)
        finally:
            if self.functions is ours:
                self.functions = theirs

    return main


def _wrapped(worker: Worker, name: str, function: Any) -> Any:
    coroutine = function.coroutine
    job = runs.name_of(coroutine) or name
    cron = hasattr(function, "next_run")

    @functools.wraps(coroutine)
    async def run(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        begun = _begin(job, ctx, cron) if _patches.measures(worker) else None
        if begun is None:
            return await coroutine(ctx, *args, **kwargs)
        try:
            answer = await coroutine(ctx, *args, **kwargs)
        except (Retry, RetryJob) as error:
            if worker.retry_jobs:
                begun.retry()
                begun.stop()
            else:
                begun.stop(error)
            raise
        except asyncio.CancelledError as error:
            _cancelled(worker, ctx, begun, error)
            raise
        except BaseException as error:
            begun.stop(error)
            raise
        begun.stop()
        return answer

    return dataclasses.replace(function, coroutine=run)


#: Runs that were cancelled, by the ids of their jobs, until arq decides: it timed out, was aborted, or will run again.
_undecided: dict[tuple[int, str], Callable[[bool], None]] = {}


def _cancelled(worker: Worker, ctx: dict[Any, Any], run: runs.Run, error: BaseException) -> None:
    key, ended_ns = (id(worker), str(ctx.get("job_id"))), time.perf_counter_ns()

    def decide(finish: bool) -> None:
        _undecided.pop(key, None)
        if finish:
            run.fail(error)
        else:
            run.retry()
        run.stop(ended_ns=ended_ns, deactivate=False)

    try:
        around = worker.tasks.get(key[1])
        if around is None or around.done():
            run.stop(error)
            return
        run.deactivate()
        _undecided[key] = decide
        around.add_done_callback(lambda _: decide(True))  # where arq does not come to decide; else it does nothing
    except Exception:
        guard.note("ending an arq job")


def _finish(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def finish_job(self: Worker, job_id: str, finish: bool, *args: Any, **kwargs: Any) -> Any:
        try:
            decide = _undecided.get((id(self), job_id))
            if decide is not None:
                decide(finish)
        except Exception:
            guard.note("ending an arq job")
        return await original(self, job_id, finish, *args, **kwargs)

    return finish_job


def _finish_failed(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def finish_failed_job(self: Worker, job_id: str, result_data: bytes | None) -> Any:
        try:
            if result_data is not None and _patches.measures(self):
                _gave_up(self, result_data)
        except Exception:
            guard.note("counting an arq job that was tried too often")
        return await original(self, job_id, result_data)

    return finish_failed_job


def _gave_up(worker: Worker, result_data: bytes) -> None:
    """Counts a job that was tried too often: it does not come to its function any more."""
    result = deserialize_result(result_data, deserializer=worker.job_deserializer)
    function: Any = worker.functions.get(result.function)
    if function is None or not isinstance(result.result, JobExecutionFailed):
        return
    name = runs.name_of(function.coroutine) or result.function
    trigger = "schedule" if hasattr(function, "next_run") else "queue"
    runs.begin(name, trigger=trigger, root=True, outside=True, activate=False).stop(result.result)


def _begin(name: str, ctx: dict[Any, Any], cron: bool) -> runs.Run | None:
    try:
        attempt = int(ctx.get("job_try") or 1)
        attributes: dict[str, Any] = {"messaging.system": "arq", "messaging.message.id": ctx.get("job_id")}
        asked_at_s = None
        if attempt > 1:  # what it waited since is not told of a further attempt
            attributes[triggers.ATTEMPT] = attempt
        elif ctx.get("score"):
            asked_at_s = max(int(ctx["score"]) / 1000, ctx["enqueue_time"].timestamp())
        return runs.begin(
            name, trigger="schedule" if cron else "queue", asked_at_s=asked_at_s, attributes=attributes, root=True,
            outside=True, for_another=True,
        )  # fmt: skip
    except Exception:
        guard.note("starting an arq job")
        return None


_patches = Patches(
    lambda: [
        Patch(Worker, "main", _main),
        Patch(Worker, "finish_job", _finish),
        Patch(Worker, "finish_failed_job", _finish_failed),
    ]
)
