"""Activities: logged once, listed newest first, and nobody else's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest

from examples.streak import rules
from examples.streak.limits import MAX_BODY_BYTES
from tests.streak.conftest import Service, Start
from tests.streak.refused import assert_refused

pytestmark = pytest.mark.anyio


async def test_first_activity(service: Service) -> None:
    """A first activity starts a streak, earns XP and welcomes the user."""
    answer = await service.log("learn", minutes=20, note="scales")
    assert answer.status_code == 201
    body = answer.json()
    assert (body["xp"], body["streak"], body["total_xp"], body["notified"]) == (30, 1, 30, True)
    assert service.told() == ["welcome"]
    shown = (await service.get(f"/api/activities/{body['id']}")).json()
    assert shown == {name: body[name] for name in ("id", "at", "day", "category", "minutes", "note", "xp", "bonus_xp")}
    assert (shown["note"], shown["day"], shown["at"]) == ("scales", "2026-03-04", "2026-03-04T12:00:00+00:00")


async def test_four_categories_earn_the_bonus(service: Service) -> None:
    """The fourth category of a week earns the bonus, which is on that activity and the ones after it."""
    earned = [(await service.log(category)).json() for category in (*rules.CATEGORIES, "learn")]
    assert [body["bonus_earned"] for body in earned] == [False, False, False, True, False]
    assert [body["bonus_xp"] for body in earned] == [0, 0, 0, 12, 12]


async def test_messages_are_for_what_matters(service: Service) -> None:
    """The user is told of the first activity ever, of the bonus, a milestone and the day's first; of no other."""
    for category in (*rules.CATEGORIES, "learn"):
        await service.log(category)
    assert service.told() == ["welcome", "bonus"]
    for _ in range(6):
        service.clock.pass_days()
        assert (await service.log()).json()["notified"]
        assert not (await service.log()).json()["notified"]
    assert service.told()[2:] == [*["first_today"] * 5, "milestone"]


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
        assert await service.rows() == (1, 1)


async def test_same_client_key_logs_once(service: Service) -> None:
    """An activity that is sent twice under one key is logged once and answered alike; others have keys of their own."""
    first = await service.log("learn", client_key="k-1")
    again = await service.log("learn", client_key="k-1")
    assert (first.status_code, again.status_code) == (201, 200)
    assert (again.json()["id"], again.json()["category"]) == (first.json()["id"], "learn")
    assert (again.json()["repeated"], again.json()["notified"]) == (True, False)
    assert (await service.log(user="ben", client_key="k-1")).status_code == 201
    assert await service.rows() == (2, 2)


@pytest.mark.parametrize("changed", [{"category": "move"}, {"minutes": 16}, {"note": None}, {"note": "Scales"}])
async def test_key_of_another_activity_is_refused(service: Service, changed: dict[str, Any]) -> None:
    """A key that comes again with something else is refused: it would be lost, and nobody would know."""
    sent = {"category": "learn", "minutes": 15, "note": "scales", "client_key": "k-1"}
    assert (await service.log(**sent)).status_code == 201
    problem = assert_refused(await service.log(**{**sent, **changed}), 422)
    assert problem["reason"] == "key_reused"
    assert (await service.log(**sent)).status_code == 200
    assert await service.rows() == (1, 1)


async def test_what_is_not_known_is_named(service: Service) -> None:
    """A member that no activity has is refused by its place: misspelt minutes would be logged as 15."""
    problem = assert_refused(await service.log("learn", minuets=30), 422)
    assert [(error["in"], error["pointer"]) for error in problem["errors"]] == [("body", "/minuets")]


async def _log_with(service: Service, key: str | bytes, **body: Any) -> httpx.Response:
    headers: dict[str, Any] = {**service.as_user(), "Idempotency-Key": key}
    return await service.http.post("/api/activities", headers=headers, json={"category": "learn", **body})


async def test_idempotency_key_is_a_client_key(service: Service) -> None:
    """The header names an activity as the body does, with quotes around it or without."""
    first = await _log_with(service, "k-1")
    assert first.status_code == 201
    for again in (
        await _log_with(service, '"k-1"'),
        await _log_with(service, "k-1", client_key="k-1"),
        await service.log(client_key="k-1"),
    ):
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert assert_refused(await _log_with(service, "k-1", client_key="k-2"), 422)["reason"] == "keys_differ"
    assert await service.rows() == (1, 1)


@pytest.mark.parametrize("key", ["", "a b", "k" * 65, "é".encode("latin-1"), "k" * 50_000])
async def test_bad_idempotency_key_is_refused(service: Service, key: str | bytes) -> None:
    """The header has the bounds of the body's key, and the refusal says that it was the header."""
    problem = assert_refused(await _log_with(service, key), 422)
    assert problem["errors"][0]["in"] == "header"
    assert await service.rows() == (0, 0)


