"""Problem details: what is wrong and where it is to be found, and nothing of what was sent or went wrong inside."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode, format_trace_id

from examples.streak.problems import RefusedError, add_problem_handlers
from examples.streak.stores import StoreUnavailableError
from tests.conftest import Telemetry
from tests.serving import served
from tests.streak.conftest import Service, Start
from tests.streak.refused import assert_refused

pytestmark = pytest.mark.anyio

_SECRET = "hunter2-from-the-row"


def _request_span(telemetry: Telemetry, problem: dict[str, Any]) -> ReadableSpan:
    """The one request of the trace that a problem names."""
    (span,) = (
        span
        for span in telemetry.spans
        if span.parent is None and format_trace_id(span.context.trace_id) == problem["trace_id"]
    )
    return span


def _break(service: Service, monkeypatch: pytest.MonkeyPatch, method: str, failure: Exception) -> None:
    async def fail(*_arguments: Any, **_more: Any) -> None:
        raise failure

    monkeypatch.setattr(type(service.app.state.parts.database.store), method, fail)


async def test_refusals_name_the_recorded_trace(telemetry: Telemetry, service: Service) -> None:
    """Each kind of refusal names the trace of its own request, the one that was recorded, with the reason on it."""
    answers = {
        401: await service.http.get("/api/profile"),
        404: await service.get("/api/profile"),
        405: await service.http.delete("/api/profile"),
        409: await service.post("/api/freeze"),
        422: await service.get("/api/calendar", days=0),
    }
    seen = set()
    for status, answer in answers.items():
        problem = assert_refused(answer, status)
        span = _request_span(telemetry, problem)
        attributes = dict(span.attributes or {})
        assert attributes["http.response.status_code"] == status
        assert attributes["streak.refused"] == problem["detail"]
        assert span.status.status_code is not StatusCode.ERROR
        assert problem["trace_id"] in answer.headers["traceresponse"]
        seen.add(problem["trace_id"])
    assert len(seen) == len(answers)


async def test_caller_of_a_trace_finds_it(telemetry: Telemetry, service: Service) -> None:
    """A request that belongs to a trace already names that one."""
    theirs = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{theirs}-b7ad6b7169203331-01"}
    assert assert_refused(await service.http.get("/api/profile", headers=headers), 401)["trace_id"] == theirs


async def test_without_telemetry_there_is_no_trace(service: Service) -> None:
    """Where nothing is traced the problem names no trace."""
    assert "trace_id" not in assert_refused(await service.get("/api/nowhere"), 404)


async def test_failure_is_told_to_nobody_outside(
    telemetry: Telemetry, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that nobody caught is a 500 with its trace and nothing of the exception; the span has its type."""
    _break(service, monkeypatch, "calendar", KeyError(_SECRET))
    answer = await service.get("/api/calendar")
    problem = assert_refused(answer, 500)
    assert _SECRET not in answer.text
    assert "KeyError" not in answer.text
    span = _request_span(telemetry, problem)
    assert (span.attributes or {})["error.type"] == "KeyError"
    assert span.status.status_code is StatusCode.ERROR
    point = telemetry.point("http.server.request.duration", **{"http.route": "/api/calendar"})
    assert point.attributes["error.type"] == "KeyError"
    assert point.count == 1


