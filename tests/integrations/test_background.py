"""Background tasks: jobs of their own, after the response."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import time
from typing import Any

import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from starlette.background import BackgroundTask
from starlette.background import BackgroundTasks as StarletteTasks
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse

from otel_perf import instrument, measure
from otel_perf.integrations import background
from otel_perf.integrations.patch import Patches
from otel_perf.telemetry import logs, operation
from tests.asking import Copying, answering, ask, ask_all, scope
from tests.serving import served

DURATION = "http.server.request.duration"


@pytest.mark.parametrize("middleware", [False, True])
@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize("error", [RuntimeError("mail"), HTTPException(500)])
def test_a_background_task_that_fails_is_not_the_request(telemetry, error, status, middleware):
    """What a background task raises after the last byte is not the request's error: its status is."""
    app = FastAPI()

    @app.get("/")
    async def endpoint() -> JSONResponse:
        async def work() -> None:
            raise error

        return JSONResponse({}, status, background=BackgroundTask(work))

    async def pass_on(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    if middleware:
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    instrument(app)
    assert ask(app, "/").status_code == status
    (point,) = telemetry.points(DURATION)
    expected = None if status == 200 else "503"
    assert point.attributes.get("error.type") == expected
    assert telemetry.span("GET /").attributes.get("error.type") == expected


async def send_mail(to: str) -> None:
    """A task."""


def write_log() -> None:
    with measure("writing"):
        pass


class Sweep:
    """A task that is an object."""

    async def __call__(self) -> None:
        """Nothing to do."""


def tasks_app() -> FastAPI:
    app = FastAPI()

    @app.post("/orders/{number}")
    async def order(number: int, tasks: BackgroundTasks) -> int:
        tasks.add_task(send_mail, "a@b.c")
        tasks.add_task(write_log)
        return number

    @app.get("/one")
    async def one() -> JSONResponse:
        return JSONResponse({}, background=BackgroundTask(send_mail, "x"))

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({}, background=BackgroundTask(send_mail, "x"))

    return app


def jobs(telemetry: Any, metric: str = "background.job.duration") -> dict[str, int]:
    """How many runs of each job a metric has, failed ones under their error."""
    found: dict[str, int] = {}
    for point in telemetry.points(metric):
        name = point.attributes["background.job.name"].rpartition(".")[2]
        error = point.attributes.get("error.type")
        found[f"{name} {error}" if error else name] = point.count
    return found


@pytest.mark.parametrize("middleware", [None, Copying, "base"])
def test_each_task_is_a_job_that_links_to_its_request(telemetry, middleware):
    """Async and sync tasks are runs with a trace of their own, a link to the request, its id, and a wait."""
    seen: list[Any] = []
    app = tasks_app()

    async def look() -> None:
        seen.append((logs.request_id.get(), trace.get_current_span().get_span_context(), operation.current().kind))

    @app.get("/look")
    async def looking(tasks: BackgroundTasks) -> None:
        tasks.add_task(look)

    async def pass_on(request: Request, call_next: Any) -> Any:
        with measure("middleware"):
            return await call_next(request)

    if middleware == "base":
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    elif middleware:
        app.add_middleware(middleware)
    instrument(app)
    ask_all(app, ("POST", "/orders/7"), ("GET", "/look"), headers={"x-request-id": "r-1"})
    assert (
        jobs(telemetry) == jobs(telemetry, "background.job.queue.wait") == {"send_mail": 1, "write_log": 1, "look": 1}
    )
    assert [point.value for point in telemetry.points("background.job.active")] == [0, 0, 0]
    request = telemetry.span("POST /orders/{number}")
    for name in (send_mail, write_log):
        full = f"{name.__module__}.{name.__qualname__}"
        run = telemetry.span(full)
        assert run.parent is None
        assert run.context.trace_id != request.context.trace_id
        assert [each.context.span_id for each in run.links] == [request.context.span_id]
        assert run.kind is SpanKind.INTERNAL
        assert run.attributes["background.job.trigger"] == "request"
        assert run.attributes["background.job.queue.wait"] >= 0
        assert run.start_time >= request.end_time
    assert (
        telemetry.span("writing").parent.span_id == telemetry.span(f"{write_log.__module__}.write_log").context.span_id
    )
    ((request_id, context, kind),) = seen
    assert (request_id, kind) == ("r-1", operation.JOB)
    look_span = next(each for each in telemetry.spans if each.name.endswith(".look"))
    assert context.span_id == look_span.context.span_id


def test_lists_within_lists_and_odd_functions(telemetry):
    """Each task of a list is a run and the list is none; partials, objects and closures have names that are bounded."""
    app = FastAPI()

    def long() -> None:
        pass

    long.__qualname__ = "x" * 1_000_000

    @app.get("/")
    async def endpoint() -> JSONResponse:
        inner = StarletteTasks([BackgroundTask(functools.partial(send_mail, "x")), BackgroundTask(Sweep())])
        return JSONResponse({}, background=StarletteTasks([inner, BackgroundTask(long), BackgroundTask(lambda: None)]))

    instrument(app)
    ask(app, "/")
    names = {point.attributes["background.job.name"] for point in telemetry.points("background.job.duration")}
    module = __name__
    assert {f"{module}.send_mail", f"{module}.Sweep"} <= names
    assert max(map(len, names)) <= 256
    assert len(names) == 4


@pytest.mark.parametrize("error", [ValueError("x"), asyncio.CancelledError(), HTTPException(404)])
@pytest.mark.parametrize("listed", [False, True])
def test_failed_tasks_are_failed_runs_once_each(telemetry, error, listed):
    """N tasks that fail are N failures of the job, with one event each, and none of the request."""
    app = FastAPI()

    async def fail() -> None:
        raise error

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> JSONResponse:
        if listed:
            tasks.add_task(fail)
            return JSONResponse({}, background=tasks)
        return JSONResponse({}, background=BackgroundTask(fail))

    instrument(app)

    async def thrice() -> None:
        for _ in range(3):
            with contextlib.suppress(type(error), RuntimeError):
                await app(scope(), nothing, swallow)

    asyncio.run(thrice())
    name = type(error).__name__ if not isinstance(error, HTTPException) else "starlette.exceptions.HTTPException"
    ((told, count),) = jobs(telemetry).items()
    assert (told.partition(" ")[0], count) == ("fail", 3)
    assert told.endswith(name.rpartition(".")[2])
    runs = [each for each in telemetry.spans if each.name.endswith("fail")]
    assert [[event.name for event in each.events] for each in runs] == [["exception"]] * 3
    requests = [each for each in telemetry.spans if each.name == "GET /"]
    assert [(len(each.events), "error.type" in each.attributes) for each in requests] == [(0, False)] * 3


async def nothing() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def swallow(message: Any) -> None:
    pass


def test_the_response_time_is_without_its_tasks(telemetry):
    """The request has ended, and is no longer active, when its task begins."""
    app, seen = FastAPI(), []

    async def look() -> None:
        seen.append((telemetry.points(DURATION)[0].count, telemetry.points("http.server.active_requests")[0].value))

    @app.get("/")
    async def endpoint() -> JSONResponse:
        return JSONResponse({}, background=BackgroundTask(look))

    instrument(app)
    ask(app, "/")
    assert seen == [(1, 0)]


def test_a_task_that_is_a_measured_job_is_one_run(telemetry):
    """A task that `measure.job` decorates is counted once."""
    app = FastAPI()

    @measure.job("sweep")
    async def sweep() -> None:
        """Nothing to do."""

    @app.get("/")
    async def endpoint() -> JSONResponse:
        return JSONResponse({}, background=BackgroundTask(sweep))

    instrument(app)
    ask(app, "/")
    assert jobs(telemetry) == {"sweep": 1}
    assert len([each for each in telemetry.spans if each.name.endswith("sweep")]) == 1


def test_tasks_of_excluded_and_foreign_requests_are_none(telemetry):
    """A task of an excluded path, of an app that is not measured, or of nobody runs as ever and counts nothing."""
    app, other = tasks_app(), tasks_app()
    instrument(app)
    assert ask(app, "/health").status_code == 200
    assert ask(other, "/one").status_code == 200
    asyncio.run(BackgroundTask(send_mail, "x")())
    assert jobs(telemetry) == {}
    assert not [each for each in telemetry.spans if each.name.endswith("send_mail")]


def test_an_unsampled_request_has_tasks_all_the_same(telemetry):
    """Durations and waits are counted without spans."""
    telemetry.restart(sampler="always_off")
    app = tasks_app()
    instrument(app)
    ask(app, "/one")
    assert jobs(telemetry) == {"send_mail": 1}
    assert telemetry.spans == []


def test_it_is_wrapped_while_an_app_is_measured(telemetry, monkeypatch):
    """The first app puts the wrapper in, the last takes it out, and the very same function is there again."""
    # Other tests leave apps behind that are measured still.
    monkeypatch.setattr(background, "_patches", Patches(background._make))
    monkeypatch.setattr(BackgroundTask, "__call__", inspect.unwrap(BackgroundTask.__call__))
    before = vars(BackgroundTask)["__call__"]
    first, second = instrument(tasks_app()), instrument(tasks_app())
    plain = instrument(answering())
    assert vars(BackgroundTask)["__call__"] is not before
    for each in (first, second, plain):
        assert vars(BackgroundTask)["__call__"] is not before
        each.undo()
        each.undo()
    assert vars(BackgroundTask)["__call__"] is before


def test_without_configure_tasks_run_as_ever():
    """Before `configure()` a task runs and nothing is measured."""
    app = tasks_app()
    with instrument(app):
        assert ask(app, "/one").status_code == 200


@pytest.mark.parametrize("engine", ["native", "upstream"])
def test_other_engines_show_tasks_themselves(telemetry, engine):
    """Each task has the one span that the engine makes, and our duration and wait."""
    app = tasks_app()
    if engine == "native" and not hasattr(app, "_telemetry"):
        pytest.skip("this FastAPI does not measure itself")
    before = vars(BackgroundTask)["__call__"]
    with instrument(app, engine=engine):
        ask(app, "/orders/7", "POST")
    names = [each.name for each in telemetry.spans]
    shown = [each for each in names if "background_task" in each or each.startswith("BackgroundTask ")]
    assert len(shown) == 2
    assert not [each for each in names if each.endswith((".send_mail", ".write_log"))]
    assert jobs(telemetry) == jobs(telemetry, "background.job.queue.wait") == {"send_mail": 1, "write_log": 1}
    assert len([each for each in telemetry.spans if each.kind is SpanKind.SERVER]) == 1
    assert vars(BackgroundTask)["__call__"] is before


def test_behind_a_real_server(telemetry):
    """Behind uvicorn the answer is there before the task has run."""
    app, go = FastAPI(), threading.Event()

    def wait() -> None:
        go.wait(5)

    @app.get("/")
    async def endpoint() -> JSONResponse:
        return JSONResponse({}, background=BackgroundTask(wait))

    instrument(app)
    with served(app) as address:
        assert httpx.get(address).status_code == 200
        deadline = time.monotonic() + 5
        while not telemetry.points(DURATION) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert telemetry.points(DURATION)[0].count == 1
        assert jobs(telemetry) == {}
        go.set()
    assert jobs(telemetry) == {"wait": 1}
