"""sqlite3 of the standard library: connections that `sqlite3.connect` makes while it is measured.

Its classes are written in C and cannot be wrapped, so `connect` answers a subclass of the class that it was asked for,
by its own parameter `factory`. A connection that is there already cannot be measured.

aiosqlite's connections are left to its own integration: they work in a thread where nobody knows what is above them.
"""

# The classes here are made of classes that are known only when it runs.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import functools
import inspect
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import PurePath
from sqlite3 import dbapi2
from typing import Any, cast

from otel_perf import guard
from otel_perf.integrations import statement
from otel_perf.integrations.patch import Patch, Patches
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.statement import Session
from otel_perf.telemetry import runtime
from otel_perf.telemetry.operation import Operation

__all__ = ["elsewhere", "instrument", "matches"]

_FACTORY = 5  # its place among the arguments of `connect`
_MAX_CLASSES = 64
#: A connection's own, which make a cursor and call it, since Python 3.11 past its method `cursor`.
_SHORT_CUTS = ("execute", "executemany", "executescript")


def matches(target: object) -> bool:
    """Whether this is a connection."""
    return isinstance(target, sqlite3.Connection)


def instrument(target: sqlite3.Connection | None = None) -> Undo:
    """Measures the connections that `sqlite3.connect` makes from now on, or one of them.

    Raises:
        TypeError: for a connection that was made before: its class is written in C.
    """
    if target is not None and not hasattr(target, "_otel_perf"):
        raise TypeError(
            "a sqlite3 connection that is there already cannot be measured: its class is written in C; "
            'call instrument("sqlite3") before sqlite3.connect(...)'
        )
    return statement.driver(_patches.take(target))


def elsewhere() -> str | None:
    """Who makes the spans already."""
    return statement.upstream("sqlite3", "SQLite3Instrumentor")


def _started(connection: Any, args: tuple[Any, ...], *, many: bool) -> Operation | None:
    try:
        if runtime.current is None or not args or not isinstance(args[0], str) or not _patches.measures(connection):
            return None
        theirs = statement.spanned("sqlite3")
        return statement.begin(
            connection._otel_perf.server, args[0], span=not theirs,
            batch=statement.batch_size(args[1]) if many and len(args) > 1 else None,
            metrics=not (theirs and statement.records_durations()),
        )  # fmt: skip
    except Exception:
        guard.note("starting a sqlite3 query")
        return None


def _finish(connection: Any, begun: Operation, error: BaseException | None = None) -> None:
    try:
        statement.finish(connection._otel_perf, begun, error, inside=connection.in_transaction)
    except Exception:  # a connection of another thread, or a closed one
        begun.stop(error)
        guard.note("ending a sqlite3 query")


def _missed(connection: Any, args: tuple[Any, ...], error: BaseException) -> None:
    """A connection that is closed, or of another thread, makes no cursor: the statement fails before it begins."""
    begun = _started(connection, args, many=False)
    if begun is not None:
        begun.stop(error)


def _run(connection: Any, original: Callable[..., Any], args: tuple[Any, ...], *, many: bool = False) -> Any:
    begun = _started(connection, args, many=many)
    if begun is None:
        return original(*args)
    try:
        answer = original(*args)
    except BaseException as error:
        _finish(connection, begun, error)
        raise
    _finish(connection, begun)
    return answer


def _is(kind: Any, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)


def _named_like(kind: Any, made: Any) -> Any:
    made.__name__, made.__qualname__, made.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return made


@functools.lru_cache(maxsize=_MAX_CLASSES)
def _cursors(kind: Any) -> Any:
    """The class of cursors that measures, for a class of cursors; what is no class stays as it is."""
    if not _is(kind, sqlite3.Cursor):
        return kind

    class Cursor(kind):  # type: ignore[misc]  # of a class that is known when it runs
        def execute(self, *args: Any) -> Any:
            return _run(self.connection, super().execute, args)

        def executemany(self, *args: Any) -> Any:
            return _run(self.connection, super().executemany, args, many=True)

        def executescript(self, *args: Any) -> Any:
            return _run(self.connection, super().executescript, args)

    return _named_like(kind, Cursor)


