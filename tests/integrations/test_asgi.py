"""Requests of plain ASGI apps: the middleware without any framework."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from starlette.responses import PlainTextResponse
from starlette.routing import Route, Router

import otel_perf
from otel_perf import guard, instrument, measure
from otel_perf.integrations import asgi, headers, plan, registry, request
from otel_perf.integrations.routes import Routes
from otel_perf.telemetry import logs, operation
from tests.asking import ask, ask_all, scope
from tests.serving import served

DURATION = "http.server.request.duration"
ACTIVE = "http.server.active_requests"
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
BODY = {"type": "http.response.body", "body": b"ok"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def answering(*messages: Any, then: Any = None) -> Any:
    """An app that sends these messages; an exception among them is raised."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages or (START, BODY):
            if isinstance(message, BaseException):
                raise message
            await send(message)
        if then is not None:
            await then()

    return app


def drive(app: Any, **more: Any) -> list[Any]:
    """Calls an app with a bare scope; answers what it sent."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope(**more), receive, send))
    return sent


def test_a_request_is_one_span_one_duration_and_no_longer_active(telemetry):
    """A request makes a SERVER span with what is known of it, one duration by the same labels, and active ends at 0."""
    app = instrument(answering())
    response = ask(app, "/walks/7?token=s3cret&page=2", headers={"user-agent": "probe/1"})
    span = telemetry.span("GET")
    assert span.kind is SpanKind.SERVER
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.request.header.x-request-id": response.headers["x-request-id"],
        "url.scheme": "http",
        "url.path": "/walks/7",
        "url.query": "token=REDACTED&page=REDACTED",
        "user_agent.original": "probe/1",
        "client.address": "127.0.0.1",
        "server.address": "streak.test",
        "server.port": 8080,
        "network.protocol.version": "1.1",
    }
    (point,) = telemetry.points(DURATION)
    assert point.count == 1
    assert dict(point.attributes) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
    }
    (active,) = telemetry.points(ACTIVE)
    assert (active.value, dict(active.attributes)) == (0, {"http.request.method": "GET", "url.scheme": "http"})


def test_active_requests_count_while_a_request_runs(telemetry):
    """While the app works there is one active request, after its last byte none."""
    seen = []

    async def app(scope, receive, send):
        seen.append(telemetry.points(ACTIVE)[0].value)
        await send(START)
        await send(BODY)
        seen.append(telemetry.points(ACTIVE)[0].value)

    drive(instrument(app))
    assert seen == [1, 0]


@pytest.mark.parametrize("method", ["BREW", "get", "X" * 300])
def test_methods_of_nobodys_standard_are_one_label(telemetry, method):
    """An unknown method is `_OTHER` on the metric and keeps its own name on the span, bounded."""
    drive(instrument(answering()), method=method)
    assert telemetry.points(DURATION)[0].attributes["http.request.method"] == "_OTHER"
    span = telemetry.span("HTTP")
    assert span.attributes["http.request.method_original"] == method


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


def test_a_status_that_is_an_enumeration_is_a_number(telemetry):
    """Apps may answer with `HTTPStatus.OK`: span and metric say 200."""
    drive(instrument(answering({**START, "status": HTTPStatus.ACCEPTED}, BODY)))
    for attributes in (telemetry.span("GET").attributes, telemetry.points(DURATION)[0].attributes):
        assert type(attributes["http.response.status_code"]) is int


def test_a_response_that_is_sent_again_and_again_does_not_grow(telemetry):
    """The app's message and its list of headers stay untouched: a response object may be shared."""
    shared = {**START, "headers": [(b"content-type", b"text/plain")]}
    app = instrument(answering(shared, BODY))
    responses = ask_all(app, ("GET", "/"), ("GET", "/"))
    assert [len(each.headers.get_list("x-request-id")) for each in responses] == [1, 1]
    assert shared["headers"] == [(b"content-type", b"text/plain")]


def test_state_that_is_no_dict_is_left_alone(telemetry):
    """A server with a state of its own kind costs the request id in the state, nothing else."""
    state = object()
    sent = drive(instrument(answering()), state=state)
    assert b"x-request-id" in dict(sent[0]["headers"])
    assert len(telemetry.spans) == 1


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


