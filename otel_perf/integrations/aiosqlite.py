"""aiosqlite: what its connections and cursors hand to their thread is measured where it is awaited.

All of it passes through one method, which is wrapped. The thread itself knows nothing of what is above: sqlite3's own
integration leaves the connections of aiosqlite alone.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, MutableMapping
from pathlib import PurePath
from typing import Any
from weakref import WeakKeyDictionary

import aiosqlite

from otel_perf import guard
from otel_perf.integrations import statement
from otel_perf.integrations.patch import Patch, Patches
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.statement import Session
from otel_perf.telemetry import runtime
from otel_perf.telemetry.operation import Operation

__all__ = ["instrument", "matches"]

_STATEMENTS = frozenset({"execute", "executemany", "executescript", "_execute_insert", "_execute_fetchall"})
_ENDS = {"commit": "COMMIT", "rollback": "ROLLBACK"}

_sessions: MutableMapping[Any, Session] = WeakKeyDictionary()


def matches(target: object) -> bool:
    """Whether this is a connection."""
    return isinstance(target, aiosqlite.Connection)


def instrument(target: aiosqlite.Connection | None = None) -> Undo:
    """Measures one connection, or with None all there are and will be."""
    return statement.driver(_patches.take(target))


def _session(connection: Any) -> Session:
    found = _sessions.get(connection)
    if found is None:
        namespace = _namespace(connection._connector)
        found = _sessions[connection] = Session(statement.server("sqlite", namespace))
    return found


def _namespace(connector: Any) -> str | None:
    """The name of the database: a connection keeps it only in the function that opens it."""
    code = getattr(connector, "__code__", None)
    if code is None or "database" not in code.co_freevars:
        return None
    database = connector.__closure__[code.co_freevars.index("database")].cell_contents
    return PurePath(os.fsdecode(database).partition("?")[0]).name or None


def _started(connection: Any, name: str, query: object = None, rows: object = None, *_: Any) -> Operation | None:
    try:
        if runtime.current is None or name not in _STATEMENTS or not _patches.measures(connection):
            return None
        if not isinstance(query, str):
            return None
        batch = statement.batch_size(rows) if name == "executemany" else None
        return statement.begin(_session(connection).server, query, batch=batch)
    except Exception:
        guard.note("starting an aiosqlite query")
        return None


def _finish(connection: Any, begun: Operation, error: BaseException | None = None, answer: Any = None) -> None:
    try:
        rows = len(answer) if isinstance(answer, list) else None  # pyright: ignore[reportUnknownArgumentType]  # of rows
        statement.finish(_session(connection), begun, error, inside=_inside(connection), rows=rows)
    except Exception:
        begun.stop(error)
        guard.note("ending an aiosqlite query")


def _inside(connection: Any) -> bool:
    # It may have been closed meanwhile.
    return connection._connection is not None and bool(connection._connection.in_transaction)


def _execute(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def execute(self: Any, fn: Any, *args: Any, **options: Any) -> Any:
        name = getattr(fn, "__name__", "")
        if name in _ENDS:
            return await _end(self, _ENDS[name], lambda: original(self, fn, *args, **options))
        begun = _started(self, name, *args)
        if begun is None:
            return await original(self, fn, *args, **options)
        try:
            answer = await original(self, fn, *args, **options)
        except BaseException as error:
            _finish(self, begun, error)
            raise
        _finish(self, begun, None, answer)
        return answer

    return execute


async def _end(connection: Any, verb: str, call: Callable[[], Any]) -> Any:
    session = _sessions.get(connection)
    if session is None or not session.began_ns:
        return await call()
    try:
        answer = await call()
    except BaseException as error:
        session.ended(verb, error, inside=_inside(connection))
        raise
    session.ended(verb, inside=_inside(connection))
    return answer


def _connect(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def connect(self: Any) -> Any:
        began_ns = time.perf_counter_ns()
        try:
            return await original(self)
        except BaseException as error:
            _unreachable(self, error, began_ns)
            raise

    return connect


def _unreachable(connection: Any, error: BaseException, began_ns: int) -> None:
    try:
        if _patches.measures(connection):
            statement.unreachable(_session(connection).server, error, began_ns)
    except Exception:
        guard.note("counting a failure of aiosqlite")


_patches = Patches(
    lambda: [Patch(aiosqlite.Connection, "_execute", _execute), Patch(aiosqlite.Connection, "_connect", _connect)]
)
