"""WebSocket connections, behind a real server and with a real client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import websockets
from fastapi import FastAPI, Query, WebSocket
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, WebSocketRoute

from otel_perf import instrument, measure
from tests.apps import ok
from tests.asking import Copying
from tests.serving import served

DURATION = "websocket.connection.duration"
ACTIVE = "websocket.active_connections"
MESSAGES = "websocket.messages"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def chat() -> FastAPI:
    """An app that talks, and that ends a connection in each way there is."""
    app, inner = FastAPI(), FastAPI()

    @app.websocket("/rooms/{room}")
    @inner.websocket("/rooms/{room}")
    async def talk(socket: WebSocket, room: str) -> None:
        await socket.accept()
        with measure("welcome"):
            pass
        while True:
            text = await socket.receive_text()
            if text == "boom":
                raise ValueError(room)
            if text.isdigit():
                await socket.close(int(text))
                return
            await socket.send_text(text)

    @app.websocket("/refused")
    async def refused(socket: WebSocket) -> None:
        await socket.close(1008)

    @app.websocket("/denied/{status}")
    async def denied(socket: WebSocket, status: int) -> None:
        await socket.send_denial_response(PlainTextResponse("no", status))

    @app.websocket("/broken")
    async def broken(socket: WebSocket) -> None:
        raise LookupError

    @app.websocket("/checked")
    async def checked(socket: WebSocket, number: int = Query()) -> None:
        await socket.accept()

    @app.websocket("/silent")
    async def silent(socket: WebSocket) -> None:
        pass

    @app.websocket("/health")
    async def health(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(str(socket.state.request_id))
        await socket.close()

    app.add_route("/plain", ok)
    app.mount("/t/{tenant}", inner)
    return app


async def _talk(address: str, path: str, *texts: str, headers: Any = None, code: int = 1000) -> Any:
    async with websockets.connect(address.replace("http", "ws") + path, additional_headers=headers) as client:
        for text in texts:
            await client.send(text)
            if text.isdigit() or text == "boom":
                await client.wait_closed()
                return client
            assert await client.recv() == text
        await client.close(code)
        return client


def talk(app: Any, path: str, *texts: str, **options: Any) -> Any:
    """Says each text and hears it back, from connect to close; answers the client."""
    with served(app, ws="websockets-sansio") as address:
        return asyncio.run(_talk(address, path, *texts, **options))


def refused(app: Any, path: str) -> int:
    """The status of a handshake that fails."""
    with (
        served(app, ws="websockets-sansio") as address,
        pytest.raises(websockets.exceptions.InvalidStatus) as caught,
    ):
        asyncio.run(_talk(address, path))
    return int(caught.value.response.status_code)


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


@pytest.mark.parametrize("middleware", [False, True])
@pytest.mark.parametrize(
    ("path", "route"), [("/rooms/a", "/rooms/{room}"), ("/t/acme/rooms/b", "/t/{tenant}/rooms/{room}")]
)
def test_a_connection_is_one_span_one_duration_and_counts_of_messages(telemetry, path, route, middleware):
    """A conversation is one SERVER span by the whole template, one duration, no request, and messages by direction."""
    app = chat()
    if middleware:
        app.add_middleware(Copying)
    instrument(app)
    talk(app, f"{path}?token=s3cret", "one", "two", "three")
    span = telemetry.span(f"WS {route}")
    assert span.kind is SpanKind.SERVER
    assert span.parent is None
    expected = {
        "http.route": route, "url.scheme": "ws", "url.path": path, "url.query": "token=REDACTED",
        "network.protocol.name": "websocket", "client.address": "127.0.0.1", "server.address": "127.0.0.1",
        "websocket.messages.received": 3, "websocket.messages.sent": 3, "websocket.close.code": 1000,
    }  # fmt: skip
    assert {key: span.attributes.get(key) for key in expected} == expected
    assert "http.request.method" not in span.attributes
    (point,) = telemetry.points(DURATION)
    assert (point.count, point.attributes) == (1, {"http.route": route, "url.scheme": "ws"})
    assert [(each.value, each.attributes) for each in telemetry.points(ACTIVE)] == [(0, {"url.scheme": "ws"})]
    counts = {each.attributes["network.io.direction"]: each.value for each in telemetry.points(MESSAGES)}
    assert counts == {"receive": 3, "transmit": 3}
    assert {each.attributes["http.route"] for each in telemetry.points(MESSAGES)} == {route}
    assert not telemetry.points("http.server.request.duration")
    assert telemetry.span("welcome").parent.span_id == span.context.span_id


def test_the_handshake_carries_trace_and_request_id(telemetry):
    """The caller's trace goes on, and the answer to the handshake has the request id and the trace."""
    app = chat()
    instrument(app)
    client = talk(app, "/rooms/a", headers={"traceparent": PARENT, "x-request-id": "r-7"})
    span = telemetry.span("WS /rooms/{room}")
    assert f"{span.context.trace_id:032x}-{span.parent.span_id:016x}" == PARENT[3:-3]
    assert span.attributes["http.request.header.x-request-id"] == "r-7"
    assert client.response.headers["x-request-id"] == "r-7"
    assert client.response.headers["traceresponse"] == (
        f"00-{PARENT[3:35]}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"
    )


