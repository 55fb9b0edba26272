"""A count that somebody else keeps and may begin anew: what we report of it never falls."""

from __future__ import annotations

__all__ = ["Rising"]


class Rising:
    """The total of a count over all its beginnings."""

    __slots__ = ("_before", "_last")

    def __init__(self) -> None:
        self._before = 0
        self._last = 0

    def total(self, count: int) -> int:
        """What there was in all; a count below the last one began anew in between."""
        if count < self._last:
            self._before += self._last
        self._last = count
        return self._before + count
