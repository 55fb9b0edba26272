"""What is cached: under which keys, for how long, and what a write makes old of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BOARD",
    "BOARD_LIMIT",
    "CALENDAR",
    "CONSISTENCY",
    "LEADERBOARD",
    "PROFILE",
    "STRATEGIES",
    "USER",
    "Strategy",
    "Tag",
]

BOARD_LIMIT = 100
"""The board is kept once, of this length; shorter ones are cut from it."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """A kind of cached value: how its keys look, how long it is good for, and how often it should be found."""

    name: str
    template: str
    ttl_s: int
    expected_hit_rate: float

    def key(self, **parts: object) -> str:
        """Return the key of one value."""
        return self.template.format(**parts)

    @property
    def pattern(self) -> str:
        """Return what all keys of this strategy match."""
        return self.template.partition("{")[0] + "*"


CALENDAR = Strategy("CALENDAR", "user:calendar:{user}", ttl_s=300, expected_hit_rate=0.85)
CONSISTENCY = Strategy("CONSISTENCY", "user:consistency:{user}", ttl_s=60, expected_hit_rate=0.80)
LEADERBOARD = Strategy("LEADERBOARD", "leaderboard:{limit}", ttl_s=600, expected_hit_rate=0.95)
PROFILE = Strategy("PROFILE", "user:profile:{user}", ttl_s=900, expected_hit_rate=0.90)
STRATEGIES = (CALENDAR, CONSISTENCY, LEADERBOARD, PROFILE)


@dataclass(frozen=True, slots=True)
class Tag:
    """Values that a write makes old together."""

    template: str
    strategies: tuple[Strategy, ...]

    def keys(self, **parts: object) -> list[str]:
        """Return the keys of all its values."""
        return [strategy.key(**parts) for strategy in self.strategies]


USER = Tag("user:{user}", (CALENDAR, CONSISTENCY, PROFILE))
BOARD = Tag("board", (LEADERBOARD,))
