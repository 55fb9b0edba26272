"""Where requests went: classes of routes, and paths that no route took."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from starlette.routing import Route, Router

from otel_perf import instrument
from tests.apps import ok
from tests.asking import answering, ask, ask_all, scope

DURATION = "http.server.request.duration"
NOT_FOUND = ({"type": "http.response.start", "status": 404, "headers": []}, {"type": "http.response.body"})
UUID = "0af76519-16cd-43dd-8448-eb211c80319c"


def app_with_routes() -> FastAPI:
    """An app with a few routes, one of them mounted."""
    app, inner = FastAPI(), FastAPI()

    @app.get("/pay/{number}")
    async def pay(number: int) -> int:
        return number

    @app.get("/gone/{number}")
    async def gone(number: int) -> None:
        raise HTTPException(404)

    @inner.get("/users/{number}")
    async def user(number: int) -> int:
        return number

    app.mount("/admin", inner)
    return app


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/reset/eyJhbGciOiJIUzI1NiJ9abcDEF123456", "/reset/{token}"),
        ("/reset/a1b2c3d4e5", "/reset/{token}"),  # short, and no route vouches for it
        ("/pay/eyJhbGciOiJIUzI1NiJ9abcDEF123456", "/pay/{token}"),
        ("/users/42/files", "/users/42/files"),
        (f"/users/{UUID}", f"/users/{UUID}"),
        ("/pay/7", "/pay/7"),
        ("/pay/a1b2c3d4e5", "/pay/a1b2c3d4e5"),
    ],
)
def test_keys_in_paths_stay_here(telemetry, path, shown):
    """What looks like a key is masked in `url.path`: where a route took it only when it is long."""
    app = app_with_routes()
    instrument(app)
    ask(app, path)
    (span,) = telemetry.spans
    assert span.attributes["url.path"] == shown


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/nowhere", "/nowhere"),
        ("/users/42/files", "/users/{id}/files"),
        (f"/users/{UUID}", "/users/{uuid}"),
        ("/reset/eyJhbGciOiJIUzI1NiJ9abcDEF123456", "/reset/{token}"),
        ("/reset/0af7651916cd43dd8448eb211c80", "/reset/{token}"),
        ("/admin/nothing/7", "/admin/nothing/{id}"),
        ("/gone/7", None),
        ("/pay/7", None),
    ],
)
def test_paths_that_no_route_took_are_normalised_on_the_span(telemetry, path, template):
    """A 404 without a route has `url.template`; metrics have no route, and what a route answered has none of it."""
    app = app_with_routes()
    instrument(app)
    ask(app, path)
    (span,) = telemetry.spans
    assert span.attributes.get("url.template") == template
    (point,) = telemetry.points(DURATION)
    assert "url.template" not in point.attributes
    assert ("http.route" in point.attributes) is (template is None)


def test_the_root_path_is_no_part_of_it(telemetry):
    """What a proxy has in front of the path is not in the template either."""
    app = app_with_routes()
    instrument(app)
    ask_all(app, ("GET", "/proxied/nowhere/7"), root_path="/proxied")
    assert telemetry.spans[0].attributes["url.template"] == "/nowhere/{id}"


@pytest.mark.parametrize("path", ["/" + "x" * 1_000_000, "/a" * 100_000, "/\x00\ud800/7", "/%00", "//"])
def test_odd_paths_are_bounded(telemetry, path):
    """A path of a megabyte, of many parts, or of no text at all makes a short template."""

    async def run() -> None:
        async def send(message: Any) -> None:
            """Nobody listens."""

        await instrument(answering(*NOT_FOUND))(scope(path, raw_path=b""), None, send)

    asyncio.run(run())
    assert len(telemetry.spans[0].attributes["url.template"]) <= 512
    assert telemetry.spans[0].to_json().encode()


def test_a_hundred_thousand_unmatched_paths_are_one_series(telemetry):
    """404 and 405 on 100,000 distinct paths add no series and no memory of ours for each."""
    telemetry.restart(sampler="always_off", route_classes=("a=/a*",))
    router = Router([Route("/only", ok, methods=["POST"])])
    app = instrument(router)

    async def run() -> None:
        async def send(message: Any) -> None:
            """Nobody listens."""

        for number in range(100_000):
            await app(scope(f"/a{number}/{number:x}", raw_path=b""), None, send)
        for number in range(100):
            await app(scope("/only", method=f"M{number}", raw_path=b""), None, send)

    asyncio.run(run())
    counted = {
        (each.attributes["http.response.status_code"], each.attributes.get("http.route")): each.count
        for each in telemetry.points(DURATION)
    }
    assert counted == {(404, None): 100_000, (405, "/only"): 100}
    assert len(telemetry.points("http.server.active_requests")) == 2
    assert len(app.routes._found) < 10


@pytest.mark.parametrize("kind", ["fastapi", "plain", "native", "upstream"])
def test_classes_of_routes_are_attributes_of_the_span(telemetry, kind):
    """The first rule that fits the template, or the path where there is none, is the class; metrics know nothing."""
    telemetry.restart(route_classes=("payment=/pay*", "admin=/admin*", "probe=*.php"))
    app = app_with_routes()
    if kind == "native" and not hasattr(app, "_telemetry"):
        pytest.skip("this FastAPI does not measure itself")
    target: Any = app
    if kind == "plain":
        target = instrument(answering())
    else:
        instrument(app, engine=None if kind == "fastapi" else kind)
    ask_all(target, *(("GET", path) for path in ("/pay/7", "/admin/users/7", "/x/login.php", "/docs")))
    servers = [each for each in telemetry.spans if each.kind.name == "SERVER"]
    assert [each.attributes.get("http.route.class") for each in servers] == ["payment", "admin", "probe", None]
    assert not any("http.route.class" in each.attributes for each in telemetry.points(DURATION))
    unmatched = {"/x/login.php"} if kind != "plain" else set()  # which answers everything
    assert {each.attributes["url.path"] for each in servers if "url.template" in each.attributes} == unmatched


def test_without_rules_there_is_no_class(telemetry):
    """Nothing is declared by default."""
    app = app_with_routes()
    instrument(app)
    ask(app, "/pay/7")
    assert "http.route.class" not in telemetry.spans[0].attributes
