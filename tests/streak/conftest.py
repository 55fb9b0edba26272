"""A streak service in the test's own process, with a clock that tests set."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from psycopg import sql
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from collector import servers
from examples.streak.app import create_app
from examples.streak.auth import mint
from examples.streak.push import Message, PushClient, create_push_app
from examples.streak.settings import Settings
from examples.streak.stores import Database, Store, open_database, tables

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
        engine: AsyncEngine = self.app.state.parts.database.measured[0]
        return engine

    def as_user(self, name: str = "ada", *, admin: bool = False) -> dict[str, str]:
        return {"Authorization": f"Bearer {mint(SECRET, name, admin=admin)}"}

    async def get(self, path: str, user: str = "ada", **params: Any) -> httpx.Response:
        return await self.http.get(path, headers=self.as_user(user), params=params)

    async def post(self, path: str, user: str = "ada", *, admin: bool = False, **params: Any) -> httpx.Response:
        return await self.http.post(path, headers=self.as_user(user, admin=admin), params=params)

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
        # What goes on by itself would be among what a test counts.
        given = {
            "database_url": f"sqlite+aiosqlite:///{tmp_path}/streak.db",
            "secret": SECRET,
            "warm_up": 0,
            "kpis_every_s": 0,
            **settings,
        }
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


@pytest.fixture(params=["sqlite", "postgresql", "firestore"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/store.db"
    elif request.param == "postgresql":
        yield request.getfixturevalue("fresh_postgresql")
    else:
        address = request.getfixturevalue("firestore_emulator").address
        with mock.patch.dict(os.environ, FIRESTORE_EMULATOR_HOST=address):
            yield f"firestore://tests-{uuid.uuid4().hex[:12]}/(default)"


@pytest.fixture
def fresh_postgresql(postgresql_server: servers.PostgreSQL) -> Iterator[str]:
    """The address of an empty PostgreSQL database, which is dropped afterwards."""
    name = f"streak_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgresql_server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield postgresql_server.url.rpartition("/")[0] + f"/{name}"
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An empty database of each kind, opened and prepared."""
    opened = open_database(database_url)
    try:
        await opened.prepare()
        yield opened
    finally:
        await opened.close()


@pytest.fixture
async def store(database: Database) -> Store:
    """What users ask for and do, on each kind of database."""
    return database.store


@dataclass
class Seconds:
    """A monotonic clock that stands still until it is moved."""

    now_s: float = field(default=1_000.0)

    def __call__(self) -> float:
        return self.now_s