def test_a_scope_with_little_in_it_is_enough(telemetry):
    """Neither client, server, version nor scheme are needed."""
    less = {"client": None, "server": None, "http_version": "0.9", "scheme": "gopher"}
    drive(instrument(answering()), **less)
    assert set(telemetry.span("GET").attributes) == {
        "http.request.method", "http.response.status_code", "url.scheme", "url.path",
        "http.request.header.x-request-id",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "status", "error_type"),
    [
        (({**START, "status": 404}, BODY), 404, None),
        (({**START, "status": 503}, BODY), 503, "503"),
        ((ValueError("no"),), None, "ValueError"),
        ((START, {**BODY, "more_body": True}, KeyError("k")), 200, "KeyError"),
        (({**START, "status": 500}, BODY, KeyError("k")), 500, "KeyError"),
        ((asyncio.CancelledError(),), None, "asyncio.exceptions.CancelledError"),
        ((START,), 200, "client_disconnected"),
        ((START, {**BODY, "more_body": True}), 200, "client_disconnected"),
        (({"type": "http.response.debug"},), None, "incomplete_response"),
    ],
)
def test_failures_are_told_once_and_alike_on_span_and_metric(telemetry, messages, status, error_type):
    """`error.type` is the exception, else a status from 500 on, else how the response was cut short."""
    app = instrument(answering(*messages))
    failures = tuple(each for each in messages if isinstance(each, BaseException))
    if failures:
        with pytest.raises(type(failures[0])):
            drive(app)
    else:
        drive(app)
    span = telemetry.span("GET")
    (point,) = telemetry.points(DURATION)
    assert point.count == 1
    for attributes in (span.attributes, point.attributes):
        assert attributes.get("http.response.status_code") == status
        assert attributes.get("error.type") == error_type
    assert span.status.status_code is (StatusCode.ERROR if error_type else StatusCode.UNSET)
    assert [event.name for event in span.events] == ["exception"] * len(failures)
    assert telemetry.points(ACTIVE)[0].value == 0


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
    """The request ends with the last message of its response, not before, and not after what the app does then."""
    ended: list[int] = []

    async def app(scope, receive, send):
        for message in messages:
            ended.append(len(telemetry.spans))
            await send(message)
        with measure("afterwards"):
            ended.append(len(telemetry.spans))
        raise RuntimeError("a background task that fails is not the request's failure")

    with pytest.raises(RuntimeError):
        drive(instrument(app))
    assert ended == [0] * len(messages) + [1]
    span = telemetry.span("GET")
    assert "error.type" not in span.attributes
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


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/metrics", {}),
        ("/performance/assets/app.js", {}),
        ("/api/health", {}),
        ("/proxied/metrics", {"root_path": "/proxied"}),
    ],
)
def test_excluded_paths_make_nothing_but_a_request_id(telemetry, path, more):
    """No span, no metric, no spans of operations within; the id is there all the same."""

    async def app(scope, receive, send):
        with measure("within"):
            await answering()(scope, receive, send)

    sent = drive(instrument(app), path=path, **more)
    names = [name for name, _ in sent[0]["headers"]]
    assert names.count(b"x-request-id") == 1
    assert b"traceresponse" not in names
    assert telemetry.spans == []
    assert not telemetry.points(DURATION)
    assert not telemetry.points(ACTIVE)


def test_what_is_excluded_is_read_again_with_each_configure(telemetry):
    """Another `configure()` brings other exclusions to an app that runs already."""
    app = instrument(answering())
    telemetry.restart(excluded_routes=["/quiet*", "/a.c"])
    ask_all(app, ("GET", "/quiet/room"), ("GET", "/metrics"), ("GET", "/abc"), ("GET", "/a.c"))
    assert [each.attributes["url.path"] for each in telemetry.spans] == ["/metrics", "/abc"]


def test_without_configure_requests_pass_with_an_id():
    """Before `configure()` the app works as ever, and responses carry an id."""
    response = ask(instrument(answering()), "/", headers={"x-request-id": "early", "traceparent": PARENT})
    assert response.headers["x-request-id"] == "early"
    assert "traceresponse" not in response.headers


def test_configure_may_come_after_instrument(telemetry):
    """The middleware finds what is in force at each request, also after `shutdown()`."""
    app = instrument(answering())
    otel_perf.shutdown()
    assert ask(app, "/").status_code == 200
    telemetry.restart()
    assert ask(app, "/").status_code == 200
    assert len(telemetry.spans) == 1


