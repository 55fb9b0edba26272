"""What the calls of HTTP clients carry to others, and to whom: each library against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import baggage, propagate
from opentelemetry.context import attach, detach, set_value
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_perf.telemetry import sdk
from tests.conftest import Telemetry
from tests.integrations.http_server import LIBRARIES, Server, library

_HTTP = "http.client.request.duration"
_EXTERNAL = "external.api.duration"


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


def _counted(telemetry: Telemetry) -> list[int]:
    return [sum(point.count for point in telemetry.points(name)) for name in (_HTTP, _EXTERNAL)]


def test_the_context_stays_with_the_hosts_that_may_have_it(telemetry: Telemetry, server: Server, client: Any) -> None:
    """A redirect to a host that is not allowed carries neither context nor baggage, also not on the way back."""
    telemetry.restart(propagate_to="127.0.0.1")
    back = f"{server.url}/ok"
    token = attach(baggage.set_baggage("plan", "gold"))
    try:
        client.calls("GET", f"{server.url}/redirect?to={server.other}/redirect?to={back}", f"{server.other}/ok")
        client.calls("GET", f"{server.other}/redirect?to={back}")
    finally:
        detach(token)

    assert [len(each) for each in server.sent("traceparent")] == [1, 0, 1, 0, 0, 1]
    assert [len(each) for each in server.sent("baggage")] == [1, 0, 1, 0, 0, 1]
    assert server.sent("baggage")[0] == ["plan=gold"]


def test_nothing_is_passed_on_to_strangers(telemetry: Telemetry, server: Server, client: Any) -> None:
    """Where nobody is allowed no call carries a context, and a header that the app put there stays its own."""
    telemetry.restart(propagate_to="none")
    own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    client.calls("GET", f"{server.url}/ok")
    client.calls("GET", f"{server.url}/redirect?to={server.other}/ok", headers={"traceparent": own})

    assert server.sent("traceparent") == [[], [own], [own]]
    assert len(telemetry.spans) == 2


def test_unsampled_calls_pass_the_context_on(telemetry: Telemetry, server: Server, client: Any) -> None:
    """Without a recorded span the metrics are there, and the next service learns that it is not sampled."""
    telemetry.restart(sampler="always_off")
    client.calls("GET", f"{server.url}/ok")

    assert telemetry.spans == []
    assert _counted(telemetry) == [1, 1]
    ((header,),) = server.sent("traceparent")
    assert header.endswith("-00") or not int(header[-2:], 16) & 1


def test_suppressed_calls_make_no_span(telemetry: Telemetry, server: Server, client: Any) -> None:
    """Where spans are suppressed the call counts, as with every library, and there is no context to pass on."""
    token = attach(set_value(sdk.SUPPRESS_KEY, True))
    try:
        client.calls("GET", f"{server.url}/ok")
    finally:
        detach(token)

    assert (telemetry.spans, server.sent("traceparent")) == ([], [[]])
    assert _counted(telemetry) == [1, 1]


def test_the_apps_own_propagators(telemetry: Telemetry, server: Server, client: Any) -> None:
    """Where the application has set other propagators, theirs are the headers, and they stay with the allowed hosts."""

    class Own(TraceContextTextMapPropagator):
        def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
            carrier["x-own"] = "1"

    telemetry.restart(propagate_to="127.0.0.1")
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(Own())
    try:
        client.calls("GET", f"{server.url}/redirect?to={server.other}/ok")
    finally:
        propagate.set_global_textmap(before)

    assert server.sent("x-own") == [["1"], []]
    assert server.sent("traceparent") == [[], []]
