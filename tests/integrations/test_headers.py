"""What strangers send in headers, and what our answers say in them."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace

from otel_perf import instrument, measure
from otel_perf.telemetry import logs
from tests.asking import BODY, START, answering, ask, drive
from tests.serving import served

DURATION = "http.server.request.duration"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("given_id", ["abc-123_X.9", "a" * 128, "7"])
def test_a_well_formed_request_id_is_taken_over(telemetry, given_id):
    """The caller's id comes back, and is on the span, in the state and in log records."""
    seen: dict[str, Any] = {}

    async def app(scope, receive, send):
        seen["state"] = scope["state"]["request_id"]
        seen["log"] = logging.getLogRecordFactory()("app", 20, "f", 1, "hello", (), None).request_id
        await answering()(scope, receive, send)

    response = ask(instrument(app), "/", headers={"x-request-id": given_id})
    assert response.headers.get_list("x-request-id") == [given_id]
    assert seen == {"state": given_id, "log": given_id}
    assert telemetry.span("GET").attributes["http.request.header.x-request-id"] == given_id
    assert logs.request_id.get() is None


@pytest.mark.parametrize("given_id", [b"", b"a" * 129, b"a b", b"a\n", b"<script>", "é".encode(), b"\xff"])
def test_a_malformed_request_id_is_replaced(telemetry, given_id):
    """Anything else than 1 to 128 letters, digits, dots, underscores and hyphens never comes back to the client."""
    start = drive(instrument(answering()), headers=[(b"x-request-id", given_id)])[0]
    (made,) = [value for name, value in start["headers"] if name == b"x-request-id"]
    assert made != given_id
    assert len(made) == 32
    assert int(made, 16) >= 0


def test_an_id_that_the_app_gives_itself_wins_and_is_there_once(telemetry):
    """Where a middleware of the app's own answers with an id, the client sees that one only, and so does the span."""
    own = {**START, "headers": [(b"X-Request-Id", b"mine")]}
    response = ask(instrument(answering(own, BODY)), "/")
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert telemetry.span("GET").attributes["http.request.header.x-request-id"] == "mine"


def test_the_response_tells_its_trace(telemetry):
    """A recorded request answers with `traceresponse`: version, trace, span, flags."""
    response = ask(instrument(answering()), "/")
    context = telemetry.span("GET").context
    told = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert response.headers["traceresponse"] == told


@pytest.mark.parametrize("settings", [{"trace_response": False}, {"sampler": "always_off"}])
def test_no_trace_is_told_when_it_is_off_or_not_recorded(telemetry, settings):
    """Without the setting or a recorded span there is no `traceresponse`; the duration counts all the same."""
    telemetry.restart(**settings)
    assert "traceresponse" not in ask(instrument(answering()), "/").headers
    assert telemetry.points(DURATION)[0].count == 1


def test_the_parent_is_the_remote_caller_and_its_baggage_arrives(telemetry):
    """Trace context and baggage of the caller are taken over while the app runs."""
    seen = []

    async def app(scope, receive, send):
        seen.append(baggage.get_baggage("tier"))
        with measure("step"):
            await answering()(scope, receive, send)

    ask(instrument(app), "/", headers={"traceparent": PARENT, "tracestate": "a=1", "baggage": "tier=gold"})
    span = telemetry.span("GET")
    assert span.parent is not None
    assert span.parent.is_remote
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == PARENT[3:52]
    assert span.context.trace_state.to_header() == "a=1"
    assert telemetry.span("step").parent.span_id == span.context.span_id
    assert seen == ["gold"]


@pytest.mark.parametrize(
    "headers",
    [
        [(b"traceparent", PARENT.encode()), (b"traceparent", PARENT.encode())],
        [(b"traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01")],
        [(b"traceparent", b"\xff\xfe")],
        [(b"traceparent", b"9" * 100_000)],
    ],
)
def test_a_broken_parent_starts_a_trace_of_its_own(telemetry, headers):
    """A repeated, empty, garbled or huge traceparent is no parent and no trouble."""
    drive(instrument(answering()), headers=headers)
    assert telemetry.span("GET").parent is None


def test_the_propagators_in_force_decide_what_is_read(telemetry, monkeypatch):
    """Headers of another propagator are read when that one is set, also after the first request."""
    app = instrument(answering())
    ask(app, "/", headers={"traceparent": PARENT})

    class Letter(propagate.textmap.TextMapPropagator):
        fields = frozenset({"X-Letter"})

        def extract(self, carrier, context=None, getter=propagate.textmap.default_getter):
            (text,) = getter.get(carrier, "X-Letter") or ["0"]
            of = trace.SpanContext(int(text), 5, is_remote=True, trace_flags=trace.TraceFlags(1))
            return trace.set_span_in_context(trace.NonRecordingSpan(of), context)

        def inject(self, carrier, context=None, setter=None):
            """Nothing is sent."""

    letter = Letter()
    monkeypatch.setattr(propagate, "get_global_textmap", lambda: letter)
    ask(app, "/", headers={"traceparent": PARENT, "x-letter": "77"})
    first, second = telemetry.spans
    assert f"{first.context.trace_id:032x}" == PARENT[3:35]
    assert second.context.trace_id == 77


