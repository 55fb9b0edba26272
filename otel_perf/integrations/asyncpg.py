"""asyncpg: connections, prepared statements, cursors, COPY and pools.

asyncpg's own query loggers are told afterwards, in another task, so there is no span that the query could be within:
the methods that run a statement are wrapped instead. A cursor is one operation, that of opening it and getting its
first rows; preparing a statement and getting further rows are none, unless they fail.
"""

# asyncpg comes without stubs, and its annotations are not complete.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import functools
import time
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import asyncpg  # type: ignore[import-untyped]  # it has no stubs
from asyncpg import connect_utils, connection, cursor, prepared_stmt
from asyncpg import pool as lending

from otel_perf import guard
from otel_perf.integrations import pool as pools
from otel_perf.integrations import statement
from otel_perf.integrations.asyncpg_pool import Pools
from otel_perf.integrations.patch import Patch, Patches
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.statement import Session
from otel_perf.telemetry import runtime
from otel_perf.telemetry.operation import Operation

__all__ = ["elsewhere", "instrument", "matches"]

_Method = Callable[..., Any]

_sessions: MutableMapping[Any, Session] = WeakKeyDictionary()


def matches(target: object) -> bool:
    """Whether this is a connection or a pool."""
    return isinstance(target, (asyncpg.Connection, asyncpg.Pool))


def instrument(target: Any = None) -> Undo:
    """Measures one connection, one pool with its connections, or with None all there are and will be."""
    pools.tell(_pools.figures)
    if isinstance(target, asyncpg.Pool):
        # No connection is chosen by itself: which ones the pool lends is asked at each call.
        return Undo(statement.driver(_patches.take(_Nothing)).undo, _pools.take(target).undo)
    return statement.driver(_patches.take(target))


class _Nothing:
    """Stands for no connection."""


def elsewhere() -> str | None:
    """Who makes the spans already."""
    return statement.upstream("asyncpg", "AsyncPGInstrumentor")


def _measures(conn: Any) -> bool:
    return _patches.measures(conn) or _pools.lends(conn)


def _connection(resource: Any) -> Any:
    """The connection itself, where a pool lends it behind a stand-in."""
    return getattr(resource, "_con", resource)


def _session(conn: Any) -> Session:
    found = _sessions.get(conn)
    if found is None:
        address: Any = conn._addr
        host, port = address[:2] if address.__class__ is tuple else (address, None)  # the path of a socket file
        found = _sessions[conn] = Session(statement.server("postgresql", conn._params.database, host, port))
    return found


def _started(conn: Any, query: str, batch: object = None, *, theirs: bool = True) -> tuple[Session, Operation] | None:
    try:
        # What a pool sends when it takes a connection back is no query of the user.
        if runtime.current is None or not _measures(conn) or (query and query is conn._reset_query):
            return None
        session = _session(conn)
        rows = None if batch is None else statement.batch_size(batch)
        begun = statement.begin(session.server, query, batch=rows, span=not theirs or elsewhere() is None)
        return None if begun is None else (session, begun)
    except Exception:
        guard.note("starting an asyncpg query")
        return None


def _finish(
    conn: Any, started: tuple[Session, Operation], error: BaseException | None = None, rows: int | None = None
) -> None:
    session, begun = started
    try:
        inside = not conn.is_closed() and bool(conn.is_in_transaction())
        statement.finish(session, begun, error, inside=inside, rows=rows)
    except Exception:
        begun.stop(error)
        guard.note("ending an asyncpg query")


async def _run(
    conn: Any, query: str, call: Callable[[], Any], count: Callable[[Any], int | None] | None = None,
    batch: object = None, *, theirs: bool = True,
) -> Any:  # fmt: skip
    started = _started(conn, query, batch, theirs=theirs)
    if started is None:
        return await call()
    try:
        answer = await call()
    except BaseException as error:
        _finish(conn, started, error)
        raise
    _finish(conn, started, rows=None if count is None else count(answer))
    return answer


def _one(row: Any) -> int:
    return 0 if row is None else 1


def _query(
    count: Callable[[Any], int | None] | None = None, *, many: bool = False, theirs: bool = True
) -> Callable[[_Method], _Method]:
    """Wraps a method of a connection whose first argument is the statement."""

    def wrap(original: _Method) -> _Method:
        @functools.wraps(original)
        async def call(self: Any, query: str, *args: Any, **options: Any) -> Any:
            batch = (args[0] if args else options.get("args")) if many else None
            return await _run(self, query, lambda: original(self, query, *args, **options), count, batch, theirs=theirs)

        return call

    return wrap


def _copy(original: _Method) -> _Method:
    @functools.wraps(original)
    async def copy(self: Any, copy_stmt: str, *args: Any, **options: Any) -> Any:
        # asyncpg quotes all names; a quoted word that stands here is a value to some dialects.
        return await _run(
            self, copy_stmt.replace('"', ""), lambda: original(self, copy_stmt, *args, **options), theirs=False
        )

    return copy


def _copy_records(original: _Method) -> _Method:
    @functools.wraps(original)
    async def copy_records_to_table(self: Any, table_name: str, **options: Any) -> Any:
        schema = options.get("schema_name")
        query = f"COPY {schema}.{table_name} FROM STDIN" if schema else f"COPY {table_name} FROM STDIN"
        batch = options.get("records")
        return await _run(self, query, lambda: original(self, table_name, **options), None, batch, theirs=False)

    return copy_records_to_table