def test_a_configure_in_the_middle_of_a_request_leaves_counts_whole(telemetry):
    """A request that began before another `configure()` is not taken off the active ones that count anew."""

    async def app(scope, receive, send):
        telemetry.restart()
        await answering()(scope, receive, send)

    assert drive(instrument(app))[0]["status"] == 200
    assert [point.value for point in telemetry.points(ACTIVE)] in ([], [0])


@pytest.mark.parametrize("copied", [False, True])
def test_a_request_leaves_nothing_to_the_garbage_collector(telemetry, copied):
    """What a request was made of is gone when it is over, also where the scope that was routed is a copy."""

    async def answer(_: Any) -> PlainTextResponse:
        return PlainTextResponse("done")

    router = Router([Route("/", answer)])

    class App:
        routes = router.routes

        def __init__(self) -> None:
            self.router = router

        async def __call__(self, scope, receive, send):
            await router(dict(scope) if copied else scope, receive, send)

    app = instrument(App())
    drive(app)
    gc.collect()
    before = {id(each) for each in gc.get_objects() if type(each) is request.Request}
    gc.disable()
    try:
        drive(app)
        left = [each for each in gc.get_objects() if type(each) is request.Request and id(each) not in before]
    finally:
        gc.enable()
    assert left == []


def test_a_span_that_cannot_be_opened_costs_the_span_only(telemetry, monkeypatch):
    """A processor of the application's that fails at the start leaves a request with its true duration and no span."""

    class Failing(SpanProcessor):
        def on_start(self, span, parent_context=None):
            raise ZeroDivisionError

    monkeypatch.setattr("otel_perf.guard.strict", False)
    telemetry.runtime.tracer_provider.add_span_processor(Failing())
    seen = []

    async def app(scope, receive, send):
        seen.append(operation.current())
        await send(START)
        await send(BODY)

    drive(instrument(app))
    (point,) = telemetry.points("http.server.request.duration")
    assert point.count == 1
    assert 0 <= point.sum < 60
    assert seen[0].seconds < 60


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


