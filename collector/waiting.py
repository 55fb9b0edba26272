"""Wait for what is on its way, and no longer than that may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["settled"]

_DEADLINE_S = 60.0
_POLL_S = 0.5

_Found = TypeVar("_Found")


def settled(read: Callable[[], _Found], enough: Callable[[_Found], bool]) -> _Found:
    """Read until it is enough or time runs out, and return what was read last."""
    give_up_at = time.monotonic() + _DEADLINE_S
    while True:
        found = read()
        if enough(found) or time.monotonic() >= give_up_at:
            return found
        time.sleep(_POLL_S)
