"""The admins' routes: maintenance by HTTP, its history, and the KPIs. Who is let in is in test_access."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest

from examples.streak import answers
from examples.streak.kpis import TARGETS
from examples.streak.stores import Database
from tests.streak.conftest import NOW, Service, Start
from tests.streak.refused import assert_refused

pytestmark = pytest.mark.anyio


async def _get(service: Service, path: str, **params: Any) -> httpx.Response:
    return await service.http.get(f"/api/admin/{path}", headers=service.as_user("root", admin=True), params=params)


async def _post(service: Service, path: str, **params: Any) -> httpx.Response:
    return await service.post(f"/api/admin/{path}", "root", admin=True, **params)


def _database(service: Service) -> Database:
    database: Database = service.app.state.parts.database
    return database


async def _with_users(service: Service) -> None:
    """Three users with a streak: one who loses it, one who spends a freeze, one who did something yesterday."""
    await service.log(user="lost")
    for _ in range(7):
        await service.log(user="frozen")
        service.clock.pass_days()
    service.clock.pass_days()
    await service.log(user="safe")
    service.clock.pass_days()


async def test_dry_run_tells_and_writes_nothing(service: Service) -> None:
    """A dry run tells what a run would do; afterwards nothing is different, and no run is written down."""
    await _with_users(service)
    told = await _post(service, "maintenance", dry_run=True)
    summary = answers.MaintenanceSummary.model_validate_json(told.content)
    assert (summary.dry_run, summary.id, summary.state) == (True, None, None)
    assert (summary.processed, summary.broken) == (3, 2)
    assert (await _database(service).store.state("lost")).streak == 1
    assert (await _get(service, "maintenance")).json() == {"runs": [], "next": None}
    assert (await _post(service, "maintenance")).json()["processed"] == 3


async def test_run_is_done_once_a_day(service: Service) -> None:
    """A run by HTTP settles everybody; another one on that day does nothing and says so, and the next day's is new."""
    await _with_users(service)
    first = await _post(service, "maintenance")
    summary = answers.MaintenanceSummary.model_validate_json(first.content)
    assert (summary.state, summary.trigger, summary.repeated) == ("completed", "http", False)
    assert (summary.processed, summary.freezes_spent, summary.broken, summary.missed) == (3, 1, 2, 1)
    assert (await service.get("/api/profile", "lost")).json()["streak"] == 0
    again = (await _post(service, "maintenance")).json()
    assert (again["repeated"], again["id"]) == (True, summary.id)
    service.clock.pass_days()
    assert (await _post(service, "maintenance")).json()["id"] != summary.id


async def test_run_under_way_is_a_conflict(service: Service) -> None:
    """While somebody else has the lease both ways to start are refused, with the time until it is free."""
    runs = _database(service).runs
    await runs.lease("elsewhere:1:x", None, 45.0)
    for path in ("maintenance", "maintenance/resume"):
        answer = await _post(service, path)
        assert assert_refused(answer, 409)["reason"] == "under_way"
        assert 30 < int(answer.headers["retry-after"]) <= 45
    assert (await _post(service, "maintenance", dry_run=True)).status_code == 200
    await runs.release("elsewhere:1:x")
    assert (await _post(service, "maintenance")).status_code == 200


