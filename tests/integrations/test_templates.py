"""Routes of FastAPI and Starlette apps: the whole template, whatever leads to it."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles

from otel_perf import instrument
from otel_perf.integrations import fastapi
from tests.apps import added, answer, included, ok, plain, routes, sub_app
from tests.asking import Copying, ask, ask_all

DURATION = "http.server.request.duration"


def _same_endpoint_twice(app: FastAPI) -> None:
    app.add_route("/one/{a}", ok)
    app.add_route("/two/{a}", ok)


def _mounted(app: FastAPI) -> None:
    sub = sub_app()
    app.mount("/t/{tenant}", sub)
    app.mount("/second", sub)


def _mounted_in_router(app: FastAPI) -> None:
    router = APIRouter()
    router.mount("/sub", sub_app())
    app.include_router(router, prefix="/api")


def _nested(app: FastAPI) -> None:
    inner = Starlette(routes=[Route("/z/{y}", ok), Mount("/deep/{n:int}", app=sub_app())])
    app.mount("/star", Starlette(routes=[Mount("/in/{x}", app=inner)]))


def _wrapped_mount(app: FastAPI) -> None:
    app.mount("/cors", CORSMiddleware(sub_app(), allow_origins=["*"]))


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
        (plain, "/items/7", "/items/{number}"),
        (plain, "/docs", "/docs"),
        (plain, "/openapi.json", "/openapi.json"),
        (plain, "/nowhere/7", None),
        (added, "/added/w", "/added/{word}"),
        (_same_endpoint_twice, "/one/1", "/one/{a}"),
        (_same_endpoint_twice, "/two/1", "/two/{a}"),
        (included, "/api/outer/inner/items/7", "/api/outer/inner/items/{number}"),
        (included, "/api/outer/other/items/7", "/api/outer/other/items/{number}"),
        (included, "/api/outer/inner/added", "/api/outer/inner/added"),
        (included, "/api/outer/other/added", "/api/outer/other/added"),
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
        ("/class/1", "/class/{y}"),
        ("/m/2/deep/3/class/1", "/m/{x}/deep/{n}/class/{y}"),
        ("/m/2/deep/3/h/7", "/m/{x}/deep/{n}/h/{z}"),
        ("/added/1", "/added/{y}"),
    ],
)
def test_starlette_apps_have_routes_too(telemetry, path, template):
    """A Starlette app is measured like a FastAPI one, FastAPI apps mounted in it included, which then stay silent."""

    class Answer(HTTPEndpoint):
        async def get(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse("ok")

    hosted = Host("{sub}.test", app=Router([Route("/h/{z}", ok)]))
    inner: list[Any] = [Route("/z/{y}", ok), Route("/class/{y}", Answer)]
    deeper = [*inner, Mount("/deep/{n}", routes=[*inner, hosted])]
    app = Starlette(routes=[*inner, Mount("/m/{x}", routes=deeper), Mount("/api", app=sub_app())])
    app.add_route("/added/{y}", ok)
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
    plain(app)
    app.add_route("/added/{word}", ok)
    app.mount("/sub", sub_app())
    instrument(app)
    paths = ["/items/7", "/added/w", "/sub/items/1", "/sub/docs"]
    responses = ask_all(app, *(("GET", root_path + path) for path in paths), root_path=root_path)
    assert [each.status_code for each in responses] == [200] * 4
    assert routes(telemetry) == ["/items/{number}", "/added/{word}", "/sub/items/{number}", "/sub/docs"]


def test_a_wrong_method_keeps_the_route_and_a_made_up_one_is_bounded(telemetry):
    """405 carries the route that was meant; methods of nobody's standard are one label."""
    app = FastAPI()
    plain(app)
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
    plain(app)
    app.add_route("/one/{a}", ok)
    ask_all(app, ("GET", "/items/1"), ("GET", "/one/1"))
    app.add_route("/two/{a}", ok)
    app.mount("/sub/{x}", sub_app())
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
