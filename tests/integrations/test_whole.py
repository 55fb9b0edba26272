"""`instrument("fastapi")` and `instrument()`: all apps that are built from then on."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.applications import FastAPI as RealFastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.background import BackgroundTask

import otel_perf
from otel_perf import instrument
from otel_perf.integrations import fastapi
from otel_perf.integrations.asgi import Middleware
from tests.apps import answer, ok
from tests.asking import ask, ask_all
from tests.serving import served

DURATION = "http.server.request.duration"
NAME = "build_middleware_stack"


def an_app(kind: type = FastAPI) -> Any:
    """An app with a route, and an app mounted in it."""
    app, inner = kind(), FastAPI()
    app.add_route("/plain/{word}", ok)
    inner.get("/items/{number}")(answer)
    app.mount("/sub", inner)
    return app


@pytest.fixture
def untouched() -> Iterator[None]:
    """The very same methods are there before and after."""
    before = vars(Starlette)[NAME], vars(RealFastAPI).get(NAME)
    yield
    assert (vars(Starlette)[NAME], vars(RealFastAPI).get(NAME)) == before


def servers(telemetry: Any) -> list[str]:
    return [each.name for each in telemetry.spans if each.kind is SpanKind.SERVER]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("kind", [FastAPI, Starlette])
@pytest.mark.parametrize("early", [False, True])
def test_apps_are_taken_when_they_are_built(telemetry, kind, early):
    """Apps made before or after are measured from their first request on, mounted ones once; undo puts all back."""
    app = an_app(kind) if early else None
    handle = instrument("fastapi")
    app = app or an_app(kind)
    ask_all(app, ("GET", "/plain/a"), ("GET", "/sub/items/7"))
    assert servers(telemetry) == ["GET /plain/{word}", "GET /sub/items/{number}"]
    assert sum(each.count for each in telemetry.points(DURATION)) == 2
    handle.undo()
    assert "x-request-id" not in ask(app, "/plain/a").headers
    assert not hasattr(app, "_otel_perf_instrumented")
    assert NAME not in vars(app)


@pytest.mark.usefixtures("untouched")
def test_two_handles_hold_until_the_last(telemetry):
    """Two who ask for all measure once; the last undo ends it, and `instrument(app)` beside it changes nothing."""
    first, second = instrument("fastapi"), instrument("fastapi")
    app, other = an_app(Starlette), an_app(Starlette)
    own = instrument(app)
    ask(app, "/plain/a")
    assert not isinstance(app.middleware_stack.app, Middleware), "it was wrapped twice"
    first.undo()
    ask(app, "/plain/a")
    ask(other, "/plain/b")
    instrument(other).undo()
    ask(other, "/plain/b")
    second.undo()
    ask(other, "/plain/b")
    ask(app, "/plain/a")
    assert telemetry.points(DURATION)[0].count == len(servers(telemetry)) == 5
    own.undo()


@pytest.mark.usefixtures("untouched")
def test_instrument_alone_takes_apps_too(telemetry, monkeypatch):
    """`instrument()` has it, `disabled_instrumentations` leaves it out, and the report says so."""
    handle = instrument()
    ask(an_app(), "/plain/a")
    assert servers(telemetry) == ["GET /plain/{word}"]
    states = {each.library: each.state for each in otel_perf.integrations.report()}
    assert states["fastapi"] == "measured"
    handle.undo()
    telemetry.restart(disabled_instrumentations=("fastapi",))
    handle = instrument()
    assert not hasattr(vars(Starlette)[NAME], "__wrapped__")
    handle.undo()


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("engine", ["native", "upstream"])
def test_an_engine_for_all_is_ours_where_an_app_cannot_have_it(telemetry, engine):
    """The engine that was asked for measures apps that can have it; others are measured by ours."""
    if engine == "native" and not hasattr(FastAPI(), "_telemetry"):
        pytest.skip("this FastAPI does not measure itself")
    with instrument("fastapi", engine=engine):
        ask_all(an_app(), ("GET", "/plain/a"), ("GET", "/sub/items/7"))
        ask(an_app(Starlette), "/plain/a")
    assert len(servers(telemetry)) == 3
    assert sum(each.count for each in telemetry.points(DURATION)) == 3
    assert not hasattr(BackgroundTask, "_otel_original_call")


@pytest.mark.usefixtures("untouched")
def test_options_are_checked():
    """An unknown engine is refused here too."""
    with pytest.raises(ValueError, match="there are 'ours', 'native', 'upstream'"):
        instrument("fastapi", engine="none")


@pytest.mark.usefixtures("untouched")
def test_subclasses_and_middlewares_of_the_app_stay(telemetry):
    """A subclass that builds its stack itself, over its base's, works as ever and is measured once."""

    class Own(FastAPI):
        def build_middleware_stack(self) -> Any:
            return super().build_middleware_stack()

    with instrument("fastapi"):
        app = Own()
        app.add_route("/", ok)
        assert ask(app, "/").text == "ok"
        assert servers(telemetry) == ["GET /"]


