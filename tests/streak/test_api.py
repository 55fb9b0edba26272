"""The routes, and what they refuse."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from examples.streak.auth import mint
from tests.streak.conftest import SECRET, Service, Start

pytestmark = pytest.mark.anyio


async def test_first_activity(service: Service) -> None:
    """A first activity starts a streak, earns XP and welcomes the user."""
    answer = await service.log("learn", minutes=20, note="scales")
    assert answer.status_code == 201
    body = answer.json()
    assert (body["xp"], body["streak"], body["total_xp"], body["notified"]) == (30, 1, 30, True)
    assert service.told() == ["welcome"]
    shown = await service.get(f"/api/activities/{body['id']}")
    assert shown.json()["note"] == "scales"


async def test_four_categories_earn_the_bonus(service: Service) -> None:
    """The fourth category of a week earns the bonus, which is on that activity and the ones after it."""
    earned = [(await service.log(category)).json() for category in ("learn", "move", "create", "connect", "learn")]
    assert [body["bonus_earned"] for body in earned] == [False, False, False, True, False]
    assert [body["bonus_xp"] for body in earned] == [0, 0, 0, 12, 12]
    assert service.told() == ["welcome", "logged", "logged", "bonus", "logged"]
    week = (await service.get("/api/consistency")).json()
    assert week == {
        "week": "2026-03-02",
        "categories": dict.fromkeys(("learn", "move", "create", "connect"), True),
        "bonus": True,
        "multiplier": 1.5,
    }


async def test_bonus_ends_with_the_week(service: Service) -> None:
    """A cached week does not outlive the week."""
    for category in ("learn", "move", "create", "connect"):
        await service.log(category)
    await service.get("/api/consistency")
    service.clock.pass_days(7)
    week = (await service.get("/api/consistency")).json()
    assert (week["week"], week["bonus"], any(week["categories"].values())) == ("2026-03-09", False, False)


async def test_calendar_shows_the_days_asked_for(service: Service) -> None:
    """The calendar ends today, has as many days as were asked for, and follows each write."""
    for _ in range(3):
        await service.log()
        await service.log()
        service.clock.pass_days()
    await service.log()
    calendar = (await service.get("/api/calendar", days=2)).json()
    assert (calendar["from"], calendar["to"], calendar["active_days"]) == ("2026-03-06", "2026-03-07", 2)
    assert [(day["day"], day["activities"]) for day in calendar["days"]] == [("2026-03-06", 2), ("2026-03-07", 1)]
    assert (await service.get("/api/calendar", days=365)).json()["active_days"] == 4
    await service.log()
    assert (await service.get("/api/calendar", days=1)).json()["days"][0]["activities"] == 2


async def test_profile_and_leaderboard_follow_writes(service: Service) -> None:
    """What a write has changed is not served from the cache."""
    assert (await service.get("/api/profile")).status_code == 404
    await service.log(user="ada")
    assert [line["name"] for line in (await service.get("/api/leaderboard")).json()] == ["ada"]
    service.clock.pass_days()
    await service.log(user="ada")
    await service.log(user="ben")
    board = (await service.get("/api/leaderboard")).json()
    assert [(line["name"], line["streak"]) for line in board] == [("ada", 2), ("ben", 1)]
    assert (await service.get("/api/profile")).json() == {
        "name": "ada",
        "joined_on": "2026-03-04",
        "streak": 2,
        "longest": 2,
        "freezes": 0,
        "xp": 50,
    }


async def test_same_client_key_logs_once(service: Service) -> None:
    """An activity that is sent twice under one key is logged once and answered alike; others have keys of their own."""
    first = await service.log("learn", client_key="k-1")
    again = await service.log("move", client_key="k-1")
    assert (first.status_code, again.status_code) == (201, 200)
    assert (again.json()["id"], again.json()["category"]) == (first.json()["id"], "learn")
    assert (again.json()["repeated"], again.json()["notified"]) == (True, False)
    assert (await service.log(user="ben", client_key="k-1")).status_code == 201
    assert await service.rows() == (2, 2)


async def test_others_activities_are_not_found(service: Service) -> None:
    """A user sees their own activities only."""
    written = (await service.log(user="ada")).json()["id"]
    assert (await service.get(f"/api/activities/{written}", "ben")).status_code == 404


async def test_health(service: Service) -> None:
    """The service is healthy while its store and cache answer, and needs no token to say so."""
    answer = await service.http.get("/api/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "cache": "ok"})


async def test_dead_store_is_unhealthy(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its database the service says that it cannot work."""

    async def fail() -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(type(service.app.state.parts.store), "ping", lambda _self: fail())
    answer = await service.http.get("/api/health")
    assert answer.status_code == 503
    assert "database" in answer.json()["detail"]


