"""APScheduler: its jobs are runs, with real schedulers and executors."""

from __future__ import annotations

import asyncio
import pickle
import threading
from datetime import datetime, timedelta, timezone

import pytest
from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_EXECUTED,
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    EVENT_JOB_SUBMITTED,
    JobExecutionEvent,
)
from apscheduler.executors.base import BaseExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ProcessPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import BaseScheduler

from otel_perf import conventions as c
from otel_perf import guard, instrument, jobs, measure, runs
from otel_perf.integrations import apscheduler
from otel_perf.telemetry import operation


@pytest.fixture(autouse=True)
def _none_seen(monkeypatch):
    monkeypatch.setattr(jobs, "_jobs", {})
    monkeypatch.setattr(jobs, "_seen", {})


class Ended:
    """Waits for events of a scheduler."""

    def __init__(self, scheduler, wanted=1, codes=EVENT_JOB_EXECUTED | EVENT_JOB_ERROR) -> None:
        self.events: list = []
        self._wanted = wanted
        self._all, self._handed = threading.Event(), threading.Event()
        scheduler.add_listener(self._heard, codes)
        # A scheduler that is shut down while it hands out jobs trips over itself; this event comes when it has.
        scheduler.add_listener(lambda _: self._handed.set(), EVENT_JOB_SUBMITTED)

    def _heard(self, event) -> None:
        self.events.append(event)
        if len(self.events) >= self._wanted:
            self._all.set()

    def wait(self) -> list:
        assert self._all.wait(10)
        assert self._handed.wait(10)
        return self.events


def count(telemetry, metric, name, **labels):
    points = telemetry.points(metric.name, background__job__name=name, **labels)
    return sum(point.count if metric.kind == "histogram" else point.value for point in points)


@pytest.fixture
def scheduler():
    made = BackgroundScheduler()
    yield made
    if made.running:
        made.shutdown()


@pytest.mark.parametrize("whole", [True, False])
def test_a_job(telemetry, scheduler, whole):
    """The run is current in the job's thread, has a trace of its own, and waited since it was due."""
    seen = []

    def work(x) -> None:
        operation.current().items = x
        seen.append(operation.current().name)

    with instrument("apscheduler" if whole else scheduler):
        ended = Ended(scheduler)
        with measure("whoever starts it"):
            scheduler.add_job(work, args=[3], name="work")
            scheduler.start()
            ended.wait()
    assert seen == ["work"]
    span = telemetry.span("work")
    assert span.parent is None
    assert span.attributes[c.JOB_TRIGGER] == "schedule"
    assert span.attributes[runs.JOB_WAITED] >= 0
    assert count(telemetry, c.JOB_DURATION, "work") == 1
    assert count(telemetry, c.JOB_WAIT, "work") == 1
    assert count(telemetry, c.JOB_ITEM_COUNT, "work") == 3
    assert count(telemetry, c.JOBS_ACTIVE, "work") == 0
    assert count(telemetry, c.JOB_LAST_SUCCESS, "work") > 0


@pytest.mark.parametrize("fail", [False, True])
def test_an_async_scheduler(telemetry, fail):
    """Coroutine functions and plain ones are measured, whatever is current where the scheduler is started."""

    async def later() -> None:
        await asyncio.sleep(0)
        assert operation.current().name == "later"
        if fail:
            raise LookupError

    def plain() -> None:
        assert operation.current().name == "plain"
        if fail:
            raise LookupError

    async def main() -> None:
        scheduler = AsyncIOScheduler()
        ended = Ended(scheduler, 2)
        with instrument(scheduler), measure("request") as around:
            scheduler.add_job(later, name="later")
            scheduler.add_job(plain, name="plain")
            scheduler.start()
            await asyncio.to_thread(ended.wait)
            assert operation.current() is around
        scheduler.shutdown()
        await asyncio.sleep(0)

    asyncio.run(main())
    labels = {"error__type": "LookupError"} if fail else {}
    for name in ("later", "plain"):
        assert count(telemetry, c.JOB_DURATION, name, **labels) == 1
        assert telemetry.span(name).parent is None


