"""FastAPI's own telemetry (`fastapi.telemetry`): switched off for an app, or left on over our providers.

An app is told by what it has, never by a version: FastAPI keeps the dict that `FastAPI(telemetry=...)` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from otel_perf.integrations import others, plan, providers
from otel_perf.integrations.others import Share
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.routes import Scope

__all__ = ["chosen", "has", "keep", "left_by", "shows_parts", "switch_off"]

_OFF = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def _options(app: Any) -> dict[str, Any] | None:
    found = getattr(app, "_telemetry", None)
    return cast("dict[str, Any]", found) if isinstance(found, dict) and "tracing" in found else None


def has(app: Any) -> bool:
    """Whether this app can measure itself."""
    return _options(app) is not None


def chosen(app: Any) -> bool:
    """Whether somebody gave this app a tracer provider: it measures itself on purpose then."""
    options = _options(app)
    return options is not None and bool(options["tracing"]) and options.get("tracer_provider") is not None


def switch_off(app: Any) -> Undo:
    """Switches it off, the exporters that it would add from the environment included."""
    options = _options(app)
    return Undo() if options is None else _change(options, _OFF)


def keep(app: Any, *, excluded: Callable[[Scope], bool] = plan.excluded) -> Undo:
    """Leaves it on, over our providers where none were given, without the paths that our settings exclude."""
    options = _options(app)
    if options is None:
        return Undo()
    theirs = options.get("exclude")

    def exclude(scope: Scope) -> bool:
        return excluded(scope) or bool(theirs is not None and theirs(scope))

    changes: dict[str, Any] = {"exclude": exclude}
    if options.get("tracer_provider") is None:
        # Its exporters from the environment would send a second time what our provider sends.
        changes.update(tracing=True, tracer_provider=providers.TRACERS, auto_configure=False)
    if options.get("meter_provider") is None:
        changes.update(meter_provider=providers.METERS)
    return _change(options, changes)


def left_by(app: Any) -> Share:
    """What an app that measures itself leaves for us."""
    options = _options(app) or {}
    metrics = bool(options.get("metrics"))
    return Share(span=False, duration=not metrics, active=not metrics) if options else others.ALL


def shows_parts(scope: Scope) -> bool:
    """Whether it makes spans of dependencies, endpoint, serialization and background tasks in this request."""
    return getattr(scope.get(others.FASTAPI), "tracer", None) is not None


def _change(options: dict[str, Any], changes: dict[str, Any]) -> Undo:
    before = {key: options[key] for key in changes if key in options}
    options.update(changes)

    def put_back() -> None:
        for key, value in changes.items():
            if key in before and options.get(key) is value:
                options[key] = before[key]

    return Undo(put_back)
