"""What the service counts of its own: names, units and attributes, declared once, through otel_perf's public catalogue.

otel_perf knows nothing of streaks. What it measures by itself, requests, queries, the cache, the job, is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from otel_perf import catalogue

from . import rules
from .records import Kpis, SettledBatch

__all__ = [
    "KPI_COUNTS",
    "observe_kpis",
    "record_batch",
    "record_cache_degraded",
    "record_error",
    "record_forgotten",
    "record_freeze",
    "record_limits_degraded",
    "record_logged",
    "record_recovery",
    "record_transaction_failed",
    "record_transaction_retry",
]

_users = catalogue.counter(
    "streak.maintenance.users",
    unit="{user}",
    attributes=("outcome",),
    about="Users that the maintenance accounted for: unchanged, frozen (a freeze was spent) or broken",
)
_errors = catalogue.counter(
    "streak.maintenance.errors",
    unit="{error}",
    attributes=("step", "error.type"),
    about="What went wrong in the maintenance, also what a retry made good: settle, notify, forget, run",
)
_broken = catalogue.counter(
    "streak.broken", unit="{streak}", attributes=("reason",), about="Streaks that ended: missed or freezes_exhausted"
)
_freezes = catalogue.counter(
    "streak.freezes",
    unit="{freeze}",
    attributes=("change",),
    about="Freezes that were earned, spent on a missed day, returned after all, or applied by hand",
)
_bonuses = catalogue.counter("streak.bonuses", unit="{bonus}", about="Weeks in which all four categories were done")
_xp = catalogue.counter(
    "streak.xp", unit="{point}", attributes=("category",), about="XP that activities earned, bonuses included"
)
_bonus_xp = catalogue.counter("streak.bonus_xp", unit="{point}", about="XP that came from the weekly bonus")
_recoveries = catalogue.counter("streak.recoveries", unit="{streak}", about="Lost streaks that were bought back")
_retries = catalogue.counter(
    "streak.transaction.retries",
    unit="{retry}",
    attributes=("operation",),
    about="Transactions that were begun anew after a transient failure",
)
_failures = catalogue.counter(
    "streak.transaction.failures",
    unit="{transaction}",
    attributes=("operation", "error.type"),
    about="Transactions that were given up",
)
_degraded = catalogue.gauge(
    "streak.cache.degraded",
    unit="{cache}",  # not 1: Prometheus would call it a ratio
    about="1 while the cache does not answer and everything is read from the database, else 0",
)
_limits_degraded = catalogue.gauge(
    "streak.limits.degraded",
    unit="{limiter}",
    about="1 while Redis does not answer and each process counts the requests of a user by itself, else 0",
)
_forgotten = catalogue.counter(
    "streak.cache.forgotten",
    unit="{tag}",
    attributes=("tag",),
    about="Tags that a write made void: user, with its calendar, consistency and profile, or board",
)

#: The KPIs by name, each as what is counted and out of how many.
KPI_COUNTS: dict[str, Callable[[Kpis], tuple[int, int]]] = {
    "active_streaks": lambda kpis: (kpis.active_streaks, kpis.users),
    "weekly_bonus": lambda kpis: (kpis.weekly_bonuses, kpis.users),
    "freeze_usage": lambda kpis: (kpis.freezes_used, kpis.freezes_earned),
    "retention_7d": lambda kpis: (kpis.kept_7_days, kpis.reached_7_days),
    "average_length": lambda kpis: (kpis.streak_days, kpis.active_streaks),
}


_current_kpis: list[Callable[[], Kpis | None]] = []


def _observe_kpis(index: int) -> Iterable[tuple[float, dict[str, str]]] | None:
    kpis = _current_kpis[0]() if _current_kpis else None
    if kpis is None:
        return None
    return [(counts(kpis)[index], {"kpi": name}) for name, counts in KPI_COUNTS.items()]


# Ratios of several services do not add up; what they are made of can be divided anywhere.
for _index, _side in enumerate(("numerator", "denominator")):
    catalogue.gauge(
        f"streak.kpi.{_side}",
        unit="{count}",
        attributes=("kpi",),
        about=f"The {_side} of each KPI, of all users: each instance shows it, so take max by (kpi) over them, not sum",
        observe=partial(_observe_kpis, _index),
    )


def observe_kpis(current: Callable[[], Kpis | None]) -> None:
    """Show the KPIs as two gauges. `current` is asked at each collect, that of the app which was made last."""
    _current_kpis[:] = [current]


def record_logged(category: rules.Category, logged: rules.Logged) -> None:
    """Count what an activity led to."""
    _xp.add(logged.xp, category=category)
    if logged.bonus_xp:
        _bonus_xp.add(logged.bonus_xp)
    if logged.freeze_earned:
        _freezes.add(1, change="earned")
    if logged.freeze_returned:
        _freezes.add(1, change="returned")
    if logged.bonus_earned:
        _bonuses.add(1)
    _record_settled(logged.settled)


def record_freeze(applied: rules.Applied) -> None:
    """Count what applying a freeze by hand led to."""
    if applied.applied:
        _freezes.add(1, change="applied")
    _record_settled(applied.settled)


def record_recovery(recovered: rules.Recovered) -> None:
    """Count what buying back a streak led to."""
    if recovered.recovered:
        _recoveries.add(1)
    if recovered.freeze_earned:
        _freezes.add(1, change="earned")
    _record_settled(recovered.settled)


def record_batch(batch: SettledBatch) -> None:
    """Count what a batch of the maintenance came to."""
    tally = batch.tally
    frozen = len(batch.changed) - tally.broken
    for outcome, count in (
        ("unchanged", tally.processed - len(batch.changed)),
        ("frozen", frozen),
        ("broken", tally.broken),
    ):
        if count:
            _users.add(count, outcome=outcome)
    if tally.freezes_spent:
        _freezes.add(tally.freezes_spent, change="spent")
    for reason, count in (("missed", tally.missed), ("freezes_exhausted", tally.freezes_exhausted)):
        if count:
            _broken.add(count, reason=reason)


def record_error(step: str, error: BaseException) -> None:
    """Count a failure of the maintenance."""
    _errors.add(1, **{"step": step, "error.type": type(error).__name__})


def record_cache_degraded(*, degraded: bool) -> None:
    """Show whether the service goes on without its cache."""
    _degraded.set(int(degraded))


def record_limits_degraded(*, degraded: bool) -> None:
    """Show whether the rate limits go on without Redis."""
    _limits_degraded.set(int(degraded))


def record_forgotten(tag: str, count: int) -> None:
    """Count tags that were made void."""
    _forgotten.add(count, tag=tag)


def record_transaction_retry(operation: str) -> None:
    """Count a transaction that is begun anew."""
    _retries.add(1, operation=operation)


def record_transaction_failed(operation: str, error: BaseException) -> None:
    """Count a transaction that is given up."""
    _failures.add(1, **{"operation": operation, "error.type": type(error).__name__})


def _record_settled(settled: rules.Settled) -> None:
    if settled.freezes_spent:
        _freezes.add(settled.freezes_spent, change="spent")
    if settled.reason is not None:
        _broken.add(1, reason=settled.reason)