def _prepared(count: Callable[[Any], int | None] | None = None, *, many: bool = False) -> Callable[[_Method], _Method]:
    """Wraps a method of a prepared statement."""

    def wrap(original: _Method) -> _Method:
        @functools.wraps(original)
        async def call(self: Any, *args: Any, **options: Any) -> Any:
            batch = (args[0] if args else options.get("args")) if many else None
            conn = _connection(self._connection)
            return await _run(conn, self._query, lambda: original(self, *args, **options), count, batch)

        return call

    return wrap


def _missing(query: Callable[..., str], conn: Callable[[Any], Any]) -> Callable[[_Method], _Method]:
    """Wraps a method that is no operation of its own, unless it fails."""

    def wrap(original: _Method) -> _Method:
        @functools.wraps(original)
        async def call(self: Any, *args: Any, **options: Any) -> Any:
            began_ns = time.perf_counter_ns()
            try:
                return await original(self, *args, **options)
            except BaseException as error:
                _missed(conn(self), query(self, *args), error, began_ns)
                raise

        return call

    return wrap


def _missed(conn: Any, query: str, error: BaseException, began_ns: int) -> None:
    try:
        if _measures(conn):
            statement.missed(_session(conn).server, query, error, began_ns)
    except Exception:
        guard.note("counting a failure of asyncpg")


def _next(original: _Method) -> _Method:
    @functools.wraps(original)
    def __anext__(self: Any) -> Any:  # noqa: N807 -- it is that method
        if self._portal_name or self._exhausted:
            return original(self)
        # The first one opens it. An empty one ends with its first call, which is no failure.
        return _first(self, original)

    return __anext__


async def _first(self: Any, original: _Method) -> Any:
    conn = _connection(self._connection)
    started = _started(conn, self._query)
    if started is None:
        return await original(self)
    try:
        row = await original(self)
    except StopAsyncIteration:
        _finish(conn, started)
        raise
    except BaseException as error:
        _finish(conn, started, error)
        raise
    _finish(conn, started)
    return row


def _opened(original: _Method) -> _Method:
    @functools.wraps(original)
    async def _init(self: Any, *args: Any, **options: Any) -> Any:
        conn = _connection(self._connection)
        return await _run(conn, self._query, lambda: original(self, *args, **options), theirs=False)

    return _init


def _connecting(original: _Method) -> _Method:
    @functools.wraps(original)
    async def _connect(**options: Any) -> Any:
        began_ns = time.perf_counter_ns()
        try:
            return await original(**options)
        except BaseException as error:
            _unreachable(options, error, began_ns)
            raise

    return _connect


def _unreachable(options: dict[str, Any], error: BaseException, began_ns: int) -> None:
    try:
        if _patches.everything:
            given = urlsplit(options.get("dsn") or "")
            host, port = options.get("host") or given.hostname, options.get("port") or given.port
            database = options.get("database") or given.path.strip("/") or None
            one = isinstance(host, str) and isinstance(port, (int, type(None)))  # there may be several
            of = statement.server("postgresql", database, *((host, port) if one else ()))
            statement.unreachable(of, error, began_ns)
    except Exception:
        guard.note("counting a failure of asyncpg")


def _query_given(_conn: Any, query: str, *_: Any, **__: Any) -> str:
    return query


def _query_kept(resource: Any, *_: Any, **__: Any) -> str:
    return str(resource._query)


def _connection_kept(resource: Any) -> Any:
    return _connection(resource._connection)


def _name(conn: Any) -> str:
    return _session(conn).server.name


def _everything() -> bool:
    return _patches.everything


def _make() -> list[Patch]:
    conn, prepared = connection.Connection, prepared_stmt.PreparedStatement
    found = [
        Patch(conn, "execute", _query()), Patch(conn, "executemany", _query(many=True)),
        Patch(conn, "fetch", _query(len)), Patch(conn, "fetchrow", _query(_one)), Patch(conn, "fetchval", _query()),
        Patch(conn, "_copy_in", _copy), Patch(conn, "_copy_out", _copy),
        Patch(conn, "copy_records_to_table", _copy_records),
        Patch(conn, "prepare", _missing(_query_given, _connection)),
        Patch(prepared, "fetch", _prepared(len)), Patch(prepared, "fetchrow", _prepared(_one)),
        Patch(prepared, "fetchval", _prepared()), Patch(prepared, "executemany", _prepared(many=True)),
        Patch(cursor.CursorIterator, "__anext__", _next), Patch(cursor.Cursor, "_init", _opened),
        Patch(cursor.BaseCursor, "_exec", _missing(_query_kept, _connection_kept)),
        Patch(lending.Pool, "_acquire", _pools.acquired), Patch(connect_utils, "_connect", _connecting),
    ]  # fmt: skip
    # Since asyncpg 0.30.
    for owner, wrap in ((conn, _query(len, many=True, theirs=False)), (prepared, _prepared(len, many=True))):
        if "fetchmany" in vars(owner):
            found.append(Patch(owner, "fetchmany", wrap))
    return found


_patches = Patches(_make)
_pools = Pools(_everything, _name)
