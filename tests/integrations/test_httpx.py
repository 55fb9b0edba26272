"""httpx, sync and async, against a real HTTP server, and against none."""

from __future__ import annotations

import asyncio
import gc
import sys
import types
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from opentelemetry.trace import SpanKind, StatusCode

from otel_perf import instrument, measure
from otel_perf.integrations import httpx as ours
from otel_perf.telemetry import operation
from tests.conftest import Telemetry
from tests.serving import served

_HTTP = "http.client.request.duration"
_EXTERNAL = "external.api.duration"


class _App:
    """An ASGI app whose path says what it answers; it keeps the headers it was sent."""

    def __init__(self) -> None:
        self.headers: list[list[tuple[bytes, bytes]]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        self.headers.append(scope["headers"])
        path = scope["path"]
        status, headers = 200, [(b"content-type", b"text/plain")]
        if path.startswith("/status/"):
            status = int(path.rpartition("/")[2])
        if path == "/redirect":
            status, headers = 302, [(b"location", b"/ok")]
        if path == "/away":
            host = dict(scope["headers"])[b"host"].replace(b"127.0.0.1", b"localhost")
            status, headers = 302, [(b"location", b"http://" + host + b"/ok")]
        if path == "/slow":
            await asyncio.sleep(1)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"one,", "more_body": True})
        if path == "/broken":
            raise OSError("gone")
        await send({"type": "http.response.body", "body": b"two"})

    def sent(self, name: bytes) -> list[list[bytes]]:
        """The values of a header, request by request."""
        return [[value for key, value in headers if key == name] for headers in self.headers]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[_App, str]]:
    """One server for all tests of this file."""
    app = _App()
    with served(app, log_config=None) as address:
        yield app, address


@pytest.fixture
def app(server: tuple[_App, str]) -> _App:
    """The app behind the server, which has seen nothing yet."""
    server[0].headers.clear()
    return server[0]


@pytest.fixture
def url(server: tuple[_App, str]) -> str:
    """The address of the server."""
    return server[1]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Any:
    """Make one instrumented call with a client of either kind; answers the response."""

    def sync(method: str, address: str, *, timeout: float = 5, **options: Any) -> httpx.Response:
        with httpx.Client(timeout=timeout, follow_redirects=True, trust_env=False) as client, instrument(client):
            return client.request(method, address, **options)

    def run_async(method: str, address: str, *, timeout: float = 5, **options: Any) -> httpx.Response:
        async def main() -> httpx.Response:
            async with httpx.AsyncClient(timeout=timeout, follow_redirects=True, trust_env=False) as client:
                with instrument(client):
                    return await client.request(method, address, **options)

        return asyncio.run(main())

    return sync if request.param == "sync" else run_async


def test_a_call(telemetry: Telemetry, app: _App, url: str, call: Any) -> None:
    """One span named by its method, one duration, one external call, and the context in the headers once."""
    port = httpx.URL(url).port
    answer = call("GET", f"{url}/ok?token=secret", headers={"x-mine": "1"})
    assert answer.text == "one,two"

    span = telemetry.span("GET")
    assert span.kind is SpanKind.CLIENT
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": port,
        "url.scheme": "http",
        "url.full": f"{url}/ok?token=REDACTED",
        "url.template": "/ok",
        "service.peer.name": "127.0.0.1",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
    }
    (point,) = telemetry.points(_HTTP)
    assert dict(point.attributes) == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": port,
        "http.response.status_code": 200,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
    }
    (point,) = telemetry.points(_EXTERNAL)
    assert dict(point.attributes) == {"service.peer.name": "127.0.0.1", "external.operation": "GET"}
    context = span.get_span_context()
    ((header,),) = app.sent(b"traceparent")
    assert header.startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-0".encode())
    assert int(header[-2:], 16) & 1


@pytest.mark.parametrize("status", [404, 503])
def test_an_error_status(telemetry: Telemetry, url: str, call: Any, status: int) -> None:
    """From 400 on the status is the error, for a client; the response is the user's as it is."""
    assert call("POST", f"{url}/status/{status}", content=b"x").status_code == status

    span = telemetry.span("POST")
    assert span.status.status_code is StatusCode.ERROR
    for name in (_HTTP, _EXTERNAL):
        (point,) = telemetry.points(name, error__type=str(status))
        assert point.count == 1
    assert (span.attributes or {})["error.type"] == str(status)


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("http://127.0.0.1:1/", "httpx.ConnectError"),
        ("http://nowhere.invalid/", "httpx.ConnectError"),
        ("ftp://127.0.0.1/", "httpx.UnsupportedProtocol"),
    ],
)
def test_failures_are_recorded(telemetry: Telemetry, call: Any, address: str, error: str) -> None:
    """A refused connection, a name that does not resolve, a scheme that is unknown: span, both metrics, the type."""
    with pytest.raises(httpx.TransportError):
        call("GET", address)

    span = telemetry.span("GET")
    assert span.status.status_code is StatusCode.ERROR
    assert span.events[0].name == "exception"
    for name in (_HTTP, _EXTERNAL):
        (point,) = telemetry.points(name)
        assert point.attributes["error.type"] == error


