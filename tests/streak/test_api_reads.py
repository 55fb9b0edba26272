"""Calendar, week, profile, leaderboard and insights: right, fresh after each write, and one's own."""

from __future__ import annotations

import pytest

from examples.streak import rules
from tests.streak.conftest import Service
from tests.streak.refused import assert_refused

pytestmark = pytest.mark.anyio


async def test_consistency_shows_the_week(service: Service) -> None:
    """The week shows its four categories, and the bonus once all are done."""
    for category in rules.CATEGORIES[:3]:
        await service.log(category)
    week = (await service.get("/api/consistency")).json()
    assert (week["bonus"], week["multiplier"], week["categories"]["connect"]) == (False, 1.0, False)
    await service.log("connect")
    assert (await service.get("/api/consistency")).json() == {
        "week": "2026-03-02",
        "categories": dict.fromkeys(rules.CATEGORIES, True),
        "bonus": True,
        "multiplier": 1.5,
    }
    assert not any((await service.get("/api/consistency", "ben")).json()["categories"].values())


async def test_bonus_ends_with_the_week(service: Service) -> None:
    """A cached week does not outlive the week."""
    for category in rules.CATEGORIES:
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
    assert (await service.get("/api/calendar", "ben")).json()["days"] == []


@pytest.mark.parametrize("days", ["0", "366", "-1", "all", "1.5", "", "1e2", "9" * 30, "1" * 50_000])
async def test_bad_days_are_refused(service: Service, days: str) -> None:
    """The calendar has 1 to 365 days and no others."""
    assert_refused(await service.get("/api/calendar", days=days), 422)


async def test_profile_and_leaderboard_follow_writes(service: Service) -> None:
    """What a write has changed is not served from the cache."""
    assert_refused(await service.get("/api/profile"), 404)
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
    assert_refused(await service.get("/api/profile", "eve"), 404)


async def test_reads_agree_before_maintenance(service: Service) -> None:
    """Ten active days and then nothing: profile, board, freezes and insights say the same, day after day."""
    for _ in range(10):
        await service.log()
        service.clock.pass_days()
    for streak, held in ((10, 1), (10, 0), (0, 0)):
        profile = (await service.get("/api/profile")).json()
        assert (profile["streak"], profile["freezes"], profile["longest"]) == (streak, held, 10)
        assert (await service.get("/api/freeze")).json()["held"] == held
        assert (await service.get("/api/insights")).json()["streak"] == streak
        assert [line["streak"] for line in (await service.get("/api/leaderboard")).json()] == [streak] * bool(streak)
        service.clock.pass_days()


async def test_leaderboard_has_the_length_asked_for(service: Service) -> None:
    """The board is cut to the limit, of 10 lines by default, and its limit is from 1 to 100."""
    for number in range(12):
        await service.log(user=f"user-{number:02}", minutes=number + 1)
    longest = (await service.get("/api/leaderboard", limit=100)).json()
    assert [line["name"] for line in longest] == [f"user-{number:02}" for number in range(11, -1, -1)]
    assert (await service.get("/api/leaderboard", limit=3)).json() == longest[:3]
    assert (await service.get("/api/leaderboard")).json() == longest[:10]
    for limit in ("0", "101", "x"):
        assert_refused(await service.get("/api/leaderboard", limit=limit), 422)


async def test_insights_are_ones_own(service: Service) -> None:
    """Insights tell of the caller's past and of today's risk, and of nobody else's."""
    for minutes in (5, 50, 5):
        await service.log("learn", minutes=minutes)
        service.clock.pass_days()
    mine = (await service.get("/api/insights")).json()
    assert (mine["streak"], mine["active_days_30"], mine["best_day"]["day"]) == (3, 3, "2026-03-05")
    assert mine["categories"] == [{"category": "learn", "activities": 3, "minutes": 60, "xp": 90}]
    assert (mine["risk"]["level"], mine["risk"]["reasons"]) == ("medium", ["nothing_today", "no_freeze"])
    theirs = (await service.get("/api/insights", "ben")).json()
    assert (theirs["streak"], theirs["best_day"], theirs["weeks"], theirs["risk"]["level"]) == (0, None, [], "none")
