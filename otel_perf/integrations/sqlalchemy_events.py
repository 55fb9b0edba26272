"""SQLAlchemy by its events, for a version that has not the methods that are wrapped otherwise.

`before_cursor_execute`, `after_cursor_execute` and `handle_error` are three calls and no block, so the operation is
started by hand and made current. `handle_error` comes for every exception, also when a task is cancelled in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from otel_perf import guard
from otel_perf.integrations.patch import Holds
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.sqlalchemy_connection import ENDS, STATE, State, begin, broke, done, opened
from otel_perf.telemetry import runtime

__all__ = ["HOOKS", "take"]

_Hooks = tuple[tuple[str, Callable[..., Any], dict[str, bool]], ...]

_ends = Holds()
_held = Holds()


def take(whom: Any) -> Undo:
    """Listens to an engine, or to the class for all, until the answer is undone."""
    ends = _ends.take(Engine, _put_in, _take_out)
    queries = _held.take(whom, lambda: _listen(whom, _QUERIES), lambda: _remove(whom, _QUERIES))
    return Undo(ends.undo, queries.undo)


def _put_in() -> None:
    # Where an application's handler raises, SQLAlchemy calls no later one. Handlers of the class come before those of
    # an engine, so ours is there, for whichever engine; it knows by the connection what to end.
    event.listen(Engine, "handle_error", _failed)
    for patch in ENDS:
        patch.put_in()


def _take_out() -> None:
    event.remove(Engine, "handle_error", _failed)
    for patch in ENDS:
        patch.take_out()


def _listen(target: Any, hooks: _Hooks) -> None:
    for name, hook, options in hooks:
        event.listen(target, name, hook, **options)


def _remove(target: Any, hooks: _Hooks) -> None:
    for name, hook, _ in hooks:
        event.remove(target, name, hook)


def _before(  # noqa: PLR0917 -- SQLAlchemy's signature
    conn: Connection, cursor: Any, text: str, parameters: Any, context: Any, executemany: bool
) -> tuple[str, Any]:
    try:
        state: State = conn.__dict__.get(STATE) or opened(conn)
        if state.running is not None:
            if state.cursor is cursor:  # we listen to the engine and to the class
                return text, parameters
            left, state.running = state.running, None
            left.stop()  # somebody's handler kept the end from us
        if runtime.current is not None:
            rows = _batch_size(parameters, context) if executemany else 1
            state.cursor, state.running = cursor, begin(conn, state, text, rows)
    except Exception:
        guard.note("starting a SQLAlchemy query")
    return text, parameters


def _after(conn: Connection, cursor: Any, _text: str, _parameters: Any, _context: Any, _many: bool) -> None:
    state: State | None = conn.__dict__.get(STATE)
    if state is not None and state.running is not None:
        begun, state.running, state.cursor = state.running, None, None
        done(state, begun, cursor)


def _failed(context: ExceptionContext) -> None:
    conn = context.connection
    state: State | None = None if conn is None else conn.__dict__.get(STATE)
    if state is not None and state.running is not None:
        begun, state.running, state.cursor = state.running, None, None
        broke(state, begun, context.original_exception)


def _batch_size(parameters: Any, context: Any) -> int:
    if isinstance(parameters, list):
        return len(parameters)  # pyright: ignore[reportUnknownArgumentType]  # of anything
    # One INSERT of many rows has the values of all rows in one sequence.
    rows: Any = getattr(context, "compiled_parameters", None)
    return len(parameters) // max(len(rows[0]), 1) if rows else 1


# `retval` saves a call: SQLAlchemy would wrap a handler that changes nothing.
_QUERIES: _Hooks = (("before_cursor_execute", _before, {"retval": True}), ("after_cursor_execute", _after, {}))
#: All that is listened to.
HOOKS = {**{name: hook for name, hook, _ in _QUERIES}, "handle_error": _failed}
