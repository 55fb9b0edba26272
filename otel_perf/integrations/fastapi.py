"""Requests of FastAPI and Starlette apps, measured by one of three engines: ours, FastAPI's own, upstream's.

Whatever the engine, our middleware stands outermost: it gives the request id, excludes routes, flushes when the app
ends, and measures what the engine leaves out. One server span and one duration for each request, never two.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, ref

from starlette.applications import Starlette

from otel_perf import guard
from otel_perf.integrations import background, native, others, phases, upstream
from otel_perf.integrations.asgi import Middleware
from otel_perf.integrations.others import Share
from otel_perf.integrations.patch import Holds, Patch
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.routes import Routes

__all__ = ["ENGINES", "elsewhere", "instrument", "matches"]

ENGINES = ("ours", "native", "upstream")

_log = logging.getLogger("otel_perf")
_STATE = "_otel_perf_instrumented"


def matches(target: Any) -> bool:
    """Whether this is a FastAPI or Starlette app."""
    return isinstance(target, Starlette)


def elsewhere() -> str | None:
    """Who else measures all FastAPI apps that are made."""
    module: Any = sys.modules.get("opentelemetry.instrumentation.fastapi")
    active = module is not None and module.FastAPIInstrumentor().is_instrumented_by_opentelemetry
    return "opentelemetry-instrumentation-fastapi" if active else None


@dataclass(frozen=True, slots=True)
class _Options:
    """What was asked for."""

    engine: str | None = None
    phases: bool | None = None


def instrument(app: Any = None, *, engine: str | None = None, phases: bool | None = None) -> Undo:
    """Measures the requests of a FastAPI or Starlette app, started or not; the answer undoes it.

    Instrumenting an app again changes nothing.

    Args:
        app: the app; None takes all that have yet to begin with their first request or lifespan.
        engine: "ours"; "native", FastAPI's own telemetry over our providers; "upstream",
            opentelemetry-instrumentation-fastapi. By default ours, unless the app was told to measure itself
            (`FastAPI(telemetry={"tracer_provider": ...})`), which is respected. Of all apps, those that cannot have
            the engine are measured by ours.
        phases: whether dependencies, endpoint and serialization of FastAPI are measured; by default the setting
            `request_phases` says so.

    Raises:
        ValueError: for an unknown engine, or one that this app cannot have.
        ImportError: when the engine is not installed.
    """
    if engine is not None and engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is unknown; there are {', '.join(map(repr, ENGINES))}")
    options = _Options(engine, phases)
    if app is None:
        if engine == "upstream":
            upstream.require()
        return _all.take(options)
    present: _Instrumented | None = getattr(app, _STATE, None)
    if present is not None:
        if engine not in (None, present.engine):
            _log.warning("otel_perf: this app is measured by engine=%r already; undo that first", present.engine)
        return Undo()
    return Undo(_Instrumented(app, options).undo)


class _Instrumented:
    """What was done to one app; `hook=False` where its class hands us each stack that it builds."""

    def __init__(self, app: Any, options: _Options, *, hook: bool = True) -> None:
        self._app = app
        self._asked = options.engine
        self._on = True
        self.hooked = hook
        self.engine = options.engine or ("native" if native.chosen(app) else "ours")
        self._middleware: list[Middleware] = []
        self._routes = Routes(app)
        self._prepared = self._prepare()
        # Below what the engine wraps, which is undone first.
        self._held = [background.take(), phases.take(self._routes, options.phases)]
        _release_abandoned()
        _held.append((ref(self), self._held))
        setattr(app, _STATE, self)
        if hook:
            self._put_in(app)

    def _put_in(self, app: Any) -> None:
        self._before: Any = app.__dict__.get("build_middleware_stack")
        self._below = app.build_middleware_stack
        # Bound once: each access to a method makes a new object, and undo compares.
        self._build = self._build_stack
        app.build_middleware_stack = self._build
        if app.middleware_stack is not None:
            app.middleware_stack = self.wrap(app.middleware_stack)

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
        return self.wrap(stack) if self._on else stack

    def wrap(self, stack: Any) -> Any:
        """A middleware stack with our middleware around it."""
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
        self._held.append(undo)
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
        if self.hooked and app.__dict__.get("build_middleware_stack") is self._build:
            if self._before is None:
                del app.build_middleware_stack
            else:
                app.build_middleware_stack = self._before
        _release(self._held)
        self._prepared.undo()
        self._routes.undo()
        delattr(app, _STATE)


# What each app has wrapped in libraries. An app that was thrown away cannot give it back, and the garbage collector
# must not: it may come while a lock is held.
_held: list[tuple[ref[_Instrumented], list[Undo]]] = []


def _release(held: list[Undo]) -> None:
    while held:
        held.pop().undo()


def _release_abandoned() -> None:
    for each in list(_held):
        made, held = each
        if made() is None:
            _release(held)
        if not held and each in _held:
            _held.remove(each)


class _All:
    """All apps, taken when they build their middleware stack; so nobody looks for them."""

    def __init__(self) -> None:
        self._holds = Holds()
        self._options: _Options | None = None
        self._patches: Sequence[Patch] = ()
        self._taken: WeakSet[_Instrumented] = WeakSet()

    def take(self, options: _Options) -> Undo:
        """Takes each app from now on, until the answer is undone; the options of the first who asks count."""
        return self._holds.take(_All, lambda: self._put_in(options), self._take_out)

    def _put_in(self, options: _Options) -> None:
        self._options = options
        self._patches = self._patches or [Patch(each, "build_middleware_stack", self._wrap) for each in _classes()]
        for patch in self._patches:
            patch.put_in()

    def _take_out(self) -> None:
        self._options = None
        for patch in reversed(self._patches):
            patch.take_out()
        for each in list(self._taken):
            each.undo()
        self._taken.clear()
        _release_abandoned()

    def _wrap(self, original: Any) -> Any:
        @functools.wraps(original)
        def build_middleware_stack(app: Any) -> Any:
            stack = original(app)
            try:
                return self._join(app, stack)
            except Exception:
                guard.note("measuring an app")
                return stack

        return build_middleware_stack

    def _join(self, app: Any, stack: Any) -> Any:
        made: _Instrumented | None = getattr(app, _STATE, None)
        if made is None and self._options is not None:
            made = _Instrumented(app, _possible(self._options, app), hook=False)
            self._taken.add(made)
        return stack if made is None or made.hooked else made.wrap(stack)


def _possible(options: _Options, app: Any) -> _Options:
    able = {"native": native.has(app), "upstream": hasattr(app, "openapi")}.get(options.engine or "", True)
    return options if able else _Options(None, options.phases)


def _classes() -> list[type]:
    try:
        from fastapi.applications import FastAPI
    except ImportError:
        return [Starlette]
    # It builds its stack itself.
    return [each for each in (Starlette, FastAPI) if "build_middleware_stack" in vars(each)]


_all = _All()
