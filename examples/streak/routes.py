"""What users ask for and do."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from . import answers, rules
from .access import NeedsUser
from .parts import NeedsParts
from .problems import RefusedError, refusals
from .records import Activity
from .service import BOARD_LIMIT, MAX_DAYS, freezes

__all__ = ["CURSOR", "NewActivity", "router"]

# One router, and what is asked for most comes first: a request is compared with one route after the other.
router = APIRouter(prefix="/api", tags=["streaks"])

_KEY = r"^[!-~]+$"
_MAX_KEY = 64
#: What is the same when an activity is sent again.
_LOGGED = ("category", "minutes", "note")
_MAX_PAGE = 100
#: Ids, and the cursors that are made of them: they sort by time, and what is logged meanwhile comes before the first.
CURSOR = r"^[0-9a-f]{32}$"

_FREEZE_REFUSED = {
    "no_streak": "you have no streak to hold: log an activity",
    "no_freeze": "you hold no freeze: each seventh day of a streak earns one",
    "day_is_held": "today counts already",
}
_RECOVERY_REFUSED = {
    "nothing_lost": "you have lost no streak",
    "too_late": "the streak that you lost could be had back for two days only",
    "too_few_xp": "you have too few XP for it",
}


class NewActivity(BaseModel):
    """What someone did."""

    # What is misspelt or of another type would be logged as something else than was meant.
    model_config = ConfigDict(extra="forbid", strict=True)

    category: rules.Category
    minutes: Annotated[int, Field(ge=1, le=1_440)] = 15
    # PostgreSQL takes no text with a NUL in it.
    note: Annotated[str, Field(max_length=280, pattern=r"^[^\x00]*$")] | None = None
    client_key: Annotated[str, Field(min_length=1, max_length=_MAX_KEY, pattern=_KEY)] | None = None
    """The caller's own name of the activity: sent again, it is not logged again; of another it is refused."""


def _or(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what else a user's route may answer."""
    return refusals(401, 429, 503, *statuses)


@router.get("/calendar", summary="Get own calendar", response_model=answers.Calendar, responses=_or(422))
async def get_calendar(caller: NeedsUser, days: Annotated[int, Query(ge=1, le=MAX_DAYS)] = 30) -> Response:
    """Return the days on which the caller did something."""
    return caller.answer(await caller.parts.streaks.calendar(caller.name, days, caller.today))


@router.post(
    "/activities",
    status_code=201,
    summary="Log an activity",
    response_model=answers.Receipt,
    responses={200: {"model": answers.Receipt, "description": "It was logged before"}, **_or(400, 413, 422)},
)
async def log_activity(
    new: NewActivity,
    caller: NeedsUser,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=_MAX_KEY,
            pattern=_KEY,
            description="As `client_key`; quotes around it, as the IETF's draft has them, are not part of it.",
        ),
    ] = None,
) -> Response:
    """Log an activity, and return what it earned.

    With a key that is known it is not logged again: the answer is a 200 with what was logged first, or a 422 when that
    was something else.
    """
    key = _one_key(new.client_key, idempotency_key)
    activity = Activity(new.category, new.minutes, new.note, key)
    receipt, is_new = await caller.parts.streaks.log_activity(caller.name, activity, caller.at)
    if not is_new and any(receipt[name] != getattr(new, name) for name in _LOGGED):
        raise RefusedError(422, "this key was used for another activity: use a new one", reason="key_reused")
    return caller.answer(receipt, 201 if is_new else 200)


def _one_key(in_body: str | None, in_header: str | None) -> str | None:
    if in_header is not None and len(in_header) > 2 and in_header[0] == in_header[-1] == '"':
        in_header = in_header[1:-1]
    if in_body is not None and in_header is not None and in_body != in_header:
        raise RefusedError(422, "`client_key` and `Idempotency-Key` differ: send one of them", reason="keys_differ")
    return in_body if in_header is None else in_header


@router.get("/consistency", summary="Get own week", response_model=answers.Consistency, responses=_or())
async def get_consistency(caller: NeedsUser) -> Response:
    """Return what the caller has done of the week's four categories."""
    return caller.answer(await caller.parts.streaks.consistency(caller.name, caller.today))