@pytest.mark.usefixtures("untouched")
def test_a_fault_of_ours_is_kept_from_the_app(telemetry, monkeypatch):
    """Where measuring an app fails, the app works without."""
    monkeypatch.setattr(otel_perf.guard, "strict", False)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError

    with instrument("fastapi"):
        monkeypatch.setattr(fastapi, "_Instrumented", broken)
        assert ask(an_app(Starlette), "/plain/a").status_code == 200
    assert servers(telemetry) == []


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("engine", [None, "upstream"])
@pytest.mark.parametrize("alone", [False, True])
def test_an_app_that_is_thrown_away_is_not_kept_and_leaves_nothing(telemetry, engine, alone):
    """What was taken is held weakly, and what was wrapped for it is given back without it."""
    before = len(fastapi._held)
    with nullcontext() if alone else instrument("fastapi", engine=engine):
        app = an_app()
        if alone:
            instrument(app, engine=engine)
        ask(app, "/plain/a")
        gone = weakref.ref(app)
        del app
        gc.collect()
        assert gone() is None
    if alone:
        instrument(FastAPI()).undo()
    assert not hasattr(BackgroundTask, "_otel_original_call")
    fastapi._release_abandoned()
    assert len(fastapi._held) <= before


@pytest.mark.usefixtures("untouched")
def test_behind_a_real_server(telemetry):
    """Uvicorn builds the stack for the lifespan: the first request is measured, and websockets are."""
    import httpx

    with instrument("fastapi"), served(an_app()) as address:
        assert httpx.get(f"{address}/plain/a").headers["x-request-id"]
    assert servers(telemetry) == ["GET /plain/{word}"]


def test_upstream_for_all_apps_is_told_and_not_doubled(telemetry):
    """The upstream instrumentor over all apps is named in the report; its spans count and ours adds the rest."""
    assert fastapi.elsewhere() is None
    instrumentor = FastAPIInstrumentor()
    instrumentor.instrument(tracer_provider=otel_perf.telemetry.runtime.current.tracer_provider)
    try:
        import fastapi as library

        with instrument("fastapi"):
            (status,) = [each for each in otel_perf.integrations.report() if each.library == "fastapi"]
            assert status.state == "already measured by someone else"
            assert status.why == "opentelemetry-instrumentation-fastapi; what it leaves out is added"
            app = library.FastAPI()
            app.add_route("/plain/{word}", ok)
            ask(app, "/plain/a")
    finally:
        instrumentor.uninstrument()
    assert len(servers(telemetry)) == 1
    assert fastapi.elsewhere() is None


def test_starlette_without_fastapi():
    """Where FastAPI is not installed, Starlette apps are taken all the same, and phases do nothing."""
    program = """
import asyncio, sys
sys.modules["fastapi"] = None
import otel_perf
from otel_perf.telemetry import runtime
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse

otel_perf.configure(strict=True, request_phases=True)
otel_perf.instrument("fastapi")
app = Starlette()
app.add_route("/", lambda request: PlainTextResponse("ok"))

async def main():
    async def send(message): pass
    await app({"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}, None, send)

asyncio.run(main())
(series,) = [s for i in runtime.current.registry.instruments() for s in i.series.values()
             if i.metric.name == "http.server.request.duration"]
print(series.attributes["http.route"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "/"
