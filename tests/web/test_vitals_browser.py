"""Web vitals of a real page in a real browser."""

from __future__ import annotations

import time

import pytest
from fastapi import FastAPI
from playwright.sync_api import sync_playwright
from starlette.responses import HTMLResponse

from otel_perf import conventions as c
from otel_perf import instrument
from otel_perf.web import mount
from tests.serving import served

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Shop</title>
<link rel="icon" href="data:,">
<script src="/performance/vitals.js" defer DATA></script></head>
<body><div id="ad"></div><h1>Item</h1>
<p>This is the page of an item.</p><button id="buy">Buy</button><script src="/page.js"></script></body></html>"""
SCRIPT = """
document.querySelector("#buy").addEventListener("click", () => {
  const end = performance.now() + 120;
  while (performance.now() < end);
  document.querySelector("p").textContent = "Bought.";
});
setTimeout(() => {
  const ad = document.querySelector("#ad");
  ad.textContent = "Advertisement";
  ad.style.height = "200px";
}, 50);
"""
# As strict as a site may be: its own scripts, its own connections, nothing inline.
POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; img-src data:"


def shop():
    app = FastAPI(openapi_url=None)

    @app.get("/items/{item}")
    async def item(item: str) -> HTMLResponse:
        name = 'data-route="/cart"' if item == "cart" else ""
        return HTMLResponse(PAGE.replace("DATA", name), headers={"content-security-policy": POLICY})

    @app.get("/page.js")
    async def script() -> HTMLResponse:
        return HTMLResponse(SCRIPT, media_type="text/javascript")

    mount(app, page_routes=("/cart",))
    return app


@pytest.fixture(scope="module")
def browser(chromium_binary):
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=str(chromium_binary),
            args=["--no-sandbox"],
            ignore_default_args=["--disable-back-forward-cache"],
        )
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, telemetry):
    """Opens a page of the shop and does something there; the page is then left."""
    app = shop()
    pages = []
    with instrument(app), served(app, lifespan="off") as url:

        def go(path, do=lambda page: None, leave=lambda page, url: page.goto("about:blank")):
            page = browser.new_page()
            said: list[str] = []
            pages.append(page)  # closed at the end: what a page sends as it is left goes down with its window
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(url + path)
            page.get_by_text("Advertisement").wait_for()
            do(page)
            leave(page, url)
            assert said == []

        yield go
        for page in pages:
            page.close()


def arrived(telemetry, count=1):
    """The points by name and route, as soon as there are reports enough."""
    deadline = time.monotonic() + 10
    # The server records in a thread of its own, a figure after the other; this one is the last of a report.
    while sum(p.count for p in telemetry.points("web_vital.cls")) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return {
        (metric.name, p.attributes[c.HTTP_ROUTE]): p for metric in c.WEB_VITALS for p in telemetry.points(metric.name)
    }


def test_a_visit(telemetry, visit):
    """A page that is painted, shifts, is clicked and left reports each figure once, with its route, likely values."""

    def click(page):
        page.wait_for_timeout(100)
        page.click("#buy")
        page.get_by_text("Bought.").wait_for()
        page.wait_for_timeout(300)

    visit("/items/42?token=secret#part", click)
    points = arrived(telemetry)
    route = "/items/{item}"
    assert set(points) == {(metric.name, route) for metric in c.WEB_VITALS}
    assert all(point.count == 1 for point in points.values())
    value = {name.removeprefix("web_vital."): point.sum for (name, _), point in points.items()}
    assert 0 < value["ttfb"] <= value["fcp"] <= value["lcp"] < 10
    assert 0.1 < value["inp"] < 5  # the click takes 120 ms
    assert 0 <= value["fid"] < 5
    assert 0.01 < value["cls"] < 2
    assert {point.attributes[c.HTTP_ROUTE] for point in telemetry.points(c.REQUEST_DURATION.name)} <= {
        route,
        "/page.js",
    }


def test_a_visit_without_a_click(telemetry, visit):
    """There is no figure of an interaction, and the name that the page gives itself is its route."""
    visit("/items/cart")
    points = arrived(telemetry)
    assert {name for name, _ in points} == {f"web_vital.{name}" for name in ("lcp", "fcp", "ttfb", "cls")}
    assert {route for _, route in points} == {"/cart"}


def test_a_page_that_comes_back(telemetry, visit):
    """A page that the browser kept in memory and shows again is another visit; it is reported once more."""
    kept = []

    def leave(page, url):
        page.evaluate("addEventListener('pageshow', (event) => { window.kept = event.persisted; })")
        page.goto(f"{url}/items/2")
        page.get_by_text("Advertisement").wait_for()
        page.go_back(wait_until="commit")
        page.wait_for_timeout(300)
        kept.append(page.evaluate("window.kept"))
        page.goto("about:blank")

    visit("/items/1", leave=leave)
    points = arrived(telemetry, 3)
    assert kept == [True]
    assert points["web_vital.fcp", "/items/{item}"].count == 3
    assert points["web_vital.ttfb", "/items/{item}"].count == 2


def test_clicks_after_a_page_came_back(telemetry, visit):
    """The slowest of few clicks counts, though the browser goes on counting those of the visit before."""

    def leave(page, url):
        page.evaluate(
            """() => {
              Object.defineProperty(performance, "interactionCount", { get: () => 500 });
              document.querySelector("h1").addEventListener("click", () => {
                const end = performance.now() + 50;
                while (performance.now() < end);
              });
            }"""
        )
        page.goto(f"{url}/items/2")
        page.get_by_text("Advertisement").wait_for()
        page.go_back(wait_until="commit")
        page.wait_for_timeout(300)
        page.click("#buy")
        page.get_by_text("Bought.").wait_for()
        page.click("h1")
        page.wait_for_timeout(300)
        page.goto("about:blank")

    visit("/items/1", leave=leave)
    point = arrived(telemetry, 3)["web_vital.inp", "/items/{item}"]
    assert point.count == 1
    assert point.sum > 0.11  # the click takes 120 ms, the other 50
