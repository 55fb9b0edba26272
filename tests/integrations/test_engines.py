"""Whatever the engine: one SERVER span and one duration for each request, and what is measured already is found."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, WebSocket, WebSocketDisconnect
from opentelemetry.instrumentation import _semconv as semconv
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.background import BackgroundTask

import otel_perf
from otel_perf import instrument, measure
from tests.asking import ask, ask_all
from tests.serving import served

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for another client than the rest of the world uses
    from fastapi.testclient import TestClient

DURATION = "http.server.request.duration"
OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"
NATIVE = pytest.mark.skipif(not hasattr(FastAPI(), "_telemetry"), reason="this FastAPI does not measure itself")
ENGINES = [None, "ours", pytest.param("native", marks=NATIVE), "upstream"]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _upstream_starts_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Upstream reads its opt-in once for the life of the process: each test gets a first time."""
    stability = semconv._OpenTelemetrySemanticConventionStability
    monkeypatch.setattr(stability, "_initialized", False)
    monkeypatch.setattr(stability, "_OTEL_SEMCONV_STABILITY_SIGNAL_MAPPING", {})
    monkeypatch.delenv(OPT_IN, raising=False)
    yield
    assert not hasattr(BackgroundTask, "_otel_original_call"), "upstream's patch of BackgroundTask was left"


def build(*, mounts: bool = True) -> FastAPI:
    """An app with a route, an error, an excluded path and, if wanted, a FastAPI app mounted twice."""
    app, router, sub = FastAPI(), APIRouter(), FastAPI()

    @router.get("/items/{number}")
    async def item(number: int) -> int:
        with measure("work"):
            return number

    @app.get("/boom")
    async def boom() -> None:
        raise ValueError

    @app.get("/metrics")
    async def excluded() -> str:
        with measure("excluded work"):
            return "ok"

    app.include_router(router, prefix="/api")
    if mounts:
        sub.include_router(router)
        app.mount("/sub", sub)
        app.mount("/t/{tenant}", sub)
    return app


def servers(telemetry: Any) -> list[Any]:
    return [span for span in telemetry.spans if span.kind is SpanKind.SERVER]


def durations(telemetry: Any) -> int:
    return sum(point.count for point in telemetry.points(DURATION))


@pytest.mark.parametrize("mounts", [False, True])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_one_span_and_one_duration_for_each_request(telemetry, engine, started, mounts):
    """Routes, errors, unknown paths and mounted apps: each request is one SERVER span and one duration."""
    app = build(mounts=mounts)
    if started:
        app.middleware_stack = app.build_middleware_stack()
    handle = instrument(app, engine=engine)
    paths = ["/api/items/1", "/api/items/x", "/boom", "/nowhere", "/docs"]
    paths += ["/sub/items/1", "/t/acme/items/2", "/sub/docs", "/sub/nowhere"] if mounts else []
    responses = ask_all(app, *(("GET", path) for path in paths))
    assert len(servers(telemetry)) == len(paths)
    assert durations(telemetry) == len(paths)
    assert [point.value for point in telemetry.points("http.server.active_requests")] == [0]
    assert [each.status_code for each in responses][:4] == [200, 422, 500, 404]
    for response, span in zip(responses, servers(telemetry), strict=True):
        assert response.headers["x-request-id"] == span.attributes["http.request.header.x-request-id"]
        assert response.headers["traceresponse"].split("-")[2] == f"{span.context.span_id:016x}"
        assert span.attributes["http.response.status_code"] == response.status_code
    handle.undo()


@pytest.mark.parametrize("engine", ENGINES)
def test_parent_children_and_redaction_are_the_same(telemetry, engine):
    """The remote parent, the operations within and a query without its values belong to every engine."""
    app = build()
    with instrument(app, engine=engine):
        ask(app, "/api/items/1?token=s3cret", headers={"traceparent": PARENT})
    (span,) = servers(telemetry)
    assert f"{span.parent.span_id:016x}" == PARENT[36:52]
    assert span.attributes["url.query"] == "token=REDACTED"
    above = {each.context.span_id: each.parent.span_id for each in telemetry.spans}
    at = telemetry.span("work").context.span_id
    while at in above and at != span.context.span_id:
        at = above[at]
    assert at == span.context.span_id


@pytest.mark.parametrize("engine", ENGINES)
def test_exclusion_and_request_id_are_the_same(telemetry, engine):
    """Excluded paths make nothing in any engine, also within, and answer with the id they were given."""
    app = build()
    with instrument(app, engine=engine):
        response = ask(app, "/metrics", headers={"x-request-id": "mine"})
        assert (response.status_code, response.headers["x-request-id"]) == (200, "mine")
        assert telemetry.spans == []
        assert durations(telemetry) == 0
        telemetry.restart(excluded_routes=["/api/*"])
        ask_all(app, ("GET", "/api/items/1"), ("GET", "/metrics"))
    assert [each.attributes["url.path"] for each in servers(telemetry)] == ["/metrics"]