async def test_wrong_clock_is_no_day(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this host and the database do not agree on what day it is, no run is begun: 503, with the reason."""
    monkeypatch.setattr("examples.streak.leases._MAX_CLOCK_ERROR", timedelta(seconds=-1))
    for path in ("maintenance", "maintenance/resume"):
        assert assert_refused(await _post(service, path), 503)["reason"] == "clock"
    assert (await _get(service, "maintenance")).json()["runs"] == []


async def test_resume_takes_up_what_was_ended(service: Service) -> None:
    """A run that was ended half-way is taken up under its own id; when it is done there is nothing to resume."""
    await _with_users(service)
    assert_refused(await _post(service, "maintenance/resume"), 404)
    runs = _database(service).runs
    ended = await runs.begin(service.app.state.parts.today, "cli", service.clock())
    resumed = await _post(service, "maintenance/resume")
    summary = answers.MaintenanceSummary.model_validate_json(resumed.content)
    assert (summary.id, summary.state, summary.resumed, summary.processed) == (ended.id, "completed", 1, 3)
    assert_refused(await _post(service, "maintenance/resume"), 404)


async def test_failed_run_is_no_success(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that failed is a 500, so that a scheduler tries again; the history has it, and the next completes it."""
    await _with_users(service)
    kind = type(_database(service).runs)
    settle = kind.settle

    async def fail(*_arguments: Any, **_more: Any) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(kind, "settle", fail)
    answer = await _post(service, "maintenance")
    assert_refused(answer, 500)
    assert "hunter2" not in answer.text
    assert (await _get(service, "maintenance")).json()["runs"][0]["state"] == "failed"
    monkeypatch.setattr(kind, "settle", settle)
    assert (await _post(service, "maintenance")).json()["state"] == "completed"


async def test_history_is_paged(service: Service) -> None:
    """Runs come newest first, a page at a time, each once."""
    written: list[str] = []
    for _ in range(5):
        written.append((await _post(service, "maintenance")).json()["id"])
        service.clock.pass_days()
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = answers.History.model_validate_json((await _get(service, "maintenance", limit=2, **cursor)).content)
        seen += [run.id for run in page.runs]
        if page.next is None:
            break
        cursor = {"cursor": page.next}
    assert seen == written[::-1]


@pytest.mark.parametrize(
    ("name", "value"), [("limit", "0"), ("limit", "101"), ("cursor", "x"), ("cursor", "0" * 33), ("cursor", "")]
)
async def test_bad_page_is_refused(service: Service, name: str, value: str) -> None:
    """What is no limit and no cursor is refused by its name."""
    problem = assert_refused(await _get(service, "maintenance", **{name: value}), 422)
    assert problem["errors"][0]["pointer"] == f"/{name}"


async def test_bad_dry_run_is_refused(service: Service) -> None:
    """What is neither yes nor no starts no run."""
    assert_refused(await _post(service, "maintenance", dry_run="perhaps"), 422)
    assert (await _get(service, "maintenance")).json()["runs"] == []


async def test_kpis_with_nobody(service: Service) -> None:
    """Without users no KPI has a value, and none is good or bad."""
    report = answers.KpiReport.model_validate_json((await _get(service, "kpis")).content)
    assert [kpi.name for kpi in report.kpis] == list(TARGETS)
    assert {(kpi.value, kpi.status) for kpi in report.kpis} == {(None, "no_data")}


async def test_kpis_are_compared_with_their_targets(service: Service) -> None:
    """Each KPI has its counts, its value, its target and how it stands."""
    await _with_users(service)
    await _post(service, "maintenance")
    report = answers.KpiReport.model_validate_json((await _get(service, "kpis")).content)
    by_name = {kpi.name: kpi for kpi in report.kpis}
    active = by_name["active_streaks"]
    assert (active.numerator, active.denominator, active.value, active.status) == (1, 3, 33.33, "low")
    assert (active.target, active.target_low, active.unit) == ("> 60 %", 60, "%")
    freezes = by_name["freeze_usage"]
    assert (freezes.numerator, freezes.denominator, freezes.status) == (1, 1, "high")


@pytest.mark.parametrize(("every_s", "users"), [(3_600.0, 1), (0.0, 2)])
async def test_kpis_are_as_counted_last(start: Start, every_s: float, users: int) -> None:
    """The report is of the last count and says of when; where nothing counts by itself, it is of now."""
    async with start(kpis_every_s=every_s) as service:
        parts = service.app.state.parts
        await service.log(user="ada")
        await parts.kpis.count(NOW, parts.today)
        service.clock.now += timedelta(minutes=5)
        await service.log(user="ben")
        report = answers.KpiReport.model_validate_json((await _get(service, "kpis")).content)
        assert report.kpis[0].denominator == users
        assert report.counted_at == (NOW if every_s else service.clock())
