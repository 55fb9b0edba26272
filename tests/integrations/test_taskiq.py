"""taskiq: its tasks are runs of jobs, by a middleware of its own kind."""

from __future__ import annotations

import asyncio
import gc

import pytest
from taskiq import InMemoryBroker, SimpleRetryMiddleware, TaskiqMiddleware
from taskiq.abc.broker import AsyncBroker
from taskiq.exceptions import NoResultError
from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware

from otel_perf import conventions as c
from otel_perf import instrument, measure, runs, triggers
from otel_perf.integrations import taskiq
from otel_perf.telemetry import operation


def drive(main, broker):
    """Runs `main` with a broker that is up, and waits for its tasks."""

    async def whole():
        await broker.startup()
        try:
            answer = await main()
            await broker.wait_all()
            return answer
        finally:
            await broker.shutdown()

    return asyncio.run(whole())


async def result_of(task, *args):
    return await (await task.kiq(*args)).wait_result(timeout=10, check_interval=0.01)


def count(telemetry, metric, name, **labels):
    points = telemetry.points(metric.name, background__job__name=name, **labels)
    return sum(point.count if metric.kind == "histogram" else point.value for point in points)


@pytest.fixture
def broker():
    return InMemoryBroker(max_async_tasks=5)


def test_async_and_sync_tasks(telemetry, broker):
    """The run is current in the task, is linked to who sent it, and waited since then."""

    @broker.task(task_name="later")
    async def later(x):
        operation.current().items = x
        return operation.current().name

    @broker.task(task_name="plain")
    def plain(x):
        operation.current().items = x
        return operation.current().name

    async def main():
        with measure("sender"):
            return [(await result_of(task, 3)).return_value for task in (later, plain)]

    with instrument(broker):
        assert drive(main, broker) == ["later", "plain"]
    for name in ("later", "plain"):
        span = telemetry.span(name)
        assert span.parent is None
        assert [link.context.span_id for link in span.links] == [telemetry.span("sender").context.span_id]
        assert span.attributes[c.JOB_TRIGGER] == "queue"
        assert span.attributes["messaging.system"] == "taskiq"
        assert span.attributes[c.JOB_ITEMS] == 3
        for metric in (c.JOB_DURATION, c.JOB_WAIT):
            assert count(telemetry, metric, name) == 1
        assert count(telemetry, c.JOBS_ACTIVE, name) == 0
        assert count(telemetry, c.JOB_LAST_SUCCESS, name) > 0


def test_each_failure_is_a_measurement(telemetry, broker):
    """N failed tasks are N failed runs."""

    @broker.task(task_name="bad")
    async def bad():
        raise LookupError

    async def main():
        for _ in range(3):
            assert isinstance((await result_of(bad)).error, LookupError)

    with instrument(broker):
        drive(main, broker)
    assert count(telemetry, c.JOB_DURATION, "bad", error__type="LookupError") == 3
    assert not telemetry.points(c.JOB_LAST_SUCCESS.name)


def test_retries_are_no_failures(telemetry, broker):
    """A run that is tried again has not failed; the last one succeeds, and each says which attempt it is."""
    broker.add_middlewares(SimpleRetryMiddleware(default_retry_count=5))
    tried = []

    @broker.task(task_name="again", retry_on_error=True)
    async def again():
        tried.append(1)
        if len(tried) < 3:
            raise LookupError

    with instrument(broker):
        drive(lambda: result_of(again), broker)
    spans = [span for span in telemetry.spans if span.name == "again"]
    assert [span.attributes.get(triggers.ATTEMPT) for span in spans] == [None, 2, 3]
    assert [span.attributes.get(runs.JOB_RETRIED) for span in spans] == [True, True, None]
    assert count(telemetry, c.JOB_DURATION, "again") == 3
    assert not telemetry.points(c.JOB_DURATION.name, error__type="LookupError")


def test_no_result_is_no_failure(telemetry, broker):
    """A task that wants no result has not failed."""

    @broker.task(task_name="quiet")
    async def quiet():
        raise NoResultError

    async def main():
        await quiet.kiq()

    with instrument(broker):
        drive(main, broker)
    assert telemetry.span("quiet").attributes.get(c.ERROR_TYPE) is None


def test_measure_job_within(telemetry, broker):
    """A task that `measure.job` decorates is that job, measured once."""

    @broker.task(task_name="module:nightly")
    @measure.job("nightly")
    async def nightly():
        operation.current().items = 4

    with instrument(broker):
        drive(lambda: result_of(nightly), broker)
    assert count(telemetry, c.JOB_DURATION, "nightly") == 1
    assert count(telemetry, c.JOB_ITEM_COUNT, "nightly") == 4
    assert [span.name for span in telemetry.spans] == ["nightly"]


