"""aiosqlite with one thread hop for each statement.

SQLAlchemy asks a driver for a cursor, executes, fetches and closes; in aiosqlite each of the four goes to the
connection's thread and back, which costs more than SQLite itself. Here the four are one.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Generator, Sequence
from typing import Any

import aiosqlite

__all__ = ["connect"]

_ROWS_AT_ONCE = 64


async def connect(database: str, **options: Any) -> aiosqlite.Connection:
    """Open a database: SQLAlchemy's `async_creator_fn`."""
    connection = _Connection(database, options)
    try:
        return await connection
    except sqlite3.Error:
        # Its thread is told to end; the event loop must not be gone when it says that it has.
        if connection.stopped is not None:
            await connection.stopped
        raise


class _Connection(aiosqlite.Connection):
    def __init__(self, database: str, options: dict[str, Any]) -> None:
        super().__init__(lambda: sqlite3.connect(database, **options), iter_chunk_size=_ROWS_AT_ONCE)
        self.stopped: asyncio.Future[Any] | None = None
        # As SQLAlchemy does for the connections that it makes: one that was forgotten must not keep the process.
        self._thread.daemon = True

    def stop(self) -> asyncio.Future[Any] | None:
        """Tell the thread to end."""
        self.stopped = super().stop()
        return self.stopped

    def cursor(self) -> Any:
        """Return a cursor; that alone asks nothing of the thread."""
        return _Cursor(self)

    async def in_thread(self, function: Any, *args: Any) -> Any:
        """Call a function in the connection's thread."""
        return await self._execute(function, *args)  # type: ignore[no-untyped-call]  # aiosqlite's own has no types


class _Cursor:
    """What SQLAlchemy uses of a cursor. All rows are fetched with the statement."""

    __slots__ = ("_connection", "_rows", "description", "lastrowid", "rowcount")

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.lastrowid: int | None = None
        self.rowcount = -1

    arraysize = 1

    async def __aenter__(self) -> _Cursor:
        return self

    def __await__(self) -> Generator[Any, None, _Cursor]:
        return self.__aenter__().__await__()

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> _Cursor:
        """Execute one statement and fetch its rows."""
        await self._connection.in_thread(self._run, "execute", statement, parameters)
        return self

    async def executemany(self, statement: str, parameters: Sequence[Sequence[Any]]) -> _Cursor:
        """Execute a statement for each of many."""
        await self._connection.in_thread(self._run, "executemany", statement, parameters)
        return self

    async def fetchall(self) -> list[Any]:
        """Return the rows that are left."""
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        """Forget the rows; SQLite has finished with the statement already."""
        self._rows = []

    def _run(self, how: str, statement: str, parameters: Any) -> None:
        cursor = getattr(self._connection._conn, how)(statement, parameters)
        try:
            self.description, self.lastrowid, self.rowcount = cursor.description, cursor.lastrowid, cursor.rowcount
            if cursor.description is not None:
                self._rows = cursor.fetchall()
                self.rowcount = cursor.rowcount
        finally:
            cursor.close()
