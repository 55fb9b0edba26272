"""SQLAlchemy 2.x, sync and async, through its event API.

`before_cursor_execute`, `after_cursor_execute` and `handle_error` are three calls and no block, so the operation is
started by hand and made current: what stands below (a driver that is measured too) sees it. `handle_error` comes for
every exception, also when a task is cancelled in between; SQLAlchemy's own probes, which do without it, are not
measured.

Transaction control (COMMIT, ROLLBACK, SAVEPOINT) is not a query. Waiting for a connection raises no event.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeGuard
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from otel_perf import catalogue, guard, redaction
from otel_perf import conventions as c
from otel_perf.integrations.patch import Holds
from otel_perf.integrations.registry import Undo
from otel_perf.telemetry import operation, runtime
from otel_perf.telemetry.operation import QUERY, Operation

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["instrument", "matches"]

_SYSTEMS = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}
_CONTROL = frozenset({"BEGIN", "START", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"})

_Hooks = tuple[tuple[str, Callable[..., Any]], ...]

_held = Holds()
_ends = Holds()
# A connection runs one statement at a time, known by its cursor: no more than one entry each.
_open: MutableMapping[Connection, tuple[Any, Operation]] = WeakKeyDictionary()
_NONE = (None, None)
_servers: MutableMapping[Engine, _Server] = WeakKeyDictionary()
_pooled: WeakSet[Engine] = WeakSet()
_watching = False


class _Server:
    """What is known of an engine's database: the labels and the span attributes of all its queries."""

    __slots__ = ("attributes", "namespace", "system")

    def __init__(self, engine: Engine) -> None:
        url = engine.url
        self.system = _SYSTEMS.get(engine.dialect.name, engine.dialect.name)
        # A file's folder says where something is installed, not which database it is.
        self.namespace = PurePath(url.database).name if self.system == "sqlite" and url.database else url.database
        self.attributes: dict[str, Any] = {}
        if url.host:
            self.attributes[c.SERVER_ADDRESS] = url.host
        if url.host and url.port:
            self.attributes[c.SERVER_PORT] = url.port

    @property
    def name(self) -> str:
        """A name for the pool, as the conventions build one: `address:port/database`."""
        host, port = self.attributes.get(c.SERVER_ADDRESS, ""), self.attributes.get(c.SERVER_PORT)
        return f"{host}:{port}/{self.namespace}" if port else f"{host or self.system}/{self.namespace or ''}"


def matches(target: object) -> bool:
    """Whether this is an engine."""
    return isinstance(target, Engine) or _is_async(target)


def _is_async(target: object) -> TypeGuard[AsyncEngine]:
    # SQLAlchemy's module for it cannot be imported without greenlet; whoever has such an engine has imported it.
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    known: Any = getattr(module, "AsyncEngine", None)
    return known is not None and isinstance(target, known)


def instrument(target: Engine | AsyncEngine | None = None) -> Undo:
    """Measures the queries of one engine, or with None of all engines there are and will be."""
    global _watching
    if not _watching:
        _watching = True
        catalogue.watch(c.POOL_COUNT, _pool_counts)
        catalogue.watch(c.POOL_MAX, _pool_limits)
    engine: Any = target.sync_engine if _is_async(target) else target
    if engine is not None:
        _pooled.add(engine)
    whom = Engine if engine is None else engine
    # Where an application's handler raises, SQLAlchemy calls no later one. Handlers of the class come before those of
    # an engine, so ours is there, for whichever engine; it knows by the connection what to end.
    ends = _ends.take(Engine, lambda: _listen(Engine, _ENDS), lambda: _remove(Engine, _ENDS))
    queries = _held.take(whom, lambda: _listen(whom, _QUERIES), lambda: _remove(whom, _QUERIES))
    return Undo(ends.undo, queries.undo)


def _listen(target: Any, hooks: _Hooks) -> None:
    for name, hook in hooks:
        event.listen(target, name, hook)


