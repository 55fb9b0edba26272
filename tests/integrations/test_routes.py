"""Which route a request is told to have taken, where apps ask one another and routes come and go."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, Router

from otel_perf import instrument
from otel_perf.integrations import routes
from tests.asking import ask, ask_all


async def answer(_: Any) -> PlainTextResponse:
    return PlainTextResponse("done")


def names(telemetry: Any) -> list[str]:
    return [each.name for each in telemetry.spans]


@pytest.mark.parametrize("forgets", [(), ("route", "endpoint", "path_params", "router", "fastapi")])
@pytest.mark.parametrize("other", [False, True])
def test_an_endpoint_that_asks_an_app_itself_keeps_its_route(telemetry, forgets, other):
    """A batch endpoint that runs its own app, or another, within is told by its own route, on span and metric."""
    app, second = FastAPI(), FastAPI()

    @app.get("/items/{item}")
    @second.get("/items/{item}")
    async def one(item: str) -> str:
        return item

    @app.get("/batch")
    async def batch(request: Request) -> int:
        inner = {**request.scope, "path": "/items/1", "raw_path": b"/items/1"}
        for key in forgets:
            inner.pop(key, None)
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await (second if other else app)(inner, request.receive, send)
        return len(sent)

    with instrument(app), instrument(second):
        assert ask(app, "/batch").json() == 2
    if other and forgets:
        return  # nothing tells such a scope from that of a mounted app
    assert names(telemetry) == ["GET /batch"]
    (point,) = telemetry.points("http.server.request.duration")
    assert point.attributes["http.route"] == "/batch"


def test_one_scope_for_two_apps_in_turn(telemetry):
    """An app that hands on what another did not know is measured as ever: nothing of the first try is left behind."""
    first = Starlette(routes=[Route("/a", answer)])
    second = Starlette(routes=[Route("/b", answer)])

    async def cascade(scope: Any, receive: Any, send: Any) -> None:
        sent: list[Any] = []

        async def kept(message: Any) -> None:
            sent.append(message)

        before = dict(scope)
        await first(scope, receive, kept)
        if sent[0]["status"] == 404:
            assert not {"otel_perf", "starlette.opentelemetry", "fastapi.telemetry"} & (scope.keys() - before.keys())
            await second(scope, receive, send)

    with instrument(first), instrument(second):
        assert ask(cascade, "/b").text == "done"
    assert names(telemetry) == ["GET", "GET /b"]


def test_routers_of_peoples_own_making_do_not_blind_us_for_ever(telemetry, monkeypatch):
    """A mount that makes its routes anew each time uses up the walks of a minute; then routes are learned again."""
    clock = [1000.0]
    monkeypatch.setattr(routes.time, "monotonic", lambda: clock[0])
    inner = Router([Route("/y", answer)])

    async def made_anew(scope: Any, receive: Any, send: Any) -> None:
        await Router([Route("/{p:path}", answer)])(scope, receive, send)

    app = Starlette(routes=[Mount("/m", app=inner), Mount("/dyn", app=made_anew)])
    with instrument(app):
        ask_all(app, *[("GET", f"/dyn/{number}") for number in range(40)])

        async def late(_: Any) -> PlainTextResponse:
            return PlainTextResponse("late")

        inner.routes.append(Route("/new/{k}", late))
        ask(app, "/m/new/1")
        clock[0] += 61
        ask(app, "/m/new/1")
    # Meanwhile there is no route rather than one without its mount in front.
    assert names(telemetry)[-2:] == ["GET", "GET /m/new/{k}"]