def test_faults_of_ours_are_kept_from_the_app(telemetry, monkeypatch):
    """Where something of ours breaks, at the start, in the middle or at the end, the app answers as ever."""
    monkeypatch.setattr("otel_perf.guard.strict", False)

    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    for owner, name in ((plan, "current"), (Routes, "template"), (headers, "attributes")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            assert drive(instrument(answering()))[1] == BODY
    assert guard.errors == 3


def test_a_message_that_is_none_is_the_servers_to_refuse(telemetry, monkeypatch):
    """A response start without a status, or with headers that are none, is handed on as it is."""
    monkeypatch.setattr("otel_perf.guard.strict", False)
    for start in ({"type": "http.response.start"}, {**START, "headers": 7}):
        assert drive(instrument(answering(start, BODY)))[0] is start
    assert drive(instrument(answering({**START, "headers": [(7, 8)]})))[0]["headers"][0] == (7, 8)
    assert len(telemetry.spans) == 3


def test_other_event_loops_flush_by_anyio(telemetry, monkeypatch):
    """Without a running asyncio loop, as under trio, the flush goes through anyio, which is there then."""
    told = []

    async def run_sync(call: Any) -> None:
        call()

    monkeypatch.setattr("anyio.to_thread.run_sync", run_sync)
    monkeypatch.setattr(telemetry.runtime.pipeline, "flush", lambda: told.append("flushed"))

    async def app(scope, receive, send):
        await send({"type": "lifespan.shutdown.complete"})

    async def send(message: Any) -> None:
        told.append(message["type"])

    running = instrument(app)({"type": "lifespan"}, None, send)
    with pytest.raises(StopIteration):
        running.send(None)
    assert told == ["flushed", "lifespan.shutdown.complete"]


def test_websockets_pass_untouched(telemetry):
    """A websocket is no request: nothing is counted, and only what keeps FastAPI from measuring it is added."""
    seen = []

    async def app(scope, receive, send):
        seen.append(sorted(scope))
        await send({"type": "websocket.accept", "headers": []})

    sent = drive(instrument(app), type="websocket")
    assert sent == [{"type": "websocket.accept", "headers": []}]
    assert seen == [sorted({**scope(), "fastapi.telemetry": None})]
    assert telemetry.spans == []
    assert not telemetry.points(DURATION)


def test_an_app_within_an_app_is_measured_once(telemetry):
    """Where one instrumented app stands in another, the outer one measures."""
    inner = instrument(answering())

    async def outer(scope, receive, send):
        await inner(dict(scope), receive, send)

    response = ask(instrument(outer), "/")
    assert response.headers.get_list("x-request-id") == [telemetry.span("GET").attributes[
        "http.request.header.x-request-id"
    ]]  # fmt: skip
    assert telemetry.points(DURATION)[0].count == 1


def test_undo_makes_it_a_pass_through(telemetry):
    """After `undo()`, or at the end of the block, the wrapped app is as it was."""
    with instrument(answering()) as app:
        assert instrument(app) is app
        assert "x-request-id" in ask(app, "/").headers
    assert "x-request-id" not in ask(app, "/").headers
    assert len(telemetry.spans) == 1


def test_what_is_an_asgi_app():
    """Functions and objects with scope, receive and send are; other callables are refused, with a reason."""

    class Object:
        async def __call__(self, scope, receive, send):
            """Answers nothing."""

    class Late:
        def __call__(self, scope, receive, send):
            """Answers something to be awaited."""

    async def named_otherwise(s, r, w):
        """Answers nothing."""

    def plain(a, b, c):
        """Is no app."""

    good = [Object(), Late(), named_otherwise, answering()]
    assert [asgi.matches(each) for each in good] == [True] * 4
    assert [asgi.matches(each) for each in (plain, Object, print, 7, lambda: None)] == [False] * 5
    with pytest.raises(TypeError, match="nothing can instrument 'function'"):
        registry.instrument(plain)
    with pytest.raises(ValueError, match="engine='native' is for FastAPI apps"):
        instrument(answering(), engine="native")


def test_no_framework_is_needed():
    """Plain ASGI apps are measured where neither Starlette nor FastAPI are installed."""
    program = """
import asyncio, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"starlette", "fastapi", "anyio"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import otel_perf
from otel_perf.telemetry import runtime

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})

async def main(app):
    sent = []
    async def send(message): sent.append(message)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await app(scope, None, send)
    print(dict(sent[0]["headers"])[b"x-request-id"].decode())
    await app({"type": "lifespan"}, None, send)

otel_perf.configure(strict=True)
asyncio.run(main(otel_perf.instrument(app)))
(series,) = [s for i in runtime.current.registry.instruments() for s in i.series.values()
             if i.metric.name == "http.server.request.duration"]
print(series.attributes["http.response.status_code"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    request_id, status = done.stdout.split()
    assert (len(request_id), status) == (32, "204")


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


# Behind a real server ------------------------------------------------------------------------------------------------


def lifespan_app(told: list[str]) -> Any:
    async def app(scope, receive, send):
        if scope["type"] != "lifespan":
            await answering()(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        told.append("the app is down")
        await send({"type": "lifespan.shutdown.complete"})

    return app


@pytest.fixture
def flushes(telemetry, monkeypatch) -> Iterator[list[str]]:
    """What was told, in order; a flush tells the thread it ran in."""
    told: list[str] = []

    def flush(timeout_s: float | None = None) -> bool:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            told.append("flushed in a thread")
        return True

    monkeypatch.setattr(telemetry.runtime.pipeline, "flush", flush)
    return told


def test_the_end_of_the_app_flushes_after_it_in_a_thread(telemetry, flushes):
    """The server's shutdown waits for the flush, which comes after the app's own and does not block the loop."""
    app = instrument(instrument(lifespan_app(flushes)))
    for _ in range(2):  # not for good: the same app may start again in this process
        with served(app) as address:
            assert httpx.get(address).status_code == 200
    assert flushes == ["the app is down", "flushed in a thread"] * 2
    assert len(telemetry.spans) == 2


def test_a_flush_that_fails_does_not_keep_the_app_from_ending(telemetry, monkeypatch):
    """The app's end is told to the server whatever the flush does, and also when there is nothing to flush."""
    monkeypatch.setattr("otel_perf.guard.strict", False)
    monkeypatch.setattr(telemetry.runtime.pipeline, "flush", lambda: 1 / 0)
    told: list[str] = []
    app = instrument(lifespan_app(told))
    with served(app):
        pass
    otel_perf.shutdown()
    with served(app):
        pass
    assert told == ["the app is down"] * 2


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
