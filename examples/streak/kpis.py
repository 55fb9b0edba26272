"""What the service wants to be good at, counted now and then, and compared with its targets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import Literal

from otel_perf import measure

from . import rules
from .metrics import KPI_COUNTS
from .records import Kpis
from .stores import Store

__all__ = ["TARGETS", "KpiBoard", "KpiRow", "Target", "report"]

_log = logging.getLogger(__name__)

Status = Literal["good", "low", "high", "no_data"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a KPI should be: within two bounds, or above the lower one where there is no upper one."""

    low: float
    high: float | None
    unit: Literal["%", "d"]

    @property
    def text(self) -> str:
        """Return it as a person writes it."""
        unit = " %" if self.unit == "%" else " days"
        return f"> {self.low:g}{unit}" if self.high is None else f"{self.low:g}-{self.high:g}{unit}"

    def status(self, value: float) -> Status:
        """Compare a value with it. The bounds of a range are good; one lower bound alone has to be exceeded."""
        if self.high is None:
            return "good" if value > self.low else "low"
        if value < self.low:
            return "low"
        return "high" if value > self.high else "good"


#: By KPI, in the order they are shown in.
TARGETS: dict[str, Target] = {
    "active_streaks": Target(60, None, "%"),
    "weekly_bonus": Target(30, None, "%"),
    "freeze_usage": Target(40, 60, "%"),
    "retention_7d": Target(70, None, "%"),
    "average_length": Target(14, None, "d"),
}


@dataclass(frozen=True, slots=True)
class KpiRow:
    """One KPI, and how it stands."""

    name: str
    numerator: int
    denominator: int
    value: float | None
    """In `unit`, to two decimals; None where the denominator is 0."""
    target: str
    target_low: float
    target_high: float | None
    unit: Literal["%", "d"]
    """As UCUM has it: per cent, or days."""
    status: Status


def report(kpis: Kpis | None) -> tuple[KpiRow, ...]:
    """Return each KPI with its target. Before the first count there is no data for any of them."""
    return tuple(_row(name, target, *KPI_COUNTS[name](kpis or Kpis())) for name, target in TARGETS.items())


def _row(name: str, target: Target, numerator: int, denominator: int) -> KpiRow:
    value: float | None = None
    status: Status = "no_data"
    if denominator:
        exact = numerator * (100 if target.unit == "%" else 1) / denominator
        # What is rounded is shown only: 60.001 % exceeds 60 %.
        value, status = round(exact, 2), target.status(exact)
    return KpiRow(
        name=name,
        numerator=numerator,
        denominator=denominator,
        value=value,
        target=target.text,
        target_low=target.low,
        target_high=target.high,
        unit=target.unit,
        status=status,
    )


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class KpiBoard:
    """The KPIs as they were counted last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._current: Kpis | None = None
        self.counted_at: datetime | None = None
        self.failed = 0
        """How often counting has failed in `keep_counting`."""

    def current(self) -> Kpis | None:
        """Return what was counted last; None before the first time."""
        return self._current

    @measure("count_kpis", category="kpis")
    async def count(self, at: datetime, today: date) -> Kpis:
        """Count them anew. A failure is measured as one, raised, and leaves what was counted last."""
        self._current = await self._store.kpis(today)
        self.counted_at = at
        return self._current

    async def keep_counting(self, every_s: float, clock: Callable[[], datetime] = _utc_now) -> None:
        """Count at once and then again and again, until the task is cancelled; for `asyncio.create_task`.

        A failure is logged and counted, here and as a failed `count_kpis`; the next count comes when it would have.
        """
        while True:
            now = clock()
            try:
                await self.count(now, rules.day_of(now))
            except Exception as error:  # whatever the store raises: the next count may succeed
                self.failed += 1
                _log.warning("the KPIs were not counted (%s)", type(error).__name__)
            await asyncio.sleep(every_s)
