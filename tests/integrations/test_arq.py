"""arq: its jobs are runs, with a real worker on a real Redis."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from datetime import datetime, timezone

import pytest
from arq import create_pool, cron, func
from arq.connections import RedisSettings
from arq.worker import Retry, Worker

from otel_perf import conventions as c
from otel_perf import guard, instrument, measure, runs, triggers
from otel_perf.integrations import arq
from otel_perf.telemetry import operation

# arq passes an option on that redis-py has had its say about since.
pytestmark = pytest.mark.filterwarnings("ignore:Call to '__init__' function with deprecated:DeprecationWarning")

QUEUES = (f"arq-test-{number}" for number in itertools.count())


@pytest.fixture
def work(redis_server):
    """Enqueues jobs, runs a worker until the queue is empty, and answers the results."""

    def run(functions, *jobs, target=None, **options):
        async def main():
            queue = next(QUEUES)
            pool = await create_pool(RedisSettings.from_dsn(redis_server.url), default_queue_name=queue)
            worker = Worker(functions, redis_pool=pool, queue_name=queue, burst=True, poll_delay=0.01,
                            handle_signals=False, **options)  # fmt: skip
            table = worker.functions
            sent = [await pool.enqueue_job(name, *args) for name, *args in jobs]
            with instrument("arq" if target is None else worker):
                await asyncio.wait_for(worker.main(), 20)
            assert worker.functions is table
            results = [await job.result_info() for job in sent]
            await pool.aclose()
            return [each.result if each is not None else None for each in results]

        return asyncio.run(main())

    return run


def count(telemetry, metric, name, **labels):
    points = telemetry.points(metric.name, background__job__name=name, **labels)
    return sum(point.count if metric.kind == "histogram" else point.value for point in points)


@pytest.mark.parametrize("target", [None, "worker"])
def test_a_job(telemetry, work, target):
    """The run is current in the job, has a trace of its own, and waited since it was enqueued."""

    async def mail(ctx, x):
        operation.current().items = x
        return operation.current().name

    assert work([func(mail, name="mail")], ("mail", 3), target=target) == ["mail"]
    [span] = [span for span in telemetry.spans if span.name == "mail"]
    assert span.parent is None
    assert span.attributes[c.JOB_TRIGGER] == "queue"
    assert span.attributes["messaging.system"] == "arq"
    assert count(telemetry, c.JOB_DURATION, "mail") == 1
    assert count(telemetry, c.JOB_WAIT, "mail") == 1
    assert count(telemetry, c.JOB_ITEM_COUNT, "mail") == 3
    assert count(telemetry, c.JOBS_ACTIVE, "mail") == 0
    assert count(telemetry, c.JOB_LAST_SUCCESS, "mail") > 0


def test_each_failure_is_a_measurement(telemetry, work):
    """N failed jobs are N failed runs, and arq keeps the exception as ever."""

    async def bad(ctx):
        raise LookupError("boom")

    results = work([func(bad, name="bad")], *[("bad",)] * 3)
    assert [type(each) for each in results] == [LookupError] * 3
    assert count(telemetry, c.JOB_DURATION, "bad", error__type="LookupError") == 3
    assert not telemetry.points(c.JOB_LAST_SUCCESS.name)


def test_a_job_that_takes_too_long(telemetry, work):
    """It is cancelled, and counts as that."""

    async def slow(ctx):
        await asyncio.sleep(60)

    [result] = work([func(slow, name="slow", timeout=0.1)], ("slow",))
    assert isinstance(result, TimeoutError | asyncio.TimeoutError)
    assert count(telemetry, c.JOB_DURATION, "slow", error__type="asyncio.exceptions.CancelledError") == 1
    assert count(telemetry, c.JOBS_ACTIVE, "slow") == 0


def test_a_shutdown(telemetry, redis_server):
    """Jobs that a shutdown cancels will run again: they have not failed and not succeeded."""

    async def slow(ctx):
        begun.set()
        await asyncio.sleep(60)

    begun = asyncio.Event()

    async def main():
        queue = next(QUEUES)
        pool = await create_pool(RedisSettings.from_dsn(redis_server.url), default_queue_name=queue)
        worker = Worker([func(slow, name="slow")], redis_pool=pool, queue_name=queue, poll_delay=0.01,
                        handle_signals=False)  # fmt: skip
        await pool.enqueue_job("slow")
        with instrument(worker):
            working = asyncio.create_task(worker.async_run())
            await asyncio.wait_for(begun.wait(), 10)
            worker.handle_sig(signal.SIGUSR1)
            await asyncio.wait([working])
            await asyncio.gather(*worker.tasks.values())
        await pool.aclose()

    asyncio.run(main())
    assert count(telemetry, c.JOB_DURATION, "slow") == 1
    assert telemetry.span("slow").attributes.get(c.ERROR_TYPE) is None
    assert telemetry.span("slow").attributes[runs.JOB_RETRIED] is True
    assert count(telemetry, c.JOBS_ACTIVE, "slow") == 0
    assert not telemetry.points(c.JOB_LAST_SUCCESS.name)
    assert not arq._undecided


def test_a_job_that_is_tried_too_often(telemetry, work):
    """It is one failed measurement, after those of its attempts."""

    async def never(ctx):
        raise Retry(defer=0.01)

    work([func(never, name="never", max_tries=2)], ("never",))
    assert count(telemetry, c.JOB_DURATION, "never") == 3
    assert count(telemetry, c.JOB_DURATION, "never", error__type="arq.worker.JobExecutionFailed") == 1
    assert count(telemetry, c.JOBS_ACTIVE, "never") == 0


def test_retries_are_no_failures(telemetry, work):
    """A run that is tried again has not failed; the next one says which attempt it is."""

    async def again(ctx):
        if ctx["job_try"] < 3:
            raise Retry(defer=0.01)
        return "done"

    assert work([func(again, name="again")], ("again",)) == ["done"]
    spans = [span for span in telemetry.spans if span.name == "again"]
    assert [span.attributes.get(triggers.ATTEMPT) for span in spans] == [None, 2, 3]
    assert [span.attributes.get(runs.JOB_RETRIED) for span in spans] == [True, True, None]
    assert count(telemetry, c.JOB_DURATION, "again") == 3
    assert count(telemetry, c.JOB_WAIT, "again") == 1
    assert not [point for point in telemetry.points(c.JOB_DURATION.name) if c.ERROR_TYPE in point.attributes]


def test_a_retry_that_nobody_makes(telemetry, work):
    """Where the worker does not retry, it is a failure."""

    async def again(ctx):
        raise Retry

    work([func(again, name="again")], ("again",), retry_jobs=False)
    assert count(telemetry, c.JOB_DURATION, "again", error__type="arq.worker.Retry") == 1


def test_a_cron_job(telemetry, work):
    """Its trigger is a schedule."""

    async def tick(ctx):
        return None

    work([], cron_jobs=[cron(tick, name="tick", run_at_startup=True)])
    assert telemetry.span("tick").attributes[c.JOB_TRIGGER] == "schedule"
    assert count(telemetry, c.JOB_DURATION, "tick") == 1


def test_measure_job_within(telemetry, work):
    """A function that `measure.job` decorates is that job, measured once."""

    @measure.job("nightly")
    async def nightly(ctx):
        operation.current().items = 4

    work([func(nightly, name="another")], ("another",))
    assert count(telemetry, c.JOB_DURATION, "nightly") == 1
    assert count(telemetry, c.JOB_ITEM_COUNT, "nightly") == 4
    assert not telemetry.points(c.JOB_DURATION.name, background__job__name="another")


def test_the_polling_of_a_worker_is_never_slow(telemetry, work):
    """With Redis measured too, no command that a worker makes for itself counts as slow or is part of a job."""

    async def mail(ctx):
        await asyncio.sleep(0.05)

    with instrument("redis"):
        work([func(mail, name="mail")], ("mail",))
    assert not telemetry.points(c.QUERY_SLOW.name)
    assert not [span for span in telemetry.spans if span.parent == telemetry.span("mail").context]


def test_undo(telemetry, work):
    """The very same method comes back, and a worker that another handle holds stays measured."""
    before = Worker.main
    first, second = instrument("arq"), instrument("arq")
    assert Worker.main is not before
    for handle in (first, second, first):
        handle.undo()
    assert Worker.main is before

    async def mail(ctx):
        return operation.current()

    assert work([func(mail, name="mail")], ("mail",), target="worker") != [None]
    assert not arq._patches.everything


@pytest.mark.parametrize("what", ["begin", "name_of"])
def test_faults_of_ours(telemetry, work, monkeypatch, what):
    """They are counted, and the jobs run as without us."""

    async def mail(ctx):
        return 5

    def fault(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(guard, "strict", False)
    monkeypatch.setattr(runs, what, fault)
    assert work([func(mail, name="mail")], ("mail",)) == [5]
    assert guard.errors


def test_before_it_was_enqueued(telemetry):
    """A job that was deferred waited since its time; one of another host's clock has no wait."""
    ctx = {"job_try": 1, "job_id": "1", "score": (time.time() + 60) * 1000, "enqueue_time": datetime.now(timezone.utc)}
    run = arq._begin("mail", ctx, False)
    run.stop()
    assert runs.JOB_WAITED not in telemetry.span("mail").attributes
