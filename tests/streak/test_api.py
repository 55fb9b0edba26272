"""The API as a whole: health, compression, what it says of itself, and the demonstration's routes."""

from __future__ import annotations

import gzip
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from examples.streak import admin, routes, rules
from examples.streak.auth import User, verify
from examples.streak.stores import Store, StoreUnavailableError
from tests.streak.conftest import SECRET, Service, Start
from tests.streak.refused import assert_refused

pytestmark = pytest.mark.anyio


async def test_health(service: Service) -> None:
    """The service is healthy while its store, cache and push API answer, and needs no token to say so."""
    answer = await service.http.get("/api/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "cache": "ok", "limits": "ok", "push": "ok"})


async def test_dead_store_is_unhealthy(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its database the service says that it cannot work, and when to ask again."""

    async def fail(_store: Store) -> None:
        raise StoreUnavailableError("ConnectionRefusedError")

    monkeypatch.setattr(type(service.app.state.parts.database.store), "ping", fail)
    answer = await service.http.get("/api/health")
    problem = assert_refused(answer, 503)
    assert "database" in problem["detail"]
    assert "ConnectionRefusedError" not in answer.text
    assert answer.headers["retry-after"] == "2"


async def _fill(service: Service) -> None:
    for _ in range(30):
        for category in rules.CATEGORIES:
            await service.log(category)
        service.clock.pass_days()


async def _plain(service: Service, path: str, encoding: str) -> tuple[httpx.Response, bytes]:
    """The answer, and its body as it went over the network."""
    headers = {**service.as_user(), "Accept-Encoding": encoding}
    async with service.http.stream("GET", path, headers=headers) as answer:
        return answer, b"".join([chunk async for chunk in answer.aiter_raw()])


async def test_large_answers_are_compressed(start: Start) -> None:
    """From 1,000 bytes on an answer is compressed for whoever takes that, and says that it varies."""
    async with start(requests_per_minute=0) as service:
        await _fill(service)
        plain, body = await _plain(service, "/api/calendar?days=365", "identity")
        assert "content-encoding" not in plain.headers
        assert len(body) >= 1_000
        packed, smaller = await _plain(service, "/api/calendar?days=365", "gzip")
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.headers["vary"] == "Accept-Encoding"
        assert len(smaller) < len(body)
        assert gzip.decompress(smaller) == body
        small, _ = await _plain(service, "/api/profile", "gzip")
        assert "content-encoding" not in small.headers


async def test_users_answers_are_kept_by_nobody(service: Service) -> None:
    """What belongs to a user stays in no cache on the way."""
    await service.log()
    for path in ("/api/profile", "/api/activities", "/api/leaderboard", "/api/insights"):
        assert (await service.get(path)).headers["cache-control"] == "private, no-store"


def _routes() -> list[APIRoute]:
    return [route for router in (routes.router, admin.router) for route in router.routes if isinstance(route, APIRoute)]


async def test_openapi_describes_every_route(service: Service) -> None:
    """Each route has a summary, its answer, the token it needs, and its refusals as problem details."""
    document = (await service.http.get("/openapi.json")).json()
    assert "instance" in document["components"]["schemas"]["Problem"]["required"]
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert {(route.path, method.lower()) for route in _routes() for method in route.methods} <= described
    for path, methods in document["paths"].items():
        for operation in methods.values():
            if not operation.keys() & {"tags"} or operation["tags"][0] not in ("streaks", "admin"):
                continue
            assert operation["summary"]
            answers: dict[str, Any] = operation["responses"]
            assert any("$ref" in str(answers[status]["content"]) for status in answers if status.startswith("2"))
            refused = {status: answers[status]["content"] for status in answers if status >= "4"}
            assert all(
                content == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
                for content in refused.values()
            )
            if path != "/api/health":
                assert operation["security"] == [{"Token": []}]
                assert {"401", "429", "503"} <= refused.keys()
            assert ("403" in refused) == path.startswith("/api/admin")
    assert "swagger-ui" in (await service.http.get("/docs")).text


async def test_answers_are_as_described(service: Service) -> None:
    """Each answer has the members that the document promises, of their types, and no others."""
    written = (await service.log("learn", note="scales")).json()["id"]
    for _ in range(6):
        service.clock.pass_days()
        await service.log("move")
    service.clock.pass_days()
    await service.post("/api/admin/maintenance", "root", admin=True)
    paths = {"/api/activities/{activity_id}": f"/api/activities/{written}"}
    seen: set[tuple[str, str]] = set()
    # What is logged last leaves the day for the freeze.
    for route in sorted(_routes(), key=lambda route: route.path == "/api/activities"):
        (method,) = route.methods
        if route.path.endswith("/resume") or (method, route.path) == ("POST", "/api/recovery"):
            continue  # refused here; see test_admin and test_api_freeze
        body = {"category": "learn"} if (method, route.path) == ("POST", "/api/activities") else None
        path = paths.get(route.path, route.path)
        answer = await service.http.request(method, path, headers=service.as_user("ada", admin=True), json=body)
        assert answer.status_code in (200, 201), answer.text
        TypeAdapter(route.response_model).validate_json(answer.content)
        seen.add((method, route.path))
    assert len(seen) >= 14


@pytest.mark.parametrize("path", ["/api/nowhere", "/nowhere", "/api/flaky", "/api/activities/"])
async def test_unknown_route_has_a_reason(service: Service, path: str) -> None:
    """A route that is not there is a 404 in the same form as all refusals, with a token or without."""
    for headers in (service.as_user(), {}):
        answer = await service.http.get(path, headers=headers, follow_redirects=False)
        if answer.status_code != 307:
            assert_refused(answer, 404)


async def test_unknown_method_is_refused(service: Service) -> None:
    """A method that a route does not have is a 405 that names the ones it has."""
    answer = await service.http.put("/api/profile", headers=service.as_user())
    assert_refused(answer, 405)
    assert answer.headers["allow"] == "GET"
    answer = await service.http.delete("/api/activities")
    assert_refused(answer, 405)
    assert answer.headers["allow"] == "GET, POST"


async def test_demo_has_its_own_routes(start: Start) -> None:
    """The demonstration has users with a past, a report, tokens, and a route that fails each third time."""
    async with start(demo=True) as service:
        assert [(await service.get("/api/flaky")).status_code for _ in range(6)] == [200, 200, 500, 200, 200, 500]
        report = (await service.get("/api/report")).json()
        assert {total["category"] for total in report["totals"]} == set(rules.CATEGORIES)
        made = await service.http.post("/api/demo/token", json={"name": "eve"})
        assert verify(SECRET, made.json()["token"]) == User("eve")
        users, activities = await service.rows()
        assert users == 300
        assert activities > users
    async with start(demo=True) as service:
        assert await service.rows() == (users, activities)
