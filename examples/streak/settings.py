"""What the service is told by its environment."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import time
from urllib.parse import urlsplit

__all__ = ["BadSettingError", "Settings"]

_MIN_SECRET_LENGTH = 16
_DRIVERS = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "firestore": "firestore",
}
_LOG_LEVELS = ("debug", "info", "warning", "error")


class BadSettingError(ValueError):
    """A variable of the environment that the service cannot start with; the text says what would do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the service keeps its things, and whom it trusts."""

    database_url: str | None = None
    """SQLAlchemy's address of the database; without one, an SQLite file that lives as long as the service."""
    redis_url: str | None = None
    """Without one, the cache and the rate limits are in memory, each process for itself."""
    push_url: str | None = None
    """Without one, nobody is notified."""
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """Signs the tokens. The default is made anew by each process and shown nowhere."""
    demo: bool = False
    """Adds a slow route, a failing one, and users with a past."""
    requests_per_minute: int = 600
    """What one user may ask for; 0 for no limit."""
    batch_size: int = 100
    """How many users a batch of the maintenance has."""
    batches_in_flight: int = 5
    """How many batches of the maintenance are under way at once."""
    maintenance_at: time | None = None
    """When the process runs the maintenance by itself each day, in UTC; without it, somebody else has to."""
    warm_up: int = 100
    """How many of the most active users have their pages in the cache before they ask; 0 for none."""
    kpis_every_s: float = 300.0
    """How often the KPIs are counted anew; 0 for when somebody asks only."""
    log_level: str = "info"
    """debug, info, warning or error."""
    google_cloud_project: str | None = None
    """Names the trace in the logs as Cloud Logging wants it."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings, or raise `BadSettingError`. An empty variable counts as one that is not there."""
        given = {name: value.strip() for name, value in environ.items() if value.strip()}
        default = cls()
        settings = cls(
            database_url=_database_url(given.get("DATABASE_URL")),
            redis_url=_url("REDIS_URL", given.get("REDIS_URL"), ("redis", "rediss")),
            push_url=_url("PUSH_URL", given.get("PUSH_URL"), ("http", "https")),
            demo=_switch("STREAK_DEMO", given.get("STREAK_DEMO", "0")),
            requests_per_minute=_number("STREAK_REQUESTS_PER_MINUTE", given, default.requests_per_minute, 0, 1_000_000),
            batch_size=_number("STREAK_BATCH_SIZE", given, default.batch_size, 1, 10_000),
            batches_in_flight=_number("STREAK_BATCHES_IN_FLIGHT", given, default.batches_in_flight, 1, 100),
            maintenance_at=_time("STREAK_MAINTENANCE_AT", given.get("STREAK_MAINTENANCE_AT")),
            warm_up=_number("STREAK_WARM_UP", given, default.warm_up, 0, 10_000),
            kpis_every_s=float(_number("STREAK_KPIS_EVERY_S", given, int(default.kpis_every_s), 0, 86_400)),
            log_level=_choice("STREAK_LOG_LEVEL", given.get("STREAK_LOG_LEVEL", default.log_level), _LOG_LEVELS),
            google_cloud_project=given.get("GOOGLE_CLOUD_PROJECT"),
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
            "use sqlite:///path/to/file.db, postgresql://user:password@host/database or firestore://project/database"
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


def _number(name: str, given: Mapping[str, str], otherwise: int, least: int, most: int) -> int:
    value = given.get(name, str(otherwise))
    if not value.isascii() or not value.isdecimal() or not least <= int(value) <= most:
        raise BadSettingError(f"{name} is {value[:20]!r}: use a whole number from {least} to {most}")
    return int(value)


def _time(name: str, value: str | None) -> time | None:
    if value is None:
        return None
    try:
        moment = time.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is not None:
        raise BadSettingError(f"{name} is {value[:20]!r}: use a time of day in UTC, such as 04:05")
    return moment


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value.lower() not in choices:
        raise BadSettingError(f"{name} is {value[:20]!r}: use one of {', '.join(choices)}")
    return value.lower()


def _switch(name: str, value: str) -> bool:
    if value not in ("0", "1"):
        raise BadSettingError(f"{name} is {value!r}: use 1 to switch it on, 0 to leave it off")
    return value == "1"
