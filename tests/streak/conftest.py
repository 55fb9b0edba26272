"""A streak service in the test's own process, with a clock that tests set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from examples.streak import tables
from examples.streak.app import create_app
from examples.streak.auth import mint
from examples.streak.push import Message, PushClient, create_push_app
from examples.streak.settings import Settings
from examples.streak.store import Store, make_engine

SECRET = "0123456789abcdef-for-tests"
# A Wednesday, noon.
NOW = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)


@dataclass
class Clock:
    """Tells the time that the test has set."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def pass_days(self, days: int = 1) -> None:
        self.now += timedelta(days=days)


@dataclass
class Service:
    """The running service and a client of it."""

    app: FastAPI
    http: httpx.AsyncClient
    clock: Clock
    push: FastAPI

    @property
    def engine(self) -> AsyncEngine:
        engine: AsyncEngine = self.app.state.parts.store._engine
        return engine

    def as_user(self, name: str = "ada", *, admin: bool = False) -> dict[str, str]:
        return {"Authorization": f"Bearer {mint(SECRET, name, admin=admin)}"}

    async def get(self, path: str, user: str = "ada", **params: Any) -> httpx.Response:
        return await self.http.get(path, headers=self.as_user(user), params=params)

    async def log(self, category: str = "learn", user: str = "ada", **more: Any) -> httpx.Response:
        body = {"category": category, **more}
        return await self.http.post("/api/activities", headers=self.as_user(user), json=body)

    async def maintain(self, **params: Any) -> dict[str, Any]:
        answer = await self.http.post("/api/admin/maintenance", headers=self.as_user("root", admin=True), params=params)
        assert answer.status_code == 200, answer.text
        summary: dict[str, Any] = answer.json()
        return summary

    def told(self, user: str = "ada") -> list[str]:
        """What the push API was given for a user, oldest first."""
        recent: list[Message] = list(self.push.state.recent)
        return [message.kind for message in recent if message.user == user]

    async def rows(self) -> tuple[int, int]:
        """How many users and activities are written."""
        async with self.engine.connect() as connection:
            users = (await connection.execute(select(func.count()).select_from(tables.users))).scalar_one()
            activities = (await connection.execute(select(func.count()).select_from(tables.activities))).scalar_one()
        return users, activities


Start = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a service; settings are those of `Settings`, `push_transport` stands for the network to the push API."""

    @asynccontextmanager
    async def starter(
        *, push_transport: httpx.AsyncBaseTransport | None = None, **settings: Any
    ) -> AsyncIterator[Service]:
        push_app = create_push_app(delay_s=0)
        push = PushClient("http://push", transport=push_transport or httpx.ASGITransport(push_app))
        given = {"database_url": f"sqlite+aiosqlite:///{tmp_path}/streak.db", "secret": SECRET, **settings}
        clock = Clock()
        app = create_app(Settings(**given), clock=clock, push=push)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://streak") as client,
        ):
            yield Service(app, client, clock, push_app)

    return starter


@pytest.fixture
async def service(start: Start) -> AsyncIterator[Service]:
    async with start() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/store.db"
    url: str = request.getfixturevalue("postgresql_server").url
    return url


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    engine = make_engine(database_url)
    made = Store(engine)
    await made.create_tables()
    yield made
    async with engine.begin() as connection:
        await connection.run_sync(tables.metadata.drop_all)
    await engine.dispose()


@dataclass
class Seconds:
    """A monotonic clock that stands still until it is moved."""

    now_s: float = field(default=1_000.0)

    def __call__(self) -> float:
        return self.now_s
