"""How often a job should start: a duration, or a cron line. Both say when a run was due."""

from __future__ import annotations

import functools
import itertools
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone, tzinfo
from typing import Any, Protocol

__all__ = ["Cron", "Interval", "Schedule", "parse"]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*")
_LONGEST_LINE = 200
_LONGEST_GRACE_S = 300.0
# Enough to see the night between the days of most lines; each costs some microseconds, once for a declaration.
_LOOKED_AT = 300
# So many due runs are counted at one look; the next look goes on from there.
_COUNTED_AT_ONCE = 1000
_REMEDY = "give seconds, or a duration such as '30s', '15m', '1d', or a cron line such as '0 4 * * *'"


class Schedule(Protocol):
    """When runs are due; its times are its own, by its `now_s()`."""

    @property
    def every_s(self) -> float:
        """The longest time between two runs that are due."""
        ...

    @property
    def grace_s(self) -> float:
        """How late a run may begin."""
        ...

    def now_s(self) -> float:
        """The time by the clock of this schedule."""
        ...

    def passed(self, since_s: float, until_s: float) -> tuple[int, float]:
        """How many runs were due after one time and up to another, and when the last of these was."""
        ...

    def begun_s(self, now_s: float) -> float:
        """From when on the next run is looked for, once one has begun."""
        ...

    def ended_s(self, since_s: float, now_s: float) -> float:
        """The same once it has ended: what was due while it ran was not missed."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """A run so many seconds after the last; its clock is the steady one, which nobody sets."""

    every_s: float

    @property
    def grace_s(self) -> float:
        return min(self.every_s / 10, _LONGEST_GRACE_S)

    def now_s(self) -> float:
        return time.monotonic()

    def passed(self, since_s: float, until_s: float) -> tuple[int, float]:
        count = max(int((until_s - since_s) / self.every_s), 0)
        return count, since_s + count * self.every_s

    def begun_s(self, now_s: float) -> float:
        return now_s

    def ended_s(self, since_s: float, now_s: float) -> float:
        return now_s if now_s - since_s >= self.every_s else since_s


@dataclass(frozen=True, slots=True)
class Cron:
    """Runs by a cron line in a time zone."""

    line: str
    zone: tzinfo
    every_s: float
    grace_s: float

    def now_s(self) -> float:
        return time.time()

    def passed(self, since_s: float, until_s: float) -> tuple[int, float]:
        count, last_s = 0, since_s
        if until_s <= since_s:
            return count, last_s
        for due_s in _due(self.line, self.zone, since_s):
            if due_s > until_s or count == _COUNTED_AT_ONCE:
                break
            count, last_s = count + 1, due_s
        return count, last_s

    def begun_s(self, now_s: float) -> float:
        return now_s + self.grace_s  # another host's clock may be ahead: a run just before it was due stands for it

    def ended_s(self, since_s: float, now_s: float) -> float:
        return max(since_s, now_s)


def parse(name: str, every: str | float, zone: str | None = None) -> Schedule:
    """The schedule that a declaration of a job means.

    Raises:
        ValueError: where it is neither a duration above 0 nor a cron line, or where the time zone is unknown.
        ImportError: for a cron line without the library that reads it.
    """
    try:
        if isinstance(every, str) and len(every.split(maxsplit=3)) > 2:
            return _cron(every, zone)
        seconds = _seconds(every)
    except ValueError as error:
        raise ValueError(f"every of job {name!r} is {_shown(every)}: {error}; {_REMEDY}") from None
    except ModuleNotFoundError as error:
        raise ImportError(
            f"every of job {name!r} is the cron line {_shown(every)}, and what reads it is not installed: "
            "pip install 'otel-perf[cron]'"
        ) from error
    if not 0 < seconds < math.inf:
        raise ValueError(f"every of job {name!r} is {_shown(every)}: {_REMEDY}")
    if zone is not None:
        raise ValueError(f"timezone of job {name!r} is {_shown(zone)}: only a cron line has one, take it away")
    return Interval(seconds)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_LINE else f"{shown[:_LONGEST_LINE]}..."


def _seconds(every: Any) -> float:
    if isinstance(every, bool):  # a float could be made of it
        return 0.0
    if isinstance(every, str):
        found = _DURATION.fullmatch(every)
        return float(found[1]) * _UNITS_S[found[2]] if found else 0.0
    try:
        return float(every)
    except (TypeError, ValueError):  # a timedelta, say
        return 0.0


@functools.lru_cache(maxsize=256)
def _cron(line: str, zone: str | None) -> Cron:
    if len(line) > _LONGEST_LINE:
        raise ValueError("a cron line is shorter")
    where = _zone(zone)
    dues = _first(_due(line, where, time.time()))
    gaps = [later - sooner for sooner, later in itertools.pairwise(dues)]
    if not gaps:
        raise ValueError("this cron line never comes")
    return Cron(line, where, max(gaps), min(min(gaps) / 10, _LONGEST_GRACE_S))


def _first(dues: Iterator[float]) -> list[float]:
    return [due for _, due in zip(range(_LOOKED_AT), dues, strict=False)]


def _zone(name: str | None) -> tzinfo:
    if name is None:
        return timezone.utc
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        raise ValueError(
            f"its timezone {_shown(name)} is unknown, give one such as 'Europe/Berlin' (a machine without time zones "
            "needs: pip install tzdata)"
        ) from None


def _due(line: str, zone: tzinfo, since_s: float) -> Iterator[float]:
    from cronsim import CronSim, CronSimError

    try:
        for due in CronSim(line, datetime.fromtimestamp(since_s, zone)):
            yield due.timestamp()
    except CronSimError as error:
        raise ValueError(f"{str(error)[:1].lower()}{str(error)[1:]}") from None
    except (AssertionError, TypeError, OverflowError):  # parts that it does not foresee together
        raise ValueError("this is no cron line") from None
