"""Puts the service together."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path

from fastapi import FastAPI

from .cache import ReadCache, make_cache
from .demo import demo_router, seed
from .problems import add_problem_handlers
from .push import PushClient
from .routes import Clock, Parts, router
from .service import Streaks
from .settings import Settings
from .store import Store, make_engine
from .telemetry import observe

__all__ = ["create_app"]


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


def create_app(settings: Settings | None = None, *, clock: Clock = _utc_now, push: PushClient | None = None) -> FastAPI:
    """Return the service. Settings come from the environment unless they are given.

    It declares what is measured; `configure()` is called once by the process, as `__main__` does.
    """
    settings = settings or Settings.from_environment(os.environ)
    # Without a database of one's own, the service takes a file with it when it goes.
    scratch = None if settings.database_url else Path(tempfile.mkdtemp(prefix="streak-"))
    engine = make_engine(settings.database_url or f"sqlite+aiosqlite:///{scratch}/streak.db")
    cashews = make_cache(settings.redis_url)
    store, cache = Store(engine), ReadCache(cashews)
    push = push or PushClient(settings.push_url)
    parts = Parts(settings.secret, clock, store, cache, push, Streaks(store, cache, push))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            await store.create_tables()
            if settings.demo:
                await seed(engine, parts.today)
            yield
        finally:
            await parts.push.close()
            await cache.close()
            await engine.dispose()
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    app = FastAPI(title="streak", lifespan=lifespan)
    app.state.parts = parts
    app.include_router(router)
    if settings.demo:
        app.include_router(demo_router())
    add_problem_handlers(app)
    observe(app, engine, cashews)
    return app
