"""What the endpoint for web vitals takes, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import unquote

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

import otel_perf
from otel_perf import conventions as c
from otel_perf import instrument
from otel_perf.web import mount

PATH = "/api/performance/vitals"
SAME = {"sec-fetch-site": "same-origin", "content-type": "application/json"}


async def page(_request):
    return Response()


@pytest.fixture
def app(telemetry):
    app = Starlette(routes=[Route("/items/{item}", page), Route("/", page)])
    mount(app, page_routes=("/cart",))
    return app


def send(app, report, headers=SAME, *, path=PATH, client=("203.0.113.5", 5), root_path=""):
    """A report as a browser elsewhere sends it."""

    async def call():
        transport = httpx.ASGITransport(app, client=client, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="https://shop.test") as http:
            content = report if isinstance(report, (bytes, str)) else json.dumps(report)
            return await http.post(path, content=content, headers=headers)

    return asyncio.run(call())


def report(path="/items/7", **metrics):
    return {"path": path, "metrics": metrics or {"lcp": 1200}}


def found(telemetry):
    return {
        (metric.name, point.attributes[c.HTTP_ROUTE]): (point.count, round(point.sum, 6))
        for metric in c.WEB_VITALS
        for point in telemetry.points(metric.name)
    }


def test_a_report_becomes_points(app, telemetry):
    """Milliseconds become seconds, shifts stay as they are, all by the route of the page; anybody may send one."""
    answer = send(app, report(lcp=1200, inp=80.5, fid=3, ttfb=90, fcp=700, cls=0.25))
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers
    route = "/items/{item}"
    assert found(telemetry) == {
        ("web_vital.lcp", route): (1, 1.2), ("web_vital.inp", route): (1, 0.0805), ("web_vital.fid", route): (1, 0.003),
        ("web_vital.ttfb", route): (1, 0.09), ("web_vital.fcp", route): (1, 0.7), ("web_vital.cls", route): (1, 0.25),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "name", "route"),
    [
        ("/items/42", None, "/items/{item}"),
        ("/", None, "/"),
        ("/wp-login.php", None, "other"),
        ("/items/42", "/cart", "/cart"),
        ("/items/42", "/invented", "/items/{item}"),
        ("/nothing", {"not": "a text"}, "other"),
    ],
)
def test_routes_are_bounded(app, telemetry, path, name, route):
    """What the app knows is a route, by path or by a declared name; all else is one."""
    assert send(app, {**report(path), "route": name}).status_code == 204
    assert found(telemetry) == {("web_vital.lcp", route): (1, 1.2)}


@pytest.mark.parametrize("path", ["/caf%C3%A9", "/my%20page"])
def test_paths_with_escapes(telemetry, path):
    """A browser's path has escapes, a route has none."""
    app = Starlette(routes=[Route("/café", page), Route("/my page", page)])
    mount(app)
    assert send(app, report(path)).status_code == 204
    assert {route for _, route in found(telemetry)} == {unquote(path)}


def test_many_paths_are_one_route(app, telemetry):
    """Invented paths make one series."""
    telemetry.restart(vitals_per_minute=100_000)

    async def main():
        transport = httpx.ASGITransport(app, client=("203.0.113.5", 5))
        async with httpx.AsyncClient(transport=transport, base_url="https://shop.test") as http:
            for each in range(300):
                await http.post(PATH, content=json.dumps(report(f"/invented/{each}")), headers=SAME)

    asyncio.run(main())
    assert found(telemetry) == {("web_vital.lcp", "other"): (300, 360.0)}


def test_below_mounts_and_proxies(telemetry):
    """A mounted app's pages have the whole route; what a proxy has in front is no part of it."""
    inner = Starlette(routes=[Route("/items/{item}", page)])
    mount(inner)
    outer = FastAPI()
    outer.mount("/sub", inner)
    for page_path in ("/proxied/sub/items/7", "/elsewhere"):
        answer = send(outer, report(page_path), path=f"/proxied/sub{PATH}", root_path="/proxied")
        assert answer.status_code == 204
    assert found(telemetry) == {
        ("web_vital.lcp", "/sub/items/{item}"): (1, 1.2),
        ("web_vital.lcp", "other"): (1, 1.2),
    }


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin"}, 204),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "https://shop.test"}, 403),
        ({"origin": "https://shop.test"}, 204),
        ({"origin": "https://shop.test.evil.test"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "https://[broken"}, 403),
        ({"referer": "https://shop.test/items/7"}, 204),
        ({"referer": "https://evil.test/?https://shop.test"}, 403),
        ({}, 403),
    ],
)
def test_only_pages_of_the_same_origin(app, telemetry, headers, status):
    """By what the browser says, else by the origin or the referring page; who says nothing is refused."""
    answer = send(app, report(), {**JSON, **headers})
    assert answer.status_code == status
    assert bool(found(telemetry)) == (status == 204)
    if status != 204:
        assert answer.json() == {"error": "only from a page of this site"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"[]", 400), (b"null", 400), (b"[" * 4000, 400), (b"\xff\xfe", 400),
        (b'{"path": "/", "metrics": {"lcp": NaN}}', 400), (b'{"path": "/", "metrics": {"lcp": Infinity}}', 400),
        (b'{"path": "/", "metrics": {"lcp": 1e999}}', 400),
        (b'{"path": "/", "metrics": {"lcp": %s}}' % (b"9" * 3000), 400),
        (report(lcp=-1), 400), (report(lcp=True), 400), (report(lcp="5"), 400), (report(lcp=None), 400),
        (report(lcp=600_001), 400), (report(inp=60_001), 400), (report(cls=101), 400), (report(zzz=1), 400),
        ({"path": "/", "metrics": {}}, 400), ({"path": "/", "metrics": [1]}, 400), ({"metrics": {"lcp": 1}}, 400),
        (report("no-slash"), 400), (report("/" + "x" * 2048), 400), ({"path": 5, "metrics": {"lcp": 1}}, 400),
        ({"path": "/", "metrics": {str(each): 1 for each in range(7)}}, 400),
        (b" " * 4097, 413), (b"x" * 1_000_000, 413),
        (report(lcp=0, cls=0), 204), (report(lcp=600_000), 204),
    ],
)  # fmt: skip
def test_what_is_no_report(app, telemetry, body, status):
    """Too long, no JSON, no number, out of range, unknown: refused in short, and nothing of it is recorded."""
    answer = send(app, body)
    assert answer.status_code == status
    assert len(answer.content) < 200
    assert bool(found(telemetry)) == (status == 204)


