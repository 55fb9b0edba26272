"""The error boundary: nothing of otel_perf may reach user code after start-up.

Hot paths write `except Exception: guard.note("where")`; everything else uses `guard.safe`. Faults are counted, logged
at most once a minute for each place, and raised only when `strict` is on, which the test suite of otel_perf sets.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["errors", "note", "safe", "strict"]

P = ParamSpec("P")
R = TypeVar("R")

_LOG_EVERY_S = 60.0
_log = logging.getLogger("otel_perf")
_last_logged: dict[str, float] = {}

strict: bool = False
errors: int = 0


def note(where: str) -> None:
    """Counts and logs the exception being handled; raises it again when `strict` is on. Call it inside `except`."""
    global errors
    errors += 1
    if strict:
        raise  # noqa: PLE0704 -- by contract this runs inside an except block
    now = time.monotonic()
    if now - _last_logged.get(where, -_LOG_EVERY_S) >= _LOG_EVERY_S:
        _last_logged[where] = now
        with contextlib.suppress(Exception):  # a log filter of the application's may fail as well
            _log.warning("otel_perf: a fault in %s was kept from the application", where, exc_info=True)


def safe(where: str, fallback: R) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a function that answers `fallback` instead of raising."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except Exception:
                note(where)
                return fallback

        return guarded

    return decorate