def test_a_timeout(telemetry: Telemetry, url: str, call: Any) -> None:
    """A timeout has its own type."""
    with pytest.raises(httpx.ReadTimeout):
        call("GET", f"{url}/slow", timeout=0.05)

    assert telemetry.points(_HTTP, error__type="httpx.ReadTimeout")[0].count == 1


def test_a_body_that_breaks_off(telemetry: Telemetry, url: str, call: Any) -> None:
    """The body is part of the call: where it breaks off the call failed, whatever the status was."""
    with pytest.raises(httpx.RemoteProtocolError):
        call("GET", f"{url}/broken")

    (point,) = telemetry.points(_HTTP)
    assert point.attributes["error.type"] == "httpx.RemoteProtocolError"


def test_a_stream_ends_when_it_is_closed(telemetry: Telemetry, url: str) -> None:
    """A streamed response is in flight until it is closed, without being current meanwhile; sync and async."""
    with httpx.Client(trust_env=False) as client, instrument(client):
        with client.stream("GET", f"{url}/ok") as answer:
            assert operation.current() is None
            assert telemetry.spans == []
            assert b"".join(answer.iter_bytes()) == b"one,two"
        assert len(telemetry.spans) == 1
        with pytest.raises(httpx.RemoteProtocolError), client.stream("GET", f"{url}/broken") as answer:
            answer.read()

    async def main() -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            with instrument(client):
                async with client.stream("GET", f"{url}/ok") as answer:
                    assert operation.current() is None
                    assert await answer.aread() == b"one,two"
                with pytest.raises(httpx.RemoteProtocolError):
                    async with client.stream("GET", f"{url}/broken") as answer:
                        await answer.aread()

    asyncio.run(main())
    assert [(span.attributes or {}).get("error.type") for span in telemetry.spans] == [
        None, "httpx.RemoteProtocolError", None, "httpx.RemoteProtocolError",
    ]  # fmt: skip


def test_a_stream_that_is_left_early(telemetry: Telemetry, url: str) -> None:
    """Leaving a stream before its end is no failure."""
    with httpx.Client(trust_env=False) as client, instrument(client), client.stream("GET", f"{url}/ok") as answer:
        for _ in answer.iter_raw():
            break

    assert "error.type" not in (telemetry.span("GET").attributes or {})


def test_within_measure_external(telemetry: Telemetry, app: _App, url: str, call: Any) -> None:
    """The call is a span below the outer one, the API is counted once, and both say that the status was an error."""
    with measure.external("stripe", "create_payment", category="payments"):
        call("GET", f"{url}/status/404?key=secret")

    http, outer = telemetry.spans
    assert (http.name, outer.name) == ("GET", "stripe create_payment")
    assert http.parent is not None
    assert outer.context is not None
    assert http.parent.span_id == outer.context.span_id
    assert (http.attributes or {})["url.full"] == f"{url}/status/404?key=REDACTED"
    assert dict(outer.attributes or {}) == {
        "service.peer.name": "stripe", "external.operation": "create_payment", "external.category": "payments",
        "error.type": "404",
    }  # fmt: skip
    assert outer.status.status_code is StatusCode.ERROR
    (point,) = telemetry.points(_EXTERNAL)
    assert point.count == 1
    assert dict(point.attributes) == dict(outer.attributes or {})
    assert telemetry.points(_HTTP, error__type="404")[0].count == 1
    ((header,),) = app.sent(b"traceparent")
    assert f"{http.get_span_context().span_id:016x}".encode() in header


_DEAD = "http://127.0.0.1:1/"


@pytest.mark.parametrize(
    ("addresses", "error"),
    [
        (["/ok", "/ok"], None),
        (["/status/500", "/ok"], None),
        ([_DEAD, "/ok"], None),
        (["/ok", "/status/503"], "503"),
        (["/status/500", "/status/503"], "503"),
        (["/status/500", _DEAD], "httpx.ConnectError"),
    ],
)
def test_a_block_fails_with_its_last_call(
    telemetry: Telemetry, url: str, call: Any, addresses: list[str], error: str | None
) -> None:
    """Of several calls in a block the last decides, so a retry makes good; each has its span, the API counts once."""
    with measure.external("stripe", "pay"):
        for address in addresses:
            with suppress(httpx.ConnectError):
                call("GET", address if address == _DEAD else url + address)

    outer = telemetry.span("stripe pay")
    assert [span.name for span in telemetry.spans] == ["GET", "GET", "stripe pay"]
    assert (outer.attributes or {}).get("error.type") == error
    (point,) = telemetry.points(_EXTERNAL)
    assert (point.count, point.attributes.get("error.type")) == (1, error)
    assert sum(each.count for each in telemetry.points(_HTTP)) == 2


