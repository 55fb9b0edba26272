"""SQLAlchemy 2.x, sync and async.

The methods of a connection by which all statements go are wrapped. Its events would tell the same, but as soon as
anybody listens to one, SQLAlchemy dispatches all of them, which would nearly double the cost; they are used where a
version of SQLAlchemy has no such methods. What a dialect asks of its own accord when it connects is not
measured.

Transaction control (COMMIT, ROLLBACK, SAVEPOINT) is not a query.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

from sqlalchemy import Connection, Engine

from otel_perf import guard
from otel_perf.integrations import sqlalchemy_events, sqlalchemy_pool, statement
from otel_perf.integrations.patch import Holds, Patch
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.sqlalchemy_connection import ENDS, STATE, begin, broke, done, opened, server_of
from otel_perf.telemetry import runtime

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["elsewhere", "instrument", "matches"]

#: The engines that are measured, by their ids; the class stands for all.
_held = Holds()
_wanted, _EVERY = _held.ids, id(Engine)
_wrapped = Holds()


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
    engine: Any = target.sync_engine if _is_async(target) else target
    pools = sqlalchemy_pool.take(engine, server_of)
    whom = Engine if engine is None else engine
    if not _BY_METHODS:
        return Undo(pools.undo, sqlalchemy_events.take(whom).undo)
    return Undo(pools.undo, _wrapped.take(Engine, _put_in, _take_out).undo, _held.take(whom).undo)


def elsewhere() -> str | None:
    """Who makes the spans already."""
    return statement.upstream("sqlalchemy", "SQLAlchemyInstrumentor")


def _put_in() -> None:
    for patch in (*_STATEMENTS, *ENDS):
        patch.put_in()


def _take_out() -> None:
    for patch in (*ENDS, *_STATEMENTS):
        patch.take_out()


def _execution(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def execute(self: Connection, dialect: Any, context: Any, *args: Any) -> Any:
        begun = state = None
        try:
            state = self.__dict__.get(STATE) or opened(self)
            if runtime.current is not None and (
                _EVERY in _wanted or state.engine in _wanted or state.parent in _wanted
            ):
                begun = begin(self, state, context.statement, len(context.parameters))
        except Exception:
            guard.note("starting a SQLAlchemy query")
        if begun is None or state is None:
            return original(self, dialect, context, *args)
        try:
            answer = original(self, dialect, context, *args)
        except BaseException as error:
            broke(state, begun, getattr(error, "orig", None) or error)
            raise
        done(state, begun, context.cursor if answer._metadata.returns_rows else None)
        return answer

    return execute


def _own_execution(original: Callable[..., Any]) -> Callable[..., Any]:
    """What SQLAlchemy executes of its own accord for a statement: a sequence, a default."""

    @functools.wraps(original)
    def execute(self: Connection, cursor: Any, text: str, *args: Any, **options: Any) -> Any:
        begun = state = None
        try:
            state = self.__dict__.get(STATE) or opened(self)
            if runtime.current is not None and (
                _EVERY in _wanted or state.engine in _wanted or state.parent in _wanted
            ):
                begun = begin(self, state, text, 1)
        except Exception:
            guard.note("starting a SQLAlchemy query")
        if begun is None or state is None:
            return original(self, cursor, text, *args, **options)
        try:
            answer = original(self, cursor, text, *args, **options)
        except BaseException as error:
            broke(state, begun, getattr(error, "orig", None) or error)
            raise
        done(state, begun, None)
        return answer

    return execute


_STATEMENTS = tuple(
    Patch(Connection, name, wrap)
    for name, wrap in (
        ("_exec_single_context", _execution), ("_exec_insertmany_context", _execution),
        ("_cursor_execute", _own_execution),
    )
    if hasattr(Connection, name)
)  # fmt: skip
_BY_METHODS = len(_STATEMENTS) == 3