def test_a_propagator_that_fails_costs_the_parent_only(telemetry, monkeypatch):
    """An exception of a propagator is kept from the app; span and duration are there."""
    monkeypatch.setattr("otel_perf.guard.strict", False)

    class Broken(propagate.textmap.TextMapPropagator):
        fields = frozenset({"traceparent"})

        def extract(self, *_, **__):
            raise RuntimeError

        def inject(self, *_, **__):
            """Nothing is sent."""

    broken = Broken()
    monkeypatch.setattr(propagate, "get_global_textmap", lambda: broken)
    assert ask(instrument(answering()), "/", headers={"traceparent": PARENT}).status_code == 200
    assert telemetry.span("GET").parent is None
    assert telemetry.points(DURATION)[0].count == 1


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        (b"shop.example", "shop.example", 80),
        (b"SHOP.example:8443", "shop.example", 8443),
        (b"[2001:db8::1]:99", "2001:db8::1", 99),
        (b"shop.example:99999", "127.0.0.1", 8000),
        (b"evil\r\nhost", "127.0.0.1", 8000),
        (b"user@shop.example", "127.0.0.1", 8000),
        (b"shop.example/path", "127.0.0.1", 8000),
        (b"\xff\xfe", "127.0.0.1", 8000),
        (b"", "127.0.0.1", 8000),
    ],
)
def test_the_host_header_is_believed_when_it_is_one(telemetry, host, address, port):
    """A valid Host header names the server; anything else is passed over for the address that listens."""
    drive(instrument(answering()), headers=[(b"host", host)])
    attributes = telemetry.span("GET").attributes
    assert (attributes["server.address"], attributes["server.port"]) == (address, port)


def test_headers_that_can_be_read_once_are_read_by_the_app_too(telemetry):
    """ASGI lets a server hand over any iterable of headers: what we read is still there for the app."""
    seen = []

    async def app(scope, receive, send):
        seen.extend(scope["headers"])
        await send(START)
        await send(BODY)

    pairs = [(b"x-request-id", b"early"), (b"accept", b"*/*")]
    sent = drive(instrument(app), headers=iter(pairs))
    assert seen == pairs
    assert (b"x-request-id", b"early") in sent[0]["headers"]


def test_ten_thousand_headers_are_no_trouble(telemetry):
    """A flood of headers, repeated ones among them, is read in one pass and kept bounded."""
    headers = [(b"x-%d" % n, b"v") for n in range(5000)]
    headers += [(name, b"k=v") for name in (b"traceparent", b"tracestate", b"baggage", b"host") for _ in range(1250)]
    drive(instrument(answering()), headers=headers)
    span = telemetry.span("GET")
    assert sum(len(str(value)) for value in span.attributes.values()) < 500


_NAMES = st.sampled_from(
    [b"host", b"user-agent", b"x-request-id", b"traceparent", b"tracestate", b"baggage", b"x-other"]
)


_HEADERS = st.lists(st.tuples(_NAMES | st.binary(max_size=20), st.binary(max_size=300)), max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(headers=_HEADERS, query=st.binary(max_size=300), path=st.text(max_size=100), method=st.text(max_size=20))
def test_whatever_bytes_a_stranger_sends_the_app_answers(telemetry, headers, query, path, method):
    """Arbitrary header bytes, queries, paths (lone surrogates too) and methods never break a request or its span."""
    app = instrument(answering())
    path = "/x" + path + "\udcff"
    sent = drive(app, headers=headers, query_string=query, path=path, raw_path=b"", method=method)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    (request_id,) = [value for name, value in sent[0]["headers"] if name == b"x-request-id"]
    assert asgi_id(request_id)
    assert telemetry.spans[-1].to_json().encode()


def asgi_id(value: bytes) -> bool:
    return 1 <= len(value) <= 128 and set(value) <= set(
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
    )


@pytest.mark.parametrize(
    ("agent", "shown"),
    [
        ("app/1 token=abc123", "app/1 token=REDACTED"),
        ("app/1 (user=ann; password: hunter2)", "app/1 (user=REDACTED; password: REDACTED)"),
        ("app Authorization: Bearer abc.def", "app Authorization: Bearer REDACTED"),
        ("bot (+http://u:p@example.com/bot?t=1)", "bot (+http://example.com/bot?t=REDACTED)"),
        ("bot (mailto:ann@example.com)", "bot (mailto:REDACTED)"),
        ("Mozilla/5.0 (X11; Linux; rv:109.0) Gecko/20100101", "Mozilla/5.0 (X11; Linux; rv:109.0) Gecko/20100101"),
    ],
)
def test_a_user_agent_tells_no_secrets(telemetry, agent, shown):
    """Pairs, addresses and what comes after the name of a secret are masked; versions of browsers stay."""
    ask(instrument(answering()), "/", headers={"user-agent": agent})
    assert telemetry.span("GET").attributes["user_agent.original"] == shown


def test_headers_that_only_a_socket_can_send(telemetry):
    """Through a real server, bytes beyond ASCII in headers and query get an answer like any other."""
    with served(instrument(answering()), lifespan="off") as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"GET /%ff%00?\x7f=%ff HTTP/1.1\r\nHost: a\r\nUser-Agent: \xff\xfe\r\nX-Request-ID: \xe4\r\n"
                b"traceparent: \xff\r\nbaggage: \xff=\xfe,=,;\r\nConnection: close\r\n\r\n"
            )
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
    if answer.startswith(b"HTTP/1.1 200"):
        assert telemetry.span("GET").attributes["user_agent.original"] == "ÿþ"
