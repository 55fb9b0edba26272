"""What the service does to be measured, beside `configure()` in `__main__` and the client in `push`.

This is the module to copy from. The service's own metrics are declared in `metrics`; `logs` measures structlog.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cashews import Cache
from fastapi import FastAPI

from otel_perf import instrument, measure
from otel_perf.web import mount

from .cache import STRATEGIES
from .metrics import observe_kpis
from .records import Kpis

__all__ = ["observe"]


def observe(
    app: FastAPI,
    measured: Sequence[Any],
    cache: Cache,
    *,
    kpis: Callable[[], Kpis | None] | None = None,
    scheduler: object | None = None,
) -> None:
    """Measure the app, its database, its cache and its scheduler, and show it all under `/performance`."""
    for strategy in STRATEGIES:
        measure.strategy(
            strategy.name,
            strategy.pattern,
            ttl_s=strategy.ttl_s,
            expected_hit_rate=strategy.expected_hit_rate,
        )
    instrument(app)
    for engine_or_client in measured:
        instrument(engine_or_client)
    instrument(cache)
    if scheduler is not None:
        instrument(scheduler)
    if kpis is not None:
        observe_kpis(kpis)
    # The page says by this name which one it is, in what it reports of its visitors.
    mount(app, page_routes=("/",))