def _remove(target: Any, hooks: _Hooks) -> None:
    for name, hook in hooks:
        event.remove(target, name, hook)


def _before(  # noqa: PLR0917 -- SQLAlchemy's signature
    conn: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> None:
    try:
        begun = _open.get(conn)
        if begun is not None:
            if begun[0] is cursor:  # we listen to the engine and to the class
                return
            del _open[conn]
            begun[1].stop()  # somebody's handler kept the end from us
        if runtime.current is None:
            return
        above = operation.current()
        if above is not None and above.within("query"):
            return
        read = redaction.sql(statement)
        if read.operation in _CONTROL or conn.get_execution_options().get("skip_user_error_events"):
            return
        server = _servers.get(conn.engine) or _server(conn.engine)
        attributes = {**server.attributes, c.DB_QUERY_TEXT: statement, c.DB_QUERY_SUMMARY: read.summary}
        if executemany:
            attributes[c.DB_BATCH_SIZE] = _batch_size(parameters, context)
        labels = (server.system, read.operation, read.collection, server.namespace)
        _open[conn] = cursor, operation.start(QUERY, read.summary, labels, attributes)
    except Exception:
        guard.note("starting a SQLAlchemy query")


def _batch_size(parameters: Any, context: Any) -> int:
    if isinstance(parameters, list):
        return len(parameters)  # pyright: ignore[reportUnknownArgumentType]  # of anything
    # One INSERT of many rows has the values of all rows in one sequence.
    rows: Any = getattr(context, "compiled_parameters", None)
    return len(parameters) // max(len(rows[0]), 1) if rows else 1


def _server(engine: Engine) -> _Server:
    made = _servers[engine] = _Server(engine)
    _pooled.add(engine)
    return made


def _after(conn: Connection, cursor: Any, _statement: str, _parameters: Any, _context: Any, _many: bool) -> None:
    _, begun = _open.pop(conn, _NONE)
    if begun is None:
        return
    try:
        # SQLite counts no rows before they are fetched.
        if begun.labels[0] != "sqlite" and cursor.description is not None and cursor.rowcount >= 0:
            begun.set(c.DB_ROWS, cursor.rowcount)
    except Exception:
        guard.note("reading a row count")
    begun.stop()


def _failed(context: ExceptionContext) -> None:
    if context.connection is None:
        return
    _, begun = _open.pop(context.connection, _NONE)
    if begun is None:
        return
    error = context.original_exception
    try:
        code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if isinstance(code, str):
            begun.set(c.DB_STATUS, code)
    except Exception:
        guard.note("reading a status code")
    begun.stop(error)


_QUERIES: _Hooks = (("before_cursor_execute", _before), ("after_cursor_execute", _after))
_ENDS: _Hooks = (("handle_error", _failed),)


def _pools() -> Iterable[tuple[str, Any]]:
    seen: set[int] = set()
    for engine in list(_pooled):
        pool: Any = engine.pool
        # An engine with options of its own shares the pool; other pools than queues hold no count.
        if id(pool) not in seen and (Engine in _held or engine in _held) and hasattr(pool, "checkedin"):
            seen.add(id(pool))
            yield (_servers.get(engine) or _server(engine)).name, pool


def _pool_counts() -> list[tuple[int, Mapping[str, Any]]]:
    counts: dict[tuple[str, str], int] = {}
    for name, pool in _pools():
        for state, count in (("idle", pool.checkedin()), ("used", pool.checkedout())):
            counts[name, state] = counts.get((name, state), 0) + count
    return [(count, {c.DB_POOL_NAME: name, c.DB_POOL_STATE: state}) for (name, state), count in counts.items()]


def _pool_limits() -> list[tuple[int, Mapping[str, Any]]]:
    limits: dict[str, int] = {}
    for name, pool in _pools():
        if pool.size() > 0 and pool._max_overflow >= 0:  # else there is no limit
            limits[name] = limits.get(name, 0) + pool.size() + pool._max_overflow
    return [(limit, {c.DB_POOL_NAME: name}) for name, limit in limits.items()]
