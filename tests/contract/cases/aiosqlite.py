"""aiosqlite."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

import aiosqlite

from tests.contract.cases import AsyncCase, Servers


class AioSQLite(AsyncCase):
    name = "aiosqlite"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        case = self

        class Connection(sqlite3.Connection):
            def execute(self, *args: Any) -> Any:
                if case.error is not None:
                    raise case.error
                while case.hangs:
                    time.sleep(0.01)  # in the thread of the connection
                return super().execute(*args)

        async def made() -> Any:
            return await aiosqlite.connect(":memory:", factory=Connection)

        self.target = self.client = self.loop.run_until_complete(made())

    async def do(self, *, odd: bool = False) -> Any:
        cursor = await self.client.execute("SELECT '\x1b[31m' -- " + "x" * 50_000 if odd else "SELECT 42")
        row = await cursor.fetchone()
        return row[0]

    def state(self) -> list[Any]:
        return list(vars(aiosqlite.Connection).values())

    async def aclose(self) -> None:
        await self.client.close()
