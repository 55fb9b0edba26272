"""What had a job run over HTTP, by the headers of the request; they are a stranger's."""

from __future__ import annotations

import time

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from otel_perf import conventions as c
from otel_perf import instrument, measure, triggers
from otel_perf.telemetry import operation
from otel_perf.telemetry.operation import JOB, REQUEST, STEP, Operation
from otel_perf.triggers import Trigger
from tests.serving import served


class Request(Operation):
    def __init__(self, headers):
        super().__init__(REQUEST, "POST /jobs", ["POST", "/jobs"])
        self.headers = {name.encode(): value for name, value in headers.items()}

    def header(self, name):
        return self.headers.get(name)


def told(headers) -> Trigger | None:
    request = Request(headers)
    step = Operation(STEP, "step", [])
    step.parent = request
    return triggers.above(step)


def test_cloud_scheduler():
    """Its job's name and the time that it was due are taken."""
    headers = {"x-cloudscheduler": b"true", "x-cloudscheduler-jobname": b"nightly",
               "x-cloudscheduler-scheduletime": b"2026-11-24T04:00:00Z"}  # fmt: skip
    assert told(headers) == Trigger("schedule", 1795492800.0, {triggers.SCHEDULER_JOB: "nightly"})
    headers["x-cloudscheduler-scheduletime"] = b"2026-11-24T05:00:00.250000007+01:00"
    assert told(headers).asked_at_s == pytest.approx(1795492800.25, abs=1e-5)


def test_app_engine_cron():
    """It says only that it is one."""
    assert told({"x-appengine-cron": b"true"}) == Trigger("schedule")


@pytest.mark.parametrize("kind", ["cloudtasks", "appengine"])
def test_cloud_tasks(kind):
    """The queue, the task, the attempt and the time that it was meant for are taken."""
    headers = {f"x-{kind}-queuename": b"mail", f"x-{kind}-taskname": b"t1", f"x-{kind}-taskretrycount": b"2",
               f"x-{kind}-tasketa": b"1795492800.5"}  # fmt: skip
    attributes = {triggers.QUEUE_NAME: "mail", triggers.TASK_NAME: "t1", triggers.ATTEMPT: 3}
    assert told(headers) == Trigger("queue", 1795492800.5, attributes)


def test_another_request():
    """It is HTTP, and no more."""
    assert told({"x-cloudscheduler": b"false"}) == Trigger("http")
    assert told({}) == Trigger("http")


def test_no_request():
    """Outside of a request, and within another job, nothing is told."""
    assert triggers.above(None) is None
    outer = Operation(JOB, "outer", ["outer"])
    outer.parent = Request({"x-cloudscheduler": b"true"})
    step = Operation(STEP, "step", [])
    step.parent = outer
    assert triggers.above(step) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\x00\x1b[31m",
        b"x" * 100_000,
        b"nan",
        b"inf",
        b"-1",
        b"1e400",
        b"0001-01-01T00:00:00+23:59",
        b"9" * 30,
    ],
    ids=lambda value: repr(value)[:16],
)
def test_nonsense(value):
    """No value raises, fills the memory, or is taken for a number that it is not."""
    for kind in ("cloudscheduler", "cloudtasks", "appengine"):
        headers = {f"x-{kind}-{name}": value for name in
                   ("jobname", "scheduletime", "taskname", "taskretrycount", "tasketa")}  # fmt: skip
        headers |= {"x-cloudscheduler": b"true"} if kind == "cloudscheduler" else {f"x-{kind}-queuename": b"q"}
        found = told(headers)
        assert found.kind in {"schedule", "queue"}
        assert found.asked_at_s is None or 0 <= found.asked_at_s < 1e31
        assert all(len(text) <= 128 and text.isprintable() for text in found.attributes.values() if type(text) is str)
        assert 1 <= found.attributes.get(triggers.ATTEMPT, 1) <= 1_000_000


@pytest.mark.parametrize("status", [200, 500])
def test_a_real_request_of_cloud_scheduler(telemetry, status):
    """Through a real server the job is a child of the request, and waited since the time in the header."""

    @measure.job("nightly")
    async def nightly() -> None:
        if status != 200:
            raise LookupError

    async def endpoint(_request):
        try:
            await nightly()
        finally:
            ended.append(operation.current().name)
        return PlainTextResponse("done")

    ended: list[str] = []
    app = Starlette(routes=[Route("/jobs/{name}", endpoint, methods=["POST"])])
    due = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 60))
    headers = {"X-CloudScheduler": "true", "X-CloudScheduler-JobName": "clock", "X-CloudScheduler-ScheduleTime": due}
    with instrument(app), served(app) as url:
        assert httpx.post(f"{url}/jobs/nightly", headers=headers).status_code == status
    job = telemetry.span("nightly")
    request = next(span for span in telemetry.spans if span.name.startswith("POST"))
    assert job.parent.span_id == request.context.span_id
    assert job.attributes[c.JOB_TRIGGER] == "schedule"
    assert job.attributes[triggers.SCHEDULER_JOB] == "clock"
    assert job.attributes.get(c.ERROR_TYPE) == (None if status == 200 else "LookupError")
    [wait] = telemetry.points(c.JOB_WAIT.name, background__job__name="nightly")
    assert (wait.count, 59 <= wait.sum < 90) == (1, True)
