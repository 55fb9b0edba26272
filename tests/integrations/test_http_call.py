"""What all HTTP clients have in common: each library against a real server, and against none."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from opentelemetry.trace import SpanKind, StatusCode

import otel_perf
from otel_perf import instrument, measure, peers
from otel_perf.integrations import http_call, origins
from otel_perf.telemetry import operation
from tests.conftest import Telemetry
from tests.integrations.http_server import LIBRARIES, Aiohttp, Server, library, unused_port

_HTTP = "http.client.request.duration"
_EXTERNAL = "external.api.duration"
_CLASSES = {
    "refused": {"SyncHTTPX": "httpx.ConnectError", "AsyncHTTPX": "httpx.ConnectError",
                "Requests": "requests.exceptions.ConnectionError",
                "Aiohttp": "aiohttp.client_exceptions.ClientConnectorError"},
    "unresolved": {"SyncHTTPX": "httpx.ConnectError", "AsyncHTTPX": "httpx.ConnectError",
                   "Requests": "requests.exceptions.ConnectionError",
                   "Aiohttp": "aiohttp.client_exceptions.ClientConnectorDNSError"},
    "timeout": {"SyncHTTPX": "httpx.ReadTimeout", "AsyncHTTPX": "httpx.ReadTimeout",
                "Requests": "requests.exceptions.ReadTimeout",
                "Aiohttp": "TimeoutError" if sys.version_info >= (3, 11) else "asyncio.exceptions.TimeoutError"},
    "reset": {"SyncHTTPX": "httpx.ReadError", "AsyncHTTPX": "httpx.ReadError",
              "Requests": "requests.exceptions.ChunkedEncodingError",
              "Aiohttp": "aiohttp.client_exceptions.ClientPayloadError"},
}  # fmt: skip


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


@pytest.fixture(params=LIBRARIES, ids=library)
def client(request: pytest.FixtureRequest) -> Any:
    """Each library in turn."""
    return request.param


@pytest.fixture(params=[each for each in LIBRARIES if each.asynchronous], ids=library)
def async_client(request: pytest.FixtureRequest) -> Any:
    """Each async library in turn."""
    return request.param


@pytest.fixture
def own_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declarations of a test are gone after it."""
    monkeypatch.setattr(peers, "_own", {})
    monkeypatch.setattr(peers, "_own_hosts", peers._Hosts())


def _counts(telemetry: Telemetry, name: str) -> dict[Any, int]:
    found: dict[Any, int] = {}
    for point in telemetry.points(name):
        error = point.attributes.get("error.type")
        found[error] = found.get(error, 0) + point.count
    return found