def test_one_id_twice_at_once(telemetry, broker):
    """Each of two runs of one id ends as itself, whichever began first."""
    go = []

    @broker.task(task_name="twice")
    async def twice(bad):
        while len(go) < 2 or (not bad and len(go) < 3):  # noqa: ASYNC110 -- an event of the loop that runs later
            await asyncio.sleep(0)
        go.append(1)
        if bad:
            raise LookupError

    async def main():
        for bad in (True, False):
            await twice.kicker().with_task_id("same").kiq(bad)
            go.append(1)

    with instrument(broker):
        drive(main, broker)
    assert count(telemetry, c.JOB_DURATION, "twice") == 2
    spans = [span for span in telemetry.spans if span.name == "twice"]
    assert [span.attributes.get(c.ERROR_TYPE) for span in spans] == ["LookupError", None]
    assert spans[0].start_time <= spans[1].start_time


def test_undo_within_a_run(telemetry, broker):
    """A run in flight ends as it does, no other begins, and then the middleware is gone."""
    handle = instrument(broker)

    @broker.task(task_name="undo")
    async def undo():
        handle.undo()
        await next_one.kiq()
        await asyncio.sleep(0)

    @broker.task(task_name="next")
    async def next_one():
        pass

    drive(lambda: result_of(undo), broker)
    assert [(span.name, span.attributes.get(c.ERROR_TYPE)) for span in telemetry.spans] == [("undo", None)]
    assert count(telemetry, c.JOBS_ACTIVE, "undo") == 0
    assert broker.middlewares == []


class Stubborn(TaskiqMiddleware):
    """Somebody's middleware that is wrong."""

    def pre_execute(self, message):
        raise ZeroDivisionError


def test_a_middleware_that_raises(telemetry, broker):
    """The run that it cost ends with its asyncio task, as lost, and is no longer in flight."""
    broker.add_middlewares(Stubborn())

    @broker.task(task_name="lost")
    async def lost():
        pass

    async def main():
        await lost.kiq()
        for each in list(broker._running_tasks):
            await asyncio.wait([each])
            assert isinstance(each.exception(), ZeroDivisionError)
        await asyncio.sleep(0)

    with instrument(broker):
        drive(main, broker)
    assert count(telemetry, c.JOB_DURATION, "lost", error__type="lost") == 1
    assert count(telemetry, c.JOBS_ACTIVE, "lost") == 0
    assert taskiq._ours(broker) is None


class Copying(TaskiqMiddleware):
    """Somebody's middleware that hands on another message."""

    def pre_execute(self, message):
        return message.model_copy()


def test_a_middleware_that_copies(telemetry, broker):
    """The run ends with its task all the same, and nothing is remembered of it."""
    broker.add_middlewares(Copying())

    @broker.task(task_name="tick")
    async def tick():
        pass

    with instrument(broker):
        drive(lambda: result_of(tick), broker)
        assert taskiq._ours(broker)._open == {}
    assert c.ERROR_TYPE not in telemetry.span("tick").attributes
    assert count(telemetry, c.JOB_DURATION, "tick") == 1


def test_a_schedule(telemetry, broker):
    """What taskiq's scheduler sends says so."""

    @broker.task(task_name="tick")
    async def tick():
        pass

    async def main():
        await tick.kicker().with_labels(schedule_id="1").kiq()

    with instrument(broker):
        drive(main, broker)
    assert telemetry.span("tick").attributes[c.JOB_TRIGGER] == "schedule"


def test_the_middleware_of_taskiq_itself(telemetry, broker):
    """Where taskiq's own OpenTelemetry middleware makes the spans, only the metrics are added."""
    broker.add_middlewares(OpenTelemetryMiddleware(tracer_provider=telemetry.runtime.tracer_provider))

    @broker.task(task_name="tick")
    async def tick():
        pass

    with instrument(broker):
        drive(lambda: result_of(tick), broker)
    assert sorted(span.name for span in telemetry.spans) == ["execute/tick", "send/tick"]
    assert count(telemetry, c.JOB_DURATION, "tick") == 1


def test_as_a_whole(telemetry):
    """Brokers that are made while it is in force are measured; undoing it leaves none of ours in any."""
    before = AsyncBroker.__init__
    with instrument("taskiq"), instrument("taskiq"):
        broker = InMemoryBroker(max_async_tasks=5)

        @broker.task(task_name="tick")
        async def tick():
            pass

        with instrument(broker):
            drive(lambda: result_of(tick), broker)
        assert taskiq._ours(broker) is not None
    assert AsyncBroker.__init__ is before
    assert broker.middlewares == []
    assert count(telemetry, c.JOB_DURATION, "tick") == 1


def test_one_broker_of_two_holders():
    """A broker that is held for itself stays measured when the whole is undone."""
    whole = instrument("taskiq")
    broker = InMemoryBroker(max_async_tasks=5)
    own = instrument(broker)
    whole.undo()
    assert taskiq._ours(broker) is not None
    own.undo()
    assert broker.middlewares == []
    del own, broker
    gc.collect()
    assert len(taskiq._brokers) == 0
