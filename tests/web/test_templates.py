"""Which route a page is."""

from __future__ import annotations

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.routing import Host, Mount, Route
from starlette.staticfiles import StaticFiles

from otel_perf.web.templates import template


async def page(_request):
    return Response()


def fastapi_app(tmp_path):
    app, router, inner = FastAPI(openapi_url=None), APIRouter(prefix="/v1"), FastAPI(openapi_url=None)
    router.get("/items/{item}")(page)
    app.include_router(router)
    inner.get("/x/{y:int}")(page)
    app.mount("/sub", GZipMiddleware(inner))
    app.mount("/static", StaticFiles(directory=tmp_path))
    app.post("/posted")(page)
    return app


def starlette_app(tmp_path):
    return Starlette(
        routes=[
            Route("/v1/items/{item}", page),
            Mount("/sub", GZipMiddleware(Starlette(routes=[Route("/x/{y:int}", page)]))),
            Mount("/static", StaticFiles(directory=tmp_path)),
            Route("/posted", page, methods=["POST"]),
            Host("other.test", Starlette()),
        ]
    )


@pytest.mark.parametrize("make", [fastapi_app, starlette_app])
@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/v1/items/42", "/v1/items/{item}"),
        ("/sub/x/7", "/sub/x/{y}"),
        ("/sub/x/seven", None),
        ("/static/a/b.css", "/static/{path}"),
        ("/posted", None),
        ("/nothing", None),
        ("/v1/items/42/", None),
    ],
)
def test_a_page(make, path, shown, tmp_path):
    """Mounts, middlewares, included routers and static files are walked as routing walks them."""
    found = template(make(tmp_path).routes, path)
    assert (found and found.replace("{y:int}", "{y}")) == shown


def test_mounts_without_end():
    """An app that is mounted in itself ends somewhere."""
    app = Starlette()
    app.mount("/a", app)
    assert template(app.routes, "/a" * 1000) is None