def test_a_cancelled_job(telemetry):
    """A job that is cancelled with its scheduler is a failure of that name."""
    begun = asyncio.Event

    async def main() -> None:
        scheduler, started = AsyncIOScheduler(), begun()

        async def slow() -> None:
            started.set()
            await asyncio.sleep(60)

        with instrument(scheduler):
            scheduler.add_job(slow, name="slow")
            scheduler.start()
            await started.wait()
            scheduler.shutdown()
            await asyncio.sleep(0.05)

    asyncio.run(main())
    assert count(telemetry, c.JOB_DURATION, "slow", error__type="asyncio.exceptions.CancelledError") == 1
    assert count(telemetry, c.JOBS_ACTIVE, "slow") == 0


def test_each_failure_is_a_measurement(telemetry, scheduler):
    """N failed runs are N failed measurements, and the listeners get the very same exception."""
    error = LookupError("boom")

    def bad() -> None:
        raise error

    with instrument(scheduler):
        ended = Ended(scheduler, 3)
        for _ in range(3):
            scheduler.add_job(bad, name="bad")
        scheduler.start()
        assert all(event.exception is error for event in ended.wait())
    assert count(telemetry, c.JOB_DURATION, "bad", error__type="LookupError") == 3
    assert not telemetry.points(c.JOB_LAST_SUCCESS.name)


def test_missed_runs(telemetry, scheduler, monkeypatch):
    """What the scheduler says was missed is counted by the job's name, also when the job is gone; not many are kept."""
    past = datetime.now(timezone.utc) - timedelta(hours=1)
    monkeypatch.setattr(apscheduler, "_names", {"old": "old"})
    monkeypatch.setattr(apscheduler, "_MAX_NAMES", 1)
    with instrument(scheduler):
        ended = Ended(scheduler, 1, EVENT_JOB_MISSED)
        scheduler.add_job(print, "date", run_date=past, name="late", id="1")
        scheduler.start()
        ended.wait()
        scheduler.shutdown()
    assert count(telemetry, c.JOB_MISSED, "late") == 1
    assert apscheduler._names == {"1": "late"}
    assert not telemetry.points(c.JOB_DURATION.name)


def test_too_many_at_once(telemetry, scheduler):
    """A run that is skipped because another is in flight is a missed one."""
    go = threading.Event()

    def slow() -> None:
        go.wait(10)

    with instrument(scheduler):
        ended = Ended(scheduler, 2, EVENT_JOB_MAX_INSTANCES)
        scheduler.add_job(slow, "interval", seconds=0.02, name="slow")
        scheduler.start()
        ended.wait()
        go.set()
        scheduler.shutdown()
    assert count(telemetry, c.JOB_MISSED, "slow") >= 2
    assert count(telemetry, c.JOB_OVERLAPS, "slow") == 0


def test_overlaps(telemetry, scheduler):
    """Where several may run at once, the second overlaps the first."""
    both = threading.Barrier(2)

    with instrument(scheduler):
        ended = Ended(scheduler, 2)
        for _ in range(2):
            scheduler.add_job(both.wait, args=[10], name="both")
        scheduler.start()
        ended.wait()
    assert count(telemetry, c.JOB_OVERLAPS, "both") == 1


def test_several_times_at_once(telemetry):
    """Each of the runs that a job catches up with waited since its own time."""
    now = datetime.now(timezone.utc)
    times = [now - timedelta(seconds=each) for each in (500, 30, 10)]
    assert apscheduler._due(times, 60) == now - timedelta(seconds=30)
    assert apscheduler._due(times, 60) == now - timedelta(seconds=10)
    assert apscheduler._due(times, 60) is None
    assert apscheduler._due([now - timedelta(days=9)], None) == now - timedelta(days=9)


