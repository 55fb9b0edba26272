"""The KPIs: counted now and then, and compared with their targets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import date, datetime, timezone
from typing import Any

import pytest

from examples.streak.kpis import TARGETS, KpiBoard, report
from examples.streak.metrics import KPI_COUNTS
from examples.streak.records import Kpis
from examples.streak.rules import day_of
from tests.conftest import Telemetry
from tests.streak.conftest import Service

# Before 4:00 UTC, so the day is still the one before.
NOW = datetime(2026, 3, 5, 3, tzinfo=timezone.utc)


class Counts:
    """A store that knows the KPIs only; each of `answers` is one count, the last stays."""

    def __init__(self, *answers: Kpis | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[date] = []

    async def kpis(self, today: date) -> Kpis:
        self.asked.append(today)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def _board(*answers: Kpis | Exception) -> tuple[KpiBoard, Counts]:
    counts = Counts(*answers)
    store: Any = counts
    return KpiBoard(store), counts


def test_every_kpi_has_a_target() -> None:
    """What is counted has a target, and the report has a row for each, in that order."""
    assert [row.name for row in report(None)] == list(TARGETS)
    assert set(TARGETS) == set(KPI_COUNTS)


def test_targets_are_written_out() -> None:
    """Each target is there as text and as bounds, with its unit."""
    assert [(row.name, row.target, row.target_low, row.target_high, row.unit) for row in report(Kpis())] == [
        ("active_streaks", "> 60 %", 60, None, "%"),
        ("weekly_bonus", "> 30 %", 30, None, "%"),
        ("freeze_usage", "40-60 %", 40, 60, "%"),
        ("retention_7d", "> 70 %", 70, None, "%"),
        ("average_length", "> 14 days", 14, None, "d"),
    ]


def test_without_a_denominator_there_is_no_data() -> None:
    """Before the first count, and of no users, a KPI has no value and no verdict."""
    for kpis in (None, Kpis()):
        assert {(row.value, row.status) for row in report(kpis)} == {(None, "no_data")}


@pytest.mark.parametrize(
    ("name", "kpis", "value", "status"),
    [
        ("active_streaks", Kpis(users=10, active_streaks=6), 60.0, "low"),
        ("active_streaks", Kpis(users=100_000, active_streaks=60_001), 60.0, "good"),
        ("active_streaks", Kpis(users=3, active_streaks=0), 0.0, "low"),
        ("weekly_bonus", Kpis(users=10, weekly_bonuses=3), 30.0, "low"),
        ("weekly_bonus", Kpis(users=3, weekly_bonuses=1), 33.33, "good"),
        ("freeze_usage", Kpis(freezes_earned=10, freezes_used=3), 30.0, "low"),
        ("freeze_usage", Kpis(freezes_earned=10, freezes_used=4), 40.0, "good"),
        ("freeze_usage", Kpis(freezes_earned=10, freezes_used=6), 60.0, "good"),
        ("freeze_usage", Kpis(freezes_earned=10, freezes_used=7), 70.0, "high"),
        ("retention_7d", Kpis(reached_7_days=10, kept_7_days=7), 70.0, "low"),
        ("retention_7d", Kpis(reached_7_days=10, kept_7_days=8), 80.0, "good"),
        ("average_length", Kpis(active_streaks=2, streak_days=28), 14.0, "low"),
        ("average_length", Kpis(active_streaks=2, streak_days=29), 14.5, "good"),
    ],
)
def test_status(name: str, kpis: Kpis, value: float, status: str) -> None:
    """A lower bound has to be exceeded, the bounds of a range are within it, and rounding changes no verdict."""
    row = next(row for row in report(kpis) if row.name == name)
    assert (row.value, row.status) == (value, status)
    assert (row.numerator, row.denominator) == KPI_COUNTS[name](kpis)
    assert json.loads(json.dumps(asdict(row)))["status"] == status


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - nothing tells when the loop has come so far
        await asyncio.sleep(0)


def _while_counting(board: KpiBoard, body: Callable[[], Awaitable[None]], every_s: float = 0) -> None:
    async def run() -> None:
        task = asyncio.create_task(board.keep_counting(every_s, lambda: NOW))
        await asyncio.wait_for(body(), 10)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_counting_again_and_again() -> None:
    """The first count comes at once, for the day that began at 4:00 UTC; others follow until it is cancelled."""
    board, counts = _board(Kpis(users=1), Kpis(users=2))
    assert board.current() is board.counted_at is None
    _while_counting(board, lambda: _until(lambda: board.current() == Kpis(users=2)))
    assert board.counted_at == NOW
    assert set(counts.asked) == {date(2026, 3, 4)}


def test_the_pause_is_kept() -> None:
    """Between two counts it waits; a wait that is cancelled ends at once."""
    board, counts = _board(Kpis(users=1))

    async def turns() -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    _while_counting(board, turns, every_s=3_600)
    assert len(counts.asked) == 1


def test_a_failure_ends_nothing(telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    """A failed count is logged and measured as one, keeps what was counted last, and the loop goes on."""
    board, _ = _board(Kpis(users=1), ConnectionError("postgresql://secret"), OSError(), Kpis(users=4))
    with caplog.at_level(logging.WARNING):
        _while_counting(board, lambda: _until(lambda: board.current() == Kpis(users=4)))
    assert board.failed == 2
    assert [record.message for record in caplog.records] == [
        "the KPIs were not counted (ConnectionError)",
        "the KPIs were not counted (OSError)",
    ]
    failed = [
        point
        for point in telemetry.points("operation.duration")
        if point.attributes.get("operation.name") == "count_kpis" and "error.type" in point.attributes
    ]
    assert sum(point.count for point in failed) == 2


def test_a_failure_on_demand_is_raised() -> None:
    """Who counts by hand hears of a failure; what was counted last stays, with its moment."""
    board, _ = _board(Kpis(users=1), ConnectionError())

    async def run() -> None:
        await board.count(NOW, date(2026, 3, 4))
        with pytest.raises(ConnectionError):
            await board.count(NOW.replace(hour=4), date(2026, 3, 5))

    asyncio.run(run())
    assert (board.current(), board.counted_at) == (Kpis(users=1), NOW)


def test_a_count_that_is_cancelled_keeps_the_last() -> None:
    """A task that is cancelled while the store works ends as cancelled, and the last count stays."""

    class Hangs(Counts):
        async def kpis(self, today: date) -> Kpis:
            await super().kpis(today)
            await asyncio.Event().wait()
            raise AssertionError

    hangs = Hangs(Kpis())
    store: Any = hangs
    board = KpiBoard(store)
    _while_counting(board, lambda: _until(lambda: bool(hangs.asked)))
    assert board.current() is None
    assert board.failed == 0


@pytest.mark.anyio
async def test_a_streak_that_is_over_counts_for_nothing(service: Service) -> None:
    """What the board counts, and an admin is shown, has the streaks that hold: before any maintenance too."""
    for day in range(8):
        await service.log(user="ada")
        if day > 4:
            await service.log(user="ben")
        service.clock.pass_days()
    parts = service.app.state.parts

    async def shown() -> dict[str, tuple[int, int]]:
        await parts.kpis.count(service.clock(), day_of(service.clock()))
        answer = await service.http.get("/api/admin/kpis", headers=service.as_user("root", admin=True))
        rows = {row["name"]: (row["numerator"], row["denominator"]) for row in answer.json()["kpis"]}
        return {name: rows[name] for name in ("active_streaks", "retention_7d", "average_length")}

    assert await shown() == {"active_streaks": (2, 2), "retention_7d": (1, 1), "average_length": (11, 2)}
    service.clock.pass_days()
    assert await shown() == {"active_streaks": (1, 2), "retention_7d": (1, 1), "average_length": (8, 1)}
    service.clock.pass_days()
    over = {"active_streaks": (0, 2), "retention_7d": (0, 1), "average_length": (0, 0)}
    assert await shown() == over
    await service.maintain()
    assert await shown() == over
    assert parts.kpis.current().freezes_used == 1