@router.get("/profile", summary="Get own profile", response_model=answers.Profile, responses=_or(404))
async def get_profile(caller: NeedsUser) -> Response:
    """Return the caller at a glance."""
    profile = await caller.parts.streaks.profile(caller.name, caller.today)
    if profile is None:
        raise HTTPException(404, "you have no profile yet: log a first activity")
    return caller.answer(profile)


@router.get(
    "/leaderboard", summary="Get the longest streaks", response_model=list[answers.Standing], responses=_or(422)
)
async def get_leaderboard(caller: NeedsUser, limit: Annotated[int, Query(ge=1, le=BOARD_LIMIT)] = 10) -> Response:
    """Return the longest streaks."""
    return caller.answer(await caller.parts.streaks.leaderboard(caller.today, limit))


@router.get("/activities", summary="List own activities", response_model=answers.Page, responses=_or(422))
async def list_activities(
    caller: NeedsUser,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 20,
    cursor: Annotated[str | None, Query(pattern=CURSOR, description="`next` of the page before.")] = None,
    category: rules.Category | None = None,
) -> Response:
    """Return the caller's activities, newest first, and the cursor of the next page: null on the last one."""
    return caller.answer(await caller.parts.streaks.activities(caller.name, limit, cursor, category))


@router.get(
    "/activities/{activity_id}",
    summary="Get one own activity",
    response_model=answers.Entry,
    responses=_or(404, 422),
)
async def get_activity(activity_id: Annotated[str, Path(pattern=CURSOR)], caller: NeedsUser) -> Response:
    """Return one of the caller's own activities."""
    found = await caller.parts.streaks.activity(caller.name, activity_id)
    if found is None:
        raise HTTPException(404, "you have no such activity")
    return caller.answer(found)


@router.get("/freeze", summary="Get own freezes", response_model=answers.Freezes, responses=_or())
async def get_freeze(caller: NeedsUser) -> Response:
    """Return how many freezes the caller holds, and whether one could be applied today."""
    return caller.answer(await caller.parts.streaks.freeze(caller.name, caller.today))


@router.post("/freeze", summary="Apply a freeze to today", response_model=answers.Freezes, responses=_or(409))
async def apply_freeze(caller: NeedsUser) -> Response:
    """Let a freeze hold today, so that nothing has to be done on it."""
    applied = await caller.parts.streaks.apply_freeze(caller.name, caller.today)
    if applied.refusal is not None:
        raise RefusedError(409, _FREEZE_REFUSED[applied.refusal], reason=applied.refusal)
    return caller.answer(freezes(applied.state, caller.today))


@router.get("/recovery", summary="Get what could be bought back", response_model=answers.Recovery, responses=_or())
async def get_recovery(caller: NeedsUser) -> Response:
    """Return the streak that the caller lost, what it costs to have it back, and until when."""
    return caller.answer(await caller.parts.streaks.recovery(caller.name, caller.today))


@router.post("/recovery", summary="Buy the lost streak back", response_model=answers.Recovered, responses=_or(409))
async def recover(caller: NeedsUser) -> Response:
    """Buy the streak back that ended last."""
    recovered = await caller.parts.streaks.recover(caller.name, caller.today)
    if recovered.refusal is not None:
        raise RefusedError(409, _RECOVERY_REFUSED[recovered.refusal], reason=recovered.refusal)
    state = recovered.state
    return caller.answer(
        {
            "recovered": recovered.recovered,
            "paid_xp": recovered.paid_xp,
            "streak": state.streak,
            "longest": state.longest,
            "xp": state.xp,
        }
    )


@router.get("/insights", summary="Get what one's own past says", response_model=answers.Insights, responses=_or())
async def get_insights(caller: NeedsUser) -> Response:
    """Return the caller's own history, best day, and the risk of losing the streak today."""
    return caller.answer(await caller.parts.streaks.insights(caller.name, caller.at))


@router.get("/health", summary="Tell whether the service works", responses=refusals(503))
async def get_health(parts: NeedsParts) -> answers.Health:
    """Tell whether the service can work; without its cache or the push API it goes on, degraded."""
    limits = "degraded" if parts.limits.degraded else "ok"
    return answers.Health.model_validate({**await parts.streaks.health(), "limits": limits})
