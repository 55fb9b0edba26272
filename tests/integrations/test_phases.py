"""The phases of FastAPI requests: dependencies, endpoint, serialization."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, WebSocket
from fastapi import routing as fastapi_routing
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse

import otel_perf
from otel_perf import instrument, measure
from otel_perf.integrations import fastapi as adapter
from otel_perf.integrations import phases
from otel_perf.integrations.patch import Patches
from otel_perf.telemetry import operation
from tests.asking import ask, ask_all

PHASE = "http.server.request.phase.duration"
ALL = ["dependencies", "endpoint", "serialization"]
WRAPPED = ("solve_dependencies", "run_endpoint_function", "serialize_response")


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apps of other tests, which are measured still, leave nothing wrapped here."""
    monkeypatch.setattr(phases, "_patches", Patches(phases._make))
    monkeypatch.setattr(phases, "_followers", 0)
    monkeypatch.setattr(adapter, "_held", [])  # they give back, once collected, what is counted anew here
    monkeypatch.setattr(phases, "_followed", None)
    for name in WRAPPED:
        monkeypatch.setattr(fastapi_routing, name, inspect.unwrap(vars(fastapi_routing)[name]))


class Item(BaseModel):
    number: int


def shop() -> FastAPI:
    """An app with a dependency, an endpoint of each kind, and failures in each phase."""
    app, inner = FastAPI(), FastAPI()

    async def user() -> str:
        with measure("look up"):
            return "u"

    def refuse() -> None:
        raise HTTPException(401)

    def break_down() -> None:
        raise LookupError

    @app.get("/items/{number}")
    @inner.get("/items/{number}")
    async def item(number: int, who: str = Depends(user)) -> Item:  # noqa: FAST002 -- text cannot name what is local
        with measure("work"):
            return Item(number=number)

    @app.get("/sync")
    def sync() -> Item:
        with measure("in a thread"):
            return Item(number=1)

    @app.get("/response")
    async def response() -> PlainTextResponse:
        return PlainTextResponse("ok")

    @app.get("/fail/{how}")
    async def fail(how: str) -> None:
        raise {"plain": ValueError("x"), "gone": HTTPException(410), "away": HTTPException(503)}[how]

    @app.get("/refused", dependencies=[Depends(refuse)])
    async def refused() -> None:
        """Nothing to do."""

    @app.get("/broken", dependencies=[Depends(break_down)])
    async def broken() -> None:
        """Nothing to do."""

    @app.get("/wrong", response_model=Item)
    async def wrong() -> Any:
        return {"number": "many"}

    @app.websocket("/ws")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()

    app.mount("/t/{tenant}", inner)
    return app


def told(telemetry: Any) -> list[tuple[str, str | None, int]]:
    """Phase, error and count of each series."""
    return sorted(
        (each.attributes["http.request.phase"], each.attributes.get("error.type"), each.count)
        for each in telemetry.points(PHASE)
    )


@pytest.mark.parametrize("by_setting", [False, True])
@pytest.mark.parametrize(
    ("path", "route"), [("/items/7", "/items/{number}"), ("/t/acme/items/7", "/t/{tenant}/items/{number}")]
)
def test_each_phase_is_a_span_and_a_duration(telemetry, path, route, by_setting):
    """Asked for by the app or by the settings, phases are INTERNAL spans below the request, and durations by route."""
    if by_setting:
        telemetry.restart(request_phases=True)
    app = shop()
    instrument(app, phases=None if by_setting else True)
    ask(app, path)
    request = telemetry.span(f"GET {route}")
    spans = {each.name: each for each in telemetry.spans}
    for phase in ALL:
        span = spans[f"fastapi.{phase}"]
        assert span.kind is SpanKind.INTERNAL
        assert span.parent.span_id == request.context.span_id
        assert span.attributes["http.request.phase"] == phase
        assert span.attributes["code.function.name"].endswith("shop.item")
    assert told(telemetry) == [(phase, None, 1) for phase in ALL]
    assert {each.attributes["http.route"] for each in telemetry.points(PHASE)} == {route}
    assert spans["work"].parent.span_id == spans["fastapi.endpoint"].context.span_id
    assert spans["look up"].parent.span_id == spans["fastapi.dependencies"].context.span_id


@pytest.mark.parametrize(
    ("path", "status", "expected"),
    [
        ("/sync", 200, [("dependencies", None, 1), ("endpoint", None, 1), ("serialization", None, 1)]),
        ("/response", 200, [("dependencies", None, 1), ("endpoint", None, 1)]),
        ("/items/x", 422, [("dependencies", "fastapi.exceptions.RequestValidationError", 1)]),
        ("/fail/plain", 500, [("dependencies", None, 1), ("endpoint", "ValueError", 1)]),
        ("/fail/gone", 410, [("dependencies", None, 1), ("endpoint", None, 1)]),
        ("/fail/away", 503, [("dependencies", None, 1), ("endpoint", "503", 1)]),
        ("/refused", 401, [("dependencies", None, 1)]),
        ("/broken", 500, [("dependencies", "LookupError", 1)]),
        ("/wrong", 500, [
            ("dependencies", None, 1), ("endpoint", None, 1),
            ("serialization", "fastapi.exceptions.ResponseValidationError", 1),
        ]),
        ("/nowhere", 404, []),
    ],
)  # fmt: skip
def test_phases_fail_where_the_request_failed_and_exceptions_are_told_once(telemetry, path, status, expected):
    """The phase that raised has the `error.type`; the exception is an event of the request's span alone."""
    app = shop()
    instrument(app, phases=True)
    assert ask(app, path).status_code == status
    assert told(telemetry) == expected
    assert sum(len(each.events) for each in telemetry.spans) == (status == 500)
    assert telemetry.points("http.server.request.duration")[0].count == 1


