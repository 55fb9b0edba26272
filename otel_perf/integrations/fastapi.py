"""Requests of FastAPI and Starlette apps, measured by one of three engines: ours, FastAPI's own, upstream's.

Whatever the engine, our middleware stands outermost: it gives the request id, excludes routes, flushes when the app
ends, and measures what the engine leaves out. One server span and one duration for each request, never two.
"""

from __future__ import annotations

import logging
from typing import Any

from starlette.applications import Starlette

from otel_perf import guard
from otel_perf.integrations import native, others, upstream
from otel_perf.integrations.asgi import Middleware
from otel_perf.integrations.others import Share
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.routes import Routes

__all__ = ["ENGINES", "instrument", "matches"]

ENGINES = ("ours", "native", "upstream")

_log = logging.getLogger("otel_perf")
_STATE = "_otel_perf_instrumented"


def matches(target: Any) -> bool:
    """Whether this is a FastAPI or Starlette app."""
    return isinstance(target, Starlette)


def instrument(app: Any, *, engine: str | None = None) -> Undo:
    """Measures the requests of a FastAPI or Starlette app, started or not; the answer undoes it.

    Instrumenting an app again changes nothing.

    Args:
        app: the app.
        engine: "ours"; "native", FastAPI's own telemetry over our providers; "upstream",
            opentelemetry-instrumentation-fastapi. By default ours, unless the app was told to measure itself
            (`FastAPI(telemetry={"tracer_provider": ...})`), which is respected.

    Raises:
        ValueError: for an unknown engine, or one that this app cannot have.
        ImportError: when the engine is not installed.
    """
    if engine is not None and engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is unknown; there are {', '.join(map(repr, ENGINES))}")
    present = getattr(app, _STATE, None)
    if present is not None:
        if engine not in (None, present.engine):
            _log.warning("otel_perf: this app is measured by engine=%r already; undo that first", present.engine)
        return Undo()
    made = _Instrumented(app, engine)
    setattr(app, _STATE, made)
    return Undo(made.undo)


class _Instrumented:
    """What was done to one app."""

    def __init__(self, app: Any, engine: str | None) -> None:
        self._app = app
        self._asked = engine
        self._on = True
        self.engine = engine or ("native" if native.chosen(app) else "ours")
        self._middleware: list[Middleware] = []
        self._routes = Routes(app)
        self._undo: list[Undo] = [self._prepare()]
        self._before: Any = app.__dict__.get("build_middleware_stack")
        self._below = app.build_middleware_stack
        # Bound once: each access to a method makes a new object, and undo compares.
        self._build = self._build_stack
        app.build_middleware_stack = self._build
        if app.middleware_stack is not None:
            app.middleware_stack = self._wrap(app.middleware_stack)

    def _prepare(self) -> Undo:
        if self.engine == "native":
            if not native.has(self._app):
                raise ValueError(
                    f"engine='native' needs a FastAPI that measures itself; this {type(self._app).__name__} does not. "
                    "Use engine='ours'"
                )
            return native.keep(self._app)
        if self.engine == "upstream":
            upstream.require()
            if not hasattr(self._app, "openapi"):
                raise ValueError("engine='upstream' is for FastAPI apps; use engine='ours' for Starlette")
        return native.switch_off(self._app)

    def _build_stack(self) -> Any:
        stack = self._below()
        return self._wrap(stack) if self._on else stack

    def _wrap(self, stack: Any) -> Any:
        bare, share, kept = stack, others.ALL, False
        if self.engine == "upstream" and others.within(stack) is None:
            stack = self._upstream(stack)
        found = others.within(stack)
        if self.engine == "native":
            share, kept = native.left_by(self._app), True
        if found is not None:
            share = self._share_beside(*found)
        made = Middleware(stack, share=share, routes=self._routes, bare=bare, native=kept)
        self._middleware.append(made)
        return made

    def _upstream(self, stack: Any) -> Any:
        try:
            wrapped, undo = upstream.wrap(stack)
        except Exception:
            guard.note("the upstream instrumentation")
            return stack
        self._undo.append(undo)
        return wrapped

    def _share_beside(self, name: str, share: Share) -> Share:
        if self.engine == "native":
            return others.NOTHING
        if name.startswith("starlette"):
            # It steps aside for a mark in the scope, so ours can take its place when it was asked for by name.
            return others.ALL if self._asked == "ours" else share
        if self.engine == "ours":
            _log.warning("otel_perf: %s measures this app already; what it leaves out is added", name)
        return share

    def undo(self) -> None:
        """Puts back what was there; where others wrapped ours meanwhile it stays and passes everything through."""
        app, self._on = self._app, False
        for made in self._middleware:
            made.undo()
            if app.middleware_stack is made:
                app.middleware_stack = made.bare
        if app.__dict__.get("build_middleware_stack") is self._build:
            if self._before is None:
                del app.build_middleware_stack
            else:
                app.build_middleware_stack = self._before
        for each in reversed(self._undo):
            each.undo()
        self._routes.undo()
        delattr(app, _STATE)
