"""Where our pages stand among the routes of an app, and that they are not measured."""

from __future__ import annotations

import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import PlainTextResponse
from starlette.staticfiles import StaticFiles

from otel_perf import instrument
from otel_perf.web import mount
from tests import asking


def ask(app, path):
    return asking.ask(app, path, headers={"host": "127.0.0.1"})


PATHS = ["/performance", "/api/performance", "/metrics", "/api/health"]


@pytest.mark.parametrize("path", PATHS)
def test_pages_come_before_what_takes_every_path(telemetry, tmp_path, path):
    """Pages are served also where a mount at "/", a catch-all or a mount of their prefix was there before."""
    by_mount, by_pattern, by_prefix = FastAPI(), FastAPI(), FastAPI()
    by_mount.mount("/", StaticFiles(directory=tmp_path))
    by_pattern.add_api_route("/{rest:path}", lambda rest: "caught")
    by_prefix.mount("/api", FastAPI())
    for app in (by_mount, by_pattern, by_prefix):
        mount(app)
        answer = ask(app, path)
        assert answer.status_code == 200
        assert "caught" not in answer.text


def own_before(app, own):
    app.add_api_route("/api/health", own)
    mount(app)


def own_after(app, own):
    mount(app)
    app.add_api_route("/api/health", own)


def own_included(app, own):
    mount(app)
    router = APIRouter(prefix="/api")
    router.add_api_route("/health", own)
    app.include_router(router)


def own_mounted(app, own):
    mount(app)
    inner = FastAPI()
    inner.add_api_route("/health", own)
    app.mount("/api", inner)


@pytest.mark.parametrize("define", [own_before, own_after, own_included, own_mounted])
def test_the_apps_own_route_wins(telemetry, define):
    """A route of the app's own with one of our paths is served, whenever it was defined; the others stay ours."""
    app = FastAPI()
    define(app, lambda: "own")
    assert ask(app, "/api/health").json() == "own"
    assert ask(app, "/api/performance").json()["service"]["name"] == "test"


def test_a_second_mount_opens_nothing(telemetry):
    """Of two mounts the first counts, so that none can take back what the first one closed."""
    app = FastAPI()
    mount(app, loopback=False)
    mount(app)
    assert ask(app, "/metrics").status_code == 403


@pytest.mark.parametrize("path", PATHS)
def test_pages_of_a_mounted_app_are_not_measured(telemetry, path):
    """Below a mount the pages leave no span, no duration and no active request; other routes there do."""
    app, inner = FastAPI(), FastAPI()
    mount(inner)
    inner.add_route("/work", lambda _request: PlainTextResponse("done"))
    app.mount("/int", inner)
    with instrument(app):
        answer = ask(app, f"/int{path}")
        assert answer.status_code == 200
        assert "x-request-id" in answer.headers
        assert "traceresponse" not in answer.headers
        assert not telemetry.spans
        assert not telemetry.points("http.server.request.duration")
        assert ask(app, "/int/work").status_code == 200
    assert [span.name for span in telemetry.spans] == ["GET /int/work"]
    assert [point.value for point in telemetry.points("http.server.active_requests")] == [0]
