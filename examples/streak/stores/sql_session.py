"""Reads and transactions on SQLite or PostgreSQL, begun anew after transient failures.

Whoever writes does so in one transaction: PostgreSQL locks the rows that are asked for, SQLite the file. They are
SQLAlchemy's own transactions, so that whatever measures SQLAlchemy sees them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime, timezone
from typing import Any, Final, TypeVar

from sqlalchemy import DateTime, Select, event, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncTransaction, create_async_engine

from examples.streak.metrics import record_transaction_failed, record_transaction_retry
from examples.streak.stores import StoreBusyError, StoreUnavailableError
from examples.streak.stores.sqlite_driver import connect

__all__ = ["SqlEngine", "SqlSession", "TakenBack", "is_transient", "is_unavailable", "make_engine"]

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

ATTEMPTS: Final = 4
_FIRST_PAUSE_S: Final = 0.02
# Nobody waits for a lock, or for an answer, longer than that.
_LOCK_TIMEOUT_S: Final = 3
_STATEMENT_TIMEOUT_S: Final = 20
_CONNECT_TIMEOUT_S: Final = 5
_POOL_TIMEOUT_S: Final = 10

# PostgreSQL: serialization failure, deadlock, lock not to be had in time.
_TRANSIENT_STATES: Final = frozenset({"40001", "40P01", "55P03"})
# The server shuts down, has crashed, starts up, or has no connection left.
_UNAVAILABLE_STATES: Final = frozenset({"57P01", "57P02", "57P03", "53300"})
# Python 3.10 has one of its own for asyncio; SQLAlchemy's is about its pool.
_TIMEOUTS: Final = (TimeoutError, asyncio.TimeoutError, PoolTimeoutError)
# The moment itself, and not when the transaction began.
_NOW: Final = select(func.clock_timestamp(type_=DateTime(timezone=True)))
_SQLITE_IS_BUSY: Final = ("database is locked", "database table is locked", "database schema is locked")


class SqlEngine(AsyncEngine):
    """An engine whose connections read without a transaction, and whose `begin` is a transaction that may write."""

    def __init__(self, reader: AsyncEngine, writer: AsyncEngine) -> None:
        super().__init__(reader.sync_engine)
        #: What transactions run on: other connections on SQLite, the same ones on PostgreSQL.
        self.writer = writer

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction, and commit it at the end; whatever is raised within takes it back."""
        async with self.writer.connect() as connection:
            transaction = await connection.begin()
            try:
                yield connection
            except BaseException:
                await _take_back(connection, transaction)
                raise
            try:
                await transaction.commit()
            except BaseException:
                # Nobody knows what became of it, and SQLAlchemy sends no rollback any more.
                await connection.invalidate()
                raise

    async def dispose(self, close: bool = True) -> None:
        """End the connections."""
        await super().dispose(close)
        if self.writer.pool is not self.pool:
            await self.writer.dispose(close)


async def _take_back(connection: AsyncConnection, transaction: AsyncTransaction) -> None:
    # A connection that broke, or was left in the middle of something, is not used again.
    if connection.invalidated:
        return
    try:
        await transaction.rollback()
    except DBAPIError:
        await connection.invalidate()


def make_engine(url: str) -> SqlEngine:
    """Return an engine for a `sqlite+aiosqlite` or `postgresql+asyncpg` address. It connects on first use."""
    if url.startswith("sqlite"):
        return SqlEngine(_sqlite_reader(url), _sqlite_writer(url))
    limits = {
        "lock_timeout": f"{_LOCK_TIMEOUT_S}s",
        "statement_timeout": f"{_STATEMENT_TIMEOUT_S}s",
        "idle_in_transaction_session_timeout": f"{_STATEMENT_TIMEOUT_S}s",
    }
    # A connection that broke in the pool is found when it is used: the transaction is then begun anew.
    reader = _reader(url, timeout=_CONNECT_TIMEOUT_S, server_settings=limits)
    # The driver only makes a note of the level, and sends it with BEGIN: changing it costs nothing.
    return SqlEngine(reader, reader.execution_options(isolation_level="READ COMMITTED"))


def _reader(url: str, **how: Any) -> AsyncEngine:
    # Reads need no transaction, and so neither its beginning nor its end.
    return create_async_engine(
        url, connect_args=how, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True, pool_timeout=_POOL_TIMEOUT_S
    )


def _sqlite_reader(url: str) -> AsyncEngine:
    engine = _reader(url, async_creator_fn=connect, timeout=_LOCK_TIMEOUT_S)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    return engine