@pytest.mark.parametrize("where", ["/ws/{room}", "/sub/ws/{room}"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_connection_is_one_span_and_our_figures(telemetry, engine, where):
    """WebSockets have one SERVER span whoever makes it, and the duration and the counts, which nobody else has."""
    app, sub = FastAPI(), FastAPI()

    @app.websocket("/ws/{room}")
    @sub.websocket("/ws/{room}")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    app.mount("/sub", sub)
    with instrument(app, engine=engine), TestClient(app).websocket_connect(where.format(room=1)) as socket:
        socket.send_text("hi")
        assert socket.receive_text() == "hi"
        assert {name for name, _ in socket.extra_headers} >= {b"x-request-id", b"traceresponse"}
        with pytest.raises(WebSocketDisconnect):
            socket.receive_text()
    (span,) = servers(telemetry)
    assert span.attributes["http.request.header.x-request-id"]
    assert len(telemetry.spans) == 1 or engine == "native"
    assert "websocket.messages.sent" in span.attributes or engine == "upstream"  # which has ended by then
    (point,) = telemetry.points("websocket.connection.duration")
    assert (point.count, point.attributes["http.route"]) == (1, where)
    assert [each.value for each in telemetry.points("websocket.messages")] == [1, 1]
    assert [each.value for each in telemetry.points("websocket.active_connections")] == [0]
    assert durations(telemetry) == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_configure_may_come_late_and_come_again(telemetry, engine):
    """Each engine measures with what is in force: nothing before `configure()`, and the new providers after it."""
    otel_perf.shutdown()
    app = build()
    with instrument(app, engine=engine):
        assert ask(app, "/api/items/1", headers={"x-request-id": "early"}).headers["x-request-id"] == "early"
        for _ in range(2):
            telemetry.restart()
            assert "traceresponse" in ask(app, "/api/items/1").headers
            assert len(servers(telemetry)) == 1
            assert durations(telemetry) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_settings_of_the_next_configure_hold(telemetry, engine):
    """What is switched off by another `configure()` is off for every engine."""
    app = build()
    with instrument(app, engine=engine):
        ask(app, "/api/items/1")
        assert [len(point.exemplars) for point in telemetry.points(DURATION)] == [1]
        telemetry.restart(exemplars=False, trace_response=False)
        assert "traceresponse" not in ask(app, "/api/items/1").headers
        assert [len(point.exemplars) for point in telemetry.points(DURATION)] == [0]


@pytest.mark.parametrize("engine", ENGINES)
def test_undo_takes_the_engine_away(telemetry, engine):
    """After undo neither ours nor the engine measures, and the app can have another engine."""
    app = build()
    options = dict(getattr(app, "_telemetry", {}))
    with instrument(app, engine=engine):
        ask(app, "/api/items/1")
    assert dict(getattr(app, "_telemetry", {})) == options
    if options:
        app._telemetry.update(tracing=False, metrics=False)  # it would measure by itself again
    assert "x-request-id" not in ask(app, "/api/items/1").headers
    assert len(servers(telemetry)) == 1
    with instrument(app, engine="upstream"):
        ask(app, "/api/items/1")
    assert len(servers(telemetry)) == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_behind_a_real_server_with_a_lifespan(telemetry, engine, monkeypatch):
    """Under uvicorn the engines start, answer and end like the bare app, and the end flushes."""
    told = []
    monkeypatch.setattr(telemetry.runtime.pipeline, "flush", lambda: told.append("flushed"))
    app = build()
    with instrument(app, engine=engine), served(app) as address:
        assert httpx.get(f"{address}/sub/items/3").json() == 3
    assert told == ["flushed"]
    assert (len(servers(telemetry)), durations(telemetry)) == (1, 1)


# Ours beside FastAPI's own -------------------------------------------------------------------------------------------


@NATIVE
@pytest.mark.parametrize("outer", [FastAPI, Starlette])
def test_mounted_apps_stay_silent_under_ours(telemetry, outer):
    """FastAPI apps mounted in an instrumented app, however deep, measure nothing by themselves."""
    app, middle = outer(), FastAPI()
    middle.mount("/sub", build())
    app.mount("/middle", middle)
    with instrument(app):
        ask(app, "/middle/sub/api/items/1")
    assert [span.name for span in servers(telemetry)] == ["GET /middle/sub/api/items/{number}"]
    assert durations(telemetry) == 1
    assert len(telemetry.spans) == 2


@NATIVE
def test_ours_switches_off_the_exporters_of_the_environment():
    """Under our engine FastAPI adds no exporter of its own at start-up, whatever its variable says."""
    program = """
import asyncio, otel_perf
from fastapi import FastAPI
from fastapi.telemetry import _runtime
otel_perf.configure(strict=True, excluded_routes=["/x"])
app = FastAPI()
assert app._telemetry["auto_configure"] is True
handle = otel_perf.instrument(app)
async def main():
    events = iter(["lifespan.startup", "lifespan.shutdown"])
    async def receive(): return {"type": next(events)}
    async def send(message): pass
    await app({"type": "lifespan", "state": {}}, receive, send)
asyncio.run(main())
assert not _runtime._owned, _runtime._owned
handle.undo()
assert app._telemetry["auto_configure"] is True
otel_perf.shutdown(1)
"""
    environ = {**os.environ, "FASTAPI_OTEL_AUTO_CONFIGURE": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env=environ)
    assert done.returncode == 0, done.stderr


@NATIVE
def test_an_app_that_measures_itself_on_purpose_is_left_to(telemetry):
    """An app that was given a provider keeps its own telemetry by default, and gives it up for `engine="ours"`."""

    def own(**more: Any) -> FastAPI:
        in_force = telemetry.runtime
        given = {"tracer_provider": in_force.tracer_provider, "meter_provider": in_force.meter_provider}
        app = FastAPI(telemetry={**given, **more})
        app.mount("/sub", build())
        return app

    for options, engine, scopes in (
        ({}, None, ["fastapi"]),
        ({"metrics": False}, None, ["fastapi"]),
        ({"tracing": False}, None, ["otel_perf"]),
        ({}, "ours", ["otel_perf"]),
    ):
        telemetry.restart()
        app = own(**options)
        with instrument(app, engine=engine):
            response = ask(app, "/sub/boom")
        assert "x-request-id" in response.headers
        assert [span.instrumentation_scope.name for span in servers(telemetry)] == scopes
        assert durations(telemetry) == 1


@NATIVE
def test_native_keeps_what_the_app_excludes_itself(telemetry):
    """The app's own `exclude` works beside our settings."""
    app = FastAPI(telemetry={"exclude": lambda scope: scope["path"] == "/docs"})
    with instrument(app, engine="native"):
        ask_all(app, ("GET", "/docs"), ("GET", "/metrics"), ("GET", "/redoc"))
    assert [span.attributes["url.path"] for span in servers(telemetry)] == ["/redoc"]


@NATIVE
def test_an_app_within_one_that_measures_itself_adds_nothing(telemetry):
    """An instrumented app mounted in one that measures itself leaves span and duration to that one."""
    sub = build()
    app = FastAPI()
    app.mount("/sub", sub)
    app._telemetry.update(
        tracer_provider=telemetry.runtime.tracer_provider, meter_provider=telemetry.runtime.meter_provider
    )
    with instrument(sub):
        response = ask(app, "/sub/api/items/1")
    assert "x-request-id" in response.headers
    assert len(servers(telemetry)) == 1
    assert durations(telemetry) == 1


def test_native_needs_an_app_that_can():
    """A Starlette app has no telemetry of its own: that is an error that names the remedy, and changes nothing."""
    app = Starlette()
    with pytest.raises(ValueError, match="Use engine='ours'"):
        instrument(app, engine="native")
    with pytest.raises(ValueError, match="engine='upstream' is for FastAPI apps"):
        instrument(app, engine="upstream")
    assert "build_middleware_stack" not in vars(app)


# Upstream ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, "database", "http/dup"])
def test_the_opt_in_is_not_left_in_the_environment(telemetry, monkeypatch, before):
    """Upstream starts with stable names, and the variable is afterwards what it was before."""
    if before:
        monkeypatch.setenv(OPT_IN, before)
    app = build()
    with instrument(app, engine="upstream"):
        ask(app, "/api/items/1")
    assert os.environ.get(OPT_IN) == before
    assert durations(telemetry) == 1
    assert ("http.server.duration" in telemetry.metrics()) is (before == "http/dup")
    (span,) = telemetry.spans[-1:]
    assert span.instrumentation_scope.name == "opentelemetry.instrumentation.fastapi"


def test_upstream_that_started_with_old_names_gets_our_duration(telemetry):
    """Where upstream was initialised with the old conventions it has no such duration: ours is there, once."""
    semconv._OpenTelemetrySemanticConventionStability._initialize()
    app = build()
    with instrument(app, engine="upstream"):
        ask_all(app, ("GET", "/api/items/1"), ("GET", "/sub/items/1"))
    assert len(servers(telemetry)) == 2
    assert [point.count for point in telemetry.points(DURATION, http__route="/sub/items/{number}")] == [1]
    assert durations(telemetry) == 2
    assert "http.server.duration" in telemetry.metrics()


def test_upstream_that_is_not_installed_is_named(monkeypatch):
    """Without the package the error says what to install."""
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry.instrumentation.fastapi"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"otel-perf\[upstream\]"):
        instrument(build(), engine="upstream")


def test_upstream_that_fails_to_start_leaves_the_app_working(telemetry, monkeypatch):
    """When upstream cannot be put in, the app runs, measured by ours."""
    monkeypatch.setattr("otel_perf.guard.strict", False)
    monkeypatch.setattr(FastAPIInstrumentor, "instrument_app", staticmethod(lambda *_, **__: 1 / 0))
    app = build()
    with instrument(app, engine="upstream"):
        assert ask(app, "/api/items/1").status_code == 200
    assert len(servers(telemetry)) == 1
    assert durations(telemetry) == 1
