"""psycopg 3, sync and async: execute, executemany, stream, COPY and server-side cursors.

psycopg has no hook of its own: the methods of its cursors are wrapped. What the application composed of parts is read
part by part, so that the values in it are never rendered.
"""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import psycopg
from psycopg import conninfo, sql

from otel_perf import guard
from otel_perf.integrations import psycopg_transaction, statement
from otel_perf.integrations.patch import Patch, Patches
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.statement import Session
from otel_perf.telemetry import runtime
from otel_perf.telemetry.operation import Operation

__all__ = ["elsewhere", "instrument", "matches"]

_Method = Callable[..., Any]
_Started = tuple[Session, Operation]


def matches(target: object) -> bool:
    """Whether this is a connection."""
    return isinstance(target, (psycopg.Connection, psycopg.AsyncConnection))


def instrument(target: psycopg.Connection[Any] | psycopg.AsyncConnection[Any] | None = None) -> Undo:
    """Measures one connection, or with None all there are and will be."""
    return statement.driver(_patches.take(target))


def elsewhere() -> str | None:
    """Who makes the spans already."""
    return statement.upstream("psycopg", "PsycopgInstrumentor")


def _text(query: object) -> str:
    """The statement without its values."""
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode("utf-8", "replace")
    if isinstance(query, sql.Composed):
        return "".join(_text(each) for each in query)
    if isinstance(query, sql.SQL):
        return query._obj  # pyright: ignore[reportPrivateUsage]  # as_string may ask for a connection
    if isinstance(query, sql.Identifier):
        names = cast("tuple[str, ...]", query._obj)  # pyright: ignore[reportPrivateUsage]  # as above
        return ".".join('"' + each.replace('"', '""') + '"' for each in names)
    if isinstance(query, sql.Placeholder):
        return "%s"
    strings: Any = getattr(query, "strings", None)  # a template string of Python 3.14
    return "?".join(strings) if strings.__class__ is tuple else "?"


def _started(cursor: Any, query: object, batch: object = None) -> _Started | None:
    try:
        conn = cursor._conn
        if runtime.current is None or not _patches.measures(conn):
            return None
        theirs = statement.spanned("psycopg")
        rows = None if batch is None else statement.batch_size(batch)
        session = psycopg_transaction.session(conn)
        begun = statement.begin(
            session.server, _text(query), batch=rows, span=not theirs,
            metrics=not (theirs and statement.records_durations()),
        )  # fmt: skip
        return None if begun is None else (session, begun)
    except Exception:
        guard.note("starting a psycopg query")
        return None


def _finish(
    cursor: Any, started: _Started, error: BaseException | None = None, *, rows: int | None = None, many: bool = False
) -> None:
    session, begun = started
    try:
        if rows is None and error is None and not many and cursor.description is not None and cursor.rowcount >= 0:
            rows = cursor.rowcount
        statement.finish(session, begun, error, inside=psycopg_transaction.inside(cursor._conn), rows=rows)
    except Exception:
        begun.stop(error)
        guard.note("ending a psycopg query")


# Cursors --------------------------------------------------------------------------------------------------------------


def _query(*, many: bool = False) -> Callable[[_Method], _Method]:
    def wrap(original: _Method) -> _Method:
        @functools.wraps(original)
        def call(self: Any, query: Any, *args: Any, **options: Any) -> Any:
            started = _started(self, query, _batch(args, options) if many else None)
            if started is None:
                return original(self, query, *args, **options)
            try:
                answer = original(self, query, *args, **options)
            except BaseException as error:
                _finish(self, started, error)
                raise
            _finish(self, started, many=many)
            return answer

        return call

    return wrap


def _async_query(*, many: bool = False) -> Callable[[_Method], _Method]:
    def wrap(original: _Method) -> _Method:
        @functools.wraps(original)
        async def call(self: Any, query: Any, *args: Any, **options: Any) -> Any:
            started = _started(self, query, _batch(args, options) if many else None)
            if started is None:
                return await original(self, query, *args, **options)
            try:
                answer = await original(self, query, *args, **options)
            except BaseException as error:
                _finish(self, started, error)
                raise
            _finish(self, started, many=many)
            return answer

        return call

    return wrap


def _batch(args: tuple[Any, ...], options: dict[str, Any]) -> object:
    return args[0] if args else options.get("params_seq")


def _apart(started: _Started | None) -> _Started | None:
    """Between the rows that it hands out, the application does something else."""
    if started is not None:
        started[1].deactivate()
    return started


