"""cashews: a `Cache` object, through its own middleware.

The middleware sees each command with its keys as the backend gets them, so decorated functions are counted too, and an
operation ends before the function runs on a miss. With `suppress=True`, its default, cashews turns a dead Redis into
misses; it logs the error however, and a filter on that logger, which lets every record pass, takes it from there.

Not measured: `scan` and `get_match`, which answer iterators that do their work later, and the commit of a cashews
transaction, which goes past the middleware. Their Redis commands are queries all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from cashews import Cache, Command
from cashews.exceptions import CacheBackendInteractionError

from otel_perf import guard
from otel_perf.integrations.lookup import MAX_KEYS, Lookup, strategy_name
from otel_perf.integrations.patch import Holds
from otel_perf.integrations.registry import Undo
from otel_perf.telemetry import operation, runtime
from otel_perf.telemetry.operation import CACHE

__all__ = ["instrument", "matches"]

_ITERATORS = frozenset({Command.SCAN, Command.GET_MATCH})
_SYSTEMS = {"Memory": "memory", "DiskCache": "disk", "_Redis": "redis"}

_held = Holds()
_systems: dict[type, str] = {}
_log_of_redis = logging.getLogger("cashews.backends.redis.client")


def matches(target: object) -> bool:
    """Whether this is a cache."""
    return isinstance(target, Cache)


def instrument(target: Cache) -> Undo:
    """Measures what goes through one cache, whatever its backends are and when they are set up.

    Raises:
        ImportError: for a cashews before 7.5, where a middleware does not reach the backends that are there already.
    """
    if not hasattr(target, "_middlewares"):
        raise ImportError("measuring cashews needs 7.5 or later: pip install 'otel-perf[cashews]'")
    middlewares: Any = getattr(target, "_default_middlewares", None)

    def remove() -> None:
        # cashews has a way in and none out.
        if middlewares is not None and _measure in middlewares:
            middlewares.remove(_measure)

    logged = _held.take(
        _log_of_redis, lambda: _log_of_redis.addFilter(_logged), lambda: _log_of_redis.removeFilter(_logged)
    )
    held = _held.take(target, lambda: target.add_middleware(_measure), remove)
    return Undo(logged.undo, held.undo)


async def _measure(call: Any, cmd: Command, backend: Any, *args: Any, **kwargs: Any) -> Any:
    lookup = _started(cmd, backend, args, kwargs)
    if lookup is None:
        return await call(*args, **kwargs)
    try:
        answer = await call(*args, **kwargs)
    except BaseException as error:
        # The same value whether cashews suppresses the error or not.
        lookup.stop(error=error.__cause__ or error if isinstance(error, CacheBackendInteractionError) else error)
        raise
    lookup.stop(_found(cmd, answer, args, kwargs))
    return answer


def _started(cmd: Command, backend: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Lookup | None:
    try:
        if runtime.current is None or cmd in _ITERATORS or backend.is_disable(cmd):
            return None
        above = operation.current()
        if above is not None and above.within("cache"):
            return None
        keys = _keys(cmd, args, kwargs)
        return Lookup(_system(backend), cmd.value, [strategy_name(key) for key in keys], span=True)
    except Exception:
        guard.note("starting a cashews command")
        return None


def _keys(cmd: Command, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
    key = kwargs.get("key", kwargs.get("pattern"))
    if key is not None:
        return (key,)
    if cmd is Command.GET_MANY:
        return args[:MAX_KEYS]
    if cmd is Command.SET_MANY:
        return list(kwargs.get("pairs", ()))[:1]
    return args[:1]


def _found(cmd: Command, answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[bool] | None:
    try:
        if cmd is Command.GET:
            # Decorators ask with a default of their own, so that a cached None is a hit.
            return (answer is not kwargs.get("default"),)
        if cmd is Command.GET_MANY:
            default = kwargs.get("default")
            return [value is not default for value in answer] or [False] * len(args)
        if cmd is Command.GET_RAW:
            return (answer is not None,)
        if cmd is Command.EXISTS:
            return (bool(answer),)
    except Exception:
        guard.note("reading a cashews answer")
    return None


def _system(backend: Any) -> str:
    backend = getattr(backend, "_backend", backend)  # inside a cashews transaction
    cls: Any = backend.__class__
    found = _systems.get(cls)
    if found is None:
        named = (_SYSTEMS[each.__name__] for each in cls.__mro__ if each.__name__ in _SYSTEMS)
        found = _systems[cls] = next(named, cls.__name__.lower())
    return found


def _logged(record: logging.LogRecord) -> bool:
    try:
        error = record.exc_info[1] if record.exc_info else None
        begun = operation.current()
        while begun is not None and begun.kind is not CACHE:
            begun = begun.parent
        if begun is not None and error is not None and not begun.stopped:
            begun.fail(error)
    except Exception:
        guard.note("reading a log record of cashews")
    return True
