"""What admins ask for and do."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Response

from . import answers
from .access import Caller, NeedsAdmin
from .kpis import report
from .maintenance import AlreadyRunningError, ClockError, NothingToResumeError, Summary
from .problems import RefusedError, refusals
from .records import Run, Tally
from .routes import CURSOR
from .stores import LeaseLostError

__all__ = ["router"]

router = APIRouter(prefix="/api/admin", tags=["admin"], responses=refusals(401, 403, 429, 503))

_MAX_PAGE = 100


@router.post(
    "/maintenance",
    summary="Run the day's maintenance",
    response_model=answers.MaintenanceSummary,
    responses=refusals(409, 422, 500),
)
async def run_maintenance(caller: NeedsAdmin, dry_run: bool = False) -> Response:
    """Account for the days that are over, or tell what that would do.

    A run of the day that is completed is not done again (`repeated`), so that a scheduler may try again.
    """
    try:
        summary = await caller.parts.maintenance.run(caller.at, "http", dry_run=dry_run)
    except (AlreadyRunningError, LeaseLostError) as busy:
        raise _busy(busy) from None
    except ClockError as wrong:
        raise RefusedError(503, str(wrong), reason="clock") from None
    return _answer(caller, summary)


@router.post(
    "/maintenance/resume",
    summary="Take up the day's run where it was ended",
    response_model=answers.MaintenanceSummary,
    responses=refusals(404, 409, 500),
)
async def resume_maintenance(caller: NeedsAdmin) -> Response:
    """Do what the run of today, which was ended half-way, has not done."""
    try:
        summary = await caller.parts.maintenance.resume(caller.at, "http")
    except NothingToResumeError as nothing:
        raise HTTPException(404, str(nothing) or "there is nothing to resume") from None
    except (AlreadyRunningError, LeaseLostError) as busy:
        raise _busy(busy) from None
    except ClockError as wrong:
        raise RefusedError(503, str(wrong), reason="clock") from None
    return _answer(caller, summary)


@router.get("/maintenance", summary="List the runs before", response_model=answers.History, responses=refusals(422))
async def list_runs(
    caller: NeedsAdmin,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 20,
    cursor: Annotated[str | None, Query(pattern=CURSOR, description="`next` of the page before.")] = None,
) -> Response:
    """Return the runs, newest first, and the cursor of the next page: null on the last one."""
    runs = await caller.parts.maintenance.history(limit + 1, cursor)
    shown = runs[:limit]
    return caller.answer({"runs": [_run(run) for run in shown], "next": shown[-1].id if len(runs) > limit else None})


@router.get("/kpis", summary="Get the KPIs", response_model=answers.KpiReport)
async def get_kpis(caller: NeedsAdmin) -> Response:
    """Return what the service wants to be good at, as it was counted last; the first time, it is counted now."""
    board = caller.parts.kpis
    kpis, counted_at = board.current(), board.counted_at
    if kpis is None or counted_at is None or not caller.parts.settings.kpis_every_s:
        kpis, counted_at = await board.count(caller.at, caller.today), caller.at
    rows = [asdict(row) for row in report(kpis)]
    return caller.answer({"counted_at": counted_at.isoformat(), "kpis": rows})


def _busy(busy: AlreadyRunningError | LeaseLostError) -> RefusedError:
    # Whoever has the lease extends it; it is free at the latest when it has run out.
    retry_s = busy.retry_after_s if isinstance(busy, AlreadyRunningError) else 1
    return RefusedError(409, str(busy), headers={"Retry-After": str(retry_s)}, reason="under_way")


def _answer(caller: Caller, summary: Summary) -> Response:
    if summary.run is not None and summary.run.state == "failed":
        # Not a success: a scheduler tries again, and takes the run up where it ended.
        left = f", and {summary.users_left} users or more are left" if summary.users_left else ""
        raise RefusedError(500, f"the run failed ({summary.run.error}){left}: it can be resumed", reason="failed")
    return caller.answer(
        {
            **(_blank(caller.today) if summary.run is None else _run(summary.run)),
            **_figures(summary.tally),
            "unsent": summary.unsent,
            "errors": summary.errors,
            "dry_run": summary.dry_run,
            "repeated": summary.repeated,
            "seconds": round(summary.seconds, 3),
        }
    )


def _blank(today: date) -> dict[str, Any]:
    written = ("id", "trigger", "state", "started_at", "ended_at", "error")
    return {**dict.fromkeys(written), "day": today.isoformat(), "resumed": 0}


def _run(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "day": run.day.isoformat(),
        "trigger": run.trigger,
        "state": run.state,
        "started_at": run.started_at.isoformat(),
        "ended_at": run.ended_at.isoformat() if run.ended_at else None,
        "resumed": run.resumed,
        "error": run.error,
        **_figures(run.tally),
        "unsent": run.unsent,
    }


def _figures(tally: Tally) -> dict[str, Any]:
    return {**asdict(tally), "broken": tally.broken}