def _usual_cursor(kind: Any) -> Any:
    if kind.cursor is sqlite3.Connection.cursor:
        return sqlite3.Cursor
    named = inspect.signature(kind.cursor).parameters.get("factory")
    return named.default if named is not None and _is(named.default, sqlite3.Cursor) else None


@functools.lru_cache(maxsize=_MAX_CLASSES)
def _connections(kind: Any) -> Any:
    """The same for a class of connections."""
    if not _is(kind, sqlite3.Connection):
        return kind
    usual = _usual_cursor(kind)
    plain = all(getattr(kind, name) is getattr(sqlite3.Connection, name) for name in ("cursor", *_SHORT_CUTS))

    class Connection(kind):  # type: ignore[misc]  # as above
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            database = args[0] if args else options.get("database")
            self._otel_perf = Session(statement.server("sqlite", _namespace(database)))

        def cursor(self, *args: Any, **options: Any) -> Any:
            factory = args[0] if args else options.get("factory", usual)
            # What makes its cursors in a way of its own, by no class that it names, is left to it.
            return super().cursor() if factory is None else super().cursor(_cursors(factory))

        def execute(self, *args: Any) -> Any:
            if not plain:
                return _run(self, super().execute, args)
            try:
                cursor = self.cursor()
            except BaseException as error:
                _missed(self, args, error)
                raise
            return cursor.execute(*args)

        def executemany(self, *args: Any) -> Any:
            if not plain:
                return _run(self, super().executemany, args, many=True)
            try:
                cursor = self.cursor()
            except BaseException as error:
                _missed(self, args, error)
                raise
            return cursor.executemany(*args)

        def executescript(self, *args: Any) -> Any:
            if not plain:
                return _run(self, super().executescript, args)
            try:
                cursor = self.cursor()
            except BaseException as error:
                _missed(self, args, error)
                raise
            return cursor.executescript(*args)

        def commit(self) -> None:
            _end(self, "COMMIT", super().commit)

        def rollback(self) -> None:
            _end(self, "ROLLBACK", super().rollback)

        def __exit__(self, *raised: object) -> Any:
            verb = "COMMIT" if raised[0] is None else "ROLLBACK"
            return _end(self, verb, functools.partial(super().__exit__, *raised))

    return _named_like(kind, Connection)


def _namespace(database: Any) -> str | None:
    # A file's folder says where something is installed, not which database it is.
    try:
        name = os.fsdecode(database)
    except TypeError:
        return None
    return PurePath(name.partition("?")[0]).name or None


def _end(connection: Any, verb: str, original: Callable[[], Any]) -> Any:
    session: Session = connection._otel_perf
    if not session.began_ns:
        return original()
    try:
        answer = original()
    except BaseException as error:
        session.ended(verb, error, inside=connection.in_transaction)
        raise
    session.ended(verb, inside=connection.in_transaction)
    return answer


def _unreachable(database: Any, error: BaseException, began_ns: int) -> None:
    try:
        if _patches.everything:
            statement.unreachable(statement.server("sqlite", _namespace(database)), error, began_ns)
    except Exception:
        guard.note("counting a failure of sqlite3")


def _connect(original: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
    @functools.wraps(original)
    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        caller = ""
        try:
            caller = cast("str", sys._getframe(1).f_globals.get("__name__", ""))  # pyright: ignore[reportPrivateUsage]  # no stack is kept
            if not caller.startswith("aiosqlite"):
                if len(args) > _FACTORY:
                    args = (*args[:_FACTORY], _connections(args[_FACTORY]), *args[_FACTORY + 1 :])
                else:
                    options = {**options, "factory": _connections(options.get("factory", sqlite3.Connection))}
        except Exception:
            guard.note("opening a sqlite3 connection")
        began_ns = time.perf_counter_ns()
        try:
            return original(*args, **options)
        except BaseException as error:
            if not caller.startswith("aiosqlite"):
                _unreachable(args[0] if args else options.get("database"), error, began_ns)
            raise

    return connect


def _make() -> list[Patch]:
    modules: tuple[Any, ...] = (sqlite3, dbapi2)
    return [Patch(module, "connect", _connect) for module in modules]


_patches = Patches(_make)
