"""HTTP calls within other calls, secrets in their addresses, and headers of the app's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import requests

from otel_perf import instrument, measure
from otel_perf.integrations import http_call
from tests.conftest import Telemetry
from tests.integrations.http_server import LIBRARIES, Server, library, unused_port

_HTTP = "http.client.request.duration"
_OWN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the test's own."""
    with Server.run() as running:
        yield running


def _failed(telemetry: Telemetry) -> list[int]:
    points = telemetry.points(_HTTP)
    return [sum(p.count for p in points if ("error.type" in p.attributes) is failed) for failed in (False, True)]


def test_calls_of_an_app_in_the_same_process(telemetry: Telemetry) -> None:
    """What an endpoint calls counts, failures too, though a client of the same process called the endpoint."""
    dead = f"http://127.0.0.1:{unused_port()}/"

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for get in (httpx.get, requests.get):
            for _ in range(3):
                with suppress(httpx.ConnectError, requests.ConnectionError):
                    get(dead)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            await client.get("http://app.test/x")

    with instrument("httpx"), instrument("requests"):
        asyncio.run(main())
    assert _failed(telemetry) == [1, 6]


def test_an_auth_that_calls(telemetry: Telemetry, server: Server) -> None:
    """Calls for a token are calls of their own, with their failures."""

    class Auth(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Any:
            httpx.get(f"{server.url}/status/500")
            yield request

    with instrument("httpx"):
        httpx.get(f"{server.url}/ok", auth=Auth())
    assert _failed(telemetry) == [1, 1]


def test_a_hook_of_requests_that_calls(telemetry: Telemetry, server: Server) -> None:
    """Calls in a hook are their own; the redirects around them are not."""

    def hook(*_: Any, **__: Any) -> None:
        requests.get(f"{server.url}/status/500")

    with instrument("requests"):
        requests.get(f"{server.url}/redirect?to=/ok", hooks={"response": hook})
    assert _failed(telemetry) == [1, 2]


@pytest.mark.parametrize("client", LIBRARIES, ids=library)
def test_the_apps_own_traceparent(telemetry: Telemetry, server: Server, client: Any) -> None:
    """It stays on the request and on its redirects."""
    client.calls("GET", f"{server.url}/redirect?to=/ok", headers={"traceparent": _OWN})
    assert server.sent("traceparent") == [[_OWN], [_OWN]]
    assert _failed(telemetry) == [1, 0]


def test_a_request_that_is_sent_again(telemetry: Telemetry, server: Server) -> None:
    """Each time it carries the context of its own call."""
    with httpx.Client() as client, instrument(client):
        request = client.build_request("GET", f"{server.url}/ok")
        client.send(request)
        client.send(request)
    assert [f"{span.get_span_context().span_id:016x}" for span in telemetry.spans] == [
        each.split("-")[2] for (each,) in server.sent("traceparent")
    ]


@pytest.mark.parametrize(
    ("url", "full"),
    [
        ("https://api.telegram.org/bot1:SECRET/sendMessage", "https://api.telegram.org/REDACTED/sendMessage"),
        ("https://hooks.slack.com/services/T/B/SECRET", "https://hooks.slack.com/services/T/REDACTED/REDACTED"),
        ("https://discord.com/api/webhooks/1/SECRET?a=b", "https://discord.com/api/webhooks/1/REDACTED?a=REDACTED"),
        ("https://a.example.com/x/SECRET0123456789abc", "https://a.example.com/x/REDACTED"),
    ],
)
def test_secrets_in_paths(telemetry: Telemetry, url: str, full: str) -> None:
    """They are in no address and in no text of an error."""
    call = http_call.start("POST", url)
    assert call is not None
    call.stop(ValueError(f"no {url} and no {url.partition('//')[2]}"))
    (span,) = telemetry.spans
    assert (span.attributes or {})["url.full"] == full
    assert "SECRET" not in span.to_json()


def test_parallel_calls_in_a_block(telemetry: Telemetry) -> None:
    """A call that ran beside the failed one does not make good, a later one does."""
    for name, later in (("beside", False), ("retry", True)):
        with measure.external("svc", name):
            first = http_call.start("GET", "http://a.test/1")
            assert first is not None
            first.deactivate()
            if later:
                first.stop(OSError())
            second = http_call.start("GET", "http://a.test/2")
            assert second is not None
            first.stop(OSError())
            second.stop()
    found = {p.attributes["external.operation"]: p.attributes.get("error.type")
             for p in telemetry.points("external.api.duration")}  # fmt: skip
    assert found == {"beside": "OSError", "retry": None}
