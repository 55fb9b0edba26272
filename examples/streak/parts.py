"""What the routes work with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Protocol

from fastapi import Depends, Request

from . import rules
from .cache import ReadCache
from .kpis import KpiBoard
from .limits import RateLimits
from .maintenance import Maintenance
from .service import Streaks
from .settings import Settings
from .stores import Database

__all__ = ["Clock", "NeedsParts", "Parts", "parts_of"]


class Clock(Protocol):
    """Tells the time. Tests have one of their own."""

    def __call__(self) -> datetime:
        """Return now, with its time zone."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one app; `app.state.parts` holds it."""

    settings: Settings
    clock: Clock
    database: Database
    cache: ReadCache
    streaks: Streaks
    maintenance: Maintenance
    kpis: KpiBoard
    limits: RateLimits

    @property
    def today(self) -> date:
        """Return the day that now belongs to."""
        return rules.day_of(self.clock())


async def parts_of(request: Request) -> Parts:
    """Return the parts of the app that a request came to."""
    parts: Parts = request.app.state.parts
    return parts


NeedsParts = Annotated[Parts, Depends(parts_of)]