def test_off_costs_nothing(telemetry):
    """Without being asked for, FastAPI's functions are its own; two apps may differ."""
    before = {name: vars(fastapi_routing)[name] for name in WRAPPED}
    app, other = shop(), shop()
    handle = instrument(app)
    ask(app, "/items/7")
    assert {name: vars(fastapi_routing)[name] for name in WRAPPED} == before
    second = instrument(other, phases=True)
    ask_all(app, ("GET", "/items/7"))
    assert told(telemetry) == []
    ask(other, "/items/7")
    assert told(telemetry) == [(phase, None, 1) for phase in ALL]
    handle.undo()
    second.undo()
    assert all(vars(fastapi_routing)[name] is before[name] for name in WRAPPED)


def test_the_settings_switch_it_on_and_off(telemetry):
    """The next `configure()` holds for apps that leave it to the settings, and for those alone."""
    before = {name: vars(fastapi_routing)[name] for name in WRAPPED}
    app, never = shop(), shop()
    handle = instrument(app)
    instrument(never, phases=False)
    for wanted in (True, False, True):
        telemetry.restart(request_phases=wanted)
        ask(never, "/items/7")
        assert told(telemetry) == []
        ask(app, "/items/7")
        assert len(told(telemetry)) == (3 if wanted else 0)
        assert all((vars(fastapi_routing)[name] is before[name]) is not wanted for name in WRAPPED)
    handle.undo()
    assert all(vars(fastapi_routing)[name] is before[name] for name in WRAPPED)
    otel_perf.shutdown()
    assert ask(app, "/items/7").status_code == 200


def test_what_a_dependency_makes_current_stays_so(telemetry):
    """A dependency with a `yield` may hold a span and an operation open: the endpoint is within, and nothing leaks."""
    app, seen = FastAPI(), []

    async def session() -> AsyncIterator[None]:
        with measure("session"), trace.get_tracer("own").start_as_current_span("own"):
            yield

    @app.get("/")
    async def endpoint(_: None = Depends(session)) -> int:  # noqa: FAST002 -- as above
        seen.append(trace.get_current_span().name)
        with measure("work"):
            return 1

    instrument(app, phases=True)
    ask_all(app, ("GET", "/"), ("GET", "/"))
    own = [each.context.span_id for each in telemetry.spans if each.name == "own"]
    endpoints = [each for each in telemetry.spans if each.name == "fastapi.endpoint"]
    assert sorted(each.parent.span_id for each in endpoints) == sorted(own)
    assert seen == ["fastapi.endpoint"] * 2
    requests = [each for each in telemetry.spans if each.kind is SpanKind.SERVER]
    assert len({each.context.trace_id for each in requests}) == 2
    assert operation.current() is None


def test_a_cancelled_endpoint_leaves_nothing(telemetry):
    """A request that is cancelled in its endpoint ends its phase too."""
    app = FastAPI()

    @app.get("/")
    async def endpoint() -> None:
        raise asyncio.CancelledError

    instrument(app, phases=True)
    with pytest.raises(asyncio.CancelledError):
        ask(app, "/")
    assert told(telemetry) == [("dependencies", None, 1), ("endpoint", "asyncio.exceptions.CancelledError", 1)]
    assert operation.current() is None


@pytest.mark.parametrize("engine", ["native", "upstream"])
def test_other_engines_get_what_they_leave_out(telemetry, engine):
    """FastAPI's own telemetry keeps its spans, one for each phase; the durations are ours whoever makes spans."""
    app = shop()
    if engine == "native" and not hasattr(app, "_telemetry"):
        pytest.skip("this FastAPI does not measure itself")
    with instrument(app, engine=engine, phases=True):
        ask(app, "/items/7")
    assert told(telemetry) == [(phase, None, 1) for phase in ALL]
    names = [each.name for each in telemetry.spans if each.name.startswith("fastapi.")]
    assert sorted(names) == [f"fastapi.{phase}" for phase in ALL]
    (server,) = [each for each in telemetry.spans if each.kind is SpanKind.SERVER]
    assert all(each.context.trace_id == server.context.trace_id for each in telemetry.spans)


def test_apps_without_phases_are_as_ever(telemetry):
    """Starlette has no phases, and asking for them is no fault."""
    app = Starlette()
    app.add_route("/", lambda request: PlainTextResponse("ok"))
    instrument(app, phases=True)
    assert ask(app, "/").status_code == 200
    assert told(telemetry) == []
