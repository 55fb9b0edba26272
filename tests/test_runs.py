"""Runs of jobs: rate, overlap, queue wait, what had them begin, and one measurement for each however it ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from decimal import Decimal
from fractions import Fraction

import pytest
from opentelemetry.trace import Link, SpanContext, TraceFlags

import otel_perf
from otel_perf import conventions as c
from otel_perf import guard, jobs, measure, runs, triggers
from otel_perf.telemetry import operation
from otel_perf.telemetry.operation import REQUEST, Operation


@pytest.fixture(autouse=True)
def _none_seen(monkeypatch):
    monkeypatch.setattr(jobs, "_jobs", {})
    monkeypatch.setattr(jobs, "_seen", {})


def count(telemetry, metric, name="nightly", **labels) -> float:
    points = telemetry.points(metric.name, background__job__name=name, **labels)
    return sum(point.count if metric.kind == "histogram" else point.value for point in points)


class Asked(Operation):
    """A request with headers."""

    def __init__(self, headers) -> None:
        super().__init__(REQUEST, "POST /jobs", ["POST", "/jobs"])
        self.headers = headers

    def header(self, name):
        return self.headers.get(name)


def test_items_and_rate(telemetry):
    """Items are counted, and what they come to in a second is on the operation and on the span."""
    with measure.job("nightly") as run:
        run.items = 50
        assert run.rate is None
        time.sleep(0.01)
    assert run.rate == pytest.approx(50 / run.seconds)
    span = telemetry.span("nightly")
    assert span.attributes[runs.JOB_RATE] == pytest.approx(run.rate)
    assert span.attributes[c.JOB_ITEMS] == 50
    assert count(telemetry, c.JOB_ITEM_COUNT) == 50


@pytest.mark.parametrize("items", [Decimal(50), Fraction(50), 50.0])
def test_any_class_of_number(telemetry, items):
    """The rate is a plain number of it."""
    with measure.job("nightly") as run:
        run.items = items
    assert type(run.rate) is float
    assert telemetry.span("nightly").attributes[runs.JOB_RATE] == run.rate


@pytest.mark.parametrize("items", [None, 0, -3, float("nan"), float("inf")])
def test_no_rate(telemetry, items):
    """Without items, or with nonsense for them, there is no rate."""
    with measure.job("nightly") as run:
        run.items = items
    assert run.rate is None
    assert runs.JOB_RATE not in telemetry.span("nightly").attributes


def test_items_that_are_no_number(telemetry, monkeypatch):
    """Reading the rate raises nothing."""
    monkeypatch.setattr(guard, "strict", False)
    with measure.job("nightly") as run:
        run.items = "many"
    assert run.rate is None
    run.items = 10**400
    assert run.rate is None


def test_an_overlap(telemetry):
    """A run that begins while another is in flight is counted, and its span says so."""
    job = measure.job("nightly")
    begun, go = threading.Event(), threading.Event()

    def first() -> None:
        with job:
            begun.set()
            go.wait(5)

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait(5)
    with job:
        pass
    with measure.job("another"):
        go.set()
        thread.join()
    with job:
        pass
    assert count(telemetry, c.JOB_OVERLAPS) == 1
    shown = [span.attributes.get(runs.JOB_OVERLAP) for span in telemetry.spans if span.name == "nightly"]
    assert shown == [True, None, None]
    assert count(telemetry, c.JOB_DURATION) == 3
    assert count(telemetry, c.JOBS_ACTIVE) == 0


def test_within_itself(telemetry):
    """A job that begins itself again overlaps itself; both runs are measured, one below the other."""
    job = measure.job("nightly")
    with job as outer, job as inner:
        assert inner.parent is outer
    assert count(telemetry, c.JOB_DURATION) == 2
    assert count(telemetry, c.JOB_OVERLAPS) == 1


@pytest.mark.parametrize(
    ("ago_s", "waits"), [(2.0, True), (0.0, True), (-5.0, False), (90 * 86400.0, False), (float("nan"), False)]
)
def test_queue_wait(telemetry, ago_s, waits):
    """The time since it was asked for is measured; one that cannot be is left out."""
    run = runs.begin("nightly", trigger="queue", asked_at_s=time.time() - ago_s)
    run.stop()
    assert count(telemetry, c.JOB_WAIT) == waits
    span = telemetry.span("nightly")
    assert span.attributes[c.JOB_TRIGGER] == "queue"
    assert (runs.JOB_WAITED in span.attributes) == waits
    assert not waits or ago_s <= span.attributes[runs.JOB_WAITED] < ago_s + 30


def test_cloud_scheduler(telemetry):
    """A job within such a request waited since it was due, is a child of the request, and names its scheduler."""
    due = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 60)).encode()
    request = Asked({b"x-cloudscheduler": b"true", b"x-cloudscheduler-jobname": b"clock",
                     b"x-cloudscheduler-scheduletime": due})  # fmt: skip
    request.activate()
    try:
        with measure("step"), measure.job("nightly") as run:
            assert run.within("job") is False
        with measure.job("outer"), measure.job("inner"):
            pass
    finally:
        request.deactivate()
    span = telemetry.span("nightly")
    assert span.parent.span_id == telemetry.span("step").context.span_id
    assert span.attributes[c.JOB_TRIGGER] == "schedule"
    assert span.attributes[triggers.SCHEDULER_JOB] == "clock"
    assert 59 <= span.attributes[runs.JOB_WAITED] < 90
    assert count(telemetry, c.JOB_WAIT) == 1
    assert c.JOB_TRIGGER not in telemetry.span("inner").attributes


def test_a_plain_request(telemetry):
    """A job within any other request says http, and has no wait."""
    with measure.request("POST", "/jobs"), measure.job("nightly"):
        pass
    assert telemetry.span("nightly").attributes[c.JOB_TRIGGER] == "http"
    assert count(telemetry, c.JOB_WAIT) == 0


def test_a_run_of_its_own(telemetry):
    """A root run has a trace of its own with a link, and leaves what is current as it was."""
    sender = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1))
    with measure("request") as around:
        run = runs.begin("nightly", trigger="queue", links=[Link(sender)], root=True)
        assert operation.current() is run
        assert run.parent is None
        run.stop()
        assert operation.current() is around
    span = telemetry.span("nightly")
    assert span.parent is None
    assert [link.context.span_id for link in span.links] == [2]


def test_one_run_measured_by_two(telemetry):
    """`measure.job` within a run of the same name that a queue began is that run: items, attributes, failure."""

    @measure.job("nightly")
    def nightly() -> None:
        run = operation.current()
        run.items = 7
        run.set("a", 1)
        run.fail("declined")

    assert runs.name_of(nightly) == "nightly"
    assert runs.name_of(len) is None
    outer = runs.begin("nightly", trigger="queue", root=True, for_another=True)
    nightly()
    outer.stop()
    assert (outer.items, outer.error_type) == (7, "declined")
    assert count(telemetry, c.JOB_DURATION) == 1
    assert count(telemetry, c.JOB_OVERLAPS) == 0
    assert count(telemetry, c.JOBS_ACTIVE) == 0
    [span] = telemetry.spans
    assert (span.attributes["a"], span.attributes[c.JOB_ITEMS], span.attributes[c.ERROR_TYPE]) == (1, 7, "declined")


def test_a_run_that_is_tried_again(telemetry):
    """It is measured, has not failed, and is no success that anybody could wait for."""
    run = runs.begin("nightly")
    run.retry()
    run.stop()
    assert count(telemetry, c.JOB_DURATION) == 1
    assert not telemetry.points(c.JOB_LAST_SUCCESS.name)
    assert telemetry.span("nightly").attributes[runs.JOB_RETRIED] is True
    assert count(telemetry, c.JOBS_ACTIVE) == 0


# However it ends ------------------------------------------------------------------------------------------------------


def plainly(fail) -> None:
    @measure.job("nightly")
    def work() -> None:
        if fail:
            raise LookupError

    work()


def in_a_block(fail) -> None:
    with measure.job("nightly"):
        if fail:
            raise LookupError


def by_a_coroutine(fail) -> None:
    @measure.job("nightly")
    async def work() -> None:
        await asyncio.sleep(0)
        if fail:
            raise LookupError

    asyncio.run(work())


def by_an_async_block(fail) -> None:
    async def work() -> None:
        async with measure.job("nightly"):
            await asyncio.sleep(0)
            if fail:
                raise LookupError

    asyncio.run(work())


def by_a_generator(fail) -> None:
    @measure.job("nightly")
    def work():
        yield 1
        if fail:
            raise LookupError

    assert list(work()) == [1]


def by_an_async_generator(fail) -> None:
    @measure.job("nightly")
    async def work():
        yield 1
        if fail:
            raise LookupError

    async def main() -> None:
        assert [each async for each in work()] == [1]

    asyncio.run(main())


WAYS = [plainly, in_a_block, by_a_coroutine, by_an_async_block, by_a_generator, by_an_async_generator]


@pytest.mark.parametrize("way", WAYS)
def test_each_failure_is_a_measurement(telemetry, way):
    """N failed runs are N failed measurements; none is left in flight or current, and none overlaps the next."""
    for _ in range(3):
        with pytest.raises(LookupError):
            way(fail=True)
    way(fail=False)
    assert count(telemetry, c.JOB_DURATION, error__type="LookupError") == 3
    assert count(telemetry, c.JOB_DURATION) == 4
    assert count(telemetry, c.JOBS_ACTIVE) == 0
    assert count(telemetry, c.JOB_OVERLAPS) == 0
    assert operation.current() is None
    assert jobs._seen["nightly"].running == []


def test_a_cancelled_run(telemetry):
    """It is a failure of that name, and no longer in flight."""

    @measure.job("nightly")
    async def work() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert count(telemetry, c.JOB_DURATION, error__type="asyncio.exceptions.CancelledError") == 1
    assert jobs._seen["nightly"].running == []


def test_a_generator_that_is_left(telemetry):
    """Leaving it early ends the run, also where only the garbage collector does."""

    @measure.job("nightly")
    def work():
        yield 1
        yield 2

    left = work()
    next(left)
    del left
    gc.collect()
    assert count(telemetry, c.JOB_DURATION) == 1
    assert jobs._seen["nightly"].running == []


def test_before_and_after_configure(telemetry):
    """Runs before `configure()` are seen and not measured; what began before counts down nowhere."""
    otel_perf.shutdown()
    run = runs.begin("nightly")
    telemetry.restart()
    run.stop()
    assert not telemetry.points(c.JOB_DURATION.name)
    assert jobs._seen["nightly"].running == []


def test_many_jobs(telemetry, monkeypatch):
    """Names made up at run time become one, and a name of a megabyte a short one."""
    monkeypatch.setattr(jobs, "_MAX_JOBS", 20)
    for number in range(23):
        runs.begin(f"job-{number}", activate=False).stop()
    runs.begin("x" * 1_000_000, activate=False).stop()
    assert count(telemetry, c.JOB_DURATION, "_OTHER") == 4
    assert len(jobs._seen) == 20
    monkeypatch.setattr(jobs, "_MAX_JOBS", 21)
    runs.begin("x" * 1_000_000, activate=False).stop()
    assert count(telemetry, c.JOB_DURATION, "x" * 256) == 1


def test_the_names_beyond_the_limit_have_a_series(telemetry):
    """They come before the limit of a metric, so they are seen as `_OTHER`."""
    for number in range(2010):
        runs.begin(f"job-{number}", activate=False, span=False).stop()
    assert count(telemetry, c.JOB_DURATION, "_OTHER") == 20
    assert not telemetry.points(c.JOB_DURATION.name, otel__metric__overflow=True)


@pytest.mark.parametrize(
    ("where", "what"), [(jobs, "enter"), (triggers, "above"), (jobs, "leave"), (operation, "current")]
)
def test_faults_of_ours(telemetry, monkeypatch, where, what):
    """They are counted and kept from the job, which is measured all the same."""

    def fault(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(guard, "strict", False)
    with monkeypatch.context() as patch:
        patch.setattr(where, what, fault)
        run = runs.begin("nightly")
        run.stop()
    assert guard.errors
    assert len(telemetry.spans) == 1
    assert operation.current() is None
