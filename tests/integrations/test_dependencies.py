"""Measured code in FastAPI's dependencies, which run in contexts of their own."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
from fastapi import Depends, FastAPI

from otel_perf import instrument, measure


def test_a_shared_handle_in_sync_dependencies_keeps_requests_apart(telemetry):
    """Two requests at once, one of which fails: each has its own step with its own outcome, in its own trace."""
    handle = measure("dep")
    entered = threading.Barrier(2)

    def dependency():
        with handle as op:
            entered.wait(5)
            yield op

    app = FastAPI()
    first_done = asyncio.Event()

    @app.get("/good")
    async def good(op=Depends(dependency)):
        return {}

    @app.get("/bad")
    async def bad(op=Depends(dependency)):
        await first_done.wait()
        raise ValueError("no")

    instrument(app)

    async def both():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as http:
            failing = asyncio.create_task(http.get("/bad"))
            await http.get("/good")
            first_done.set()
            await failing

    asyncio.run(both())
    steps = [span for span in telemetry.spans if span.name == "dep"]
    requests = {span.name: span for span in telemetry.spans if span.name.startswith("GET")}
    by_trace = {span.context.trace_id: span.attributes.get("error.type") for span in steps}
    assert by_trace == {
        requests["GET /good"].context.trace_id: None,
        requests["GET /bad"].context.trace_id: "ValueError",
    }


@pytest.mark.parametrize("path", ["/sync", "/async"])
def test_a_measured_dependency_is_a_child_of_its_request(telemetry, path):
    """A step in a dependency, sync or async, hangs below the request's span."""
    app = FastAPI()

    @measure("look up")
    def look_up():
        return 1

    @measure("look up")
    async def look_up_later():
        return 1

    @app.get("/sync")
    def sync(value=Depends(look_up)):
        return value

    @app.get("/async")
    async def later(value=Depends(look_up_later)):
        return value

    instrument(app)

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as http:
            return await http.get(path)

    assert asyncio.run(ask()).status_code == 200
    assert telemetry.span("look up").parent.span_id == telemetry.span(f"GET {path}").context.span_id
