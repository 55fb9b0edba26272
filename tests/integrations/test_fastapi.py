"""Requests of FastAPI and Starlette apps, measured by our engine."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import Any

import pytest
from fastapi import FastAPI, Request
from opentelemetry.trace import SpanKind
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse

from otel_perf import instrument
from tests.apps import busy_app, plain, routes, sub_app
from tests.asking import Copying, ask, ask_all, scope

DURATION = "http.server.request.duration"


def test_what_runs_within_belongs_to_the_request(telemetry):
    """Operations in endpoints, threads and streams are children; the id is in `request.state`."""
    app = busy_app()
    instrument(app)
    later, *_ = ask_all(app, ("GET", "/later"), ("GET", "/sync"), ("GET", "/stream/whole"))
    assert later.json() == later.headers["x-request-id"]
    for child, parent in (("in a thread", "/sync"), ("chunk", "/stream/{how}")):
        assert telemetry.span(child).parent.span_id == telemetry.span(f"GET {parent}").context.span_id
    assert telemetry.span("GET /later").end_time <= telemetry.span("work").start_time


def test_log_records_of_an_endpoint_carry_the_request(telemetry, caplog):
    """Records that an endpoint writes have its request id and trace."""
    app = FastAPI()

    @app.get("/")
    def endpoint() -> None:
        logging.getLogger("shop").warning("sold out")

    instrument(app)
    ask(app, "/", headers={"x-request-id": "r-1"})
    (record,) = [each for each in caplog.records if each.name == "shop"]
    assert record.request_id == "r-1"
    assert record.trace_id == f"{telemetry.span('GET /').context.trace_id:032x}"


def test_middlewares_may_still_be_added_and_ours_stays_outermost(telemetry):
    """Instrumenting builds nothing early; the id is there even when a later middleware answers by itself."""
    app = FastAPI()
    instrument(app)
    assert app.middleware_stack is None

    async def refuse(request: Request, call_next: Any) -> PlainTextResponse:
        return PlainTextResponse("no", 403)

    app.add_middleware(BaseHTTPMiddleware, dispatch=refuse)
    response = ask(app, "/docs")
    assert response.status_code == 403
    assert "x-request-id" in response.headers
    assert routes(telemetry) == [None]


def test_an_app_that_has_started_is_measured_at_once(telemetry):
    """The stack of a started app is wrapped, and put back by undo."""
    app = FastAPI()
    plain(app)
    app.add_middleware(Copying)
    ask(app, "/items/1")
    stack, router_stack = app.middleware_stack, app.router.middleware_stack
    with instrument(app):
        ask(app, "/items/1")
    ask(app, "/items/1")
    # Before and afterwards FastAPI measures by itself, where it can.
    ours = [each for each in telemetry.spans if each.instrumentation_scope.name == "otel_perf"]
    assert [each.attributes["http.route"] for each in ours] == ["/items/{number}"]
    assert app.middleware_stack is stack
    assert app.router.middleware_stack == router_stack
    assert "build_middleware_stack" not in vars(app)


@pytest.mark.parametrize("start_first", [False, True])
def test_undo_puts_everything_back(telemetry, start_first):
    """After undo the app is as it was: stack, build method, its own telemetry; and it can be instrumented again."""
    app = FastAPI()
    before = dict(getattr(app, "_telemetry", {}))
    names = set(vars(app))
    handle = instrument(app)
    assert not before or app._telemetry["tracing"] is False
    if start_first:
        ask(app, "/docs")
    handle.undo()
    handle.undo()
    assert dict(getattr(app, "_telemetry", {})) == before
    assert set(vars(app)) == names
    count = len(telemetry.spans)
    with instrument(app):
        ask(app, "/docs")
    assert len([each for each in telemetry.spans if each.kind is SpanKind.SERVER]) == count + 1


def test_where_others_wrapped_us_undo_leaves_a_pass_through(telemetry):
    """A wrapper that somebody put around ours stays in place, and ours below it does nothing any more."""
    app = FastAPI(telemetry={"tracing": False, "metrics": False}) if hasattr(FastAPI(), "_telemetry") else FastAPI()
    handle = instrument(app)
    ours = app.build_middleware_stack
    app.build_middleware_stack = lambda: Copying(ours())
    ask(app, "/docs")
    theirs = app.middleware_stack
    assert isinstance(theirs, Copying)
    handle.undo()
    response = ask(app, "/docs")
    assert app.middleware_stack is theirs
    assert response.status_code == 200
    assert "x-request-id" not in response.headers
    app.middleware_stack = None
    assert "x-request-id" not in ask(app, "/docs").headers
    assert len(telemetry.spans) == 1


def test_instrumenting_twice_changes_nothing(telemetry, caplog):
    """The second handle does nothing, also when it asks for another engine, which is told."""
    app = FastAPI()
    first = instrument(app)
    with instrument(app), instrument(app, engine="native" if hasattr(app, "_telemetry") else "ours"):
        ask(app, "/docs")
    ask(app, "/docs")
    assert [point.count for point in telemetry.points(DURATION)] == [2]
    assert len(routes(telemetry)) == 2
    assert ("engine='ours' already" in caplog.text) is hasattr(app, "_telemetry")
    first.undo()


def test_apps_within_apps_are_measured_once(telemetry):
    """A mounted app that is instrumented too leaves the request to the outer one, and is measured when called alone."""
    sub, app = sub_app(), FastAPI()
    app.mount("/sub", sub)
    instrument(sub)
    instrument(app)
    response, _ = ask_all(app, ("GET", "/sub/items/1"), ("GET", "/sub/health"))
    assert len(response.headers.get_list("x-request-id")) == 1
    ask(sub, "/items/1")
    assert routes(telemetry) == ["/sub/items/{number}", None, "/items/{number}"]


def test_a_plain_wrapper_around_an_app_finds_its_routes(telemetry):
    """An app that is wrapped already is measured as a plain ASGI app, with its routes, copies of the scope or not."""
    app = instrument(Copying(CORSMiddleware(sub_app(), allow_origins=["*"])))
    ask_all(app, ("GET", "/items/1"), ("GET", "/included/added/x"))
    assert routes(telemetry) == ["/items/{number}", "/included/added/{word}"]
    app.undo()
    ask(app, "/items/1")
    assert telemetry.points(DURATION, http__route="/items/{number}")[0].count == 1


def test_an_app_that_is_thrown_away_is_not_kept(telemetry):
    """Nothing of ours keeps an instrumented app alive."""
    app = FastAPI()
    instrument(app)
    ask(app, "/docs")
    kept = weakref.ref(app)
    del app
    gc.collect()
    assert kept() is None


def test_an_unknown_engine_is_refused():
    """A misspelt engine is an error that names the known ones, before anything is changed."""
    app = FastAPI()
    with pytest.raises(ValueError, match="'ours', 'native', 'upstream'"):
        instrument(app, engine="nativ")
    assert "build_middleware_stack" not in vars(app)


def test_a_scope_is_left_usable_for_a_server_that_reuses_state(telemetry):
    """The state that a server hands to each request keeps what it had."""
    app = FastAPI()
    instrument(app)
    state = {"pool": "p"}

    async def nothing(*_: Any) -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(app(scope("/docs", state=state), nothing, nothing))
    assert state["pool"] == "p"