def _sqlite_writer(url: str) -> AsyncEngine:
    # The driver must not begin by itself. A transaction has ended when its connection comes back, or the connection is
    # not used again: nothing is left to reset.
    how = {"async_creator_fn": connect, "timeout": _LOCK_TIMEOUT_S, "isolation_level": None}
    engine = create_async_engine(
        url, connect_args=how, pool_size=1, max_overflow=0, pool_reset_on_return=None, pool_timeout=_POOL_TIMEOUT_S
    )
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    # The event "begin" would do as well; who listens to one has all events of each statement dispatched.
    dialect: Any = engine.sync_engine.dialect  # this engine's alone
    dialect.do_begin = _begin_sqlite
    return engine


def _begin_sqlite(connection: Any) -> None:
    # It takes the file's lock now: a transaction that reads first and then wants to write may be refused.
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    cursor.close()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # With a write-ahead log, readers do not wait for a writer.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def is_transient(error: BaseException) -> bool:
    """Tell whether the same transaction may well succeed when it is begun anew. Who has waited for long does not."""
    if isinstance(error, _TIMEOUTS):
        return False
    if is_unavailable(error):
        return True
    if not isinstance(error, DBAPIError):
        return False
    return _state_of(error) in _TRANSIENT_STATES or any(text in str(error.orig) for text in _SQLITE_IS_BUSY)


def is_unavailable(error: BaseException) -> bool:
    """Tell whether there is no connection to be had, or it broke."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, (OSError, *_TIMEOUTS)) or _state_of_driver(error) in _UNAVAILABLE_STATES
    state = _state_of(error)
    return error.connection_invalidated or state in _UNAVAILABLE_STATES or state.startswith("08")


def _state_of(error: DBAPIError) -> str:
    return _state_of_driver(error.orig)


def _state_of_driver(error: BaseException | None) -> str:
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else ""


class TakenBack(Exception):  # noqa: N818
    """Raised by the work of a transaction that wants nothing of it to stay. No failure is counted."""


class SqlSession:
    """Runs reads and transactions."""

    def __init__(self, engine: SqlEngine) -> None:
        self.engine = engine
        self.sqlite = engine.dialect.name == "sqlite"
        # SQLite has one writer at a time. Waiting for one's turn here is fair; in SQLite it is by polling.
        self.turn = asyncio.Lock() if self.sqlite else nullcontext()

    async def now(self, connection: AsyncConnection) -> datetime:
        """Return the moment by the clock of the database. SQLite has none but that of its one host."""
        if self.sqlite:
            return datetime.now(timezone.utc)
        now: datetime = (await connection.execute(_NOW)).scalar_one()
        return now

    async def read(self, query: Select[Any], **values: object) -> Sequence[Any]:
        """Return the rows of a query."""

        async def ask(connection: AsyncConnection) -> Sequence[Any]:
            rows: Sequence[Any] = (await connection.execute(query, values)).all()
            return rows

        return await self.look("read", ask)

    async def look(self, operation: str, work: Work[T]) -> T:
        """Do work that only reads, without a transaction: each statement sees what is there by then."""

        async def attempt() -> T:
            async with self.engine.connect() as connection:
                return await work(connection)

        return await self._insist(operation, attempt)

    async def write(self, operation: str, work: Work[T]) -> T:
        """Do the work in one transaction; after a transient failure, all of it anew.

        When the connection breaks while the transaction is being committed, nobody knows whether it was. So `work` has
        to find out what an attempt before it has written, or to do no harm the second time.
        """

        async def attempt() -> T:
            async with self.turn, self.engine.begin() as connection:
                return await work(connection)

        return await self._insist(operation, attempt)

    async def _insist(self, operation: str, attempt: Callable[[], Awaitable[T]]) -> T:
        tries = 1
        while True:
            try:
                return await attempt()
            except TakenBack:
                raise
            except Exception as error:
                if tries == ATTEMPTS or not is_transient(error):
                    record_transaction_failed(operation, error)
                    if is_unavailable(error):
                        raise StoreUnavailableError(type(error).__name__) from error
                    if is_transient(error):
                        raise StoreBusyError(type(error).__name__) from error
                    raise
                record_transaction_retry(operation)
            # Those that were in each other's way must not meet again.
            await asyncio.sleep(_FIRST_PAUSE_S * 3 ** (tries - 1) * random.uniform(0.5, 1.5))
            tries += 1
