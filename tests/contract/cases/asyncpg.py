"""asyncpg: a connection, and a pool."""

from __future__ import annotations

from typing import Any

import asyncpg

from tests.contract.cases import AsyncCase, Servers


class _Connection(asyncpg.Connection):
    __slots__ = ()

    #: The case whose exception it meets.
    case: AsyncCase | None = None

    async def _execute(self, *args: Any, **options: Any) -> Any:
        if _Connection.case is not None:
            await _Connection.case.meet()
        return await super()._execute(*args, **options)


def _state() -> list[Any]:
    kinds = (asyncpg.Connection, asyncpg.Pool, asyncpg.prepared_stmt.PreparedStatement, asyncpg.cursor.CursorIterator)
    return [value for kind in kinds for value in vars(kind).values()]


class AsyncpgConnection(AsyncCase):
    name = "asyncpg"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        dsn = servers.server("postgresql_server").dsn
        made = asyncpg.connect(dsn, connection_class=_Connection)
        self.target = self.client = self.loop.run_until_complete(made)
        _Connection.case = self

    async def do(self, *, odd: bool = False) -> Any:
        return await self.client.fetchval("SELECT '\x1b[31m' -- " + "x" * 50_000 if odd else "SELECT 42")

    def state(self) -> list[Any]:
        return _state()

    async def aclose(self) -> None:
        _Connection.case = None
        await self.client.close()


class AsyncpgPool(AsyncpgConnection):
    name = "asyncpg"

    def __init__(self, servers: Servers) -> None:
        AsyncCase.__init__(self, servers)
        dsn = servers.server("postgresql_server").dsn

        async def made() -> Any:
            return await asyncpg.create_pool(dsn, min_size=1, max_size=1, connection_class=_Connection)

        self.target = self.client = self.loop.run_until_complete(made())
        _Connection.case = self
