"""Requests of FastAPI and Starlette apps, measured by our engine."""

from __future__ import annotations

import asyncio
import gc
import http.server
import logging
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException, Request, WebSocket
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles

from otel_perf import instrument, measure
from otel_perf.integrations import fastapi
from tests.asking import ask, ask_all, scope
from tests.serving import served

with warnings.catch_warnings():
    # It asks for another client than the rest of the world uses; the one that is installed serves.
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

DURATION = "http.server.request.duration"


async def ok(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


async def answer(number: int) -> int:
    return number


class Copying:
    """A middleware that hands on a copy of the scope, as some do."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(dict(scope), receive, send)


def routes(telemetry: Any) -> list[str | None]:
    return [each.attributes.get("http.route") for each in telemetry.spans if each.kind is SpanKind.SERVER]


# Routes --------------------------------------------------------------------------------------------------------------


def _plain(app: FastAPI) -> None:
    app.get("/items/{number}")(answer)


def _added(app: FastAPI) -> None:
    app.add_route("/added/{word}", ok)


def _same_endpoint_twice(app: FastAPI) -> None:
    app.add_route("/one/{a}", ok)
    app.add_route("/two/{a}", ok)


def _included(app: FastAPI) -> None:
    inner, outer = APIRouter(), APIRouter(prefix="/outer")
    inner.get("/items/{number}")(answer)
    inner.add_route("/added", ok)
    outer.include_router(inner, prefix="/inner")
    outer.include_router(inner, prefix="/other")
    app.include_router(outer, prefix="/api")


def _sub() -> FastAPI:
    sub, router = FastAPI(), APIRouter()
    router.get("/items/{number}")(answer)
    router.add_route("/added/{word}", ok)
    sub.get("/items/{number}")(answer)
    sub.include_router(router, prefix="/included")
    return sub


def _mounted(app: FastAPI) -> None:
    sub = _sub()
    app.mount("/t/{tenant}", sub)
    app.mount("/second", sub)


def _mounted_in_router(app: FastAPI) -> None:
    router = APIRouter()
    router.mount("/sub", _sub())
    app.include_router(router, prefix="/api")


def _nested(app: FastAPI) -> None:
    inner = Starlette(routes=[Route("/z/{y}", ok), Mount("/deep/{n:int}", app=_sub())])
    app.mount("/star", Starlette(routes=[Mount("/in/{x}", app=inner)]))


def _wrapped_mount(app: FastAPI) -> None:
    app.mount("/cors", CORSMiddleware(_sub(), allow_origins=["*"]))


def _router_mount(app: FastAPI) -> None:
    app.mount("/r", Router([Route("/{x}", ok)]))


def _hosted(app: FastAPI) -> None:
    app.router.routes.append(Host("streak.test", app=Starlette(routes=[Route("/h/{x}", ok)])))


def _foreign_mount(app: FastAPI) -> None:
    async def foreign(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("foreign")(scope, receive, send)

    app.mount("/foreign/{x}", foreign)


@pytest.mark.parametrize("copying", [False, True])
@pytest.mark.parametrize(
    ("build", "path", "template"),
    [
        (_plain, "/items/7", "/items/{number}"),
        (_plain, "/docs", "/docs"),
        (_plain, "/openapi.json", "/openapi.json"),
        (_plain, "/nowhere/7", None),
        (_added, "/added/w", "/added/{word}"),
        (_same_endpoint_twice, "/one/1", "/one/{a}"),
        (_same_endpoint_twice, "/two/1", "/two/{a}"),
        (_included, "/api/outer/inner/items/7", "/api/outer/inner/items/{number}"),
        (_included, "/api/outer/other/items/7", "/api/outer/other/items/{number}"),
        (_included, "/api/outer/inner/added", "/api/outer/inner/added"),
        (_included, "/api/outer/other/added", "/api/outer/other/added"),
        (_mounted, "/t/acme/items/7", "/t/{tenant}/items/{number}"),
        (_mounted, "/second/items/7", "/second/items/{number}"),
        (_mounted, "/t/acme/included/items/7", "/t/{tenant}/included/items/{number}"),
        (_mounted, "/second/included/added/x", "/second/included/added/{word}"),
        (_mounted, "/t/acme/docs", "/t/{tenant}/docs"),
        (_mounted, "/t/acme/nowhere", None),
        (_mounted_in_router, "/api/sub/items/7", "/api/sub/items/{number}"),
        (_mounted_in_router, "/api/sub/included/items/7", "/api/sub/included/items/{number}"),
        (_mounted_in_router, "/api/sub/docs", "/api/sub/docs"),
        (_nested, "/star/in/9/z/3", "/star/in/{x}/z/{y}"),
        (_nested, "/star/in/9/deep/3/included/items/7", "/star/in/{x}/deep/{n}/included/items/{number}"),
        (_nested, "/star/in/9/deep/3/redoc", "/star/in/{x}/deep/{n}/redoc"),
        (_nested, "/star/in/9/nowhere", None),
        (_wrapped_mount, "/cors/items/7", "/cors/items/{number}"),
        (_router_mount, "/r/7", "/r/{x}"),
        (_hosted, "/h/7", "/h/{x}"),
        (_foreign_mount, "/foreign/7/whatever/there/is", "/foreign/{x}/{path}"),
    ],
)
def test_the_route_is_the_whole_template(telemetry, build, path, template, copying):
    """Mounts, included routers and plain routes in any nesting give the whole template; no match gives none."""
    app = FastAPI()
    build(app)
    if copying:
        app.add_middleware(Copying)
    instrument(app)
    responses = ask_all(app, ("GET", path), ("GET", path))
    assert [each.status_code for each in responses] == [404 if template is None else 200] * 2
    assert routes(telemetry) == [template, template]
    assert {each.name for each in telemetry.spans} == {"GET" if template is None else f"GET {template}"}
    assert [each.attributes.get("http.route") for each in telemetry.points(DURATION)] == [template]


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/z/1", "/z/{y}"),
        ("/m/2/z/1", "/m/{x}/z/{y}"),
        ("/api/items/7", "/api/items/{number}"),
        ("/api/docs", "/api/docs"),
    ],
)
def test_starlette_apps_have_routes_too(telemetry, path, template):
    """A Starlette app is measured like a FastAPI one, FastAPI apps mounted in it included, which then stay silent."""
    inner = [Route("/z/{y}", ok)]
    app = Starlette(routes=[*inner, Mount("/m/{x}", routes=inner), Mount("/api", app=_sub())])
    instrument(app)
    assert ask(app, path).status_code == 200
    assert routes(telemetry) == [template]
    assert [each.count for each in telemetry.points(DURATION)] == [1]


def test_static_files_are_one_route(telemetry, tmp_path):
    """Files that are served share the template of their mount, found or not."""
    (tmp_path / "a.txt").write_text("a")
    app = FastAPI()
    app.mount("/static", StaticFiles(directory=tmp_path))
    instrument(app)
    responses = ask_all(app, ("GET", "/static/a.txt"), ("GET", "/static/b.txt"))
    assert [each.status_code for each in responses] == [200, 404]
    assert routes(telemetry) == ["/static/{path}"] * 2


@pytest.mark.parametrize("root_path", ["/proxied", "/items"])
def test_the_root_path_is_never_a_label(telemetry, root_path):
    """What a proxy puts in front of the app's paths is no part of the route."""
    app = FastAPI()
    _plain(app)
    app.add_route("/added/{word}", ok)
    app.mount("/sub", _sub())
    instrument(app)
    paths = ["/items/7", "/added/w", "/sub/items/1", "/sub/docs"]
    responses = ask_all(app, *(("GET", root_path + path) for path in paths), root_path=root_path)
    assert [each.status_code for each in responses] == [200] * 4
    assert routes(telemetry) == ["/items/{number}", "/added/{word}", "/sub/items/{number}", "/sub/docs"]


def test_a_wrong_method_keeps_the_route_and_a_made_up_one_is_bounded(telemetry):
    """405 carries the route that was meant; methods of nobody's standard are one label."""
    app = FastAPI()
    _plain(app)
    instrument(app)
    ask_all(app, ("POST", "/items/7"), ("BREW", "/items/7"), ("COFFEE", "/items/7"))
    seen = sorted((p.attributes["http.request.method"], p.attributes["http.response.status_code"], p.count)
                  for p in telemetry.points(DURATION, http__route="/items/{number}"))  # fmt: skip
    assert seen == [("POST", 405, 1), ("_OTHER", 405, 2)]


def test_routes_that_come_later_are_found(telemetry):
    """Routes, mounts and second paths of an endpoint that are added while the app runs have their templates."""
    app = FastAPI()
    instrument(app)
    ask(app, "/docs")
    _plain(app)
    app.add_route("/one/{a}", ok)
    ask_all(app, ("GET", "/items/1"), ("GET", "/one/1"))
    app.add_route("/two/{a}", ok)
    app.mount("/sub/{x}", _sub())
    ask_all(app, ("GET", "/two/1"), ("GET", "/sub/9/items/1"), ("GET", "/sub/9/included/added/1"))
    assert routes(telemetry)[1:] == [
        "/items/{number}", "/one/{a}", "/two/{a}", "/sub/{x}/items/{number}", "/sub/{x}/included/added/{word}",
    ]  # fmt: skip


def test_a_path_that_fits_no_way_to_an_endpoint_is_no_guess(telemetry):
    """Where an endpoint has two routes and the path was changed on the way, no route is better than a wrong one."""

    async def changing(request: Request) -> PlainTextResponse:
        request.scope["path"] = "/elsewhere"
        return PlainTextResponse("ok")

    app = FastAPI()
    for path in ("/one/{a}", "/two/{a}"):
        app.add_route(path, changing)
    instrument(app)
    ask(app, "/two/1")
    assert routes(telemetry) == [None]


def test_routes_that_cannot_be_read_cost_the_template_only(telemetry, monkeypatch):
    """A fault while walking the routes is kept from the app."""
    monkeypatch.setattr("otel_perf.guard.strict", False)

    class Odd(Route):
        effective_route_contexts = None

        def __getattribute__(self, name: str) -> Any:
            if name == "effective_route_contexts":
                raise ZeroDivisionError
            return super().__getattribute__(name)

    app = Starlette(routes=[Odd("/odd/{x}", ok)])
    instrument(app)
    assert ask(app, "/odd/1").status_code == 200
    assert len(telemetry.spans) == 1


def test_routes_of_nobodys_making_cost_a_few_walks_only(telemetry, monkeypatch):
    """Routing that no walk can see falls back to what the route says of itself, and is not searched for ever."""
    walks = []
    original = fastapi.Routes.refresh
    monkeypatch.setattr(fastapi.Routes, "refresh", lambda self: (walks.append(1), original(self)))

    async def own_routing(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = Route("/made/{up}", ok)
        scope["endpoint"] = scope["route"].endpoint
        await PlainTextResponse("ok")(scope, receive, send)

    app = FastAPI()
    app.mount("/", own_routing)
    instrument(app)
    ask_all(app, *[("GET", f"/made/{n}") for n in range(60)])
    assert set(routes(telemetry)) == {"/made/{up}"}
    assert len(walks) < 50


def test_requests_never_walk_the_routes(telemetry, monkeypatch):
    """Once the routes are known no request walks them: cost is flat in their number."""
    app = FastAPI()
    for n in range(50):
        app.get(f"/r{n}/{{number}}")(answer)
    instrument(app)
    ask(app, "/r1/1")
    monkeypatch.setattr(fastapi.Routes, "refresh", lambda self: pytest.fail("walked"))
    ask_all(app, *[("GET", f"/r{n}/1") for n in range(50)], ("GET", "/docs"), ("GET", "/nowhere"))
    assert routes(telemetry)[1:] == [*[f"/r{n}/{{number}}" for n in range(50)], "/docs", None]


# What happens to requests --------------------------------------------------------------------------------------------


class Activity(BaseModel):
    xp: int


def busy_app() -> FastAPI:
    app = FastAPI()

    @app.exception_handler(LookupError)
    async def handled(request: Request, error: LookupError) -> PlainTextResponse:
        return PlainTextResponse("handled", 503)

    @app.post("/activities")
    async def log(activity: Activity) -> int:
        return activity.xp

    @app.get("/fail/{how}")
    async def fail(how: str) -> None:
        raise {"plain": ValueError("x"), "handled": KeyError("k"), "http": HTTPException(502)}[how]

    @app.get("/stream/{how}")
    async def stream(how: str) -> StreamingResponse:
        async def chunks() -> Any:
            yield "one"
            with measure("chunk"):
                yield "two"
            if how == "broken":
                raise OSError("disk")

        return StreamingResponse(chunks())

    @app.get("/later")
    async def later(background: BackgroundTasks, request: Request) -> str:
        def work() -> None:
            with measure("work"):
                pass

        background.add_task(work)
        return str(request.state.request_id)

    @app.get("/sync")
    def sync() -> str:
        with measure("in a thread"):
            return "ok"

    return app


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"xp": "many"}', b"\xff\xfe", b"null"])
def test_a_body_that_cannot_be_used_is_a_422_that_the_span_tells(telemetry, body):
    """Malformed JSON and wrong fields are the caller's fault: 422, no error.type, never a 500."""
    app = busy_app()
    instrument(app)
    response = ask(app, "/activities", "POST", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422 or (body == b"\xff\xfe" and response.status_code == 400)
    span = telemetry.span("POST /activities")
    assert span.attributes["http.response.status_code"] == response.status_code
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in span.attributes
    assert len(response.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("path", "status", "error_type"),
    [
        ("/fail/plain", 500, "ValueError"),
        ("/fail/handled", 503, "503"),
        ("/fail/http", 502, "502"),
        ("/stream/broken", 200, "OSError"),
        ("/stream/whole", 200, None),
    ],
)
@pytest.mark.parametrize("middleware", [None, Copying, "base"])
def test_failures_are_the_same_on_span_and_metric(telemetry, path, status, error_type, middleware):
    """Unhandled exceptions by type, handled ones by status; what was sent stays; all once, through any middleware."""
    app = busy_app()
    if middleware == "base":
        if path == "/stream/broken":
            # It ends the response in order before it hands the exception on: from outside that is a success.
            error_type = None

        async def pass_on(request: Request, call_next: Any) -> Any:
            return await call_next(request)

        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    elif middleware:
        app.add_middleware(middleware)
    instrument(app)
    response = ask(app, path)
    assert response.status_code == status
    assert response.headers.get_list("x-request-id") != []
    (span,) = [each for each in telemetry.spans if each.kind is SpanKind.SERVER]
    (point,) = telemetry.points(DURATION)
    assert point.count == 1
    for attributes in (span.attributes, point.attributes):
        assert (attributes["http.response.status_code"], attributes.get("error.type")) == (status, error_type)
    assert len(span.events) == (error_type is not None and not error_type.isdigit())
    assert telemetry.points("http.server.active_requests")[0].value == 0


@pytest.mark.parametrize("middleware", [False, True])
@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize("error", [RuntimeError("mail"), HTTPException(500)])
def test_a_background_task_that_fails_is_not_the_request(telemetry, error, status, middleware):
    """What a background task raises after the last byte is not the request's error: its status is."""
    app = FastAPI()

    @app.get("/")
    async def endpoint() -> JSONResponse:
        async def work() -> None:
            raise error

        return JSONResponse({}, status, background=BackgroundTask(work))

    async def pass_on(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    if middleware:
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    instrument(app)
    assert ask(app, "/").status_code == status
    (point,) = telemetry.points(DURATION)
    expected = None if status == 200 else "503"
    assert point.attributes.get("error.type") == expected
    assert telemetry.span("GET /").attributes.get("error.type") == expected


def test_what_runs_within_belongs_to_the_request(telemetry):
    """Operations in endpoints, threads, streams and background tasks are children; the id is in `request.state`."""
    app = busy_app()
    instrument(app)
    later, *_ = ask_all(app, ("GET", "/later"), ("GET", "/sync"), ("GET", "/stream/whole"))
    assert later.json() == later.headers["x-request-id"]
    for child, parent in (("work", "/later"), ("in a thread", "/sync"), ("chunk", "/stream/{how}")):
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


def test_websockets_work_and_are_no_requests(telemetry):
    """A websocket talks as ever and makes neither span nor duration."""
    app = FastAPI()

    @app.websocket("/ws")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    instrument(app)
    with TestClient(app).websocket_connect("/ws") as socket:
        socket.send_text("hi")
        assert socket.receive_text() == "hi"
    assert telemetry.spans == []
    assert not telemetry.points(DURATION)


# Instrumenting and undoing -------------------------------------------------------------------------------------------


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
    _plain(app)
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
    sub, app = _sub(), FastAPI()
    app.mount("/sub", sub)
    instrument(sub)
    instrument(app)
    response, _ = ask_all(app, ("GET", "/sub/items/1"), ("GET", "/sub/health"))
    assert len(response.headers.get_list("x-request-id")) == 1
    ask(sub, "/items/1")
    assert routes(telemetry) == ["/sub/items/{number}", None, "/items/{number}"]


def test_a_plain_wrapper_around_an_app_finds_its_routes(telemetry):
    """An app that is wrapped already is measured as a plain ASGI app, with its routes, copies of the scope or not."""
    app = instrument(Copying(CORSMiddleware(_sub(), allow_origins=["*"])))
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


# The life of the app -------------------------------------------------------------------------------------------------


def test_the_test_client_runs_the_lifespan(telemetry, monkeypatch):
    """Under `TestClient` the app starts and ends, state of the lifespan included, and the end flushes after it."""
    told = []
    monkeypatch.setattr(telemetry.runtime.pipeline, "flush", lambda: told.append("flushed"))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        told.append("up")
        yield {"pool": "p"}
        told.append("down")

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def endpoint(request: Request) -> list[str]:
        return [request.state.pool, request.state.request_id]

    instrument(app)
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/", headers={"x-request-id": "a"}).json() == ["p", "a"]
    assert told == ["up", "down", "flushed"] * 2
    assert len(telemetry.spans) == 2


def test_a_start_that_fails_fails_as_ever(telemetry):
    """An app that cannot start says so to its server, and what was measured until then is sent."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        raise RuntimeError("no database")
        yield

    app = FastAPI(lifespan=lifespan)
    instrument(app)
    with pytest.raises(RuntimeError, match="no database"), TestClient(app):
        pass


@contextmanager
def otlp_sink() -> Iterator[tuple[str, list[str]]]:
    """An OTLP endpoint that keeps the names of the spans it takes."""
    names: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                got = ExportTraceServiceRequest.FromString(body)
                names.extend(s.name for r in got.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", names
        finally:
            server.shutdown()
            thread.join()


def test_what_a_served_app_measured_arrives_when_it_stops(telemetry):
    """Behind uvicorn, concurrent requests count exactly, and their spans are delivered by the end of the server."""
    app = busy_app()
    instrument(app)
    with otlp_sink() as (endpoint, names):
        telemetry.restart(endpoint=endpoint, compression="none", span_interval_s=60, metric_interval_s=3600)
        with served(app) as address:

            async def many() -> list[httpx.Response]:
                async with httpx.AsyncClient(base_url=address) as client:
                    return await asyncio.gather(*[client.get("/stream/whole") for _ in range(20)], client.get("/sync"))

            responses = asyncio.run(many())
            assert {each.status_code for each in responses} == {200}
            assert len({each.headers["x-request-id"] for each in responses}) == 21
        assert names.count("GET /stream/{how}") == 20
        assert names.count("GET /sync") == 1
        assert sum(point.count for point in telemetry.points(DURATION)) == 21


@pytest.mark.parametrize("media_type", ["text/plain", "text/event-stream"])
def test_a_client_that_leaves_a_streaming_response(telemetry, media_type):
    """Starlette stops the stream of a client that left; that is told, unless it is a stream of events."""
    app, left = FastAPI(), threading.Event()

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def chunks() -> Any:
            try:
                while True:
                    yield "more\n"
                    await asyncio.sleep(0.01)
            finally:
                left.set()

        return StreamingResponse(chunks(), media_type=media_type)

    instrument(app)
    with served(app) as address:
        with httpx.stream("GET", f"{address}/endless") as response:
            assert next(response.iter_raw())
        assert left.wait(10)
    span = telemetry.span("GET /endless")
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes.get("error.type") == (None if "event" in media_type else "client_disconnected")
    assert [point.count for point in telemetry.points(DURATION)] == [1]


def test_a_scope_is_left_usable_for_a_server_that_reuses_state(telemetry):
    """The state that a server hands to each request keeps what it had."""
    app = FastAPI()
    instrument(app)
    state = {"pool": "p"}

    async def nothing(*_: Any) -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(app(scope("/docs", state=state), nothing, nothing))
    assert state["pool"] == "p"
