"""Who is let in: a token of the service's own, not expired, of the right role; users one by one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from fastapi.routing import APIRoute

from examples.streak import admin, routes
from examples.streak.auth import mint
from tests.streak.conftest import NOW, SECRET, Service, Start
from tests.streak.refused import assert_refused

pytestmark = pytest.mark.anyio


def _forged(name: str) -> str:
    role, _, signature = mint(SECRET, name).split(".")
    return f"{role}.eve.{signature}"


BAD_TOKENS: dict[str, str | bytes | None] = {
    "none": None,
    "empty": "Bearer ",
    "another scheme": f"Basic {mint(SECRET, 'ada')}",
    "no scheme": mint(SECRET, "ada"),
    "noise": "Bearer noise",
    "two dots": "Bearer ..",
    "not ASCII": "Bearer user.ada.é".encode("latin-1"),
    "another secret's": f"Bearer {mint('another secret of the same kind', 'ada')}",
    "another user's signature": f"Bearer {_forged('ada')}",
    "a role of its own": f"Bearer {mint(SECRET, 'ada').replace('user.', 'admin.')}",
    "an expired one": f"Bearer {mint(SECRET, 'ada', until=NOW)}",
    "an expired admin's": f"Bearer {mint(SECRET, 'root', admin=True, until=NOW - timedelta(days=1))}",
    "two of them": f"Bearer {mint(SECRET, 'ada')} {mint(SECRET, 'ada')}",
    "a large one": "Bearer " + "x" * 60_000,
}


def _places() -> list[tuple[str, str]]:
    found = [route for router in (routes.router, admin.router) for route in router.routes]
    return [
        (method, route.path.replace("{activity_id}", "0" * 32))
        for route in found
        if isinstance(route, APIRoute) and route.path != "/api/health"
        for method in route.methods
    ]


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
async def test_bad_token_is_refused_everywhere(service: Service, token: str | bytes | None) -> None:
    """Without a token of ours no route shows or writes anything, and the token is not repeated."""
    headers: dict[str, Any] = {} if token is None else {"Authorization": token}
    assert len(_places()) >= 16
    for method, path in _places():
        body = {"category": "learn"} if method == "POST" else None
        answer = await service.http.request(method, path, headers=headers, json=body)
        assert_refused(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert mint(SECRET, "ada") not in answer.text
        assert "ratelimit" not in answer.headers
    assert await service.rows() == (0, 0)


async def test_token_that_ends_is_good_until_then(service: Service) -> None:
    """A token is good up to its end by the service's own clock; the scheme's letters are of either case."""
    headers = {"Authorization": f"bEARER  {mint(SECRET, 'ada', until=NOW + timedelta(minutes=1))}"}
    assert (await service.http.get("/api/calendar", headers=headers)).status_code == 200
    service.clock.now += timedelta(minutes=1)
    problem = assert_refused(await service.http.get("/api/calendar", headers=headers), 401)
    assert problem["detail"] == "the token has expired"


async def test_admin_routes_are_for_admins(service: Service) -> None:
    """A user's token opens none of the admins' routes, and nothing happens; an admin's opens them and the users'."""
    await service.log()
    service.clock.pass_days(2)
    places = [(method, path) for method, path in _places() if path.startswith("/api/admin")]
    assert len(places) == 4
    for method, path in places:
        assert_refused(await service.http.request(method, path, headers=service.as_user()), 403)
    assert (await service.app.state.parts.database.store.state("ada")).streak == 1
    assert await service.app.state.parts.maintenance.history(10) == []
    assert (await service.http.get("/api/calendar", headers=service.as_user("ada", admin=True))).status_code == 200


async def test_limit_answers_with_its_figures(start: Start) -> None:
    """Each answer tells what is left; beyond it there is a 429 that says when to come back, and nothing is written."""
    async with start(requests_per_minute=3) as service:
        service.clock.now = NOW.replace(second=20)
        for left in (2, 1, 0):
            answer = await service.log()
            assert answer.status_code == 201
            assert answer.headers["ratelimit-policy"] == '"user";q=3;w=60'
            assert answer.headers["ratelimit"] == f'"user";r={left};t=40'
        refused = await service.log()
        problem = assert_refused(refused, 429)
        assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
        assert problem["violated-policies"] == ["user"]
        assert (refused.headers["retry-after"], refused.headers["ratelimit"]) == ("40", '"user";r=0;t=40')
        assert await service.rows() == (1, 3)
        service.clock.now += timedelta(seconds=40)
        assert (await service.log()).headers["ratelimit"] == '"user";r=2;t=60'


async def test_limit_is_each_users_own(start: Start) -> None:
    """What one user has spent is not missing from another's."""
    async with start(requests_per_minute=2) as service:
        for _ in range(2):
            await service.get("/api/calendar", "ada")
        assert (await service.get("/api/calendar", "ada")).status_code == 429
        assert (await service.get("/api/calendar", "ben")).headers["ratelimit"].startswith('"user";r=1')


async def test_refusals_count_and_tell_what_is_left(start: Start) -> None:
    """A refused request counts too, and its answer has the same figures; health and strangers are not counted."""
    async with start(requests_per_minute=5) as service:
        answers = [
            await service.get("/api/calendar", days=0),
            await service.get("/api/profile"),
            await service.post("/api/freeze"),
            await service.get("/api/admin/kpis"),
        ]
        assert [answer.status_code for answer in answers] == [422, 404, 409, 403]
        assert [answer.headers["ratelimit"][:10] for answer in answers] == [f'"user";r={left}' for left in (4, 3, 2, 1)]
        for _ in range(10):
            assert (await service.http.get("/api/health")).status_code == 200
            assert (await service.http.get("/api/profile")).status_code == 401
        assert (await service.get("/api/calendar")).headers["ratelimit"].startswith('"user";r=0')


async def test_no_limit_says_nothing(start: Start) -> None:
    """Where there is no limit there are no figures."""
    async with start(requests_per_minute=0) as service:
        for _ in range(20):
            answer = await service.get("/api/calendar")
            assert answer.status_code == 200
            assert "ratelimit" not in answer.headers