def test_a_body_without_a_length(app, telemetry):
    """It is read only as far as is allowed."""
    read = []

    async def main():
        async def parts():
            for _ in range(1000):
                read.append(1024)
                yield b" " * 1024

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="https://shop.test") as http:
            return await http.post(PATH, content=parts(), headers=SAME)

    assert asyncio.run(main()).status_code == 413
    assert sum(read) <= 8192


def test_a_client_that_goes_away(app, telemetry):
    """A browser that closes while it sends is no fault, and nothing is recorded."""
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send_on(message):
        sent.append(message)

    headers = [(name.encode(), value.encode()) for name, value in SAME.items()]
    scope = {
        "type": "http", "method": "POST", "path": PATH, "query_string": b"", "headers": headers, "scheme": "https",
        "server": ("shop.test", 443), "http_version": "1.1",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send_on))
    assert sent[0]["status"] == 400
    assert found(telemetry) == {}


def test_other_types_and_methods(app, telemetry):
    """A form, which any site may send, is refused; reading is no method of it."""
    assert send(app, report(), {**SAME, "content-type": "text/plain"}).status_code == 415

    async def read():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://shop.test") as http:
            return await http.get(PATH)

    assert asyncio.run(read()).status_code == 405
    assert found(telemetry) == {}


def test_too_many(app, telemetry):
    """Beyond the setting all are refused; one client alone is refused earlier."""
    telemetry.restart(vitals_per_minute=12)
    statuses = [send(app, report()).status_code for _ in range(10)]
    assert statuses == [204] * 8 + [429] * 2
    others = [send(app, report(), client=(f"203.0.113.{each}", 5)).status_code for each in range(6, 16)]
    assert others.count(204) == 4
    assert sum(count for count, _ in found(telemetry).values()) == 12


@pytest.mark.parametrize("per_minute", [1, 4, 23])
def test_a_small_limit_takes_whole_reports(app, telemetry, per_minute):
    """A report of all figures comes through however small the limit is, and what is no report takes nothing of it."""
    telemetry.restart(vitals_per_minute=per_minute)
    for _ in range(30):
        assert send(app, b"{").status_code == 400
    full = report(lcp=1, inp=2, fid=3, ttfb=4, fcp=5, cls=0.1)
    assert [send(app, full).status_code for _ in range(2)] == [204, 429]


def test_switched_off(app, telemetry):
    """With a limit of 0, and before `configure()`, nothing is taken."""
    telemetry.restart(vitals_per_minute=0)
    assert send(app, report()).status_code == 404
    otel_perf.shutdown()
    assert send(app, report()).status_code == 404


def test_reports_are_no_requests(telemetry):
    """Neither the script nor the endpoint is measured."""
    app = FastAPI()
    mount(app)
    with instrument(app):
        assert send(app, report("/docs")).status_code == 204

        async def read():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://shop.test") as http:
                return await http.get("/performance/vitals.js")

        assert asyncio.run(read()).status_code == 200
    assert telemetry.points(c.REQUEST_DURATION.name) == []
    assert telemetry.spans == []


def test_the_script_is_small_and_public(app):
    """Anybody gets it, browsers keep it, and it asks nothing of another site."""

    async def read(**headers):
        transport = httpx.ASGITransport(app, client=("203.0.113.5", 5))
        async with httpx.AsyncClient(transport=transport, base_url="https://shop.test") as http:
            return await http.get("/performance/vitals.js", headers=headers)

    answer = asyncio.run(read())
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=3600"
    assert len(answer.content) < 4000
    assert "://" not in answer.text
    assert "cookie" not in answer.text
    assert "eval" not in answer.text
    again = asyncio.run(read(**{"if-none-match": answer.headers["etag"]}))
    assert (again.status_code, again.content) == (304, b"")


def test_the_apps_own_endpoint_wins(telemetry):
    """An app that has one at this path keeps it."""

    async def own(_request):
        return Response("own")

    app = Starlette(routes=[Route(PATH, own, methods=["POST"])])
    mount(app)
    assert send(app, report()).text == "own"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["path", "metrics", "lcp", "cls", "route", "x"]), inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
def test_anything_is_answered(app, telemetry, anything):
    """Whatever is sent, the answer is 204 or a refusal, never a fault."""
    assert send(app, anything).status_code in {204, 400, 413, 429}