@pytest.mark.parametrize(
    ("text", "error"), [("boom", "ValueError"), ("1000", None), ("1008", None), ("4003", None), ("1011", "1011")]
)
def test_how_the_app_ends_it(telemetry, text, error):
    """An exception and 1011 are failures, once each; other codes are what the peers agreed on."""
    app = chat()
    instrument(app)
    talk(app, "/rooms/a", text)
    assert error_type(telemetry) == error
    (span,) = [each for each in telemetry.spans if each.kind is SpanKind.SERVER]
    assert [each.name for each in span.events] == (["exception"] if error == "ValueError" else [])
    assert span.attributes.get("websocket.close.code") == (int(text) if text.isdigit() else None)


@pytest.mark.parametrize("code", [1000, 1001, 1008, 3000])
def test_a_client_that_leaves_is_no_failure(telemetry, code):
    """Whatever code the client gives, it has left; the exception that Starlette makes of that is not told."""
    app = chat()
    instrument(app)
    talk(app, "/rooms/a", "hi", code=code)
    assert error_type(telemetry) is None
    (span,) = [each for each in telemetry.spans if each.kind is SpanKind.SERVER]
    assert span.attributes["websocket.close.code"] == code
    assert not span.events


def test_a_client_that_vanishes_ends_the_connection(telemetry):
    """A client that is gone without a word is one connection that ended; uvicorn's own word for it is 1005."""
    app = chat()
    instrument(app)
    with served(app, ws="websockets-sansio") as address:

        async def vanish() -> None:
            client = await websockets.connect(address.replace("http", "ws") + "/rooms/a")
            await client.send("hi")
            assert await client.recv() == "hi"
            client.transport.abort()

        asyncio.run(vanish())
    assert error_type(telemetry) is None


@pytest.mark.parametrize(
    ("path", "status", "route", "error"),
    [
        ("/refused", 403, "/refused", None),
        ("/denied/429", 429, "/denied/{status}", None),
        ("/denied/503", 503, "/denied/{status}", "503"),
        ("/checked?number=x", 403, "/checked", None),
        ("/broken", 500, "/broken", "LookupError"),
        ("/silent", 500, "/silent", "incomplete_response"),
        ("/nowhere/42", 403, None, None),
        ("/plain", 403, None, None),
    ],
)
def test_a_handshake_that_is_refused(telemetry, path, status, route, error):
    """The refusal's status is on the span, the route where there is one, and a failure from 500 on."""
    app = chat()
    instrument(app)
    assert refused(app, path) == status
    assert error_type(telemetry) == error
    (span,) = [each for each in telemetry.spans if each.kind is SpanKind.SERVER]
    assert span.name == (f"WS {route}" if route else "WS")
    assert span.attributes.get("http.response.status_code") == (None if error and path != "/denied/503" else status)
    unmatched = {"/nowhere/42": "/nowhere/{id}", "/plain": "/plain"}
    assert span.attributes.get("url.template") == unmatched.get(path)
    assert telemetry.points(DURATION)[0].attributes.get("http.route") == route
    assert len(span.events) == (error == "LookupError")


def test_an_excluded_path_makes_nothing_but_a_request_id(telemetry):
    """Excluded paths make neither span nor metric, and what is within makes no span."""
    app = chat()
    instrument(app)
    with served(app, ws="websockets-sansio") as address:

        async def hear() -> tuple[Any, str]:
            async with websockets.connect(address.replace("http", "ws") + "/health") as client:
                return await client.recv(), client.response.headers["x-request-id"]

        said, told = asyncio.run(hear())
    assert said == told
    assert telemetry.spans == []
    assert not telemetry.points(DURATION)
    assert not telemetry.points(ACTIVE)
    assert not telemetry.points(MESSAGES)


def test_starlette_endpoints_and_mounts_have_routes(telemetry):
    """Class endpoints, in mounts within mounts, have the whole template."""

    class Echo(WebSocketEndpoint):
        encoding = "text"

        async def on_receive(self, socket: WebSocket, data: str) -> None:
            await socket.send_text(data)

    app = Starlette(routes=[Mount("/a/{x}", routes=[Mount("/b", routes=[WebSocketRoute("/ws/{y}", Echo)])])])
    instrument(app)
    talk(app, "/a/1/b/ws/2", "hi")
    assert telemetry.span("WS /a/{x}/b/ws/{y}").attributes["websocket.messages.sent"] == 1


def test_many_at_once_are_active_until_they_end(telemetry):
    """Open connections are active, each ends in its own, and the counts add up."""
    app = chat()
    instrument(app)
    with served(app, ws="websockets-sansio") as address:

        async def all_of_them() -> list[int]:
            url = address.replace("http", "ws") + "/rooms/a"
            clients = [await websockets.connect(url) for _ in range(8)]
            for client in clients:
                await client.send("x")
                await client.recv()
            active = [each.value for each in telemetry.points(ACTIVE)]
            live = sum(each.value for each in telemetry.points(MESSAGES, network__io__direction="receive"))
            for client in clients:
                await client.close()
            return [*active, int(live)]

        assert asyncio.run(all_of_them()) == [8, 8]
    assert [each.value for each in telemetry.points(ACTIVE)] == [0]
    assert telemetry.points(DURATION)[0].count == 8
