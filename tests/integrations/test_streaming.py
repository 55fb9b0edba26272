"""Responses that take their time: when the clock stops, and clients that leave."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.trace import StatusCode
from starlette.responses import StreamingResponse

from otel_perf import instrument, measure
from otel_perf.telemetry import logs, operation
from tests.asking import BODY, START, answering, drive, scope
from tests.serving import served

DURATION = "http.server.request.duration"
ACTIVE = "http.server.active_requests"


@pytest.mark.parametrize("end", [None, asyncio.CancelledError()])
def test_leaving_an_event_stream_is_no_failure(telemetry, end):
    """Clients end streams of events by leaving: that is how they end."""
    events = {**START, "headers": [(b"Content-Type", b"text/event-stream; charset=utf-8")]}
    messages = [events, {**BODY, "more_body": True}, *([end] if end else [])]
    if end is None:
        drive(instrument(answering(*messages)))
    else:
        with pytest.raises(asyncio.CancelledError):
            drive(instrument(answering(*messages)))
    assert telemetry.span("GET").status.status_code is StatusCode.UNSET
    assert "error.type" not in telemetry.points(DURATION)[0].attributes


@pytest.mark.parametrize(
    "messages",
    [
        (START, BODY),
        (START, {**BODY, "more_body": True}, {**BODY, "more_body": False}),
        ({**START, "trailers": True}, BODY, {"type": "http.response.trailers", "headers": []}),
        (START, {"type": "http.response.pathsend", "path": "/f"}),
    ],
)
def test_the_clock_stops_at_the_last_byte(telemetry, messages):
    """It stops with the last message of the response, not before; what the app does then is no time of the request."""
    active: list[int] = []
    after_ns = 0

    async def app(scope, receive, send):
        for message in messages:
            active.append(telemetry.points("http.server.active_requests")[0].value)
            await send(message)
        nonlocal after_ns
        await asyncio.sleep(0.002)
        after_ns = time.time_ns()
        with measure("afterwards"):
            active.append(telemetry.points("http.server.active_requests")[0].value)
        raise RuntimeError("told all the same")

    with pytest.raises(RuntimeError):
        drive(instrument(app))
    assert active == [1] * len(messages) + [0]
    span = telemetry.span("GET")
    assert span.end_time < after_ns
    assert span.attributes["error.type"] == "RuntimeError"
    assert telemetry.span("afterwards").parent.span_id == span.context.span_id


def test_a_5xx_ends_at_its_last_byte_too(telemetry):
    """The record waits for the exception behind a 500, the clock does not."""
    passed: dict[str, Any] = {}

    async def app(scope, receive, send):
        await send({**START, "status": 500})
        await send(BODY)
        passed["active"] = telemetry.points(ACTIVE)[0].value
        with measure("afterwards"):
            pass
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        drive(instrument(app))
    request, after = telemetry.span("GET"), telemetry.span("afterwards")
    # The wall clock of spans may step: the operation's own is steady, so only order and not length is compared.
    assert request.end_time <= after.end_time
    assert request.attributes["error.type"] == "ValueError"
    assert passed == {"active": 0}


def test_nothing_stays_current_whatever_task_sends_the_last_byte(telemetry):
    """A response sent from a task of its own ends the request; its context is left where it was entered."""
    left: list[Any] = []

    async def app(scope, receive, send):
        await asyncio.create_task(answering()(scope, receive, send))

    async def main():
        async def nothing(*_: Any) -> Any:
            """Takes and gives nothing."""

        await instrument(app)(scope(), nothing, nothing)
        left.extend([operation.current(), trace.get_current_span(), logs.request_id.get()])

    asyncio.run(main())
    assert left == [None, trace.INVALID_SPAN, None]
    assert len(telemetry.spans) == 1


def test_a_client_that_leaves_a_stream_is_told_of(telemetry):
    """When the client goes in the middle, the status that was sent stays and the request ends, once."""
    ended = threading.Event()

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        await receive()
        await send(START)
        await send({**BODY, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        asyncio.get_running_loop().call_soon(ended.set)

    with served(instrument(app), lifespan="off") as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert ended.wait(10)
    span = telemetry.span("GET")
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["error.type"] == "client_disconnected"
    assert telemetry.points(DURATION)[0].count == 1
    assert telemetry.points(ACTIVE)[0].value == 0


@pytest.mark.parametrize("media_type", ["text/plain", "text/event-stream"])
def test_a_client_that_leaves_a_streaming_response(telemetry, media_type):
    """Starlette stops the stream of a client that left; that is told, unless it is a stream of events."""
    app, left = FastAPI(), threading.Event()

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def chunks() -> Any:
            try:
                while True:
                    yield "more\n"
                    await asyncio.sleep(0.01)
            finally:
                left.set()

        return StreamingResponse(chunks(), media_type=media_type)

    instrument(app)
    with served(app) as address:
        with httpx.stream("GET", f"{address}/endless") as response:
            assert next(response.iter_raw())
        assert left.wait(10)
    span = telemetry.span("GET /endless")
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes.get("error.type") == (None if "event" in media_type else "client_disconnected")
    assert [point.count for point in telemetry.points(DURATION)] == [1]
