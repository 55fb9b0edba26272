"""WebSocket connections, driven by hand: what no server says on request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import WebSocketDisconnect
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from otel_perf import instrument
from otel_perf.integrations.routes import MARK
from otel_perf.telemetry import logs, operation
from tests.asking import Copying, scope

DURATION = "websocket.connection.duration"
ACTIVE = "websocket.active_connections"
MESSAGES = "websocket.messages"


def error_type(telemetry: Any) -> str | None:
    """The one `error.type` of span and metric, which are one each."""
    (span,) = [each for each in telemetry.spans if each.kind is SpanKind.SERVER]
    (point,) = telemetry.points(DURATION)
    assert point.count == 1
    assert [each.value for each in telemetry.points(ACTIVE)] == [0]
    assert span.attributes.get("error.type") == point.attributes.get("error.type")
    assert (span.status.status_code is StatusCode.ERROR) is ("error.type" in span.attributes)
    found: str | None = span.attributes.get("error.type")
    return found


def connect(app: Any, *incoming: Any, **more: Any) -> list[Any]:
    """Drives a connection by hand, without a server."""
    sent: list[Any] = []
    waiting = [{"type": "websocket.connect"}, *incoming]

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope(type="websocket", scheme="ws", **more), receive, send))
    return sent


async def _polite(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept", "headers": [(b"x-own", b"1")]})
    while (await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "text": "hi"})


HI = {"type": "websocket.receive", "text": "hi"}
GONE = {"type": "websocket.disconnect", "code": 1001}


@pytest.mark.parametrize(("code", "error"), [(1006, "1006"), (1011, "1011"), (1005, None), (1012, None)])
def test_a_connection_that_breaks_is_a_failure(telemetry, code, error):
    """1006 and 1011 from the other side are failures by these names; a going server is none."""
    connect(instrument(_polite), HI, {"type": "websocket.disconnect", "code": code})
    assert error_type(telemetry) == error


def test_it_is_current_within_and_never_after(telemetry):
    """The operation and its span are current while the app runs, also where a task of its own runs on."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found = operation.current()
        seen.append((found, trace.get_current_span() is found.span, logs.request_id.get(), found is scope[MARK]))
        await _polite(scope, receive, send)

    wrapped = instrument(app)

    async def around(scope: Any, receive: Any, send: Any) -> None:
        await wrapped(scope, receive, send)
        seen.append((operation.current(), trace.get_current_span(), logs.request_id.get(), MARK in scope))

    connect(around, HI, GONE, headers=[(b"x-request-id", b"r-1")])
    assert seen.pop() == (None, trace.INVALID_SPAN, None, False)
    assert [each[1:] for each in seen] == [(True, "r-1", True)]
    assert seen[0][0].header(b"x-request-id") is None


@pytest.mark.parametrize("error", [asyncio.CancelledError(), WebSocketDisconnect(1001), ValueError("x"), KeyError(1)])
def test_each_failure_is_counted_and_leaves_nothing(telemetry, error):
    """N connections that fail are N failures; a cancelled one and one that the client left are none."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        raise error

    wrapped = instrument(app)
    for _ in range(3):
        with pytest.raises(type(error)):
            connect(wrapped)
    expected = type(error).__name__ if isinstance(error, (ValueError, KeyError)) else None
    (point,) = telemetry.points(DURATION)
    assert (point.count, point.attributes.get("error.type")) == (3, expected)
    assert [each.value for each in telemetry.points(ACTIVE)] == [0]
    assert [len(each.events) for each in telemetry.spans] == [1 if expected else 0] * 3


def test_an_unsampled_connection_is_measured(telemetry):
    """Without a span there are duration and counts all the same."""
    telemetry.restart(sampler="always_off")
    connect(instrument(_polite), HI, GONE)
    assert telemetry.spans == []
    assert telemetry.points(DURATION)[0].count == 1
    assert len(telemetry.points(MESSAGES)) == 2


def test_a_configure_in_the_middle_leaves_counts_whole(telemetry):
    """A connection that began before another `configure()` is in no count after it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        telemetry.restart()
        await send({"type": "websocket.send", "text": "hi"})

    connect(instrument(app))
    assert not telemetry.points(DURATION)
    assert not telemetry.points(ACTIVE)


def test_without_configure_it_passes_with_an_id():
    """Before `configure()` nothing is measured and the request id is given."""
    sent = connect(instrument(_polite), HI, GONE)
    assert [name for name, _ in sent[0]["headers"]] == [b"x-own", b"x-request-id"]


def test_an_app_within_an_app_is_measured_once(telemetry):
    """Where one instrumented app stands in another, the outer one measures; undone, it passes everything through."""
    inner = instrument(_polite)
    outer = instrument(Copying(inner))
    connect(outer, HI, GONE)
    assert telemetry.points(DURATION)[0].count == 1
    inner.undo()
    outer.undo()
    sent = connect(outer, HI, GONE)
    assert sent[0]["headers"] == [(b"x-own", b"1")]
    assert telemetry.points(DURATION)[0].count == 1


def test_what_strangers_send_is_bounded(telemetry):
    """Headers, paths and codes that are no such things cost nothing but themselves."""
    gone = {"type": "websocket.disconnect", "code": "soon"}
    long = "/" + "x" * 1_000_000
    connect(instrument(_polite), gone, path=long, headers=[(b"traceparent", b"\xff" * 9000), (b"x-request-id", b"\n")])
    (span,) = telemetry.spans
    assert len(span.attributes["url.path"]) <= 2048
    assert "websocket.close.code" not in span.attributes


@pytest.mark.parametrize("path", ["/pay/1", "/ws"])
def test_classes_of_routes_are_told(telemetry, path):
    """The declared class of the route, or of the path of a plain app, is on the span."""
    telemetry.restart(route_classes=("payment=/pay*",))
    connect(instrument(_polite), GONE, path=path)
    assert telemetry.spans[0].attributes.get("http.route.class") == ("payment" if path == "/pay/1" else None)
