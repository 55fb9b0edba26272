"""Apps that start and end: what waits is flushed, and nothing else of it changes."""

from __future__ import annotations

import asyncio
import http.server
import threading
import warnings
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import otel_perf
from otel_perf import instrument
from tests.apps import busy_app
from tests.asking import answering
from tests.serving import served

with warnings.catch_warnings():
    # It asks for another client than the rest of the world uses; the one that is installed serves.
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

DURATION = "http.server.request.duration"


def test_other_event_loops_flush_by_anyio(telemetry, monkeypatch):
    """Without a running asyncio loop, as under trio, the flush goes through anyio, which is there then."""
    told = []

    async def run_sync(call: Any) -> None:
        call()

    monkeypatch.setattr("anyio.to_thread.run_sync", run_sync)
    monkeypatch.setattr(telemetry.runtime.pipeline, "flush", lambda: told.append("flushed"))

    async def app(scope, receive, send):
        await send({"type": "lifespan.shutdown.complete"})

    async def send(message: Any) -> None:
        told.append(message["type"])

    running = instrument(app)({"type": "lifespan"}, None, send)
    with pytest.raises(StopIteration):
        running.send(None)
    assert told == ["flushed", "lifespan.shutdown.complete"]


def lifespan_app(told: list[str]) -> Any:
    async def app(scope, receive, send):
        if scope["type"] != "lifespan":
            await answering()(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        told.append("the app is down")
        await send({"type": "lifespan.shutdown.complete"})

    return app


@pytest.fixture
def flushes(telemetry, monkeypatch) -> Iterator[list[str]]:
    """What was told, in order; a flush tells the thread it ran in."""
    told: list[str] = []

    def flush(timeout_s: float | None = None) -> bool:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            told.append("flushed in a thread")
        return True

    monkeypatch.setattr(telemetry.runtime.pipeline, "flush", flush)
    return told


def test_the_end_of_the_app_flushes_after_it_in_a_thread(telemetry, flushes):
    """The server's shutdown waits for the flush, which comes after the app's own and does not block the loop."""
    app = instrument(instrument(lifespan_app(flushes)))
    for _ in range(2):  # not for good: the same app may start again in this process
        with served(app) as address:
            assert httpx.get(address).status_code == 200
    assert flushes == ["the app is down", "flushed in a thread"] * 2
    assert len(telemetry.spans) == 2


def test_a_flush_that_fails_does_not_keep_the_app_from_ending(telemetry, monkeypatch):
    """The app's end is told to the server whatever the flush does, and also when there is nothing to flush."""
    monkeypatch.setattr("otel_perf.guard.strict", False)
    monkeypatch.setattr(telemetry.runtime.pipeline, "flush", lambda: 1 / 0)
    told: list[str] = []
    app = instrument(lifespan_app(told))
    with served(app):
        pass
    otel_perf.shutdown()
    with served(app):
        pass
    assert told == ["the app is down"] * 2


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