def test_measure_job_within(telemetry, scheduler):
    """A function that `measure.job` decorates is that job, measured once."""

    @measure.job("nightly", every="1d")
    def whatever() -> None:
        operation.current().items = 4

    with instrument(scheduler):
        ended = Ended(scheduler)
        scheduler.add_job(whatever)
        scheduler.start()
        ended.wait()
    assert count(telemetry, c.JOB_DURATION, "nightly") == 1
    assert count(telemetry, c.JOB_ITEM_COUNT, "nightly") == 4
    assert [span.name for span in telemetry.spans] == ["nightly"]


def test_the_job_stays_what_it_was(telemetry, scheduler):
    """Nothing of ours is in the store, and an executor that pickles jobs gets the job itself."""
    taken = []

    class Taking(DebugExecutor):
        def _do_submit_job(self, job, run_times):
            taken.append(job)
            super()._do_submit_job(job, run_times)

    scheduler.add_executor(Taking())
    with instrument(scheduler):
        ended = Ended(scheduler)
        job = scheduler.add_job(len, "interval", seconds=60, args=["x"], next_run_time=datetime.now(timezone.utc))
        scheduler.start()
        ended.wait()
    [handed] = taken
    assert job.func is len
    assert (str(handed), repr(handed), handed.id) == (str(job), repr(job), job.id)
    assert pickle.loads(pickle.dumps(handed)).func is len
    with instrument(scheduler):
        processes = ProcessPoolExecutor(1)
        processes._scheduler = scheduler
        assert apscheduler._handed(processes, job, []) is job
        processes.shutdown()


def test_undo(telemetry, scheduler):
    """The very same methods come back; a scheduler that is not held is not measured."""
    before = BaseExecutor.submit_job, BaseScheduler._dispatch_event
    first, second = instrument("apscheduler"), instrument(scheduler)
    for handle in (first, second, first):
        handle.undo()
    assert (BaseExecutor.submit_job, BaseScheduler._dispatch_event) == before
    with instrument(BackgroundScheduler()):
        ended = Ended(scheduler)
        scheduler.add_job(len, args=["x"])
        scheduler.start()
        ended.wait()
    scheduler.shutdown()
    assert not telemetry.points(c.JOB_DURATION.name)


def test_what_runs_in_other_processes_is_not_missed(telemetry, scheduler):
    """Of a job whose runs are not seen none is counted as missed."""

    class Nowhere(ProcessPoolExecutor):
        def _do_submit_job(self, job, run_times):
            event = JobExecutionEvent(EVENT_JOB_MISSED, job.id, "default", run_times[0])
            self._scheduler._dispatch_event(event)

    with instrument(scheduler):
        ended = Ended(scheduler, 1, EVENT_JOB_MISSED)
        scheduler.add_executor(Nowhere(1))
        scheduler.add_job(len, args=["x"], name="elsewhere")
        scheduler.start()
        ended.wait()
        scheduler.shutdown()
    assert not telemetry.points(c.JOB_MISSED.name)


@pytest.mark.parametrize(("where", "what"), [(runs, "begin"), (runs, "name_of"), (jobs, "miss")])
def test_faults_of_ours(telemetry, scheduler, monkeypatch, where, what):
    """They are counted, and jobs run and are missed as without us."""

    def fault(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(guard, "strict", False)
    monkeypatch.setattr(where, what, fault)
    with instrument(scheduler):
        ended = Ended(scheduler, 2, EVENT_JOB_EXECUTED | EVENT_JOB_MISSED)
        past = datetime.now(timezone.utc) - timedelta(hours=1)
        scheduler.add_job(print, "date", run_date=past)
        scheduler.add_job(len, args=["x"])
        scheduler.start()
        assert {event.code for event in ended.wait()} == {EVENT_JOB_EXECUTED, EVENT_JOB_MISSED}
        scheduler.shutdown()
    assert guard.errors
