"""Puts the service together."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware

from . import admin, routes
from .background import in_background
from .cache import ReadCache, make_cache
from .demo import demo_router, seed
from .kpis import KpiBoard
from .limits import BodyLimit, RateLimits
from .logs import RequestLog
from .maintenance import Maintenance
from .page import add_page
from .parts import Clock, Parts
from .problems import add_problem_handlers
from .push import PushClient
from .service import Streaks
from .settings import Settings
from .stores import open_database
from .telemetry import observe

__all__ = ["create_app"]

_GZIP_FROM_BYTES = 1_000


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


def create_app(settings: Settings | None = None, *, clock: Clock = _utc_now, push: PushClient | None = None) -> FastAPI:
    """Return the service. Settings come from the environment unless they are given.

    It declares what is measured; `configure()` is called once by the process, as `__main__` does.
    """
    settings = settings or Settings.from_environment(os.environ)
    # Without a database of one's own, the service takes a file with it when it goes.
    scratch = None if settings.database_url else Path(tempfile.mkdtemp(prefix="streak-"))
    database = open_database(settings.database_url or f"sqlite+aiosqlite:///{scratch}/streak.db")
    cashews = make_cache(settings.redis_url)
    cache = ReadCache(cashews)
    push = push or PushClient(settings.push_url)
    kpis = KpiBoard(database.store)
    streaks = Streaks(database.store, cache, push)
    maintenance = Maintenance(database.runs, cache, push, settings)
    limits = RateLimits(settings.requests_per_minute, settings.redis_url)
    parts = Parts(settings, clock, database, cache, streaks, maintenance, kpis, limits)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if scratch is not None:
                stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            stack.push_async_callback(database.close)
            stack.push_async_callback(cache.close)
            stack.push_async_callback(push.close)
            stack.push_async_callback(limits.close)
            await database.prepare()
            if settings.demo:
                await seed(database, parts.today)
            await stack.enter_async_context(in_background(parts))
            yield

    app = FastAPI(title="streak", lifespan=lifespan)
    app.state.parts = parts
    app.include_router(routes.router)
    app.include_router(admin.router)
    if settings.demo:
        app.include_router(demo_router())
    add_page(app)
    add_problem_handlers(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(GZipMiddleware, minimum_size=_GZIP_FROM_BYTES)
    app.add_middleware(RequestLog)
    observe(app, database.measured, cashews, kpis=kpis.current)
    return app
