"""Connections of psycopg 3, and the calls that end a transaction: commit, rollback, and the end of a block.

A transaction begins with its first statement. Below SQLAlchemy none begins here, since the statements are measured
there, and so the calls that end it count nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus

from otel_perf.integrations import statement
from otel_perf.integrations.patch import Patch
from otel_perf.integrations.statement import Session

__all__ = ["inside", "patches", "session"]

_Method = Callable[..., Any]

_sessions: MutableMapping[Any, Session] = WeakKeyDictionary()
_OUTSIDE = frozenset({TransactionStatus.IDLE, TransactionStatus.UNKNOWN})


def session(conn: Any) -> Session:
    """What is known of a connection."""
    found = _sessions.get(conn)
    if found is None:
        info = conn.info
        found = _sessions[conn] = Session(statement.server("postgresql", info.dbname, info.host, info.port))
    return found


def inside(conn: Any) -> bool:
    """Whether a connection is in a transaction."""
    return conn.pgconn.transaction_status not in _OUTSIDE


def _open(conn: Any) -> Session | None:
    found = _sessions.get(conn)
    return found if found is not None and found.began_ns else None


def _end(verb: str) -> Callable[[_Method], _Method]:
    def wrap(original: _Method) -> _Method:
        @functools.wraps(original)
        def end(self: Any, *args: Any) -> Any:
            found = _open(self)
            if found is None:
                return original(self, *args)
            try:
                answer = original(self, *args)
            except BaseException as error:
                found.ended(verb, error, inside=inside(self))
                raise
            found.ended(verb, inside=inside(self))
            return answer

        return end

    return wrap


def _async_end(verb: str) -> Callable[[_Method], _Method]:
    def wrap(original: _Method) -> _Method:
        @functools.wraps(original)
        async def end(self: Any, *args: Any) -> Any:
            found = _open(self)
            if found is None:
                return await original(self, *args)
            try:
                answer = await original(self, *args)
            except BaseException as error:
                found.ended(verb, error, inside=inside(self))
                raise
            found.ended(verb, inside=inside(self))
            return answer

        return end

    return wrap


def _block_ended(block: Any, raised: object, error: BaseException | None = None) -> None:
    found = _open(block._conn)
    if found is not None:
        verb = "COMMIT" if raised is None and not block.force_rollback else "ROLLBACK"
        found.ended(verb, error, inside=inside(block._conn))


def _block(original: _Method) -> _Method:
    @functools.wraps(original)
    def __exit__(self: Any, kind: Any, raised: Any, trace: Any) -> Any:  # noqa: N807 -- it is that method
        try:
            answer = original(self, kind, raised, trace)
        except BaseException as error:
            _block_ended(self, raised, error)
            raise
        _block_ended(self, raised)
        return answer

    return __exit__


def _async_block(original: _Method) -> _Method:
    @functools.wraps(original)
    async def __aexit__(self: Any, kind: Any, raised: Any, trace: Any) -> Any:  # noqa: N807 -- it is that method
        try:
            answer = await original(self, kind, raised, trace)
        except BaseException as error:
            _block_ended(self, raised, error)
            raise
        _block_ended(self, raised)
        return answer

    return __aexit__


def patches() -> list[Patch]:
    """What is to be wrapped."""
    return [
        Patch(psycopg.Connection, "commit", _end("COMMIT")), Patch(psycopg.Connection, "rollback", _end("ROLLBACK")),
        Patch(psycopg.AsyncConnection, "commit", _async_end("COMMIT")),
        Patch(psycopg.AsyncConnection, "rollback", _async_end("ROLLBACK")),
        Patch(psycopg.Transaction, "__exit__", _block), Patch(psycopg.AsyncTransaction, "__aexit__", _async_block),
    ]  # fmt: skip
