"""The daily maintenance sees everybody once a day, in batches."""

from __future__ import annotations

import pytest

from examples.streak import maintenance
from tests.streak.conftest import Service

pytestmark = pytest.mark.anyio


async def _streak_of(service: Service, days: int, user: str = "ada") -> None:
    for _ in range(days):
        await service.log(user=user)
        service.clock.pass_days()


async def test_missed_day_spends_a_freeze(service: Service) -> None:
    """Who has a freeze keeps the streak over a missed day, and is told that it is at risk."""
    await _streak_of(service, 7)
    service.clock.pass_days()
    summary = await service.maintain()
    assert summary == {
        "day": "2026-03-12",
        "dry_run": False,
        "processed": 1,
        "freezes_spent": 1,
        "broken": 0,
        "at_risk": 1,
        "notified": 1,
    }
    profile = (await service.get("/api/profile")).json()
    assert (profile["streak"], profile["freezes"]) == (7, 0)
    assert service.told()[-1] == "at_risk"


async def test_missed_day_without_a_freeze_ends_the_streak(service: Service) -> None:
    """Who has no freeze loses the streak, keeps the longest, and is off the board, cached as it was."""
    await _streak_of(service, 2)
    await service.get("/api/profile")
    await service.get("/api/leaderboard")
    service.clock.pass_days()
    summary = await service.maintain()
    assert (summary["broken"], summary["at_risk"], summary["notified"]) == (1, 0, 1)
    profile = (await service.get("/api/profile")).json()
    assert (profile["streak"], profile["longest"]) == (0, 2)
    assert (await service.get("/api/leaderboard")).json() == []
    assert service.told()[-1] == "broken"
    assert (await service.log()).json()["streak"] == 1


async def test_once_a_day(service: Service) -> None:
    """A second run of a day changes nothing and tells nobody; the next day's does its work."""
    await _streak_of(service, 8)
    service.clock.pass_days()
    assert (await service.maintain())["freezes_spent"] == 1
    told = service.told()
    again = await service.maintain()
    assert (again["processed"], again["freezes_spent"], again["notified"]) == (0, 0, 0)
    assert service.told() == told
    service.clock.pass_days()
    assert (await service.maintain())["broken"] == 1


async def test_who_was_active_today_is_left_alone(service: Service) -> None:
    """Nothing is at risk for someone who has done something today."""
    await service.log()
    assert (await service.maintain())["processed"] == 0


async def test_dry_run_writes_nothing(service: Service) -> None:
    """A dry run tells what the run after it does, without doing it."""
    await _streak_of(service, 1)
    service.clock.pass_days()
    told = service.told()
    dry = await service.maintain(dry_run=True)
    assert dry["dry_run"]
    assert (await service.get("/api/profile")).json()["streak"] == 1
    assert service.told() == told
    run = await service.maintain()
    assert {**dry, "dry_run": False, "notified": 1} == run


async def test_more_users_than_a_batch(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users past the first batch are seen too, and each is told once."""
    monkeypatch.setattr(maintenance, "BATCH_SIZE", 3)
    names = [f"u{number}" for number in range(8)]
    for name in names:
        await service.log(user=name)
    service.clock.pass_days()
    summary = await service.maintain()
    assert (summary["processed"], summary["notified"]) == (8, 8)
    assert [service.told(name) for name in names] == [["welcome", "at_risk"]] * 8
