"""Refusals: every 4xx says what is wrong, in the form of RFC 9457, and repeats nothing of what was sent."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from opentelemetry import trace
from starlette.exceptions import HTTPException

__all__ = ["add_problem_handlers"]


def add_problem_handlers(app: FastAPI) -> None:
    """Answer refusals as problem details."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)


async def _http(_request: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, HTTPException)
    return _problem(refusal.status_code, str(refusal.detail), refusal.headers)


async def _validation(_request: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, RequestValidationError)
    errors = refusal.errors()
    malformed = any(error["type"] == "json_invalid" for error in errors)
    return _problem(400 if malformed else 422, "; ".join(map(_reason, errors)))


def _reason(error: dict[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error['ctx']['error']} at character {error['loc'][-1]}"
    where = ".".join(str(part) for part in error["loc"])
    return f"{where}: {error['msg']}"


def _problem(status: int, reason: str, headers: Any = None) -> JSONResponse:
    trace.get_current_span().set_attribute("streak.refused", reason)
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": reason}
    return JSONResponse(body, status, headers, "application/problem+json")
