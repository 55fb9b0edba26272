"""Celery: its tasks are runs of jobs, with real workers on a real Redis."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Ignore, Reject, WorkerLostError

from otel_perf import conventions as c
from otel_perf import instrument, measure, runs, triggers
from otel_perf.integrations import celery
from otel_perf.telemetry import operation

QUIET = {
    "worker_hijack_root_logger": False, "worker_redirect_stdouts": False, "broker_connection_retry_on_startup": True,
    "result_expires": 60, "task_default_queue": "celery-test",
}  # fmt: skip


#: What the task `undo` does.
within: list = []


class OddError(Exception):
    """Cannot be pickled."""

    def __init__(self, lock) -> None:
        super().__init__(lock)
        self.lock = lock


def tasks(app) -> None:
    @app.task(name="add", shared=False)
    def add(x, y):
        operation.current().items = x
        return [operation.current().name, x + y]

    @app.task(name="bad", shared=False)
    def bad():
        raise LookupError

    @app.task(name="odd", shared=False)
    def odd():
        import threading

        raise OddError(threading.Lock())

    @app.task(name="again", shared=False, bind=True, max_retries=5)
    def again(self):
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return self.request.retries

    @app.task(name="undo", shared=False)
    def undo():
        within.pop()()
        app.tasks["bad"].apply()

    @app.task(name="quiet", shared=False)
    def quiet(kind):
        raise {"ignore": Ignore, "reject": Reject}[kind]

    @app.task(name="module.nightly", shared=False)
    @measure.job("nightly")
    def nightly():
        operation.current().items = 4


def leave_logging(**_) -> None:
    """Whoever listens to this signal sees to logging."""


@pytest.fixture(scope="module")
def app(redis_server) -> Iterator[Celery]:
    """An app with a worker that takes its tasks, in a thread of this process."""
    made = Celery("test", set_as_current=False)
    made.conf.update(broker_url=redis_server.url, result_backend="cache+memory://", **QUIET)
    tasks(made)
    signals.setup_logging.connect(leave_logging)  # a worker would set the level of the root logger, for all tests
    try:
        with start_worker(made, perform_ping_check=False, pool="solo"):
            yield made
    finally:
        signals.setup_logging.disconnect(leave_logging)
    made.close()


@pytest.fixture
def measured(app, telemetry) -> Iterator[Celery]:
    with instrument(app):
        yield app


def run(app, name, *args, **options):
    return app.tasks[name].apply_async(args, **options).get(timeout=10, interval=0.02)


def settled(app) -> None:
    """The answer comes before the end of a task: the next task comes after it."""
    run(app, "add", 1, 1)


def count(telemetry, metric, name, **labels):
    points = telemetry.points(metric.name, background__job__name=name, **labels)
    return sum(point.count if metric.kind == "histogram" else point.value for point in points)


def test_a_task(telemetry, measured):
    """The run is current in the task, has a trace of its own with a link, and waited since it was sent."""
    with measure("sender"):
        assert run(measured, "add", 2, 3) == ["add", 5]
    settled(measured)
    span = next(span for span in telemetry.spans if span.name == "add")
    assert span.parent is None
    assert [link.context.span_id for link in span.links] == [telemetry.span("sender").context.span_id]
    assert span.attributes[c.JOB_TRIGGER] == "queue"
    assert span.attributes[triggers.QUEUE_NAME] == "celery-test"
    assert span.attributes[c.JOB_ITEMS] == 2
    assert count(telemetry, c.JOB_DURATION, "add") >= 1
    assert count(telemetry, c.JOB_WAIT, "add") >= 1
    assert count(telemetry, c.JOB_LAST_SUCCESS, "add") > 0


def test_each_failure_is_a_measurement(telemetry, measured):
    """N failed tasks are N failed runs, and none is left in flight."""
    for _ in range(3):
        with pytest.raises(LookupError):
            run(measured, "bad")
    settled(measured)
    assert count(telemetry, c.JOB_DURATION, "bad", error__type="LookupError") == 3
    assert count(telemetry, c.JOBS_ACTIVE, "bad") == 0
    assert "bad" not in {point.attributes[c.JOB_NAME] for point in telemetry.points(c.JOB_LAST_SUCCESS.name)}


def test_what_cannot_be_pickled(telemetry, measured):
    """A failure that Celery wraps has the name of what was raised."""
    with pytest.raises(Exception, match="OddError"):
        run(measured, "odd")
    settled(measured)
    assert count(telemetry, c.JOB_DURATION, "odd", error__type=f"{__name__}.OddError") == 1


def test_retries_are_no_failures(telemetry, measured):
    """A run that is tried again has not failed; each says which attempt it is."""
    assert run(measured, "again") == 2
    settled(measured)
    spans = [span for span in telemetry.spans if span.name == "again"]
    assert [span.attributes.get(triggers.ATTEMPT) for span in spans] == [None, 2, 3]
    assert [span.attributes.get(runs.JOB_RETRIED) for span in spans] == [True, True, None]
    assert [len(span.links) for span in spans] == [0, 1, 1]
    assert count(telemetry, c.JOB_DURATION, "again") == 3
    assert not telemetry.points(c.JOB_DURATION.name, error__type="celery.exceptions.Retry")


@pytest.mark.parametrize("kind", ["ignore", "reject"])
def test_ignored_and_rejected(telemetry, measured, kind):
    """They are runs, no failures, and no successes that anybody could wait for."""
    measured.tasks["quiet"].apply_async((kind,))
    settled(measured)
    assert count(telemetry, c.JOB_DURATION, "quiet") == 1
    assert c.ERROR_TYPE not in telemetry.span("quiet").attributes
    assert not telemetry.points(c.JOB_LAST_SUCCESS.name, background__job__name="quiet")


def test_measure_job_within(telemetry, measured):
    """A task that `measure.job` decorates is that job, measured once."""
    run(measured, "module.nightly")
    settled(measured)
    assert count(telemetry, c.JOB_DURATION, "nightly") == 1
    assert count(telemetry, c.JOB_ITEM_COUNT, "nightly") == 4
    assert not telemetry.points(c.JOB_DURATION.name, background__job__name="module.nightly")


def test_eagerly(telemetry, measured):
    """A task that runs where it is called is a child of what is current, and a retry of it is a child too."""
    with measure("caller"):
        assert measured.tasks["add"].apply((2, 3)).get() == ["add", 5]
        assert measured.tasks["again"].apply().get() == 2
        assert operation.current().name == "caller"
    assert telemetry.span("add").parent.span_id == telemetry.span("caller").context.span_id
    assert count(telemetry, c.JOB_DURATION, "again") == 3
    assert count(telemetry, c.JOB_WAIT, "add") == 0


def test_another_app(telemetry, measured):
    """Only the app that was given is measured; `instrument("celery")` takes all."""
    other = Celery("other", set_as_current=False, broker="memory://", backend="cache+memory://")
    tasks(other)
    for _ in range(2):
        with pytest.raises(LookupError):
            other.tasks["bad"].apply(throw=True)
    assert not telemetry.points(c.JOB_DURATION.name)
    with instrument("celery"), pytest.raises(LookupError):
        other.tasks["bad"].apply(throw=True)
    assert count(telemetry, c.JOB_DURATION, "bad", error__type="LookupError") == 1
    other.close()


def test_the_polling_of_a_worker_is_never_slow(telemetry, measured):
    """What a worker waits for on Redis is not slow, whatever the limit."""
    telemetry.restart(slow_query_s=0.01)
    with instrument("redis"):
        run(measured, "add", 2, 3)
        settled(measured)
    slow = [point.attributes["db.operation.name"] for point in telemetry.points(c.QUERY_SLOW.name)]
    assert not [name for name in slow if "POP" in name]


def test_a_time_in_the_future(telemetry):
    """A task that was meant for later waited since then, whatever the zone; nonsense is no time."""
    assert celery._asked_at_s({"otel_perf_sent": "100.5"}) == 100.5
    eta = {"otel_perf_sent": "100.5", "eta": "2026-11-24T05:00:00+01:00"}
    assert celery._asked_at_s(eta) == 1795492800.0
    assert celery._asked_at_s({**eta, "eta": "2026-11-24T04:00:00Z"}) == 1795492800.0
    assert celery._asked_at_s({**eta, "eta": "2026-11-24T04:00:00"}) == 1795492800.0
    assert celery._asked_at_s({"eta": "2026-11-24T04:00:00"}) is None


def test_a_task_that_ended_with_its_process(telemetry, app, monkeypatch):
    """The main process tells of it, perhaps twice: it is one failed run, and not many ids are remembered."""
    monkeypatch.setattr(celery, "_killed", {})
    monkeypatch.setattr(celery, "_REMEMBERED", 1)
    with instrument(app):
        for task_id in ("1", "1", "2", "2"):
            signals.task_failure.send(sender=app.tasks["add"], task_id=task_id, exception=WorkerLostError("gone"))
        signals.task_failure.send(sender=app.tasks["add"], task_id="1", exception=LookupError())
    assert count(telemetry, c.JOB_DURATION, "add", error__type="billiard.exceptions.WorkerLostError") == 2
    assert count(telemetry, c.JOB_DURATION, "add") == 2
    assert list(celery._killed) == ["2"]


def test_undo_within_a_run(telemetry, app):
    """A run in flight ends as it does, and then nothing of ours listens any more."""
    before = [list(each.receivers) for each in (signals.task_postrun, signals.task_failure)]
    handle = instrument(app)
    within.append(handle.undo)
    run(app, "undo")
    with pytest.raises(LookupError):  # the next task comes after the end of the first
        run(app, "bad")
    assert [span.name for span in telemetry.spans] == ["undo"]
    assert count(telemetry, c.JOB_DURATION, "undo") == 1
    assert count(telemetry, c.JOBS_ACTIVE, "undo") == 0
    assert celery._open == {}
    assert [list(each.receivers) for each in (signals.task_postrun, signals.task_failure)] == before


def test_worker_processes(redis_server, tmp_path):
    """In a pool of processes each run is measured where it runs, and a task that is killed once, by the main one."""
    script = Path(__file__).with_name("celery_worker.py")
    done = subprocess.run(
        [sys.executable, str(script), redis_server.url, str(tmp_path)],
        capture_output=True, text=True, timeout=50, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["answers"] == [["add", 3, True]] * 4
    assert told["counts"] == {"add": 4, "bad LookupError": 2, "slow billiard.exceptions.TimeLimitExceeded": 1}
    assert told["several"] is True