BAD_ACTIVITIES: list[tuple[str, bytes]] = [
    ("an unknown category", b'{"category": "sleep"}'),
    ("no category", b"{}"),
    ("a category that is no text", b'{"category": 3}'),
    ("no minutes at all", b'{"category": "learn", "minutes": 0}'),
    ("negative minutes", b'{"category": "learn", "minutes": -5}'),
    ("more minutes than a day has", b'{"category": "learn", "minutes": 1441}'),
    ("half a minute", b'{"category": "learn", "minutes": 0.5}'),
    ("endless minutes", b'{"category": "learn", "minutes": 1e999}'),
    ("minutes of many digits", b'{"category": "learn", "minutes": ' + b"9" * 5_000 + b"}"),
    ("a note that is too long", b'{"category": "learn", "note": "' + b"n" * 281 + b'"}'),
    ("a note with a NUL", b'{"category": "learn", "note": "a\\u0000b"}'),
    ("a note of half a character", b'{"category": "learn", "note": "\\ud800"}'),
    ("an empty key", b'{"category": "learn", "client_key": ""}'),
    ("a key with a space", b'{"category": "learn", "client_key": "a b"}'),
    ("malformed JSON", b'{"category": '),
    ("no JSON", b"category=learn"),
    ("no body", b""),
    ("a list", b"[]"),
    ("bytes that are no text", b'{"category": "\xff\xfe"}'),
    ("a deep one", b"[" * 100_000),
]


@pytest.mark.parametrize("body", [body for _, body in BAD_ACTIVITIES], ids=[name for name, _ in BAD_ACTIVITIES])
async def test_bad_activity_is_refused(service: Service, body: bytes) -> None:
    """A bad activity is refused with a reason, and nothing is written, cached or sent."""
    headers = {**service.as_user(), "Content-Type": "application/json"}
    _assert_refused(await service.http.post("/api/activities", headers=headers, content=body))
    assert await service.rows() == (0, 0)
    assert service.told() == []


@pytest.mark.parametrize("days", ["0", "366", "-1", "all", "1.5", "", "1e2", "9" * 30])
async def test_bad_days_are_refused(service: Service, days: str) -> None:
    """The calendar has 1 to 365 days and no others."""
    _assert_refused(await service.get("/api/calendar", days=days), 422)


@pytest.mark.parametrize("activity_id", ["0", "-1", "x", str(2**63), "%00"])
async def test_bad_activity_id_is_refused(service: Service, activity_id: str) -> None:
    """What cannot be an activity's number is refused before the store is asked."""
    _assert_refused(await service.get(f"/api/activities/{activity_id}"), 422)


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
}


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/activities"), ("GET", "/api/calendar"), ("POST", "/api/admin/maintenance")],
)
async def test_bad_token_is_refused(service: Service, method: str, path: str, token: str | bytes | None) -> None:
    """Without a token of ours nothing is shown and nothing is written, and the token is not repeated."""
    headers: dict[str, Any] = {} if token is None else {"Authorization": token}
    body = {"category": "learn"} if method == "POST" else None
    answer = await service.http.request(method, path, headers=headers, json=body)
    _assert_refused(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert mint(SECRET, "ada") not in answer.text
    assert await service.rows() == (0, 0)


async def test_maintenance_is_for_admins(service: Service) -> None:
    """A user's token does not run maintenance."""
    await service.log()
    service.clock.pass_days(2)
    _assert_refused(await service.http.post("/api/admin/maintenance", headers=service.as_user()), 403)
    assert (await service.get("/api/profile")).json()["streak"] == 1


async def test_unknown_route_has_a_reason(service: Service) -> None:
    """A route that is not there is a 404 in the same form as all refusals."""
    _assert_refused(await service.get("/api/nowhere"), 404)
    _assert_refused(await service.get("/api/flaky"), 404)


def _assert_refused(answer: httpx.Response, status: int | None = None) -> None:
    assert 400 <= answer.status_code < 500
    assert status in (None, answer.status_code)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["detail"]


async def test_malformed_json_is_told_from_bad_values(service: Service) -> None:
    """What is no JSON is a 400 that says where it stops being it; what is JSON but no activity is a 422."""
    headers = {**service.as_user(), "Content-Type": "application/json"}
    malformed = await service.http.post("/api/activities", headers=headers, content=b'{"category": ')
    assert malformed.status_code == 400
    assert "not JSON" in malformed.json()["detail"]
    unknown = await service.log("sleep")
    assert unknown.status_code == 422
    assert "body.category" in unknown.json()["detail"]


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), 500])
async def test_push_failure_fails_no_request(start: Start, failure: Exception | int) -> None:
    """A push API that is away, slow or broken costs the notification and nothing else."""

    def answer(_request: httpx.Request) -> httpx.Response:
        if isinstance(failure, int):
            return httpx.Response(failure)
        raise failure

    async with start(push_transport=httpx.MockTransport(answer)) as service:
        logged = await service.log()
        assert (logged.status_code, logged.json()["notified"]) == (201, False)
        service.clock.pass_days()
        summary = await service.maintain()
        assert (summary["processed"], summary["notified"]) == (1, 0)


async def test_demo_has_its_own_routes(start: Start) -> None:
    """The demonstration has users with a past, a report, and a route that fails each third time."""
    async with start(demo=True) as service:
        assert [(await service.get("/api/flaky")).status_code for _ in range(6)] == [200, 200, 500, 200, 200, 500]
        report = (await service.get("/api/report")).json()
        assert {total["category"] for total in report["totals"]} == {"learn", "move", "create", "connect"}
        users, activities = await service.rows()
        assert users == 300
        assert activities > users
    async with start(demo=True) as service:
        assert await service.rows() == (users, activities)
