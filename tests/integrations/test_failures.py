"""Requests that fail: once, and alike on span and metric."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware

from otel_perf import instrument
from tests.apps import busy_app
from tests.asking import BODY, START, Copying, answering, ask, drive

DURATION = "http.server.request.duration"
ACTIVE = "http.server.active_requests"


@pytest.mark.parametrize(
    ("messages", "status", "error_type"),
    [
        (({**START, "status": 404}, BODY), 404, None),
        (({**START, "status": 503}, BODY), 503, "503"),
        ((ValueError("no"),), None, "ValueError"),
        ((START, {**BODY, "more_body": True}, KeyError("k")), 200, "KeyError"),
        (({**START, "status": 500}, BODY, KeyError("k")), 500, "KeyError"),
        ((asyncio.CancelledError(),), None, "asyncio.exceptions.CancelledError"),
        ((START,), 200, "client_disconnected"),
        ((START, {**BODY, "more_body": True}), 200, "client_disconnected"),
        (({"type": "http.response.debug"},), None, "incomplete_response"),
    ],
)
def test_failures_are_told_once_and_alike_on_span_and_metric(telemetry, messages, status, error_type):
    """`error.type` is the exception, else a status from 500 on, else how the response was cut short."""
    app = instrument(answering(*messages))
    failures = tuple(each for each in messages if isinstance(each, BaseException))
    if failures:
        with pytest.raises(type(failures[0])):
            drive(app)
    else:
        drive(app)
    span = telemetry.span("GET")
    (point,) = telemetry.points(DURATION)
    assert point.count == 1
    for attributes in (span.attributes, point.attributes):
        assert attributes.get("http.response.status_code") == status
        assert attributes.get("error.type") == error_type
    assert span.status.status_code is (StatusCode.ERROR if error_type else StatusCode.UNSET)
    assert [event.name for event in span.events] == ["exception"] * len(failures)
    assert telemetry.points(ACTIVE)[0].value == 0


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"xp": "many"}', b"\xff\xfe", b"null"])
def test_a_body_that_cannot_be_used_is_a_422_that_the_span_tells(telemetry, body):
    """Malformed JSON and wrong fields are the caller's fault: 422, no error.type, never a 500."""
    app = busy_app()
    instrument(app)
    response = ask(app, "/activities", "POST", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422 or (body == b"\xff\xfe" and response.status_code == 400)
    span = telemetry.span("POST /activities")
    assert span.attributes["http.response.status_code"] == response.status_code
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in span.attributes
    assert len(response.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("path", "status", "error_type"),
    [
        ("/fail/plain", 500, "ValueError"),
        ("/fail/handled", 503, "503"),
        ("/fail/http", 502, "502"),
        ("/stream/broken", 200, "OSError"),
        ("/stream/whole", 200, None),
    ],
)
@pytest.mark.parametrize("middleware", [None, Copying, "base"])
def test_failures_are_the_same_on_span_and_metric(telemetry, path, status, error_type, middleware):
    """Unhandled exceptions by type, handled ones by status; what was sent stays; all once, through any middleware."""
    app = busy_app()
    if middleware == "base":

        async def pass_on(request: Request, call_next: Any) -> Any:
            return await call_next(request)

        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    elif middleware:
        app.add_middleware(middleware)
    instrument(app)
    response = ask(app, path)
    assert response.status_code == status
    assert response.headers.get_list("x-request-id") != []
    (span,) = [each for each in telemetry.spans if each.kind is SpanKind.SERVER]
    (point,) = telemetry.points(DURATION)
    assert point.count == 1
    for attributes in (span.attributes, point.attributes):
        assert (attributes["http.response.status_code"], attributes.get("error.type")) == (status, error_type)
    assert len(span.events) == (error_type is not None and not error_type.isdigit())
    assert telemetry.points("http.server.active_requests")[0].value == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "error_type"),
    [
        ("GET", "/fail/plain", 500, "ValueError"),
        ("GET", "/fail/http", 502, "502"),
        ("GET", "/stream/broken", 200, "OSError"),
        ("POST", "/activities", 422, None),
    ],
)
def test_failures_of_mounted_apps_are_told_once(telemetry, method, path, status, error_type):
    """An app within an app within an app: one span, one duration, one exception, whoever handles it on the way."""
    app, middle = FastAPI(), Starlette()
    middle.mount("/b/{y}", busy_app())
    app.mount("/a/{x}", middle)
    instrument(app)
    assert ask(app, f"/a/1/b/2{path}", method).status_code == status
    (span,) = [each for each in telemetry.spans if each.kind is SpanKind.SERVER]
    (point,) = telemetry.points(DURATION)
    assert point.count == 1
    assert span.name.startswith(f"{method} /a/{{x}}/b/{{y}}/")
    for attributes in (span.attributes, point.attributes):
        assert (attributes["http.response.status_code"], attributes.get("error.type")) == (status, error_type)
    assert [each.name for each in span.events] == (["exception"] if status == 500 or error_type == "OSError" else [])
    assert sum(len(each.events) for each in telemetry.spans) == len(span.events)


def test_n_failures_are_n_measurements(telemetry):
    """Each failed request is counted, at once as well as one after the other, and none is left active."""
    app = busy_app()
    instrument(app)

    async def all_of_them() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://streak.test") as client:
            await asyncio.gather(*(client.get("/fail/plain") for _ in range(50)))

    asyncio.run(all_of_them())
    (point,) = telemetry.points(DURATION)
    assert (point.count, point.attributes["error.type"]) == (50, "ValueError")
    assert telemetry.points("http.server.active_requests")[0].value == 0
