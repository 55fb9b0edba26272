"""The pools of SQLAlchemy's engines: how many connections, who waits for one, how long, and who gave up.

No event shows that somebody waits, so the one way by which an engine takes a connection from its pool is wrapped: it
sees also the pool that `dispose()` puts in place of the old one.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Engine, exc

from otel_perf import guard
from otel_perf.integrations import pool as pools
from otel_perf.integrations import statement
from otel_perf.integrations.patch import Holds, Patch
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.statement import Server

__all__ = ["add", "take"]

_held = Holds()
_patches: tuple[Patch, ...] = ()
_engines: WeakSet[Engine] = WeakSet()
#: None for a pool that lets nobody wait, or whose engine is not measured.
_watched: MutableMapping[Any, pools.Pool | None] = WeakKeyDictionary()
_UNKNOWN = pools.Pool("")
_server: Callable[[Engine], Server]
_CONNECT = "CONNECT"


def take(target: Engine | None, server: Callable[[Engine], Server]) -> Undo:
    """Watches the pool of one engine, or with None of all engines, until it is undone."""
    global _patches, _server
    _server = server
    pools.tell(_figures)
    if not _patches:
        _patches = (Patch(Engine, "raw_connection", _raw_connection),)
    if target is not None:
        _engines.add(target)
    patched = _held.take(Patch, _patches[0].put_in, _patches[0].take_out)
    chosen = _held.take(target or Engine)
    _watched.clear()
    return Undo(_watched.clear, patched.undo, chosen.undo)


def add(engine: Engine) -> None:
    """Makes an engine known that was not handed over itself."""
    _engines.add(engine)


def _wanted(engine: Engine) -> bool:
    # An engine with options of its own shares the pool of the one that it comes from.
    return Engine in _held or engine in _held or any(each in _held and each.pool is engine.pool for each in _engines)


def _learn(engine: Engine, pool: Any) -> pools.Pool | None:
    _engines.add(engine)
    found = pools.Pool(_server(engine).name) if hasattr(pool, "checkedin") and _wanted(engine) else None
    _watched[pool] = found
    return found


def _raw_connection(original: Callable[[Engine], Any]) -> Callable[[Engine], Any]:
    @functools.wraps(original)
    def raw_connection(self: Engine) -> Any:
        pool = token = silent = None
        try:
            pool = _watched.get(self.pool, _UNKNOWN)
            if pool is _UNKNOWN:
                pool = _learn(self, self.pool)
            if pool is not None:
                token = object()
                pool.waiting.add(token)
            if statement.drivers and _wanted(self) and not statement.nested():
                # What a dialect asks when it connects, or to see whether a connection lives, is no query of the user.
                silent = statement.control(_server(self).prepared(_CONNECT))
        except Exception:
            guard.note("watching a pool")
        began_ns = time.perf_counter_ns()
        try:
            connection = original(self)
        except BaseException as error:
            _failed(self, pool, error, began_ns, silent)
            raise
        finally:
            if pool is not None:
                pool.waiting.discard(token)
            if silent is not None:
                silent.stop()
        if pool is not None:
            try:
                pool.got(began_ns)
            except Exception:
                guard.note("measuring a pool")
        return connection

    return raw_connection


def _failed(engine: Engine, pool: pools.Pool | None, error: BaseException, began_ns: int, silent: Any) -> None:
    """A connection that cannot be had fails what was to be done with it, so it counts as a failed operation."""
    try:
        if silent is not None:
            silent.stop()
        if pool is not None and isinstance(error, exc.TimeoutError):
            pool.timed_out()
        if _wanted(engine):
            statement.missed(_server(engine), _CONNECT, error, began_ns)
    except Exception:
        guard.note("measuring a pool")


def _figures() -> Iterable[pools.Figures]:
    seen: set[int] = set()
    for engine in list(_engines):
        pool: Any = engine.pool
        if id(pool) in seen or not hasattr(pool, "checkedin") or not _wanted(engine):
            continue
        seen.add(id(pool))
        watched = _watched.get(pool)
        # A size of 0, or an overflow of -1, is no limit.
        limit = pool.size() + pool._max_overflow if pool.size() > 0 and pool._max_overflow >= 0 else None
        name = watched.name if watched is not None else _server(engine).name
        waiting = len(watched.waiting) if watched is not None else 0
        yield pools.Figures(name, pool.checkedin(), pool.checkedout(), waiting, limit)
