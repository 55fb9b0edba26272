"""The streak figures, worked out of what was measured: the worse of the databases, the middle one of the rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

__all__ = [
    "DATABASES",
    "Told",
    "UntoldError",
    "errors",
    "exact",
    "failures",
    "growth_mb",
    "maintained_s",
    "p95_ms",
    "peak_mb",
    "retry_share",
    "share",
    "shares",
    "trusted",
    "worst",
]

DATABASES = ("sqlite", "postgresql")
#: Part and database -> what each round told.
Told = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]


class UntoldError(Exception):
    """A figure cannot be told; the message says why."""


def _rounds(told: Told, part: str, database: str) -> Sequence[Mapping[str, Any]]:
    found = told.get((part, database))
    if not found:
        raise UntoldError(f"{part} on {database} was not measured")
    return found


def worst(
    told: Told, value: Callable[[Told, str], float], databases: Sequence[str] = DATABASES, *, least: bool = False
) -> float:
    """The value of the database that does worse; each must have one.

    Raises:
        UntoldError: when one of them has none.
    """
    each = [value(told, database) for database in databases]
    return min(each) if least else max(each)


def trusted(told: Told, shape: str, database: str) -> Sequence[Mapping[str, Any]]:
    """The rounds in which the generator kept up.

    Raises:
        UntoldError: when it never did.
    """
    rounds = _rounds(told, shape, database)
    good = [each for each in rounds if each["trusted"]]
    if not good:
        raise UntoldError(f"{shape} on {database}: {rounds[-1]['why']}")
    return good


def p95_ms(shape: str) -> Callable[[Told, str], float]:
    """The 95th percentile of the shape's own requests, from when they were due."""
    return lambda told, database: median(
        each["requests"][shape]["p95_ms"] for each in trusted(told, shape, database)
    )  # fmt: skip


def errors(told: Told, database: str) -> float:
    """Requests that failed, of both shapes that have a target, warm-ups included."""
    rounds = [each for shape in ("calendar", "log") for each in told.get((shape, database), ())]
    if not rounds:
        raise UntoldError(f"no load was put on {database}")
    return float(sum(sum(each["failures"].values()) for each in rounds))


def _transactions(told: Told, database: str) -> tuple[float, float, float]:
    rounds = _rounds(told, "transactions", database)
    retries, failed, done = (sum(each[name] for each in rounds) for name in ("retries", "failures", "transactions"))
    if not done:
        raise UntoldError(f"nothing was written to {database}")
    return retries, failed, done


def retry_share(told: Told, database: str) -> float:
    """Transactions that were begun anew, to those that logged an activity."""
    retries, _, done = _transactions(told, database)
    return retries / done


def failures(told: Told, database: str) -> float:
    """Transactions that were given up."""
    return float(_transactions(told, database)[1])


def maintained_s(part: str) -> Callable[[Told, str], float]:
    """Seconds from the start of the maintenance's process to its end."""
    return lambda told, database: median(each["wall_s"] for each in _rounds(told, part, database))


def growth_mb(told: Told, database: str) -> float:
    """How much more memory the end of a long run has than its first tenth."""
    return max(each["grown_mb"] for each in _rounds(told, "100000", database))


def peak_mb(told: Told, database: str) -> float:
    """The most memory that a long run had."""
    return max(each["peak_mb"] for each in _rounds(told, "100000", database))


def exact(told: Told, database: str) -> float:
    """The share of users that a killed and resumed run accounted for exactly once."""
    return min(each["exact"] for each in _rounds(told, "kill", database))


def shares(told: Told, database: str) -> list[float]:
    """The share of the service's CPU per request that measuring takes, in each pair of stretches."""
    return [1 - each["off"]["cpu_us"] / each["on"]["cpu_us"] for each in _rounds(told, "share", database)]


def share(told: Told, database: str) -> float:
    """The middle one of them."""
    return median(shares(told, database))
