"""What users of the streak service ask for, and how often: the mix that `traffic` sends."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from .auth import mint
from .rules import CATEGORIES

__all__ = ["Call", "Mix"]

_HOT_USERS = tuple(f"user-{number:03}" for number in range(12))
_ALL_USERS = tuple(f"user-{number:03}" for number in range(300))
_HOT_SHARE = 0.8
_UNKNOWN_SHARE = 0.3
_FILTERED_SHARE = 0.3
_ADMIN_EACH = 500
# When within each round of requests an admin does what.
_ADMIN_AT = {
    20: ("POST", "/api/admin/maintenance"),
    22: ("GET", "/api/admin/maintenance"),
    24: ("POST", "/api/admin/maintenance/resume"),
    26: ("GET", "/api/admin/kpis"),
}
_UNKNOWN_ID = "0" * 32
_KNOWN_ACTIVITIES = 200
_DAYS = (7, 30, 90, 365)

_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Call:
    """One request, and the template of the route that takes it."""

    method: str
    template: str
    path: str
    user: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = None
    optional: bool = False
    """The service has this route only when its demonstration is switched on."""


class Mix:
    """Makes the requests, one after the other, by chance. The same seed makes the same ones."""

    def __init__(self, secret: str, chance: random.Random) -> None:
        self._secret = secret
        self._chance = chance
        self._made = 0
        self._logged: deque[tuple[str, str]] = deque(maxlen=_KNOWN_ACTIVITIES)
        weighted: tuple[tuple[Callable[[], Call], int], ...] = (
            (self._log_activity, 12),
            (self._calendar, 25),
            (self._consistency, 18),
            (self._leaderboard, 14),
            (self._profile, 13),
            (self._activities, 4),
            (self._activity, 4),
            (self._insights, 2),
            (self._freeze, 2),
            (self._recovery, 2),
            (self._report, 2),
            (self._flaky, 2),
            (self._token, 1),
            (self._refused, 3),
            (self._nowhere, 1),
        )
        self._makers, self._weights = zip(*weighted, strict=True)

    def next(self) -> Call:
        """Return the next request."""
        self._made += 1
        admin = _ADMIN_AT.get(self._made % _ADMIN_EACH)
        if admin is not None:
            return self._as_admin(*admin)
        call: Call = self._chance.choices(self._makers, self._weights)[0]()
        return call

    def learn(self, call: Call, answer: httpx.Response) -> None:
        """Remember an activity that was logged, so that it can be asked for."""
        written = call.method == "POST" and answer.status_code == httpx.codes.CREATED
        if written and call.template == "/api/activities" and call.user:
            self._logged.append((call.user, answer.json()["id"]))

    def _log_activity(self) -> Call:
        body = {"category": self._chance.choice(CATEGORIES), "minutes": self._chance.randint(5, 90)}
        return self._post("/api/activities", json.dumps(body).encode())

    def _calendar(self) -> Call:
        return self._get("/api/calendar", params={"days": self._chance.choice(_DAYS)})

    def _consistency(self) -> Call:
        return self._get("/api/consistency")

    def _leaderboard(self) -> Call:
        return self._get("/api/leaderboard")

    def _profile(self) -> Call:
        return self._get("/api/profile")

    def _activities(self) -> Call:
        params: dict[str, Any] = {"limit": self._chance.choice((5, 20, 100))}
        if self._chance.random() < _FILTERED_SHARE:
            params["category"] = self._chance.choice(CATEGORIES)
        return self._get("/api/activities", params=params)

    def _activity(self) -> Call:
        template = "/api/activities/{activity_id}"
        if not self._logged or self._chance.random() < _UNKNOWN_SHARE:
            return self._get(template, path=f"/api/activities/{_UNKNOWN_ID}")
        user, activity_id = self._chance.choice(self._logged)
        return self._get(template, path=f"/api/activities/{activity_id}", user=user)

    def _insights(self) -> Call:
        return self._get("/api/insights")

    def _freeze(self) -> Call:
        return self._chance.choice((lambda: self._get("/api/freeze"), lambda: self._post("/api/freeze", b"")))()

    def _recovery(self) -> Call:
        return self._chance.choice((lambda: self._get("/api/recovery"), lambda: self._post("/api/recovery", b"")))()

    def _token(self) -> Call:
        path = "/api/demo/token"
        content = json.dumps({"name": self._someone()}).encode()
        return Call("POST", path, path, headers={"Content-Type": _JSON}, content=content, optional=True)

    def _report(self) -> Call:
        return self._get("/api/report", optional=True)

    def _flaky(self) -> Call:
        # uvicorn closes the connection after an unhandled failure: what is sent on it next would get no answer.
        call = self._get("/api/flaky", optional=True)
        return replace(call, headers={**call.headers, "Connection": "close"})

    def _nowhere(self) -> Call:
        return self._get("", path="/api/nowhere")

    def _refused(self) -> Call:
        return self._chance.choice(
            (
                lambda: self._post("/api/activities", b'{"category": "sleep"}'),
                lambda: self._post("/api/activities", b'{"category": '),
                lambda: self._get("/api/calendar", params={"days": 0}),
                lambda: self._get("/api/calendar", params={"days": "all"}),
                lambda: Call("GET", "/api/profile", "/api/profile"),
                lambda: Call("GET", "/api/profile", "/api/profile", headers={"Authorization": "Bearer user.eve.0"}),
                lambda: self._post("/api/admin/maintenance", b""),
            )
        )()

    def _as_admin(self, method: str, path: str) -> Call:
        token = mint(self._secret, "traffic", admin=True)
        return Call(method, path, path, headers={"Authorization": f"Bearer {token}"})

    def _get(
        self,
        template: str,
        *,
        path: str | None = None,
        user: str | None = None,
        params: Mapping[str, Any] | None = None,
        optional: bool = False,
    ) -> Call:
        user = user or self._someone()
        headers = self._signed(user)
        return Call("GET", template, path or template, user, headers, params or {}, optional=optional)

    def _post(self, template: str, content: bytes) -> Call:
        user = self._someone()
        headers = {**self._signed(user), "Content-Type": _JSON}
        return Call("POST", template, template, user, headers, content=content)

    def _someone(self) -> str:
        return self._chance.choice(_HOT_USERS if self._chance.random() < _HOT_SHARE else _ALL_USERS)

    def _signed(self, user: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {mint(self._secret, user)}"}
