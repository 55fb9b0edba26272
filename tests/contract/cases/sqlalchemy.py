"""SQLAlchemy engines, sync and async."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from tests.contract.cases import AsyncCase, Case, Servers


def _state(engine: sa.Engine) -> list[Any]:
    kept = [sa.Engine.raw_connection, *vars(sa.Connection).values()]
    return [*kept, engine._has_events, engine.dialect._has_events, sa.Engine._has_events]


class SyncSQLAlchemy(Case):
    name = "sqlalchemy"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.target = self.engine = sa.create_engine("sqlite://")
        event.listen(self.engine, "do_execute", self._meet)

    def _meet(self, *_: Any) -> None:
        if self.error is not None:
            raise self.error

    def _run(self, statement: str) -> Any:
        with self.engine.connect() as connection:
            return connection.exec_driver_sql(statement).scalar()

    def work(self) -> Any:
        return self._run("SELECT 42")

    def hostile(self) -> Any:
        return self._run("SELECT '\x1b[31m'\n-- " + "x" * 50_000)

    def state(self) -> list[Any]:
        return _state(self.engine)

    def close(self) -> None:
        self.engine.dispose()


class AsyncSQLAlchemy(AsyncCase):
    name = "sqlalchemy"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.target = self.engine = create_async_engine("sqlite+aiosqlite://")
        event.listen(self.engine.sync_engine, "do_execute", self._meet)

    def _meet(self, *_: Any) -> None:
        from sqlalchemy.util import await_only

        await_only(self.meet())

    async def do(self, *, odd: bool = False) -> Any:
        async with self.engine.connect() as connection:
            return (await connection.exec_driver_sql("SELECT '\x1b'" if odd else "SELECT 42")).scalar()

    def state(self) -> list[Any]:
        return _state(self.engine.sync_engine)

    async def aclose(self) -> None:
        await self.engine.dispose()