async def test_others_activities_are_not_found(service: Service) -> None:
    """A user sees their own activities only, by id as in the list; a cursor of another's shows nothing of theirs."""
    written = (await service.log(user="ada")).json()["id"]
    assert_refused(await service.get(f"/api/activities/{written}", "ben"), 404)
    assert (await service.get("/api/activities", "ben")).json() == {"activities": [], "next": None}
    service.clock.now -= timedelta(hours=1)
    mine = (await service.log(user="ben")).json()["id"]
    page = (await service.get("/api/activities", "ben", cursor=written)).json()
    assert [activity["id"] for activity in page["activities"]] == [mine]


async def test_walk_through_250_activities(start: Start) -> None:
    """Page by page each activity is seen once, newest first, though others are logged meanwhile."""
    async with start(
        requests_per_minute=0, push_transport=httpx.MockTransport(lambda _: httpx.Response(202))
    ) as service:
        written: list[str] = []
        for number in range(250):
            service.clock.now += timedelta(milliseconds=1)
            written.append((await service.log(rules.CATEGORIES[number % 4])).json()["id"])
        seen: list[str] = []
        lengths: list[int] = []
        cursor: dict[str, str] = {}
        while True:
            page = (await service.get("/api/activities", limit=60, **cursor)).json()
            seen += [activity["id"] for activity in page["activities"]]
            lengths.append(len(page["activities"]))
            service.clock.now += timedelta(milliseconds=1)
            await service.log()
            if page["next"] is None:
                break
            cursor = {"cursor": page["next"]}
        assert seen == written[::-1]
        assert lengths == [60, 60, 60, 60, 10]
        only = (await service.get("/api/activities", limit=100, category="move")).json()
        assert [activity["id"] for activity in only["activities"]] == written[1::4][::-1]
        assert only["next"] is None


async def test_last_page_is_the_last(service: Service) -> None:
    """A page that holds exactly what is left has no next one."""
    for _ in range(2):
        await service.log()
    assert (await service.get("/api/activities", limit=2)).json()["next"] is None
    assert (await service.get("/api/activities", limit=1)).json()["next"] is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("limit", value) for value in ("0", "101", "-1", "all", "", "1.5", "9" * 30)),
        *(("cursor", value) for value in ("", "0", "g" * 32, "A" * 32, "0" * 31, "0" * 33, "\x00" * 32, "0" * 50_000)),
        *(("category", value) for value in ("sleep", "", "LEARN")),
    ],
)
async def test_bad_page_is_refused(service: Service, name: str, value: str) -> None:
    """What is no limit, no cursor or no category is refused by its name, and is not repeated."""
    problem = assert_refused(await service.get("/api/activities", **{name: value}), 422)
    assert [(error["in"], error["pointer"]) for error in problem["errors"]] == [("query", f"/{name}")]
    assert len(value) < 10 or value not in problem["detail"]


@pytest.mark.parametrize("activity_id", ["0", "-1", "x", "G" * 32, "0" * 33, "%00", "0" * 50_000])
async def test_bad_activity_id_is_refused(service: Service, activity_id: str) -> None:
    """What cannot be an activity's id is refused before the store is asked."""
    answer = await service.get(f"/api/activities/{activity_id}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["in"] == "path"
    assert len(answer.text) < 1_000


BAD_ACTIVITIES: list[tuple[str, bytes]] = [
    ("an unknown category", b'{"category": "sleep"}'),
    ("no category", b"{}"),
    ("a category that is no text", b'{"category": 3}'),
    ("no minutes at all", b'{"category": "learn", "minutes": 0}'),
    ("negative minutes", b'{"category": "learn", "minutes": -5}'),
    ("more minutes than a day has", b'{"category": "learn", "minutes": 1441}'),
    ("half a minute", b'{"category": "learn", "minutes": 0.5}'),
    ("minutes that are a truth", b'{"category": "learn", "minutes": true}'),
    ("minutes that are a text", b'{"category": "learn", "minutes": "15"}'),
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
    ("a deep one", b"[" * 16_000),
    ("a large one", b'{"category": "learn", "note": "' + b"n" * 1_000_000 + b'"}'),
]


@pytest.mark.parametrize("body", [body for _, body in BAD_ACTIVITIES], ids=[name for name, _ in BAD_ACTIVITIES])
async def test_bad_activity_is_refused(service: Service, body: bytes) -> None:
    """A bad activity is refused with a reason, and nothing is written, cached or sent."""
    headers = {**service.as_user(), "Content-Type": "application/json"}
    problem = assert_refused(await service.http.post("/api/activities", headers=headers, content=body))
    assert problem["status"] in ((413,) if len(body) > MAX_BODY_BYTES else (400, 422))
    assert await service.rows() == (0, 0)
    assert service.told() == []
