"""Web vitals: the script for an app's pages, and the endpoint that it reports to.

Both are public, unlike all else that is mounted: what comes in is bounded in size, number and range, must come from a
page of the same origin, and becomes nothing but histograms by route. No address, cookie or text of it is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import cache
from importlib import resources
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from otel_perf import conventions as c
from otel_perf.telemetry import runtime
from otel_perf.web.rate import Rate
from otel_perf.web.templates import template

__all__ = ["PATH", "SCRIPT_PATH", "Vitals"]

PATH = "/api/performance/vitals"
SCRIPT_PATH = "/performance/vitals.js"

_MOST_BYTES = 4096
_LONGEST_PATH = 2048
_OTHER = "other"  # the route of a page that the app does not know
_MAXIMA_MS = {"lcp": 600_000, "fcp": 600_000, "ttfb": 600_000, "inp": 60_000, "fid": 60_000}
_MOST_SHIFT = 100
_METRICS = {metric.name.removeprefix("web_vital."): metric for metric in c.WEB_VITALS}
_NEVER_STORED = {"cache-control": "no-store"}


class _RefusedError(Exception):
    """A report that is not taken: the status and, in short, why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.answer = JSONResponse({"error": why}, status, _NEVER_STORED)


class Vitals:
    """The script and the endpoint of one mount."""

    def __init__(self, routes: list[Any], names: Collection[str]) -> None:
        self._routes = routes
        self._names = frozenset(names)
        self._rate: Rate | None = None

    async def script(self, request: Request) -> Response:
        """Serves the script; browsers keep it for an hour, and ask then whether it is still the same."""
        body, tag = _script()
        headers = {"cache-control": "public, max-age=3600", "etag": tag, "x-content-type-options": "nosniff"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="text/javascript; charset=utf-8", headers=headers)

    async def take(self, request: Request) -> Response:
        """Records what a page reports."""
        try:
            in_force = _taking()
            _check_request(request)
            client = request.client.host if request.client else ""
            rate = self._limit(in_force.settings.vitals_per_minute)
            _check_rate(rate.permits(client))  # before anything is read
            values, page, name = _read(await _body(request))
            _check_rate(rate.take(client, len(values)))
        except _RefusedError as refused:
            return refused.answer
        except ClientDisconnect:
            return Response(status_code=400)
        route = self._route(request, page, name)
        for metric, value in values.items():
            in_force.at(_METRICS[metric], (route,)).record(value)
        return Response(status_code=204, headers=_NEVER_STORED)

    def _limit(self, per_minute: int) -> Rate:
        if self._rate is None or self._rate.per_minute != per_minute:
            self._rate = Rate(per_minute)
        return self._rate

    def _route(self, request: Request, page: str, name: str | None) -> str:
        """The template of a page: what its script tag says, where the app knows that, else what its path leads to."""
        if name is not None and name in self._names:
            return name
        # Below a mount, and behind a proxy that takes away a part of the path, the browser's path is longer.
        page = unquote(page)  # as the server does before it looks for the route of a request
        root = str(request.scope.get("root_path", ""))
        of_proxy = str(request.scope.get("app_root_path", root))
        if root and not page.startswith(f"{root}/"):
            return _OTHER
        found = template(self._routes, page[len(root) :])
        return _OTHER if found is None else root.removeprefix(of_proxy) + found


def _taking() -> runtime.Runtime:
    in_force = runtime.current
    if in_force is None or not in_force.settings.vitals_per_minute:
        raise _RefusedError(404, "web vitals are not taken here")
    return in_force


def _check_request(request: Request) -> None:
    headers = request.headers
    site = headers.get("sec-fetch-site")
    if site is not None:  # what a page cannot set or hide
        same = site == "same-origin"
    else:
        from_page = headers.get("origin") or headers.get("referer") or ""
        same = bool(from_page) and _host(from_page) == headers.get("host", "").lower()
    if not same:
        raise _RefusedError(403, "only from a page of this site")
    # A page of another site would have to ask before it sends this type.
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _RefusedError(415, "send application/json")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 9 or int(length) > _MOST_BYTES:
        raise _RefusedError(413, f"at most {_MOST_BYTES} bytes")


def _check_rate(permitted: bool) -> None:
    if not permitted:
        raise _RefusedError(429, "too many")


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise _RefusedError(413, f"at most {_MOST_BYTES} bytes")
    return body


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _read(body: bytes) -> tuple[Mapping[str, float], str, str | None]:
    try:
        given: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise _RefusedError(400, "no JSON") from None
    if not isinstance(given, dict):
        raise _RefusedError(400, "no object")
    report = cast("dict[str, Any]", given)
    page, name, metrics = report.get("path"), report.get("route"), report.get("metrics")
    if not isinstance(page, str) or not page.startswith("/") or len(page) > _LONGEST_PATH:
        raise _RefusedError(400, "no path")
    if not isinstance(metrics, dict) or not metrics or len(cast("dict[str, Any]", metrics)) > len(_METRICS):
        raise _RefusedError(400, "no metrics")
    found = {key: _value(key, value) for key, value in cast("dict[str, Any]", metrics).items()}
    return found, page, name if isinstance(name, str) else None


def _value(name: str, value: Any) -> float:
    if name not in _METRICS:
        raise _RefusedError(400, f"unknown metric; known are {', '.join(_METRICS)}")
    most = _MAXIMA_MS.get(name, _MOST_SHIFT)
    # No number (NaN) is within no range, and what JSON calls true is none either.
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise _RefusedError(400, f"{name} is a number from 0 to {most}")
    return float(value) if name == "cls" else value / 1000


@cache
def _script() -> tuple[bytes, str]:
    """The script without its comments, and a tag by which a browser knows it again."""
    text = resources.files(__package__ or __name__).joinpath("vitals.js").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines()]
    body = "\n".join(line for line in lines if line and not line.startswith("//")).encode()
    return body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'
