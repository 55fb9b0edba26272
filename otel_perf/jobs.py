"""Which background jobs there are and how often each should run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

__all__ = ["Job", "declare", "declared"]

# As many as a metric has series: names made up at run time must not fill the memory.
_MAX_JOBS = 2000
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, slots=True)
class Job:
    """A job by name; `every_s` is the expected time between two starts, or None where it is not known."""

    name: str
    every_s: float | None = None


_jobs: dict[str, Job] = {}


def declare(name: str, every: str | float | None = None) -> Job:
    """Declares a job. `every` is a duration: seconds, or text such as `30s`, `15m`, `1h`, `1d`.

    Raises:
        ValueError: when `every` is no duration above 0.
    """
    job = _jobs.get(name)
    if job is None or every is not None:
        job = Job(name, None if every is None else _duration_s(name, every))
        if name in _jobs or len(_jobs) < _MAX_JOBS:
            _jobs[name] = job
    return job


def declared() -> tuple[Job, ...]:
    """All jobs, in the order of their declaration."""
    return tuple(_jobs.values())


def _duration_s(name: str, every: str | float) -> float:
    if isinstance(every, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", every)
        seconds = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
    else:
        try:
            seconds = float(every)
        except (TypeError, ValueError):  # a timedelta, say
            seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"every of job {name!r} is {every!r}: give seconds, or a duration such as '30s', '15m', '1d'")
    return seconds