def _stream(original: _Method) -> _Method:
    @functools.wraps(original)
    def stream(self: Any, query: Any, *args: Any, **options: Any) -> Generator[Any, None, None]:
        started, rows = _apart(_started(self, query)), 0
        given = original(self, query, *args, **options)
        failure: BaseException | None = None
        try:
            for row in given:
                rows += 1
                yield row
        except GeneratorExit:
            raise
        except BaseException as error:
            failure = error
            raise
        finally:
            given.close()
            if started is not None:
                _finish(self, started, failure, rows=rows)

    return stream


def _async_stream(original: _Method) -> _Method:
    @functools.wraps(original)
    async def stream(self: Any, query: Any, *args: Any, **options: Any) -> AsyncGenerator[Any, None]:
        started, rows = _apart(_started(self, query)), 0
        given = original(self, query, *args, **options)
        failure: BaseException | None = None
        try:
            async for row in given:
                rows += 1
                yield row
        except GeneratorExit:
            raise
        except BaseException as error:
            failure = error
            raise
        finally:
            try:
                await given.aclose()
            finally:
                if started is not None:
                    _finish(self, started, failure, rows=rows)

    return stream


def _copy(original: _Method) -> _Method:
    @functools.wraps(original)
    @contextmanager
    def copy(self: Any, query: Any, *args: Any, **options: Any) -> Generator[Any, None, None]:
        started = _apart(_started(self, query))
        try:
            with original(self, query, *args, **options) as copying:
                yield copying
        except BaseException as error:
            if started is not None:
                _finish(self, started, error)
            raise
        if started is not None:
            _finish(self, started, many=True)

    return copy


def _async_copy(original: _Method) -> _Method:
    @functools.wraps(original)
    @asynccontextmanager
    async def copy(self: Any, query: Any, *args: Any, **options: Any) -> AsyncGenerator[Any, None]:
        started = _apart(_started(self, query))
        try:
            async with original(self, query, *args, **options) as copying:
                yield copying
        except BaseException as error:
            if started is not None:
                _finish(self, started, error)
            raise
        if started is not None:
            _finish(self, started, many=True)

    return copy


# Connections ----------------------------------------------------------------------------------------------------------


def _connect(original: _Method) -> _Method:
    @functools.wraps(original)
    def connect(cls: Any, *args: Any, **options: Any) -> Any:
        began_ns = time.perf_counter_ns()
        try:
            return original(cls, *args, **options)
        except BaseException as error:
            _unreachable(args, options, error, began_ns)
            raise

    return connect


def _async_connect(original: _Method) -> _Method:
    @functools.wraps(original)
    async def connect(cls: Any, *args: Any, **options: Any) -> Any:
        began_ns = time.perf_counter_ns()
        try:
            return await original(cls, *args, **options)
        except BaseException as error:
            _unreachable(args, options, error, began_ns)
            raise

    return connect


def _module_connect(original: _Method) -> _Method:
    @functools.wraps(original)
    def connect(*args: Any, **options: Any) -> Any:
        began_ns = time.perf_counter_ns()
        try:
            return original(*args, **options)
        except BaseException as error:
            _unreachable(args, options, error, began_ns)
            raise

    return connect


def _unreachable(args: tuple[Any, ...], options: dict[str, Any], error: BaseException, began_ns: int) -> None:
    try:
        if _patches.everything:
            text = args[0] if args else options.get("conninfo") or ""
            given = {**conninfo.conninfo_to_dict(text), **options}
            port = str(given.get("port") or "")
            of = statement.server(
                "postgresql", given.get("dbname"), given.get("host"), int(port) if port.isdigit() else None
            )
            statement.unreachable(of, error, began_ns)
    except Exception:
        guard.note("counting a failure of psycopg")


def _make() -> list[Patch]:
    plain, later = psycopg.Cursor, psycopg.AsyncCursor
    return [
        Patch(plain, "execute", _query()), Patch(psycopg.ServerCursor, "execute", _query()),
        Patch(plain, "executemany", _query(many=True)), Patch(plain, "stream", _stream), Patch(plain, "copy", _copy),
        Patch(later, "execute", _async_query()), Patch(psycopg.AsyncServerCursor, "execute", _async_query()),
        Patch(later, "executemany", _async_query(many=True)), Patch(later, "stream", _async_stream),
        Patch(later, "copy", _async_copy),
        Patch(psycopg, "connect", _module_connect), Patch(psycopg.Connection, "connect", _connect),
        Patch(psycopg.AsyncConnection, "connect", _async_connect),
        *psycopg_transaction.patches(),
    ]  # fmt: skip


_patches = Patches(_make)
