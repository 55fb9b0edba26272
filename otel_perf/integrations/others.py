"""Who else measures requests: found in an app's middlewares, or around us by what it leaves in the scope.

The rule is one server span and one duration for a request. What another instrumentation makes already we leave out;
`Share` says what is left for us.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

__all__ = ["ALL", "FASTAPI", "NOTHING", "STARLETTE", "Share", "around", "within"]

#: FastAPI's own telemetry keeps its record of a request here; None keeps FastAPI apps mounted within from measuring.
FASTAPI = "fastapi.telemetry"
#: Starlette's OpenTelemetryMiddleware leaves a request alone that has this.
STARLETTE = "starlette.opentelemetry"

_CONTRIB = "opentelemetry.instrumentation.asgi"
_DEEPEST = 64


@dataclass(frozen=True, slots=True)
class Share:
    """What of a request's measurement is ours."""

    span: bool
    duration: bool
    active: bool


ALL = Share(span=True, duration=True, active=True)
NOTHING = Share(span=False, duration=False, active=False)
_ALL_BUT_SPAN = Share(span=False, duration=True, active=True)


def within(stack: Any) -> tuple[str, Share] | None:
    """Who measures among the middlewares of a stack, and what is left for us; None where nobody does."""
    for each in _chain(stack):
        module, name = _kind(each)
        if name != "OpenTelemetryMiddleware":
            continue
        if module == _CONTRIB:
            return "opentelemetry-instrumentation-asgi", _beside(each)
        if module == "starlette.middleware.opentelemetry":
            return "starlette.middleware.opentelemetry", _ALL_BUT_SPAN
    return None


def around(scope: MutableMapping[str, Any], send: Any) -> Share | None:
    """What is left for us where somebody around us measures this request; None where nobody does."""
    if scope.get(FASTAPI) is not None:
        return NOTHING
    if scope.get(STARLETTE):
        return _ALL_BUT_SPAN
    # The upstream middleware leaves nothing in the scope, but hands on a `send` of its own.
    if type(send) is FunctionType and send.__code__.co_name == "otel_send" and send.__closure__:
        for cell in send.__closure__:
            if _kind(cell.cell_contents) == (_CONTRIB, "OpenTelemetryMiddleware"):
                return _beside(cell.cell_contents)
    return None


def _kind(of: object) -> tuple[str, str]:
    return type(of).__module__, type(of).__name__


def _beside(upstream: Any) -> Share:
    # With the conventions of old it records a duration of another name and unit, but active requests all the same.
    return Share(span=False, duration=getattr(upstream, "duration_histogram_new", None) is None, active=False)


def _chain(stack: Any) -> Iterator[Any]:
    for _ in range(_DEEPEST):
        if stack is None:
            return
        yield stack
        stack = getattr(stack, "app", None)
