"""What the service does to be measured, beside `configure()` in `__main__` and the client in `push`.

This is the module to copy from.
"""

from __future__ import annotations

from cashews import Cache
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from otel_perf import catalogue, instrument, measure
from otel_perf.web import mount

from . import rules
from .cache import STRATEGIES

__all__ = ["observe", "record_logged", "record_settled"]

_broken = catalogue.counter(
    "streak.broken", unit="{streak}", attributes=("reason",), about="Streaks that ended, by the reason"
)
_freezes = catalogue.counter(
    "streak.freezes", unit="{freeze}", attributes=("change",), about="Freezes that were earned or spent"
)
_bonuses = catalogue.counter("streak.bonuses", unit="{bonus}", about="Weeks in which all four categories were done")
_xp = catalogue.counter("streak.xp", unit="{point}", attributes=("category",), about="XP that activities earned")


def observe(app: FastAPI, engine: AsyncEngine, cache: Cache) -> None:
    """Measure the app, its database and its cache, and show it all under `/performance`."""
    for strategy in STRATEGIES:
        measure.strategy(
            strategy.name,
            strategy.pattern,
            ttl_s=strategy.ttl_s,
            expected_hit_rate=strategy.expected_hit_rate,
        )
    instrument(app)
    instrument(engine)
    instrument(cache)
    mount(app)


def record_logged(category: rules.Category, logged: rules.Logged) -> None:
    """Count what an activity led to."""
    _xp.add(logged.xp, category=category)
    if logged.freeze_earned:
        _freezes.add(1, change="earned")
    if logged.bonus_earned:
        _bonuses.add(1)
    record_settled(logged.settled)


def record_settled(settled: rules.Settled) -> None:
    """Count what the days that are over led to."""
    if settled.freezes_spent:
        _freezes.add(settled.freezes_spent, change="spent")
    if settled.broken:
        _broken.add(1, reason="missed")
