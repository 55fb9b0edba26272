"""Requests of plain ASGI apps: the middleware without any framework."""

from __future__ import annotations

import gc
import subprocess
import sys
from http import HTTPStatus
from typing import Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from starlette.responses import PlainTextResponse
from starlette.routing import Route, Router

import otel_perf
from otel_perf import guard, instrument, measure
from otel_perf.integrations import asgi, headers, plan, registry, request
from otel_perf.integrations.routes import Routes
from otel_perf.telemetry import operation
from tests.asking import BODY, START, answering, ask, ask_all, drive

DURATION = "http.server.request.duration"
ACTIVE = "http.server.active_requests"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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


def test_a_scope_with_little_in_it_is_enough(telemetry):
    """Neither client, server, version nor scheme are needed."""
    less = {"client": None, "server": None, "http_version": "0.9", "scheme": "gopher"}
    drive(instrument(answering()), **less)
    assert set(telemetry.span("GET").attributes) == {
        "http.request.method", "http.response.status_code", "url.scheme", "url.path",
        "http.request.header.x-request-id",
    }  # fmt: skip


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
