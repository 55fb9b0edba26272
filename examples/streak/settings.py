"""What the service is told by its environment."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

__all__ = ["BadSettingError", "Settings"]

_MIN_SECRET_LENGTH = 16
_DRIVERS = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
}


class BadSettingError(ValueError):
    """A variable of the environment that the service cannot start with; the text says what would do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the service keeps its things, and whom it trusts."""

    database_url: str | None = None
    """SQLAlchemy's address of the database; without one, an SQLite file that lives as long as the service."""
    redis_url: str | None = None
    """Without one, the cache is in memory."""
    push_url: str | None = None
    """Without one, nobody is notified."""
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """Signs the tokens. The default is made anew by each process and shown nowhere."""
    demo: bool = False
    """Adds a slow route, a failing one, and users with a past."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings, or raise `BadSettingError`. An empty variable counts as one that is not there."""
        given = {name: value.strip() for name, value in environ.items() if value.strip()}
        settings = cls(
            database_url=_database_url(given.get("DATABASE_URL")),
            redis_url=_url("REDIS_URL", given.get("REDIS_URL"), ("redis", "rediss")),
            push_url=_url("PUSH_URL", given.get("PUSH_URL"), ("http", "https")),
            demo=_switch("STREAK_DEMO", given.get("STREAK_DEMO", "0")),
        )
        secret = given.get("STREAK_SECRET")
        return settings if secret is None else replace(settings, secret=_secret(secret))


def _secret(value: str) -> str:
    if len(value) < _MIN_SECRET_LENGTH:
        raise BadSettingError(
            f"STREAK_SECRET is too short to sign with: give it {_MIN_SECRET_LENGTH} characters or more"
        )
    return value


def _database_url(value: str | None) -> str | None:
    if value is None:
        return None
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in _DRIVERS:
        # The address itself is not repeated: it may hold a password.
        raise BadSettingError(
            f"DATABASE_URL starts with {scheme if separator else 'no scheme'!r}: "
            "use sqlite:///path/to/file.db or postgresql://user:password@host/database"
        )
    return f"{_DRIVERS[scheme]}://{rest}"


def _url(name: str, value: str | None, schemes: tuple[str, ...]) -> str | None:
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        good = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise BadSettingError(f"{name} is not an address of this kind: use {schemes[0]}://host:port")
    return value


def _switch(name: str, value: str) -> bool:
    if value not in ("0", "1"):
        raise BadSettingError(f"{name} is {value!r}: use 1 to switch it on, 0 to leave it off")
    return value == "1"
