"""Who may ask, and how often: one dependency for each route, since each one more costs each request.

async def get_profile(caller: NeedsUser) -> Response: ...
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from pydantic_core import to_json

from . import rules
from .auth import NotTrustedError, User, verify
from .limits import POLICY
from .parts import Parts
from .problems import HEADERS, RefusedError

__all__ = ["Caller", "NeedsAdmin", "NeedsUser"]

_UNTRUSTED = {"WWW-Authenticate": "Bearer"}
_QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever asks, when, and what answers them."""

    user: User
    parts: Parts
    at: datetime
    headers: dict[str, str]
    """Go with every answer."""

    @property
    def name(self) -> str:
        """Return the user's name."""
        return self.user.name

    @property
    def today(self) -> date:
        """Return the day that the request belongs to."""
        return rules.day_of(self.at)

    def answer(self, content: Any, status: int = 200) -> Response:
        """Return an answer that no cache keeps.

        It is written here and not by FastAPI from a model: what the service returns needs no second look.
        """
        return Response(to_json(content), status, self.headers, "application/json")


class _Bearer(SecurityBase):
    """Trusts a bearer token, and counts the request."""

    def __init__(self, *, admin: bool) -> None:
        self.model = HTTPBearer(description="A token of `python -m examples.streak.auth`")
        self.scheme_name = "Token"
        self._admin = admin

    async def __call__(self, request: Request) -> Caller:
        parts: Parts = request.app.state.parts
        at = parts.clock()
        at_s = at.timestamp()
        user = _trust(parts.settings.secret, request.headers.get("authorization"), at_s)
        headers = {"Cache-Control": "private, no-store"}
        request.scope[HEADERS] = headers
        taken = await parts.limits.take(user.name, at_s)
        if taken is not None:
            headers["RateLimit-Policy"] = parts.limits.policy
            headers["RateLimit"] = f'"{POLICY}";r={taken.left};t={taken.reset_s}'
            if not taken.allowed:
                raise _too_many(taken.reset_s)
        if self._admin and not user.admin:
            raise RefusedError(403, "this is for admins")
        return Caller(user, parts, at, headers)


def _trust(secret: str, sent: str | None, at_s: float) -> User:
    scheme, _, token = (sent or "").partition(" ")
    if not token or scheme.lower() != "bearer":
        raise RefusedError(401, "a token is missing: send `Authorization: Bearer <token>`", headers=_UNTRUSTED)
    try:
        return verify(secret, token.strip(), at_s)
    except NotTrustedError as refusal:
        raise RefusedError(401, str(refusal), headers=_UNTRUSTED) from None


def _too_many(reset_s: int) -> RefusedError:
    return RefusedError(
        429,
        f"you have asked too often: try again in {reset_s} s",
        headers={"Retry-After": str(reset_s)},
        kind=_QUOTA_EXCEEDED,
        title="Quota exceeded",
        **{"violated-policies": [POLICY]},
    )


NeedsUser = Annotated[Caller, Depends(_Bearer(admin=False))]
NeedsAdmin = Annotated[Caller, Depends(_Bearer(admin=True))]
