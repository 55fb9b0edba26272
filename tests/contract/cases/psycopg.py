"""psycopg 3, sync and async."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.contract.cases import AsyncCase, Case, Servers

_ODD = "SELECT '\x1b[31m' -- " + "x" * 50_000


class _Connection(psycopg.Connection[Any]):
    case: Any = None

    def wait(self, *args: Any, **options: Any) -> Any:
        if self.case is not None and self.case.error is not None:
            raise self.case.error
        return super().wait(*args, **options)


class _AsyncConnection(psycopg.AsyncConnection[Any]):
    case: Any = None

    async def wait(self, *args: Any, **options: Any) -> Any:
        if self.case is not None:
            await self.case.meet()
        return await super().wait(*args, **options)


def _state() -> list[Any]:
    return [
        psycopg.Cursor.execute, psycopg.Cursor.stream, psycopg.Cursor.copy, psycopg.ServerCursor.execute,
        psycopg.AsyncCursor.execute, psycopg.AsyncCursor.copy, psycopg.Connection.commit, psycopg.Transaction.__exit__,
    ]  # fmt: skip


class SyncPsycopg(Case):
    name = "psycopg"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.target = self.client = _Connection.connect(servers.server("postgresql_server").dsn, autocommit=True)
        self.client.case = self

    def _run(self, statement: str) -> Any:
        return self.client.execute(statement).fetchone()[0]

    def work(self) -> Any:
        return self._run("SELECT 42")

    def hostile(self) -> Any:
        return self._run(_ODD)

    def state(self) -> list[Any]:
        return _state()

    def close(self) -> None:
        self.client.close()


class AsyncPsycopg(AsyncCase):
    name = "psycopg"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        made = _AsyncConnection.connect(servers.server("postgresql_server").dsn, autocommit=True)
        self.target = self.client = self.loop.run_until_complete(made)
        self.client.case = self

    async def do(self, *, odd: bool = False) -> Any:
        cursor = await self.client.execute(_ODD if odd else "SELECT 42")
        return (await cursor.fetchone())[0]

    def state(self) -> list[Any]:
        return _state()

    async def aclose(self) -> None:
        await self.client.close()