def test_a_call(telemetry: Telemetry, server: Server, client: Any) -> None:
    """One span named by its method, one duration, one API call, and the context in the headers once."""
    assert client.calls("GET", f"{server.url}/users/42/files?token=secret") == [200]

    span = telemetry.span("GET")
    assert span.kind is SpanKind.CLIENT
    labels = {
        "http.request.method": "GET", "server.address": "127.0.0.1", "server.port": server.port, "url.scheme": "http",
        "http.response.status_code": 200, "network.protocol.version": "1.1",
    }  # fmt: skip
    assert dict(span.attributes or {}) == {
        **labels, "url.full": f"{server.url}/users/42/files?token=REDACTED", "url.template": "/users/{id}/files",
        "service.peer.name": "127.0.0.1",
    }  # fmt: skip
    (point,) = telemetry.points(_HTTP)
    assert dict(point.attributes) == labels
    (point,) = telemetry.points(_EXTERNAL)
    assert dict(point.attributes) == {"service.peer.name": "127.0.0.1", "external.operation": "GET"}
    context = span.get_span_context()
    assert context is not None
    assert server.sent("traceparent") == [
        [f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"]
    ]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
def test_other_methods(telemetry: Telemetry, server: Server, client: Any, method: str) -> None:
    """Each method is one call, with a body or without."""
    assert client.calls(method, f"{server.url}/ok") == [200]
    assert telemetry.span(method).end_time
    assert (_counts(telemetry, _HTTP), _counts(telemetry, _EXTERNAL)) == ({None: 1}, {None: 1})


@pytest.mark.parametrize("status", [404, 429, 500, 503])
def test_an_error_status(telemetry: Telemetry, server: Server, client: Any, status: int) -> None:
    """From 400 on the status is the error: so many failed calls, so many failed measurements, each with its span."""
    url = f"{server.url}/status/{status}"
    assert client.calls("GET", url, url, url) == [status] * 3

    assert [(span.attributes or {})["error.type"] for span in telemetry.spans] == [str(status)] * 3
    assert {span.status.status_code for span in telemetry.spans} == {StatusCode.ERROR}
    assert (_counts(telemetry, _HTTP), _counts(telemetry, _EXTERNAL)) == ({str(status): 3}, {str(status): 3})


@pytest.mark.parametrize("kind", ["refused", "unresolved", "timeout", "reset"])
def test_a_failure(telemetry: Telemetry, server: Server, client: Any, kind: str) -> None:
    """A refused port, a name that is not there, a timeout, a body that is reset: none is lost, on span or metric."""
    url = {
        "refused": f"http://127.0.0.1:{unused_port()}/", "unresolved": "http://nowhere.invalid/",
        "timeout": f"{server.url}/slow", "reset": f"{server.url}/reset",
    }[kind]  # fmt: skip
    answers = client.calls("GET", url, url, url, timeout=0.05 if kind == "timeout" else 5)

    error = _CLASSES[kind][library(client)]
    assert all(isinstance(each, Exception) for each in answers)
    assert [(span.attributes or {})["error.type"] for span in telemetry.spans] == [error] * 3
    assert {span.status.status_code for span in telemetry.spans} == {StatusCode.ERROR}
    assert [each.events[0].name for each in telemetry.spans] == ["exception"] * 3
    assert (_counts(telemetry, _HTTP), _counts(telemetry, _EXTERNAL)) == ({error: 3}, {error: 3})


def test_redirects_are_one_call(telemetry: Telemetry, server: Server, client: Any) -> None:
    """A redirect is part of the call: one span, one count, and each request carries the context once."""
    assert client.calls("GET", f"{server.url}/redirect?to=/redirect?to=/ok") == [200]

    assert len(server.paths) == 3
    assert (_counts(telemetry, _HTTP), len(telemetry.spans)) == ({None: 1}, 1)
    first, *others = server.sent("traceparent")
    assert len(first) == 1
    assert others == [first, first]


def test_a_redirect_to_a_failure(telemetry: Telemetry, server: Server, client: Any) -> None:
    """The call fails with the last of its requests."""
    assert client.calls("GET", f"{server.url}/redirect?to=/status/500") == [500]
    assert (_counts(telemetry, _HTTP), _counts(telemetry, _EXTERNAL)) == ({"500": 1}, {"500": 1})


def test_within_measure_external(telemetry: Telemetry, server: Server, client: Any) -> None:
    """Each call is a span below the block, the API is counted once, under its name, and the last call decides."""
    for path in ("/flaky", "/status/429"):
        with measure.external("stripe", "pay", category="payments"):
            client.calls("GET", server.url + path, server.url + path)

    assert [span.name for span in telemetry.spans] == ["GET", "GET", "stripe pay"] * 2
    assert _counts(telemetry, _HTTP) == {"503": 1, None: 1, "429": 2}
    assert _counts(telemetry, _EXTERNAL) == {None: 1, "429": 1}
    assert {point.attributes["service.peer.name"] for point in telemetry.points(_EXTERNAL)} == {"stripe"}


@pytest.mark.usefixtures("own_peers")
def test_a_declared_peer(telemetry: Telemetry, server: Server, client: Any) -> None:
    """Service, operation and category come from the catalogue, and with them the template and the span's name."""
    measure.peer(
        "push", "127.0.0.1", category="notifications",
        operations={"POST /v1/devices/{device}/messages": "send", "/v1/*": "other"},
    )  # fmt: skip
    client.calls("POST", f"{server.url}/v1/devices/7f3/messages", f"{server.url}/v1/x/y", f"{server.url}/elsewhere/9")

    assert [(span.name, (span.attributes or {})["url.template"]) for span in telemetry.spans] == [
        ("POST /v1/devices/{device}/messages", "/v1/devices/{device}/messages"), ("POST /v1/*", "/v1/*"),
        ("POST", "/elsewhere/{id}"),
    ]  # fmt: skip
    assert {(span.attributes or {})["service.peer.name"] for span in telemetry.spans} == {"push"}
    found = {each.attributes["external.operation"]: dict(each.attributes) for each in telemetry.points(_EXTERNAL)}
    assert found.keys() == {"send", "other", "POST"}
    assert {each["external.category"] for each in found.values()} == {"notifications"}
    assert all("url.template" not in each.attributes for each in telemetry.points(_HTTP))


_INSTRUMENTORS = {
    "httpx": ("opentelemetry.instrumentation.httpx", "HTTPXClientInstrumentor"),
    "requests": ("opentelemetry.instrumentation.requests", "RequestsInstrumentor"),
    "aiohttp": ("opentelemetry.instrumentation.aiohttp_client", "AioHttpClientInstrumentor"),
}


def _pretend(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it look as if the upstream instrumentor were active; that of aiohttp has hooks in each session."""
    name, kind = _INSTRUMENTORS[client.name]
    module: Any = types.ModuleType(name)
    setattr(module, kind, type(kind, (), {"is_instrumented_by_opentelemetry": True}))
    monkeypatch.setitem(sys.modules, name, module)

    async def on_request_start(*_: Any) -> None:
        """Upstream's."""

    on_request_start.__module__ = name
    config = aiohttp.TraceConfig()
    config.on_request_start.append(on_request_start)
    monkeypatch.setattr(Aiohttp, "trace_configs", [config])


def test_beside_upstream(telemetry: Telemetry, server: Server, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the upstream instrumentor is active, span, header and metric are its own; we count the API, once."""
    _pretend(client, monkeypatch)
    client.calls("GET", f"{server.url}/redirect?to=/ok")

    assert (telemetry.spans, telemetry.points(_HTTP)) == ([], [])
    assert server.sent("traceparent") == [[], []]
    assert _counts(telemetry, _EXTERNAL) == {None: 1}
    with measure.external("stripe", "pay"):
        client.calls("GET", f"{server.url}/status/500")
    assert [span.name for span in telemetry.spans] == ["stripe pay"]
    assert _counts(telemetry, _EXTERNAL) == {None: 1, "500": 1}
    assert operation.current() is None


def test_the_report_names_upstream(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report says who else measures the library."""
    _pretend(client, monkeypatch)
    with instrument(client.name):
        (status,) = [each for each in otel_perf.integrations.report() if each.library == client.name]

    assert status.state == "already measured by someone else"
    assert status.why.startswith("opentelemetry-instrumentation-")


def test_cancelled(telemetry: Telemetry, server: Server, async_client: Any) -> None:
    """A cancelled call is ended as such, before its answer and within its body; nothing stays current."""

    async def main() -> None:
        async with async_client.session() as session:
            with instrument(session):
                for path in ("/slow", "/part"):
                    asked = len(server.paths)
                    task = asyncio.create_task(async_client.one(session, "GET", server.url + path))
                    while len(server.paths) == asked:  # noqa: ASYNC110 -- the server runs in a thread
                        await asyncio.sleep(0.01)
                    await asyncio.sleep(0.1)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    assert operation.current() is None

    asyncio.run(main())
    cancelled = {"asyncio.exceptions.CancelledError": 2}
    assert (_counts(telemetry, _HTTP), _counts(telemetry, _EXTERNAL)) == (cancelled, cancelled)
    assert len(telemetry.spans) == 2


def test_concurrent_calls_have_their_own_parents(telemetry: Telemetry, server: Server, async_client: Any) -> None:
    """Calls at the same time are children of the step of their own task."""

    async def main() -> None:
        async with async_client.session() as session:

            async def work(n: int) -> None:
                with measure(f"step {n}"):
                    await async_client.one(session, "GET", f"{server.url}/ok")

            with instrument(session):
                await asyncio.gather(*(work(n) for n in range(8)))

    asyncio.run(main())
    steps = {span.context.span_id: span.name for span in telemetry.spans if span.name.startswith("step")}
    assert len({steps[span.parent.span_id] for span in telemetry.spans if span.name == "GET" and span.parent}) == 8


def test_hostile_addresses(telemetry: Telemetry, server: Server, client: Any) -> None:
    """Unknown methods share one name; credentials and long queries stay out of the span."""
    client.calls("BREW", server.url.replace("://", "://user:hush@") + "/ok?q=" + "x" * 20_000)

    span = telemetry.span("_OTHER")
    assert (span.attributes or {})["http.request.method_original"] == "BREW"
    assert "hush" not in span.to_json()
    assert len(str((span.attributes or {})["url.full"])) <= 2048


def test_many_hosts_and_paths(telemetry: Telemetry) -> None:
    """100,000 hosts and paths fit into a bounded memory and a bounded number of series."""
    telemetry.restart(cardinality_limit=50)
    known = origins.plan(telemetry.runtime)
    for n in range(100_000):
        known.origin(f"http://h{n}.example.com/a/{n}x{n}")
    for n in range(2_000):
        call = http_call.start("GET", f"http://h{n}.example.com/a/{n}x{n}", foreign=n % 100 != 0)
        assert call is not None
        call.stop()

    assert origins._latest is known
    assert len(known._origins) <= 1024
    assert len(telemetry.points(_EXTERNAL)) <= 51
    assert sum(point.count for point in telemetry.points(_EXTERNAL)) == 2_000


def test_a_call_within_a_call(telemetry: Telemetry, server: Server) -> None:
    """Where one client stands on another only the outermost measures, as with every layer."""
    with requests.Session() as inner, instrument(inner):

        def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(inner.get(str(request.url), headers=dict(request.headers)).status_code)

        with httpx.Client(transport=httpx.MockTransport(answer)) as outer, instrument(outer):
            assert outer.get(f"{server.url}/status/404").status_code == 404

    assert (_counts(telemetry, _HTTP), _counts(telemetry, _EXTERNAL)) == ({"404": 1}, {"404": 1})
    assert [len(each) for each in server.sent("traceparent")] == [1]


@pytest.mark.parametrize("url", ["", "nothing", "http:///x", "http://[::1", "http://h:99999/", "\ud800://\x1b/\x00"])
def test_odd_addresses(telemetry: Telemetry, url: str) -> None:
    """What is no address is a call all the same, and fails as such."""
    call = http_call.start("GET", url)
    assert call is not None
    call.stop(ValueError("no address"))

    assert _counts(telemetry, _HTTP) == {"ValueError": 1}
    assert "\x1b" not in telemetry.span("GET").to_json()


@pytest.mark.parametrize(
    ("url", "full"),
    [
        ("https://a.example.com/b", "https://a.example.com/b"),
        ("https://a.example.com", "https://a.example.com/"),
        ("https://me:hush@A.example.com:8443/b", "https://a.example.com:8443/b"),
        ("http://[::1]:8000/b?c=hush", "http://[::1]:8000/b?c=REDACTED"),
        ("http://a.example.com/b?c d#e", "http://a.example.com/b?REDACTED"),
        ("http://a.example.com/\u00fc?", "http://a.example.com/REDACTED"),
        ("http://a.example.com/b://u:hush@c", "http://a.example.com/REDACTED//REDACTED"),
    ],
)
def test_the_address_on_the_span(telemetry: Telemetry, url: str, full: str) -> None:
    """It is the whole address without user information, query values and fragment, however it is written."""
    call = http_call.start("GET", url)
    assert call is not None
    call.stop()
    assert (telemetry.span("GET").attributes or {})["url.full"] == full


def test_a_body_that_nobody_wants_any_more(telemetry: Telemetry) -> None:
    """A call whose body is left alone ends when nobody holds it, with the time at which it was last seen."""
    call = http_call.start("GET", "http://10.0.0.1/x")
    assert call is not None
    body = call.stream()
    assert telemetry.spans == []
    del body

    assert _counts(telemetry, _HTTP) == {None: 1}
    assert operation.current() is None


def test_what_began_before_a_new_start_is_not_counted(telemetry: Telemetry) -> None:
    """A call that outlives the configuration it began under is in no count of the next."""
    call = http_call.start("GET", "http://10.0.0.1/x")
    assert call is not None
    telemetry.restart()
    call.stop()

    assert (telemetry.points(_HTTP), telemetry.points(_EXTERNAL)) == ([], [])
