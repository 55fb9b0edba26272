"""Apps that somebody else measures already: what they do is left to them, and the rest is added."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from opentelemetry.instrumentation import _semconv as semconv
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from otel_perf import instrument, measure
from otel_perf.sources import opted_in
from tests.asking import ask, ask_all

try:
    from starlette.middleware import opentelemetry as starlette_otel
except ImportError:  # an older Starlette
    starlette_otel = None

DURATION = "http.server.request.duration"
OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"
STARLETTES = pytest.mark.skipif(starlette_otel is None, reason="this Starlette has no such middleware")


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


@pytest.fixture
def theirs(telemetry: Any) -> dict[str, Any]:
    """The providers that somebody's own upstream instrumentation is given in these tests."""
    return {
        "tracer_provider": telemetry.runtime.tracer_provider,
        "meter_provider": telemetry.runtime.meter_provider,
        "exclude_spans": ["receive", "send"],
    }


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize(
    ("engine", "started"), [(None, False), ("ours", True), ("upstream", False), ("upstream", True)]
)
def test_an_app_that_upstream_measures_already_gets_the_rest(telemetry, theirs, stable, engine, started):
    """Upstream's own instrumentation keeps the span; ours adds id and header, and the duration where it has none."""
    with opted_in("http") if stable else nullcontext():
        semconv._OpenTelemetrySemanticConventionStability._initialize()
    app = build()
    FastAPIInstrumentor.instrument_app(app, **theirs)
    if started:
        app.middleware_stack = app.build_middleware_stack()
    with instrument(app, engine=engine):
        responses = ask_all(app, ("GET", "/api/items/1"), ("GET", "/boom"), ("GET", "/sub/items/1"))
    assert all("x-request-id" in each.headers for each in responses)
    assert len(servers(telemetry)) == 3
    assert durations(telemetry) == 3
    assert [point.value for point in telemetry.points("http.server.active_requests")] == [0]
    FastAPIInstrumentor.uninstrument_app(app)


@pytest.mark.parametrize("where", ["added", "instrumented", "around"])
@pytest.mark.parametrize(
    ("path", "error_type"), [("/boom", "ValueError"), ("/handled", "503"), ("/answered", "502"), ("/api/items/1", None)]
)
def test_upstreams_span_fails_as_our_metric_does(telemetry, theirs, where, path, error_type):
    """Where upstream makes the span and we the metric, both have the same error.type while the span is open."""
    app: Any = build()

    @app.exception_handler(LookupError)
    async def handle(request: Any, error: LookupError) -> PlainTextResponse:
        return PlainTextResponse("handled", 503)

    @app.get("/handled")
    async def handled() -> None:
        raise KeyError

    @app.get("/answered")
    async def answered() -> PlainTextResponse:
        return PlainTextResponse("answered", 502)

    if where == "instrumented":
        FastAPIInstrumentor.instrument_app(app, **theirs)
    elif where == "added":
        app.add_middleware(OpenTelemetryMiddleware, **theirs)
    with instrument(app):
        ask(OpenTelemetryMiddleware(app, **theirs) if where == "around" else app, path)
    if where == "instrumented":
        FastAPIInstrumentor.uninstrument_app(app)
    (span,) = servers(telemetry)
    (point,) = telemetry.points(DURATION)
    assert point.attributes.get("error.type") == error_type
    if (where, path) == ("added", "/boom"):
        error_type = None  # added to the app it ends its span before Starlette answers the exception
        assert span.attributes.get("http.status_code") is None
    assert span.attributes.get("error.type") == error_type
    assert span.status.is_ok == (error_type is None and path != "/boom")


def test_upstreams_span_around_a_plain_app_fails_too(telemetry, theirs):
    """An app that raises before it answers, or in the middle, marks the span that upstream made around it."""

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        raise OSError

    for app in (silent, broken):
        ask(OpenTelemetryMiddleware(instrument(app), **theirs), "/")
    assert [span.attributes["error.type"] for span in servers(telemetry)] == ["ValueError", "OSError"]
    assert {point.attributes["error.type"] for point in telemetry.points(DURATION)} == {"ValueError", "OSError"}


def test_upstream_that_comes_after_ours_stays_out(telemetry, theirs, caplog):
    """Upstream put over ours does not measure a second time."""
    app = build()
    with instrument(app):
        FastAPIInstrumentor.instrument_app(app, **theirs)
        ask(app, "/api/items/1")
        FastAPIInstrumentor.uninstrument_app(app)
    assert len(servers(telemetry)) == 1
    assert durations(telemetry) == 1
    assert "Skipping FastAPI instrumentation" in caplog.text


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("where", ["added", "around", "plain"])
def test_the_upstream_middleware_is_found_wherever_it_stands(telemetry, theirs, monkeypatch, where, stable):
    """Added to the app, around the app, or around a plain ASGI app of ours: one span, one duration."""
    if stable:
        monkeypatch.setenv(OPT_IN, "http")
    app: Any = build(mounts=False)
    if where == "added":
        app.add_middleware(OpenTelemetryMiddleware, **theirs)
        instrument(app)
    elif where == "around":
        instrument(app)
        app = OpenTelemetryMiddleware(app, **theirs)
    else:
        getattr(app, "_telemetry", {}).update(tracing=False, metrics=False)
        app = instrument(OpenTelemetryMiddleware(app, **theirs))
    response = ask(app, "/api/items/1")
    assert "x-request-id" in response.headers
    assert len(servers(telemetry)) == 1
    assert durations(telemetry) == 1


# Starlette's middleware ----------------------------------------------------------------------------------------------


def _with_starlettes(telemetry: Any, kind: str) -> Any:
    provider = telemetry.runtime.tracer_provider
    middleware = starlette_otel.OpenTelemetryMiddleware

    async def endpoint(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    if kind == "plain":
        return middleware(Starlette(routes=[Route("/api/items/{n}", endpoint)]), tracer_provider=provider)
    app = build() if kind == "fastapi" else Starlette(routes=[Route("/api/items/{n}", endpoint)])
    app.add_middleware(middleware, tracer_provider=provider)
    return app


@STARLETTES
@pytest.mark.parametrize("engine", [None, "ours"])
@pytest.mark.parametrize("kind", ["fastapi", "starlette", "plain"])
def test_starlettes_middleware_keeps_its_span_unless_ours_is_asked_for(telemetry, kind, engine):
    """Starlette's middleware makes the span by default and steps aside for `engine="ours"`; the duration is ours."""
    app = _with_starlettes(telemetry, kind)
    handle = instrument(app, engine=engine)
    app = handle if kind == "plain" else app
    response, _ = ask_all(app, ("GET", "/api/items/1"), ("GET", "/metrics"))
    (span,) = servers(telemetry)
    assert span.instrumentation_scope.name == ("starlette" if engine is None else "otel_perf")
    assert span.attributes["http.request.header.x-request-id"] == response.headers["x-request-id"]
    assert durations(telemetry) == 1
    handle.undo()


@STARLETTES
def test_starlettes_middleware_around_or_below_ours(telemetry):
    """It keeps the span when it stands around ours, and leaves it when it stands in an app mounted within."""
    outer = starlette_otel.OpenTelemetryMiddleware(build(), tracer_provider=telemetry.runtime.tracer_provider)
    with instrument(outer.app):
        ask(outer, "/api/items/1")
    app = Starlette(routes=[Mount("/m", app=_with_starlettes(telemetry, "starlette"))])
    with instrument(app):
        ask(app, "/m/api/items/1")
    assert [span.instrumentation_scope.name for span in servers(telemetry)] == ["starlette", "otel_perf"]
    assert durations(telemetry) == 2
