"""Requests and connections of any ASGI app, measured by a middleware that imports nothing from a framework."""

from __future__ import annotations

import asyncio
import inspect
import logging
from types import FunctionType, TracebackType
from typing import Any

from otel_perf import guard
from otel_perf.integrations import background, others
from otel_perf.integrations.others import Share
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.request import App, Message, Receive, Request, Send
from otel_perf.integrations.routes import MARK, Routes, Scope
from otel_perf.integrations.websocket import Connection
from otel_perf.telemetry import loops, runtime

__all__ = ["Middleware", "instrument", "matches"]

_log = logging.getLogger("otel_perf")

_LIFESPAN_MARK = "otel_perf.lifespan"
_LIFESPAN_ENDS = ("lifespan.shutdown.complete", "lifespan.shutdown.failed", "lifespan.startup.failed")


class Middleware:
    """An ASGI middleware that measures requests and connections; of a plain ASGI app it is also the handle.

    Args:
        app: the ASGI app below.
        share: what of the measurement is ours; the rest is another's.
        routes: where templates of routes are found.
        bare: the app without another's measurement, for when ours is undone or stands within one of ours.
        native: FastAPI's own telemetry stays on.
    """

    __slots__ = ("_foreign", "_native", "_tasks", "app", "bare", "on", "routes", "share")

    def __init__(
        self, app: App, *, share: Share = others.ALL, routes: Routes | None = None, bare: App | None = None,
        native: bool = False,
    ) -> None:  # fmt: skip
        self.app = app
        self.bare = bare or app
        self.share = share
        self.routes = routes or Routes(app)
        self.on = True
        self._native = native
        self._tasks = Undo()
        # A middleware of Starlette's within that makes the span must not be kept from it.
        self._foreign = not share.span and share.active
        self.routes.refresh()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.on or MARK in scope:
            await self.bare(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        if loops.wanted:  # the first request of this process
            loops.watch_running()
        share = self.share
        marked = others.FASTAPI in scope or others.STARLETTE in scope
        # What FastAPI leaves in the scope was counted in already where its own telemetry stays on.
        if share.duration and not self._native and (marked or type(send) is FunctionType):
            share = others.around(scope, send) or share
        request = scope[MARK] = Request(self.routes, share, scope, receive, send)
        request.begin()
        if not self._native:
            scope[others.FASTAPI] = None
        if not self._foreign or request.excluded:
            scope[others.STARLETTE] = True
        try:
            await self.app(scope, request.receive, request.send)
        except BaseException as error:
            request.end(error)
            raise
        else:
            if not request.stopped:
                request.end()
        finally:
            request.leave()
            # Somebody may hand the same scope to another app.
            scope.pop(MARK, None)
            if not marked:
                scope.pop(others.FASTAPI, None)
                scope.pop(others.STARLETTE, None)

    async def _connection(self, scope: Scope, receive: Receive, send: Send) -> None:
        share = self.share
        marked = others.FASTAPI in scope
        if not self._native and (marked or type(send) is FunctionType):
            share = others.around(scope, send) or share
        # Others make spans of connections and no metrics; Starlette's middleware, which counts nothing, makes neither.
        span = share.span or (share.active and not self._native)
        connection = scope[MARK] = Connection(self.routes, scope, receive, send, span=span)
        connection.begin()
        if not self._native:
            scope[others.FASTAPI] = None
        try:
            await self.app(scope, connection.receive, connection.send)
        except BaseException as error:
            connection.end(error)
            raise
        else:
            connection.end()
        finally:
            connection.leave()
            scope.pop(MARK, None)
            if not marked:
                scope.pop(others.FASTAPI, None)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._connection(scope, receive, send)
            return
        if scope["type"] != "lifespan" or _LIFESPAN_MARK in scope:
            if not self._native:
                scope[others.FASTAPI] = None  # as with requests, it is off in mounted apps too
            await self.app(scope, receive, send)
            return
        scope[_LIFESPAN_MARK] = True
        if runtime.current is not None:
            runtime.current.pipeline.renew_signals()
        loops.watch_running()

        async def send_after_flush(message: Message) -> None:
            if message["type"] in _LIFESPAN_ENDS:
                await _flush()
            await send(message)

        await self.app(scope, receive, send_after_flush)

    def undo(self) -> None:
        """Makes it a pass-through."""
        self.on = False
        self.routes.undo()
        self._tasks.undo()

    def take_tasks(self) -> Middleware:
        """Measures background tasks too, where the app's framework has them."""
        self._tasks = background.take()
        return self

    def __enter__(self) -> Middleware:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


async def _flush() -> None:
    """Sends what waits, within the time that the settings give; not for good, since an app may be started again."""
    in_force = runtime.current
    if in_force is None:
        return
    try:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            from anyio import to_thread  # trio, which only frameworks on anyio can run on

            await to_thread.run_sync(in_force.pipeline.flush)
        else:
            await loop.run_in_executor(None, in_force.pipeline.flush)
    except Exception:
        guard.note("flushing at the end of an app")


def matches(target: Any) -> bool:
    """Whether this is an ASGI app: something to call with scope, receive and send."""
    if isinstance(target, Middleware):
        return True
    if isinstance(target, type) or not callable(target):
        return False
    try:
        names = [
            each.name for each in inspect.signature(target).parameters.values()
            if each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        ]  # fmt: skip
    except (TypeError, ValueError):
        return False
    call = target if inspect.isroutine(target) else type(target).__call__
    return len(names) == 3 and (inspect.iscoroutinefunction(call) or names == ["scope", "receive", "send"])


def instrument(app: Any, *, engine: str | None = None) -> Middleware:
    """Puts a middleware around a plain ASGI app; the answer is the app from now on, and the handle.

    Raises:
        ValueError: for an engine other than "ours".
    """
    if engine not in (None, "ours"):
        raise ValueError(f"engine={engine!r} is for FastAPI apps; a plain ASGI app is measured by engine='ours'")
    if isinstance(app, Middleware):
        return app
    found = others.within(app)
    if found is None or (found[0].startswith("starlette") and engine == "ours"):
        return Middleware(app).take_tasks()
    _log.info("otel_perf: %s measures this app already; what it leaves out is added", found[0])
    return Middleware(app, share=found[1]).take_tasks()
