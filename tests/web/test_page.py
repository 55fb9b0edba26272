"""The page in a real browser."""

from __future__ import annotations

import re
import subprocess

import pytest
from fastapi import FastAPI
from starlette.responses import HTMLResponse

import otel_perf
from otel_perf import conventions as c
from otel_perf import measure
from otel_perf.web import _page, mount
from tests.serving import served

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture
def browse(chromium_binary, tmp_path):
    def dom(url):
        command = [
            chromium_binary, *FLAGS, f"--user-data-dir={tmp_path}", "--virtual-time-budget=4000", "--dump-dom", url,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
        return done.stdout, done.stderr

    return dom


def cells(dom):
    return [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", dom, re.DOTALL)]


def test_page_shows_what_was_measured(telemetry, browse):
    """The browser shows the route, its count and failures, the hit rate, the job, and that it is live."""
    app = FastAPI()
    mount(app)
    for status in (200, 200, 500):
        with measure.request("GET", "/items/{id}") as op:
            op.label(c.HTTP_STATUS, status)
    for hit in (True, True, True, False):
        with measure.cache("get", strategy="PROFILE") as op:
            op.hit = hit
    with measure.job("nightly"):
        pass
    with served(app, lifespan="off") as url:
        dom, errors = browse(f"{url}/performance")

    shown = cells(dom)
    row = shown.index("GET /items/{id}")
    assert shown[row + 1] == "3"
    assert shown[row + 3] == "1"
    assert "PROFILE" in shown
    assert "75.0 %" in shown
    assert "nightly" in shown
    assert ">live, " in dom
    assert "Content Security Policy" not in errors


def test_names_from_requests_are_text_and_never_markup(telemetry, browse):
    """A hostile name is shown as it is written, and runs nothing."""
    app = FastAPI()
    mount(app)
    with measure.query(
        "<img src=x onerror=document.title='owned'>", collection="<script>document.title='owned'</script>"
    ):
        pass
    with served(app, lifespan="off") as url:
        dom, _ = browse(f"{url}/performance")

    assert "&lt;img src=x" in dom
    assert "<title>owned" not in dom
    assert "<img" not in dom


def test_page_says_when_the_service_does_not_answer(telemetry, browse):
    """Without figures the page tells the reason in words instead of staying empty."""
    app = FastAPI()
    mount(app)
    otel_perf.shutdown()

    @app.middleware("http")
    async def let_the_page_through(request, call_next):
        response = await call_next(request)
        if request.url.path == "/performance":
            return HTMLResponse(_page()[0])
        return response

    with served(app, lifespan="off") as url:
        dom, _ = browse(f"{url}/performance")
    assert "no answer from the service: otel_perf is not configured" in dom
