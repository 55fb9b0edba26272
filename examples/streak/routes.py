"""The routes of the service."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from . import rules
from .auth import NotTrustedError, User, verify
from .cache import ReadCache
from .maintenance import run_daily_maintenance
from .push import PushClient
from .records import Activity
from .service import MAX_DAYS, Streaks
from .store import Store

__all__ = ["Clock", "Parts", "parts_of", "router"]

_MAX_ID = 2**63 - 1

router = APIRouter(prefix="/api")


class Clock(Protocol):
    """Tells the time. Tests have one of their own."""

    def __call__(self) -> datetime:
        """Return now, with its time zone."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes work with; `app.state.parts` holds it."""

    secret: str
    clock: Clock
    store: Store
    cache: ReadCache
    push: PushClient
    streaks: Streaks

    @property
    def today(self) -> date:
        """Return the day that now belongs to."""
        return rules.day_of(self.clock())


async def parts_of(request: Request) -> Parts:
    """Return the parts of the app that a request came to."""
    parts: Parts = request.app.state.parts
    return parts


_bearer = HTTPBearer(auto_error=False, description="A token of `python -m examples.streak.auth`")
_Parts = Annotated[Parts, Depends(parts_of)]


async def _user(parts: _Parts, sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> User:
    if sent is None:
        raise _unauthorized("a token is missing: send `Authorization: Bearer <token>`")
    try:
        return verify(parts.secret, sent.credentials)
    except NotTrustedError as refusal:
        raise _unauthorized(str(refusal)) from None


def _unauthorized(reason: str) -> HTTPException:
    return HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})


_User = Annotated[User, Depends(_user)]


async def _admin(user: _User) -> User:
    if not user.admin:
        raise HTTPException(403, "this is for admins")
    return user


class NewActivity(BaseModel):
    """What someone did."""

    category: rules.Category
    minutes: Annotated[int, Field(ge=1, le=1_440)] = 15
    # PostgreSQL takes no text with a NUL in it.
    note: Annotated[str, Field(max_length=280, pattern=r"^[^\x00]*$")] | None = None
    client_key: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[!-~]+$")] | None = None
    """The caller's own name of the activity: sent again, it is not logged again."""


@router.post("/activities", status_code=201)
async def log_activity(new: NewActivity, response: Response, user: _User, parts: _Parts) -> dict[str, Any]:
    """Log an activity, and return what it earned."""
    activity = Activity(new.category, new.minutes, new.note, new.client_key)
    receipt, notified = await parts.streaks.log_activity(user.name, activity, parts.clock())
    entry, state, logged = receipt.entry, receipt.state, receipt.logged
    if logged is None:
        response.status_code = 200
    return {
        **asdict(entry),
        "streak": state.streak,
        "longest": state.longest,
        "freezes": state.freezes,
        "total_xp": state.xp,
        "bonus_earned": bool(logged and logged.bonus_earned),
        "milestone": logged.milestone if logged else None,
        "repeated": logged is None,
        "notified": notified,
    }


@router.get("/activities/{activity_id}")
async def get_activity(
    activity_id: Annotated[int, Path(ge=1, le=_MAX_ID)], user: _User, parts: _Parts
) -> dict[str, Any]:
    """Return one of the caller's own activities."""
    found = await parts.streaks.activity(user.name, activity_id)
    if found is None:
        raise HTTPException(404, "you have no such activity")
    return found


@router.get("/profile")
async def get_profile(user: _User, parts: _Parts) -> dict[str, Any]:
    """Return the caller at a glance."""
    profile = await parts.streaks.profile(user.name)
    if profile is None:
        raise HTTPException(404, "you have no profile yet: log a first activity")
    return profile


@router.get("/calendar")
async def get_calendar(
    user: _User, parts: _Parts, days: Annotated[int, Query(ge=1, le=MAX_DAYS)] = 30
) -> dict[str, Any]:
    """Return the days on which the caller did something."""
    return await parts.streaks.calendar(user.name, days, parts.today)


@router.get("/consistency")
async def get_consistency(user: _User, parts: _Parts) -> dict[str, Any]:
    """Return what the caller has done of the week's four categories."""
    return await parts.streaks.consistency(user.name, parts.today)


@router.get("/leaderboard")
async def get_leaderboard(_user: _User, parts: _Parts) -> list[dict[str, Any]]:
    """Return the longest streaks."""
    return await parts.streaks.leaderboard()


@router.post("/admin/maintenance", dependencies=[Depends(_admin)])
async def run_maintenance(parts: _Parts, dry_run: bool = False) -> dict[str, Any]:
    """Run the day's maintenance, or tell what it would do."""
    summary = await run_daily_maintenance(parts.store, parts.cache, parts.push, parts.today, dry_run=dry_run)
    return asdict(summary)


@router.get("/health")
async def get_health(parts: _Parts) -> dict[str, str]:
    """Tell whether the service can work."""
    try:
        return await parts.streaks.health()
    except (SQLAlchemyError, OSError) as problem:
        raise HTTPException(503, f"the database does not answer ({type(problem).__name__})") from None
