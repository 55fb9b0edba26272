"""Connections of SQLAlchemy: the statement that runs on one, and its transaction.

A transaction begins with its first statement, as it does for the drivers. SQLAlchemy's events come before the end of
one is tried, so the methods that end it are wrapped.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, MutableMapping
from pathlib import PurePath
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine

from otel_perf import conventions as c
from otel_perf import guard, redaction
from otel_perf.integrations import sqlalchemy_pool, statement
from otel_perf.integrations.patch import Patch
from otel_perf.integrations.statement import Server
from otel_perf.telemetry import operation
from otel_perf.telemetry.opening import Known
from otel_perf.telemetry.operation import QUERY, Operation

__all__ = ["ENDS", "STATE", "State", "begin", "broke", "done", "opened", "server_of"]

_SYSTEMS = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}
#: Where a connection keeps what we know of it: in its own attributes it is found without a call.
STATE = "_otel_perf"
_servers: MutableMapping[Engine, Server] = WeakKeyDictionary()


class State:
    """One connection: its database, the statement that runs on it, and its transaction."""

    __slots__ = ("began_ns", "cursor", "engine", "error_type", "parent", "running", "server", "span")

    def __init__(self, server: Server, engine: Any, *, span: bool) -> None:
        self.server = server
        self.engine = id(engine)
        # An engine with options of its own is measured with the one that it was made of.
        self.parent = id(getattr(engine, "_proxied", engine))
        self.span = span
        # A connection runs one statement at a time. Only events need to know it, by its cursor.
        self.cursor: Any = None
        self.running: Operation | None = None
        #: When its transaction began; 0 while there is none.
        self.began_ns = 0
        #: Of the last statement in the transaction.
        self.error_type: str | None = None


def begin(conn: Connection, state: State, text: str, rows: int) -> Operation | None:
    """Starts the operation of a statement, or answers None where there is nothing to measure."""
    above = operation.current()
    if above is not None and above.within("query"):
        return None
    prepared = state.server.statements.get(text) or state.server.prepared(text)
    if prepared.control:
        return statement.control(prepared) if statement.drivers else None
    # Private names of SQLAlchemy's: what is public for it costs calls.
    if "skip_user_error_events" in conn._execution_options:  # pyright: ignore[reportPrivateUsage]
        return None
    if not conn.__dict__.get("_allow_autobegin", True):  # by which it looks at a server when it first connects
        return None
    known = prepared.known
    if rows > 1:
        known = Known({**known, c.DB_BATCH_SIZE: rows})
    begun = operation.start(QUERY, prepared.name, prepared.labels, known, span=state.span)
    if not state.began_ns and not conn._is_autocommit_isolation():  # pyright: ignore[reportPrivateUsage]
        state.began_ns = begun.started_ns
    return begun


def done(state: State, begun: Operation, cursor: Any) -> None:
    """Ends the operation of a statement that went well; the cursor is None where no rows come back."""
    state.error_type = None
    try:
        # SQLite counts no rows before they are fetched.
        if cursor is not None and begun.labels[0] != "sqlite" and cursor.description is not None:
            begun.set(c.DB_ROWS, cursor.rowcount if cursor.rowcount >= 0 else None)
    except Exception:
        guard.note("reading a row count")
    begun.stop()


def _driver_error(error: BaseException) -> BaseException:
    # SQLAlchemy's dialects for asyncio raise a class of their own from what the driver raised.
    cause = error.__cause__
    return cause if cause is not None and type(error).__module__.startswith("sqlalchemy.dialects") else error


def broke(state: State, begun: Operation, error: BaseException) -> None:
    """Ends the operation of a statement that failed."""
    error = _driver_error(error)
    try:
        begun.set(c.DB_STATUS, statement.status_code(error))
    except Exception:
        guard.note("reading a status code")
    begun.stop(error)
    state.error_type = begun.error_type


def opened(conn: Connection) -> State:
    """Makes what is known of a connection."""
    engine = conn.engine
    state = State(_servers.get(engine) or server_of(engine), engine, span=not _upstream_makes_spans(engine))
    conn.__dict__[STATE] = state
    return state


def server_of(engine: Engine) -> Server:
    """Makes what is known of an engine's database."""
    url = engine.url
    system = _SYSTEMS.get(engine.dialect.name, engine.dialect.name)
    # A file's folder says where something is installed, not which database it is.
    namespace = PurePath(url.database).name if system == "sqlite" and url.database else url.database
    made = _servers[engine] = statement.server(system, namespace, url.host, url.port)
    sqlalchemy_pool.add(engine)
    return made


def _upstream_makes_spans(engine: Engine) -> bool:
    # Its instrumentor takes single engines too, and keeps a list of what it listens to.
    module = sys.modules.get("opentelemetry.instrumentation.sqlalchemy.engine")
    if module is None:
        return False
    listening: list[Any] = getattr(getattr(module, "EngineTracer", None), "_remove_event_listener_params", [])
    return any(each[0]() is engine for each in listening)


def _ending(outcome: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def end(self: Connection, *args: Any) -> Any:
            state: State | None = self.__dict__.get(STATE)
            if state is None or not state.began_ns:
                return original(self, *args)
            try:
                answer = original(self, *args)
            except BaseException as error:
                _ended(state, outcome, error)
                raise
            _ended(state, outcome)
            return answer

        return end

    return wrap


def _ended(state: State, outcome: str, error: BaseException | None = None) -> None:
    began_ns, state.began_ns = state.began_ns, 0
    error_type, state.error_type = state.error_type, None
    try:
        if error is not None:  # SQLAlchemy wraps what the driver raised
            error_type = redaction.exception_type(_driver_error(getattr(error, "orig", None) or error))
        statement.transaction_ended(state.server, began_ns, outcome, error_type)
    except Exception:
        guard.note("measuring a SQLAlchemy transaction")


#: What is to be wrapped for transactions.
ENDS = tuple(
    Patch(Connection, name, _ending(outcome))
    for name, outcome in (
        ("_commit_impl", "commit"), ("_commit_twophase_impl", "commit"),
        ("_rollback_impl", "rollback"), ("_rollback_twophase_impl", "rollback"),
    )
    if hasattr(Connection, name)
)  # fmt: skip
