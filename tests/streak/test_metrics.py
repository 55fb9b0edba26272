"""The service's own metrics: each thing that happens is counted once, under the names and labels that are declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from examples.streak import metrics, rules
from examples.streak.metrics import KPI_COUNTS
from examples.streak.records import Kpis, Range, SettledBatch, Tally
from otel_perf import conventions
from tests.conftest import Telemetry

_STATE = rules.State()
_NOTHING = rules.Settled(_STATE)
_BROKEN = rules.Settled(_STATE, freezes_spent=2, broken=9, reason="freezes_exhausted")


def _values(telemetry: Telemetry, name: str) -> dict[tuple[Any, ...], float]:
    return {tuple(point.attributes.values()): point.value for point in telemetry.points(name)}


def _logged(**more: Any) -> rules.Logged:
    given: dict[str, Any] = {
        "state": _STATE, "xp": 30, "bonus_xp": 0, "grew": True, "freeze_earned": False, "bonus_earned": False,
        "milestone": None, "settled": _NOTHING, **more,
    }  # fmt: skip
    return rules.Logged(**given)


def test_an_activity(telemetry: Telemetry) -> None:
    """An activity counts its XP, its bonus, the freeze that it earned and what the days before it led to."""
    metrics.record_logged("learn", _logged())
    metrics.record_logged("move", _logged(xp=45, bonus_xp=15, bonus_earned=True, freeze_earned=True, settled=_BROKEN))
    assert _values(telemetry, "streak.xp") == {("learn",): 30, ("move",): 45}
    assert _values(telemetry, "streak.bonus_xp") == {(): 15}
    assert _values(telemetry, "streak.bonuses") == {(): 1}
    assert _values(telemetry, "streak.freezes") == {("earned",): 1, ("spent",): 2}
    assert _values(telemetry, "streak.broken") == {("freezes_exhausted",): 1}


def test_a_freeze_by_hand(telemetry: Telemetry) -> None:
    """A freeze that was applied is counted; one that was refused is not, though the days before it are."""
    metrics.record_freeze(rules.Applied(_STATE, True, None, _NOTHING))
    metrics.record_freeze(rules.Applied(_STATE, False, "no_streak", _BROKEN))
    assert _values(telemetry, "streak.freezes") == {("applied",): 1, ("spent",): 2}
    assert _values(telemetry, "streak.broken") == {("freezes_exhausted",): 1}


def test_a_recovery(telemetry: Telemetry) -> None:
    """A streak that was bought back is counted, with the freeze that a seventh day brings; a refusal is not."""
    metrics.record_recovery(rules.Recovered(_STATE, 6, 60, True, None, _NOTHING))
    metrics.record_recovery(rules.Recovered(_STATE, 0, 0, False, "nothing_lost", _NOTHING))
    assert _values(telemetry, "streak.recoveries") == {(): 1}
    assert _values(telemetry, "streak.freezes") == {("earned",): 1}
    assert telemetry.points("streak.broken") == []


def test_a_batch(telemetry: Telemetry) -> None:
    """Of a batch every user is counted once, by what became of them, and streaks by why they ended."""
    tally = Tally(processed=10, freezes_spent=5, missed=1, freezes_exhausted=2, at_risk=4, notified=0)
    changed = tuple(f"user-{number}" for number in range(6))
    metrics.record_batch(SettledBatch(Range("", "z"), tally, (), changed))
    metrics.record_batch(SettledBatch(Range("z", "zz"), Tally(processed=3), ()))
    assert _values(telemetry, "streak.maintenance.users") == {("unchanged",): 7, ("frozen",): 3, ("broken",): 3}
    assert _values(telemetry, "streak.freezes") == {("spent",): 5}
    assert _values(telemetry, "streak.broken") == {("missed",): 1, ("freezes_exhausted",): 2}


def test_failures(telemetry: Telemetry) -> None:
    """Failures are counted by where they happened and by their type, never by their text."""
    metrics.record_error("settle", OSError("hunter2"))
    metrics.record_error("settle", OSError("hunter3"))
    metrics.record_transaction_retry("log_activity")
    metrics.record_transaction_failed("log_activity", TimeoutError("hunter2"))
    (error,) = telemetry.points("streak.maintenance.errors", step="settle", error__type="OSError")
    assert error.value == 2
    (retry,) = telemetry.points("streak.transaction.retries", operation="log_activity")
    assert retry.value == 1
    (failed,) = telemetry.points("streak.transaction.failures", operation="log_activity", error__type="TimeoutError")
    assert failed.value == 1


def test_the_cache(telemetry: Telemetry) -> None:
    """The gauge says whether there is a cache now."""
    for degraded in (False, True):
        metrics.record_cache_degraded(degraded=degraded)
        assert _values(telemetry, "streak.cache.degraded") == {(): int(degraded)}


def test_the_limits(telemetry: Telemetry) -> None:
    """The gauge says whether each process counts requests by itself now."""
    for degraded in (False, True):
        metrics.record_limits_degraded(degraded=degraded)
        assert _values(telemetry, "streak.limits.degraded") == {(): int(degraded)}


def test_kpis_are_not_to_be_summed() -> None:
    """Each instance shows the KPIs of all users, and their descriptions say how to take several together."""
    shown = [metric for metric in conventions.declared() if metric.name.startswith("streak.kpi.")]
    assert len(shown) == 2
    assert all("max by (kpi)" in metric.about for metric in shown)


def test_kpis(telemetry: Telemetry) -> None:
    """Each KPI is shown as what is counted and out of how many, as it was counted last, and by one app."""
    current: list[Kpis | None] = [None]
    metrics.observe_kpis(lambda: Kpis(users=1))
    metrics.observe_kpis(lambda: current[0])
    assert telemetry.points("streak.kpi.numerator") == []
    for kept in (3, 4):
        current[0] = Kpis(10, 6, 3, 8, 4, 5, kept, 90)
        assert _values(telemetry, "streak.kpi.numerator") == {
            ("active_streaks",): 6,
            ("weekly_bonus",): 3,
            ("freeze_usage",): 4,
            ("retention_7d",): kept,
            ("average_length",): 90,
        }
        assert _values(telemetry, "streak.kpi.denominator") == {
            ("active_streaks",): 10,
            ("weekly_bonus",): 10,
            ("freeze_usage",): 8,
            ("retention_7d",): 5,
            ("average_length",): 6,
        }
    assert set(KPI_COUNTS) == {key[0] for key in _values(telemetry, "streak.kpi.numerator")}


@pytest.mark.parametrize(
    "record",
    [
        lambda: metrics.record_logged("learn", _logged()),
        lambda: metrics.record_error("settle", OSError()),
        lambda: metrics.record_forgotten("user", 1),
    ],
)
def test_nothing_before_it_is_configured(record: Callable[[], None]) -> None:
    """Before `configure()` nothing is counted and nothing fails."""
    record()


def test_declared() -> None:
    """What is recorded is declared with a unit and a sentence, under a prefix of the service's own."""
    ours = [metric for metric in conventions.declared() if metric.name.startswith("streak.")]
    assert len(ours) >= 14
    for metric in ours:
        assert metric.about, metric.name
        assert metric.unit.startswith("{"), metric.name  # `1` would make Prometheus call it a ratio
