"""Freezes and recovery: how they stand, what they do, and why they are refused."""

from __future__ import annotations

from typing import Any

import pytest

from examples.streak import answers
from tests.conftest import Telemetry
from tests.streak.conftest import Service
from tests.streak.refused import assert_refused

pytestmark = pytest.mark.anyio


async def _live(service: Service, days: int, user: str = "ada") -> None:
    """Do something on each of some days; today is the day after."""
    for _ in range(days):
        await service.log(user=user)
        service.clock.pass_days()


async def _freeze(service: Service, user: str = "ada") -> dict[str, Any]:
    status: dict[str, Any] = (await service.get("/api/freeze", user)).json()
    return status


async def test_freeze_holds_today(service: Service) -> None:
    """A freeze that is applied holds today, once; the next day the streak goes on."""
    await _live(service, 7)
    assert await _freeze(service) == {
        "held": 1,
        "max": 3,
        "earned": 1,
        "used": 0,
        "next_at_streak": 14,
        "today_is_held": False,
        "can_apply": True,
        "reason": None,
    }
    applied = await service.post("/api/freeze")
    assert applied.status_code == 200
    assert applied.json() == await _freeze(service)
    assert (applied.json()["held"], applied.json()["used"], applied.json()["today_is_held"]) == (0, 1, True)
    again = assert_refused(await service.post("/api/freeze"), 409)
    assert again["reason"] == "day_is_held"
    service.clock.pass_days()
    assert (await service.log()).json()["streak"] == 8
    assert (await service.get("/api/profile")).json()["freezes"] == 0


@pytest.mark.parametrize(
    ("days", "waited", "reason"), [(0, 0, "no_streak"), (3, 0, "no_freeze"), (3, 1, "no_streak"), (7, 2, "no_streak")]
)
async def test_freeze_is_refused_with_its_reason(service: Service, days: int, waited: int, reason: str) -> None:
    """Without a streak or a freeze nothing is applied; the status has said so, and settles days that are over."""
    await _live(service, days)
    service.clock.pass_days(waited)
    status = await _freeze(service)
    assert (status["can_apply"], status["reason"]) == (False, reason)
    assert assert_refused(await service.post("/api/freeze"), 409)["reason"] == reason
    assert await _freeze(service) == status


async def test_freeze_is_ones_own(service: Service) -> None:
    """Another user's freezes are neither shown nor spent."""
    await _live(service, 7)
    assert (await _freeze(service, "ben"))["held"] == 0
    assert_refused(await service.post("/api/freeze", "ben"), 409)
    assert (await _freeze(service))["held"] == 1


async def test_refused_freeze_forgets_what_it_settled(service: Service) -> None:
    """A refusal that found the streak ended drops what was cached of it, the leaderboard with it."""
    await _live(service, 3)
    assert (await service.get("/api/profile")).json()["streak"] == 3
    assert (await service.get("/api/leaderboard")).json()
    service.clock.pass_days()
    assert_refused(await service.post("/api/freeze"), 409)
    assert (await service.get("/api/profile")).json()["streak"] == 0
    assert (await service.get("/api/leaderboard")).json() == []


async def test_recovery_buys_the_streak_back(telemetry: Telemetry, service: Service) -> None:
    """A streak that ended can be bought back within two days, at the price that was told, once."""
    await _live(service, 3)
    service.clock.pass_days()
    offer = (await service.get("/api/recovery")).json()
    assert offer == {
        "lost_streak": 3,
        "price_xp": 30,
        "xp": 75,
        "until": "2026-03-10T04:00:00+00:00",
        "can_recover": True,
        "reason": None,
    }
    bought = await service.post("/api/recovery")
    assert bought.status_code == 200
    answers.Recovered.model_validate_json(bought.content)
    assert bought.json() == {"recovered": 3, "paid_xp": 30, "streak": 3, "longest": 3, "xp": 45}
    assert (await service.get("/api/profile")).json()["streak"] == 3
    assert [line["streak"] for line in (await service.get("/api/leaderboard")).json()] == [3]
    assert assert_refused(await service.post("/api/recovery"), 409)["reason"] == "nothing_lost"
    assert telemetry.point("streak.recoveries").value == 1


async def test_recovery_can_be_too_late(service: Service) -> None:
    """Up to the moment that was told the streak can be had back; from then on it cannot, and nothing is offered."""
    await _live(service, 3)
    service.clock.pass_days(2)
    assert (await service.get("/api/recovery")).json()["can_recover"]
    service.clock.pass_days()
    offer = (await service.get("/api/recovery")).json()
    assert offer == {
        "lost_streak": 0,
        "price_xp": 0,
        "xp": 75,
        "until": None,
        "can_recover": False,
        "reason": "too_late",
    }
    assert assert_refused(await service.post("/api/recovery"), 409)["reason"] == "too_late"


async def test_recovery_can_be_too_dear(service: Service) -> None:
    """Whoever has too few XP sees what it costs, and is refused."""
    await _live(service, 3)
    service.clock.pass_days()
    await service.post("/api/recovery")  # 30 of 75 XP
    service.clock.pass_days(2)
    await service.post("/api/recovery")  # 30 of 45 XP
    service.clock.pass_days(2)
    offer = (await service.get("/api/recovery")).json()
    assert (offer["price_xp"], offer["xp"], offer["reason"]) == (30, 15, "too_few_xp")
    assert offer["until"] is not None
    assert assert_refused(await service.post("/api/recovery"), 409)["reason"] == "too_few_xp"


async def test_recovery_is_ones_own(service: Service) -> None:
    """Another user's lost streak is neither shown nor bought."""
    await _live(service, 3)
    service.clock.pass_days()
    assert (await service.get("/api/recovery", "ben")).json()["reason"] == "nothing_lost"
    assert_refused(await service.post("/api/recovery", "ben"), 409)
    assert (await service.get("/api/recovery")).json()["can_recover"]
