"""Refusals and failures, as RFC 9457 has them.

Each says what is wrong, repeats nothing of what was sent but the path and names of members that are not known, and
names the trace in which it is to be found, where there is one: a request that is not traced has no such member.
The type is `about:blank` (the status says it all), but for a spent quota, which has a type of its own in the IETF's
draft of the RateLimit headers. Where there are several reasons for one status, the member `reason` tells them apart.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from opentelemetry import trace
from starlette.exceptions import HTTPException as StarletteHTTPException

from .logs import FAILURE
from .stores import StoreUnavailableError

__all__ = ["HEADERS", "MEDIA_TYPE", "RefusedError", "add_problem_handlers", "refusals"]

MEDIA_TYPE = "application/problem+json"
#: Where the scope of a request has the headers that go with every answer to it, also with a refusal.
HEADERS = "streak.headers"

_BLANK = "about:blank"
_RETRY_STORE_S = 2
_MAX_PATH = 200
_MAX_ERRORS = 20
_MAX_POINTER = 200
_MAX_TEXT = 1_000
_SERVER_ERROR = 500
_METHOD_NOT_ALLOWED = 405
_SCHEMA = {
    "type": "object",
    "title": "Problem",
    "description": "What is wrong, as RFC 9457 has it.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "examples": [_BLANK]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri-reference", "description": "The path that was asked for."},
        "trace_id": {
            "type": "string",
            "description": "The trace of this request; not there where nothing is traced, as for /api/health.",
        },
        "reason": {"type": "string", "description": "Tells the reasons of one status apart."},
        "errors": {
            "type": "array",
            "maxItems": _MAX_ERRORS,
            "description": "Of a 422: what is wrong with what was sent, the first of it.",
            "items": {
                "type": "object",
                "required": ["in", "pointer", "reason"],
                "properties": {
                    "in": {"enum": ["body", "query", "path", "header"]},
                    "pointer": {"type": "string", "format": "json-pointer"},
                    "reason": {"type": "string"},
                },
            },
        },
        "violated-policies": {
            "type": "array",
            "description": "Of a spent quota: the names of the policies.",
            "items": {"type": "string"},
        },
    },
}


class RefusedError(HTTPException):
    """A refusal with more to say than its status and a sentence."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: dict[str, str] | None = None,
        kind: str = _BLANK,
        title: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(status, detail, headers)
        self.kind = kind
        self.title = title
        self.more = more


def add_problem_handlers(app: FastAPI) -> None:
    """Answer refusals and failures as problem details, and describe them in the app's OpenAPI document."""
    # Starlette's: routes that are not there are refused by it and not by FastAPI.
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StoreUnavailableError, _store_unavailable)
    # The handler of all others answers only: the exception goes on to the server's log, and is measured as a failure.
    app.add_exception_handler(Exception, _failed)
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        document.setdefault("components", {}).setdefault("schemas", {})["Problem"] = _SCHEMA
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what a route's `responses` say of these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


async def _refused(request: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, StarletteHTTPException)
    kind, title, more = _BLANK, None, {}
    if isinstance(refusal, RefusedError):
        kind, title, more = refusal.kind, refusal.title, refusal.more
    headers = refusal.headers
    if refusal.status_code == _METHOD_NOT_ALLOWED:
        headers = {**(headers or {}), **_allowed(request)}
    elif refusal.status_code >= _SERVER_ERROR and "reason" in more:
        request.scope[FAILURE] = more["reason"]
    return _problem(request, refusal.status_code, str(refusal.detail), headers, kind=kind, title=title, more=more)


def _allowed(request: Request) -> dict[str, str]:
    """Return the header with the methods of all routes of a path: Starlette names those of the first one only."""
    template = getattr(request.scope.get("route"), "path", None)
    # It is made once and kept; what is not in it keeps Starlette's header.
    operations = request.app.openapi()["paths"].get(template)
    return {"Allow": ", ".join(sorted(method.upper() for method in operations))} if operations else {}


async def _invalid(request: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, RequestValidationError)
    errors = refusal.errors()
    if any(error["type"] == "json_invalid" for error in errors):
        error = errors[0]
        return _problem(request, 400, f"the body is not JSON: {error['ctx']['error']} at character {error['loc'][-1]}")
    told = [_told(error) for error in errors[:_MAX_ERRORS]]
    # A member that is not known has a name of the caller's own: that is told to the caller, and is on no span.
    detail = "; ".join(
        f"{each['in']}: a member is not known"
        if error["type"] == "extra_forbidden"
        else f"{each['in']} {each['pointer']}: {each['reason']}"
        for each, error in zip(told, errors, strict=False)
    )
    return _problem(request, 422, detail, more={"errors": told})


async def _store_unavailable(request: Request, failure: Exception) -> JSONResponse:
    # Its text names the kind of failure. What caused it is the driver's: it may tell where the database is, at length.
    kind = str(failure)[:_MAX_TEXT]
    request.scope[FAILURE] = kind
    about = {"exception.type": type(failure).__qualname__, "exception.message": kind}
    trace.get_current_span().add_event("exception", about)
    return _problem(
        request, 503, "the database does not answer: try again in a moment", {"Retry-After": str(_RETRY_STORE_S)}
    )


async def _failed(request: Request, _failure: Exception) -> JSONResponse:
    return _problem(request, 500, "the service failed; the trace and the service's log tell how")


def _told(error: dict[str, Any]) -> dict[str, str]:
    # Of these, only the place and the rule are repeated; `input` and `ctx` hold what was sent.
    place, *path = error["loc"]
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
    if len(pointer) > _MAX_POINTER:
        pointer = ""  # somewhere in the whole
    return {"in": str(place), "pointer": pointer, "reason": error["msg"]}


def _problem(
    request: Request,
    status: int,
    detail: str,
    headers: Any = None,
    *,
    kind: str = _BLANK,
    title: str | None = None,
    more: dict[str, Any] | None = None,
) -> JSONResponse:
    span = trace.get_current_span()
    span.set_attribute("streak.refused", detail[:_MAX_TEXT])
    context = span.get_span_context()
    body = {
        "type": kind,
        "title": title or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": quote(request.scope["path"][:_MAX_PATH], errors="replace"),
        **({"trace_id": trace.format_trace_id(context.trace_id)} if context.is_valid else {}),
        **(more or {}),
    }
    sent = {"Cache-Control": "no-store", **request.scope.get(HEADERS, {}), **(headers or {})}
    return JSONResponse(body, status, sent, MEDIA_TYPE)
