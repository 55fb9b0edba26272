"""What comes after the last byte, and clients that leave before the first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from opentelemetry.trace import SpanKind, StatusCode
from starlette.responses import PlainTextResponse

from otel_perf import instrument, measure
from tests.asking import BODY, START, answering, ask, scope

DURATION = "http.server.request.duration"
ACTIVE = "http.server.active_requests"


def server(telemetry: Any) -> Any:
    (span,) = [each for each in telemetry.spans if each.kind is SpanKind.SERVER]
    return span


def leaving(app: Any, **more: Any) -> list[Any]:
    """Asks an app whose client sends the beginning of a body and leaves; answers what was sent to nobody."""
    sent: list[Any] = []
    messages = iter(({"type": "http.request", "body": b"abc", "more_body": True},))

    async def receive() -> Any:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        try:
            await app(scope(**more), receive, send)
        except Exception as error:
            sent.append(error)

    asyncio.run(main())
    return sent


def test_a_commit_that_fails_after_the_response_is_told(telemetry: Any) -> None:
    """N commits that fail behind a `yield` are N failures, each with its exception, whatever status was sent."""
    app, committing = FastAPI(), []

    def session() -> Iterator[int]:
        yield 1
        with measure("commit"):
            committing.append(telemetry.points(ACTIVE)[0].value)
            raise LookupError("dup")

    @app.post("/orders")
    async def order(_: int = Depends(session)) -> int:  # noqa: FAST002 -- text cannot name what is local
        return 1

    instrument(app)
    statuses = {ask(app, "/orders", "POST").status_code for _ in range(3)}
    (point,) = telemetry.points(DURATION)
    assert (point.count, point.attributes["error.type"]) == (3, "LookupError")
    assert {point.attributes["http.response.status_code"]} == statuses
    spans = [each for each in telemetry.spans if each.kind is SpanKind.SERVER]
    assert [span.status.status_code for span in spans] == [StatusCode.ERROR] * 3
    assert [[event.name for event in span.events] for span in spans] == [["exception"]] * 3
    # FastAPI answers before the end of dependencies from 0.118 on: nothing is active then.
    assert statuses == {500} or committing == [0] * 3
    assert telemetry.points(ACTIVE)[0].value == 0


def test_the_end_of_an_app_costs_the_request_no_time(telemetry: Any) -> None:
    """What is done after the last byte begins after the request's end, on span and metric."""

    async def then() -> None:
        with measure("afterwards"):
            pass

    ask(instrument(answering(then=then)), "/")
    span, after = server(telemetry), telemetry.span("afterwards")
    assert span.end_time <= after.end_time
    (point,) = telemetry.points(DURATION)
    assert abs(point.sum - (span.end_time - span.start_time) / 1e9) < 0.5
    assert after.parent.span_id == span.context.span_id


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()])
def test_a_cancellation_after_the_response_is_no_failure(telemetry: Any, error: BaseException) -> None:
    """Servers cancel what still runs when the client has what it wanted."""

    async def then() -> None:
        raise error

    with pytest.raises(type(error)):
        ask(instrument(answering(then=then)), "/")
    assert server(telemetry).status.status_code is StatusCode.UNSET
    assert [point.attributes.get("error.type") for point in telemetry.points(DURATION)] == [None]


def test_a_request_ends_before_its_background_tasks(telemetry: Any) -> None:
    """While a task runs the request is on record already, and the task's failure is not the request's."""
    app, seen = FastAPI(), []

    def work() -> None:
        seen.append(([each.name for each in telemetry.spans], [each.count for each in telemetry.points(DURATION)]))
        raise LookupError

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> int:
        tasks.add_task(work)
        return 1

    instrument(app)
    ask(app, "/")
    assert seen == [(["GET /"], [1])]
    assert server(telemetry).status.status_code is StatusCode.UNSET


def test_a_broken_upload_is_the_clients(telemetry: Any) -> None:
    """A client that leaves in the middle of its body: no exception, no 500 that was never seen."""
    app = FastAPI()

    @app.post("/up")
    async def up(request: Request) -> int:
        return len(await request.body())

    instrument(app)
    assert leaving(app, path="/up", method="POST")[0]["status"] == 500
    span, (point,) = server(telemetry), telemetry.points(DURATION)
    for attributes in (span.attributes, point.attributes):
        assert attributes["error.type"] == "client_disconnected"
        assert "http.response.status_code" not in attributes
    assert not span.events


@pytest.mark.parametrize("status", [200, 499])
def test_an_app_that_hears_that_its_client_left(telemetry: Any, status: int) -> None:
    """Whoever asks before it answers is told, and so are we: the status that the app gives stays."""
    app = FastAPI()

    @app.get("/poll")
    async def poll(request: Request) -> PlainTextResponse:
        while not await request.is_disconnected():  # noqa: ASYNC110 -- that is how it is asked
            await asyncio.sleep(0)
        return PlainTextResponse("gone", status)

    instrument(app)
    leaving(app, path="/poll")
    (point,) = telemetry.points(DURATION)
    assert point.attributes["http.response.status_code"] == status
    assert point.attributes["error.type"] == "client_disconnected"


def test_a_client_that_leaves_after_the_answer_began_is_as_before(telemetry: Any) -> None:
    """What an app hears once it answers says nothing: servers tell of the end that way too."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await receive()
        await receive()
        await send(BODY)

    leaving(instrument(app))
    assert "error.type" not in server(telemetry).attributes