async def test_failure_reaches_the_server(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception goes on to whoever runs the app, as if nobody had answered for it."""
    async with start() as service:
        _break(service, monkeypatch, "calendar", KeyError(_SECRET))
        transport = httpx.ASGITransport(service.app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://streak") as client:
            with pytest.raises(KeyError, match=_SECRET):
                await client.get("/api/calendar", headers=service.as_user())


def test_failure_is_in_the_servers_log(caplog: pytest.LogCaptureFixture) -> None:
    """Behind a real server the client has a whole answer, and the log the traceback."""
    app = FastAPI()
    add_problem_handlers(app)

    @app.get("/breaks")
    async def breaks() -> None:
        raise RuntimeError(_SECRET)

    with caplog.at_level(logging.ERROR), served(app, log_config=None) as url, httpx.Client(trust_env=False) as client:
        answer = client.get(f"{url}/breaks")
    assert_refused(answer, 500)
    assert _SECRET not in answer.text
    assert _SECRET in str([record.exc_info for record in caplog.records])


async def test_store_that_is_away(
    telemetry: Telemetry, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that does not answer is a 503 that says when to try again; the span has the kind of failure only."""
    failure = StoreUnavailableError("ConnectionRefusedError")
    failure.__cause__ = OSError(f"{_SECRET} did not answer" * 1_000)
    _break(service, monkeypatch, "log_activity", failure)
    answer = await service.log()
    problem = assert_refused(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1
    assert "ConnectionRefusedError" not in answer.text
    span = _request_span(telemetry, problem)
    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        ("exception", {"exception.type": "StoreUnavailableError", "exception.message": "ConnectionRefusedError"})
    ]
    assert (span.attributes or {})["error.type"]
    assert caplog.messages == []  # the request's line tells it, once; nothing was cut by the SDK either


async def test_many_errors_are_bounded(telemetry: Telemetry, service: Service) -> None:
    """Of members that are not known there are twenty at most, by name in the answer and without one on the span."""
    answer = await service.log(**{f"{_SECRET}-{number}": number for number in range(300)})
    problem = assert_refused(answer, 422)
    assert [error["pointer"] for error in problem["errors"]] == [f"/{_SECRET}-{number}" for number in range(20)]
    assert _SECRET not in str(_request_span(telemetry, problem).attributes)
    long = assert_refused(await service.log(**{"n" * 5_000: 1}), 422)
    assert [error["pointer"] for error in long["errors"]] == [""]


async def test_validation_tells_where_and_why(service: Service) -> None:
    """Each thing that is wrong has its place, as a JSON pointer, and its reason; nothing sent is repeated."""
    answer = await service.log(_SECRET, minutes=-77_777, note=3, client_key="a b")
    problem = assert_refused(answer, 422)
    told = {error["pointer"]: error for error in problem["errors"]}
    assert told.keys() == {"/category", "/minutes", "/note", "/client_key"}
    assert {error["in"] for error in problem["errors"]} == {"body"}
    assert all(error["reason"] and error.keys() == {"in", "pointer", "reason"} for error in problem["errors"])
    assert _SECRET not in answer.text
    assert "77777" not in answer.text.replace("_", "")


async def test_malformed_json_is_told_from_bad_values(service: Service) -> None:
    """What is no JSON is a 400 that says where it stops being it; what is JSON but no activity is a 422."""
    headers = {**service.as_user(), "Content-Type": "application/json"}
    malformed = await service.http.post("/api/activities", headers=headers, content=b'{"category": ')
    assert "not JSON" in assert_refused(malformed, 400)["detail"]
    unknown = await service.log("sleep")
    assert "body /category" in assert_refused(unknown, 422)["detail"]


@pytest.mark.parametrize("path", ["/é", "/%00", "/a%20b", "/%F0%9F%8C%B1", "/%ed%a0%80", "/" + "x" * 60_000])
async def test_odd_paths_are_instances(service: Service, path: str) -> None:
    """Any path is refused as a URI reference, and a long one is cut."""
    answer = await service.http.get(path)
    assert answer.status_code == 404
    instance = answer.json()["instance"]
    assert instance.isascii()
    assert instance.startswith("/")
    assert len(instance) <= 1_000


async def test_members_of_ones_own() -> None:
    """A refusal may have a type, a title and members of its own, and headers."""
    app = FastAPI()
    add_problem_handlers(app)

    @app.get("/refused")
    async def refused() -> None:
        raise RefusedError(409, "no", headers={"X-Why": "so"}, kind="https://example.test/p", title="Odd", count=3)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        answer = await client.get("/refused")
    problem = assert_refused(answer, 409)
    assert (problem["type"], problem["title"], problem["count"]) == ("https://example.test/p", "Odd", 3)
    assert answer.headers["x-why"] == "so"
