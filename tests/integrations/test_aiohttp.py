"""The client of aiohttp, and what only it has: bodies by their connection, middlewares, WebSockets, a base address."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from otel_perf import instrument, measure
from otel_perf.telemetry import operation
from tests.conftest import Telemetry
from tests.integrations.http_server import Server

_HTTP = "http.client.request.duration"
_TIMEOUT = "TimeoutError" if sys.version_info >= (3, 11) else "asyncio.exceptions.TimeoutError"


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """One server for all tests of this file."""
    with Server.run() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    """The server, which has seen nothing yet."""
    running.forget()
    return running


def _run(work: Callable[[aiohttp.ClientSession], Awaitable[Any]], **options: Any) -> Any:
    """Does something with a measured session."""

    async def main() -> Any:
        async with aiohttp.ClientSession(**options) as session:
            with instrument(session):
                return await work(session)

    return asyncio.run(main())


def _error(telemetry: Telemetry) -> Any:
    (point,) = telemetry.points(_HTTP)
    assert point.count == 1
    return point.attributes.get("error.type")


def test_a_body_ends_with_its_connection(telemetry: Telemetry, server: Server) -> None:
    """A response is in flight until its body is there or it is closed, without being current meanwhile."""

    async def work(session: aiohttp.ClientSession) -> None:
        async with session.get(f"{server.url}/part") as answer:
            assert (operation.current(), telemetry.spans) == (None, [])
            assert await answer.content.readany() == b"one,"
            assert telemetry.spans == []
        assert len(telemetry.spans) == 1

    _run(work)
    assert _error(telemetry) is None


@pytest.mark.parametrize("how", ["read", "chunks", "closed", "released"])
def test_ways_to_end_a_body(telemetry: Telemetry, server: Server, how: str) -> None:
    """However a body is read or left, it is one call without a failure."""

    async def work(session: aiohttp.ClientSession) -> None:
        answer = await session.get(f"{server.url}/ok")
        if how == "read":
            assert await answer.text() == "one,two"
        elif how == "chunks":
            assert [chunk async for chunk in answer.content.iter_any()] == [b"one,two"]
        elif how == "closed":
            answer.close()
        else:
            answer.release()

    _run(work)
    assert _error(telemetry) is None


@pytest.mark.parametrize(
    ("path", "limits", "error"),
    [
        ("/reset", {}, "aiohttp.client_exceptions.ClientPayloadError"),
        ("/part", {"sock_read": 0.1}, "aiohttp.client_exceptions.SocketTimeoutError"),
        ("/part", {"total": 0.1}, _TIMEOUT),
    ],
)
def test_a_body_that_fails(
    telemetry: Telemetry, server: Server, path: str, limits: dict[str, float], error: str
) -> None:
    """A body that is reset or takes too long fails the call, also where the exception is caught at once."""

    async def work(session: aiohttp.ClientSession) -> None:
        timeout = aiohttp.ClientTimeout(**limits)
        async with session.get(server.url + path, timeout=timeout) as answer:
            with suppress(aiohttp.ClientError, asyncio.TimeoutError):
                await answer.read()
        async with session.get(server.url + path, timeout=timeout) as answer:
            with suppress(aiohttp.ClientError, asyncio.TimeoutError):
                async for _ in answer.content.iter_any():
                    pass

    _run(work)
    (point,) = telemetry.points(_HTTP)
    assert (point.count, point.attributes["error.type"]) == (2, error)


def test_what_fails_beside_a_body_is_not_its_failure(telemetry: Telemetry, server: Server) -> None:
    """An exception of the app, or of another call, that leaves a body unread is not counted as the body's."""

    async def work(session: aiohttp.ClientSession) -> None:
        with suppress(ZeroDivisionError):
            async with session.get(f"{server.url}/part"):
                raise ZeroDivisionError
        with suppress(aiohttp.ClientError):
            async with session.get(f"{server.url}/part"), session.get("http://127.0.0.1:1/"):
                pass

    _run(work)
    errors = {point.attributes.get("error.type"): point.count for point in telemetry.points(_HTTP)}
    assert errors == {None: 2, "aiohttp.client_exceptions.ClientConnectorError": 1}


def test_raise_for_status(telemetry: Telemetry, server: Server) -> None:
    """A session that raises for an error status has the status as the error, and not the class."""

    async def work(session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientResponseError):
            await session.get(f"{server.url}/status/429")

    _run(work, raise_for_status=True)
    assert _error(telemetry) == "429"


@pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")  # which is what aiohttp says to it
def test_a_body_that_nobody_reads(telemetry: Telemetry, server: Server) -> None:
    """A response that is left alone is counted when its session is closed and nobody holds it any more."""

    async def work(session: aiohttp.ClientSession) -> None:
        await session.get(f"{server.url}/part")

    _run(work)
    gc.collect()
    assert _error(telemetry) is None


def test_a_base_address_and_parameters(telemetry: Telemetry, server: Server) -> None:
    """The span has the whole address, parameters without their values."""

    async def work(session: aiohttp.ClientSession) -> None:
        async with session.get("users/7", params={"token": "hush", "page": 2}) as answer:
            await answer.read()

    _run(work, base_url=f"{server.url}/api/")
    attributes = telemetry.span("GET").attributes or {}
    assert attributes["url.full"] == f"{server.url}/api/users/7?token=REDACTED&page=REDACTED"
    assert attributes["url.template"] == "/api/users/{id}"


def test_middlewares_of_the_app_stay(telemetry: Telemetry, server: Server) -> None:
    """Those of the session and those of a call are called as before; ours comes last and sees their retries."""
    seen: list[str] = []

    def named(name: str) -> Any:
        async def middleware(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
            seen.append(name)
            answer: aiohttp.ClientResponse = await handler(request)
            return await handler(request) if answer.status == 503 else answer

        return middleware

    async def work(session: aiohttp.ClientSession) -> None:
        for options in ({}, {"middlewares": (named("call"),)}, {"middlewares": ()}):
            async with session.get(f"{server.url}/flaky?{len(seen)}", **options) as answer:
                await answer.read()

    _run(work, middlewares=(named("session"),))
    assert seen == ["session", "call"]
    assert [len(each) for each in server.sent("traceparent")] == [1] * 5
    assert len(telemetry.spans) == 3


def test_a_websocket_is_its_handshake(telemetry: Telemetry) -> None:
    """Of a WebSocket the call is the handshake; what goes over it afterwards is no part of it."""

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/ws", serve)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession() as session:
            with instrument(session):
                async with session.ws_connect(f"http://127.0.0.1:{port}/ws") as socket:
                    assert len(telemetry.spans) == 1
                    await socket.send_str("x")
                    assert (await socket.receive()).data == "x"
        await runner.cleanup()

    asyncio.run(main())
    assert telemetry.points(_HTTP, http__response__status_code=101)[0].count == 1


def test_all_sessions_and_undo(telemetry: Telemetry, server: Server) -> None:
    """The library as a whole takes old sessions, new ones and `aiohttp.request`; undo puts the function back."""
    before = vars(aiohttp.ClientSession)["_request"]

    async def main() -> None:
        async with aiohttp.ClientSession() as old:
            with instrument("aiohttp"), instrument(old):
                async with old.get(f"{server.url}/ok"):
                    pass
                async with aiohttp.request("GET", f"{server.url}/ok"):
                    pass
            async with old.get(f"{server.url}/ok"):
                pass

    asyncio.run(main())
    assert telemetry.points(_HTTP)[0].count == 2
    assert vars(aiohttp.ClientSession)["_request"] is before


def test_an_address_that_is_none(telemetry: Telemetry) -> None:
    """What aiohttp refuses is a call that failed."""

    async def work(session: aiohttp.ClientSession) -> None:
        for target in ("nowhere", "ftp://127.0.0.1/", "http://[::1"):
            with pytest.raises((aiohttp.ClientError, ValueError)):
                await session.get(target)

    _run(work)
    assert sum(point.count for point in telemetry.points(_HTTP)) == 3
    assert all(point.attributes["error.type"] for point in telemetry.points(_HTTP))


def test_within_a_block(telemetry: Telemetry, server: Server) -> None:
    """A body that breaks off fails the block around it."""

    async def work(session: aiohttp.ClientSession) -> None:
        with measure.external("stripe", "export"), suppress(aiohttp.ClientError):
            async with session.get(f"{server.url}/reset") as answer:
                await answer.read()

    _run(work)
    (point,) = telemetry.points("external.api.duration")
    assert point.attributes["service.peer.name"] == "stripe"
    assert point.attributes["error.type"] == "aiohttp.client_exceptions.ClientPayloadError"