def test_what_a_block_says_itself_counts(telemetry: Telemetry, url: str, call: Any) -> None:
    """An exception that leaves the block, or a failure that it names, is its error, whatever the call answered."""
    with suppress(ValueError), measure.external("stripe", "raised"):
        call("GET", f"{url}/status/500")
        raise ValueError
    with measure.external("stripe", "named") as begun:
        call("GET", f"{url}/status/500")
        begun.fail("declined")

    assert [(p.attributes["external.operation"], p.attributes["error.type"]) for p in telemetry.points(_EXTERNAL)] == [
        ("raised", "ValueError"), ("named", "declined"),
    ]  # fmt: skip


def test_a_stream_that_breaks_fails_its_block(telemetry: Telemetry, url: str) -> None:
    """The body belongs to the call also within a block."""
    with (
        httpx.Client(trust_env=False) as client, instrument(client), measure.external("stripe", "export"),
        suppress(httpx.RemoteProtocolError), client.stream("GET", f"{url}/broken") as answer,
    ):  # fmt: skip
        answer.read()

    (point,) = telemetry.points(_EXTERNAL)
    assert point.attributes["error.type"] == "httpx.RemoteProtocolError"


def test_all_clients_and_undo(telemetry: Telemetry, app: _App, url: str) -> None:
    """The library as a whole takes old clients, new ones and `httpx.get`; undo puts the functions back."""
    before = (httpx.Client.send, httpx.AsyncClient.send)
    old = httpx.Client(trust_env=False)
    first, second, third = instrument("httpx"), instrument("httpx"), instrument(old)
    old.get(f"{url}/ok")
    httpx.get(f"{url}/ok", trust_env=False)
    assert telemetry.points(_HTTP)[0].count == 2
    first.undo()
    second.undo()
    httpx.get(f"{url}/ok", trust_env=False)
    old.get(f"{url}/ok")
    assert telemetry.points(_HTTP)[0].count == 3
    third.undo()
    old.get(f"{url}/ok")
    old.close()
    assert telemetry.points(_HTTP)[0].count == 3
    assert [len(values) for values in app.sent(b"traceparent")] == [1, 1, 0, 1, 0]
    assert (httpx.Client.send, httpx.AsyncClient.send) == before


@pytest.mark.parametrize("where", ["library", "client"])
def test_beside_upstream(
    telemetry: Telemetry, app: _App, url: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Where opentelemetry-instrumentation-httpx is active, span, header and request metric are its own."""

    class HTTPXClientInstrumentor:
        is_instrumented_by_opentelemetry = where == "library"

    module = types.ModuleType("opentelemetry.instrumentation.httpx")
    module.HTTPXClientInstrumentor = HTTPXClientInstrumentor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.httpx", module)
    with httpx.Client(trust_env=False) as client, instrument(client):
        client._is_instrumented_by_opentelemetry = where == "client"  # type: ignore[attr-defined]
        client.get(f"{url}/ok")

        assert (telemetry.spans, telemetry.points(_HTTP), app.sent(b"traceparent")) == ([], [], [[]])
        assert telemetry.points(_EXTERNAL)[0].count == 1
        with measure.external("stripe", "pay"):
            client.get(f"{url}/status/500")

    assert [span.name for span in telemetry.spans] == ["stripe pay"]
    assert telemetry.points(_EXTERNAL, service__peer__name="stripe", error__type="500")[0].count == 1


def test_a_redirect_followed_by_hand(telemetry: Telemetry, app: _App, url: str) -> None:
    """The request that `Response.next_request` offers carries no context to a host that may not have it."""
    telemetry.restart(propagate_to="127.0.0.1")
    with httpx.Client(trust_env=False) as client, instrument(client):
        request = client.get(f"{url}/redirect").next_request
        assert request is not None
        request = client.get(f"{url}/away").next_request
        assert request is not None
        client.send(request)

    assert [len(values) for values in app.sent(b"traceparent")] == [1, 1, 0]


def test_a_version_that_builds_redirects_in_another_way(
    telemetry: Telemetry, app: _App, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where redirects cannot be watched no context is passed on, and everything else is measured."""
    monkeypatch.setattr(ours, "_redirecting", None)
    monkeypatch.setattr(ours._patches, "_patches", ())
    with httpx.Client(trust_env=False) as client, instrument(client):
        client.get(f"{url}/ok")
    monkeypatch.setattr(ours._patches, "_patches", ())

    assert (app.sent(b"traceparent"), len(telemetry.spans)) == ([[]], 1)


def test_a_stream_that_nobody_closes(telemetry: Telemetry, url: str) -> None:
    """A response that is left alone is counted once nobody holds it, with the status that it had."""
    with httpx.Client(trust_env=False) as client, instrument(client):
        client.send(client.build_request("GET", f"{url}/status/404"), stream=True)
        gc.collect()
        assert telemetry.points(_HTTP, error__type="404")[0].count == 1
