"""The page and the API on an app: `mount(app)` serves /performance, /api/performance, /api/health and /metrics.

So it does the script that reports the web vitals of the app's own pages, and the endpoint that takes them.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Collection
from functools import cache
from importlib import resources
from typing import Any

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
except ImportError:  # the message is worth more than the bare ModuleNotFoundError
    raise ImportError("otel_perf.web needs Starlette: pip install 'otel-perf[web]'") from None

from otel_perf.insight import live
from otel_perf.insight.health import Losses, health
from otel_perf.insight.snapshot import snapshot
from otel_perf.telemetry import runtime
from otel_perf.telemetry.prometheus import OPENMETRICS, TEXT, wants_openmetrics
from otel_perf.web import pages
from otel_perf.web.access import Access, Allow
from otel_perf.web.vitals import PATH, SCRIPT_PATH, Vitals

__all__ = ["mount"]

_NOT_CONFIGURED = "otel_perf is not configured: call otel_perf.configure() when the service starts"
_NOT_LOCAL = (
    "only clients on this machine may read this, not through a proxy and not with loopback=False; send "
    "'Authorization: Bearer <token>' with the value of OTEL_PERF_ACCESS_TOKEN, or give mount(app, allow=...) a check "
    "of your own"
)
_NEVER_STORED = {"cache-control": "no-store"}
_HEALTH_KEPT_S = 1.0


def mount(
    app: Starlette, *, token: str | None = None, allow: Allow | None = None, loopback: bool = True,
    page_routes: Collection[str] = (),
) -> None:  # fmt: skip
    """Serves `/performance` (a page), `/api/performance` (JSON), `/metrics` (Prometheus) and `/api/health` on an app.

    Loopback clients may read them. Others need the token, or must pass `allow`. `/api/health` is open to all: it holds
    words and no figures. A route of the app's own with one of these paths wins. `/performance/vitals.js` and
    `/api/performance/vitals` are for the visitors of the app's pages.

    Args:
        app: a FastAPI or Starlette application; also one that has started.
        token: bearer token, by default the setting `access_token`.
        allow: a function of the request, sync or async, that answers True to let it in.
        loopback: False lets no client in for being local: for a service behind a proxy on the same machine.
        page_routes: the names that pages may give themselves by `data-route` on the script for web vitals.

    Raises:
        TypeError: when the app cannot take routes.
    """
    if not isinstance(getattr(app, "routes", None), list):
        raise TypeError(f"mount() takes a FastAPI or Starlette app, not {type(app).__qualname__!r}")

    async def refused(request: Request) -> Response | None:
        in_force = runtime.current
        wanted = token if token is not None or in_force is None else in_force.settings.access_token
        if not await Access(wanted, allow, loopback).permits(request):
            return JSONResponse({"error": _NOT_LOCAL}, 403, _NEVER_STORED)
        return None if in_force is not None else JSONResponse({"error": _NOT_CONFIGURED}, 503, _NEVER_STORED)

    async def page(request: Request) -> Response:
        text, policy = _page()
        return await refused(request) or HTMLResponse(
            text, headers={**_NEVER_STORED, "content-security-policy": policy, "x-content-type-options": "nosniff"}
        )

    async def performance(request: Request) -> Response:
        return await refused(request) or JSONResponse(await run_in_threadpool(_snapshot), headers=_NEVER_STORED)

    async def metrics(request: Request) -> Response:
        answer = await refused(request)
        if answer is not None:
            return answer
        openmetrics = wants_openmetrics(",".join(request.headers.getlist("accept")))
        body = await run_in_threadpool(_exposition, openmetrics)
        return Response(body, media_type=OPENMETRICS if openmetrics else TEXT, headers=_NEVER_STORED)

    vitals = Vitals(app.routes, page_routes)
    endpoints: dict[str, pages.Endpoint] = {
        "/performance": page, "/api/performance": performance, "/metrics": metrics, "/api/health": _Health().answer,
        SCRIPT_PATH: vitals.script, PATH: vitals.take,
    }  # fmt: skip
    pages.place(app.routes, endpoints, posted=(PATH,))


class _Health:
    """The health of one mount; judged at most once a second, since everybody may ask."""

    def __init__(self) -> None:
        self._losses = Losses()
        self._judged: dict[str, Any] = {}
        self._judged_s = -_HEALTH_KEPT_S
        self._of: runtime.Runtime | None = None

    async def answer(self, _request: Request) -> Response:
        now_s, in_force = time.monotonic(), runtime.current
        if not self._judged or in_force is not self._of or now_s - self._judged_s >= _HEALTH_KEPT_S:
            self._of, self._judged_s = in_force, now_s
            document = await run_in_threadpool(_snapshot)
            self._judged = health(document, losing=self._losses.lately(document)) if document else health(None)
        return JSONResponse(self._judged, headers=_NEVER_STORED)


def _snapshot() -> dict[str, Any]:
    in_force = runtime.current
    return snapshot(in_force, live.of(in_force)) if in_force is not None else {}


def _exposition(openmetrics: bool) -> str:
    in_force = runtime.current
    return in_force.exposition.render(in_force.resource, openmetrics=openmetrics) if in_force is not None else ""


@cache
def _page() -> tuple[str, str]:
    """The page, and a policy that lets it run its own script and style, talk to its own server, and nothing else."""
    text = resources.files(__name__).joinpath("page.html").read_text(encoding="utf-8")
    script, style = (
        " ".join(f"'sha256-{_digest(body)}'" for body in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL))
        for tag in ("script", "style")
    )
    return text, (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(body: str) -> str:
    return base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
