"""cashews: a `Cache` object, through its own middleware, or all of them, where each call puts its middleware together.

The middleware sees each command with its keys as the backend gets them, so decorated functions are counted too, and an
operation ends before the function runs on a miss. With `suppress=True`, its default, cashews turns a dead Redis into
misses; it logs the error however, and a filter on that logger, which lets every record pass, takes it from there.

Not measured: `scan` and `get_match`, which answer iterators that do their work later, and the commit of a cashews
transaction, which goes past the middleware. Their Redis commands are queries all the same.

A key that belongs to no declared strategy is counted by the template of the decorated function that made it. A tag is
invalidated when the last of its keys was taken from it; an old answer in place of a failed call is one that cashews
itself reports as such (`failover`), or that was past its soft lifetime (`soft`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any

import cashews.key
from cashews import Cache, Command
from cashews.decorators.cache import defaults
from cashews.exceptions import CacheBackendInteractionError
from cashews.wrapper.wrapper import Wrapper

from otel_perf import conventions as c
from otel_perf import guard
from otel_perf.integrations import cashews_templates
from otel_perf.integrations.cashews_templates import strategy_of
from otel_perf.integrations.lookup import MAX_KEYS, Lookup
from otel_perf.integrations.patch import Holds, Patch, Patches
from otel_perf.integrations.registry import Undo
from otel_perf.telemetry import operation, runtime
from otel_perf.telemetry.operation import CACHE

__all__ = ["instrument", "matches"]

_ITERATORS = frozenset({Command.SCAN, Command.GET_MATCH})
_SYSTEMS = {"Memory": "memory", "DiskCache": "disk", "_Redis": "redis"}

_TAG = "_tag:"
_POPPED = 100  # cashews takes so many keys at a time from a tag

_held = Holds()
_systems: dict[type, str] = {}
_log_of_redis = logging.getLogger("cashews.backends.redis.client")
# The key that this context read last and found, with the system and the strategy that it was counted by.
_read: ContextVar[tuple[Any, str, str | None] | None] = ContextVar("otel_perf_cashews_read", default=None)


def matches(target: object) -> bool:
    """Whether this is a cache."""
    return isinstance(target, Cache)


def instrument(target: Cache | None = None) -> Undo:
    """Measures what goes through one cache, or with None all caches there are and will be.

    It does not matter what the backends are and when they are set up.

    Raises:
        ImportError: for a cashews before 7.5, where a middleware does not reach the backends that are there already.
    """
    if not hasattr(Cache() if target is None else target, "_middlewares"):
        raise ImportError("measuring cashews needs 7.5 or later: pip install 'otel-perf[cashews]'")
    logged = _held.take(
        _log_of_redis, lambda: _log_of_redis.addFilter(_logged), lambda: _log_of_redis.removeFilter(_logged)
    )
    around = _templates.take(None)
    held = _all.take(None) if target is None else _held.take(target, lambda: _add(target), lambda: _remove(target))
    return Undo(logged.undo, around.undo, held.undo)


def _add(cache: Cache) -> None:
    cashews_templates.caches.add(cache)
    cache.add_middleware(_measure)


def _remove(cache: Cache) -> None:
    # cashews has a way in and none out.
    middlewares: Any = getattr(cache, "_default_middlewares", None)
    if middlewares is not None and _measure in middlewares:
        middlewares.remove(_measure)


def _with_ours(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def put_together(self: Any, cmd: Command, backend: Any, middlewares: Any) -> Any:
        if _all.everything and _measure not in middlewares:
            if cmd is Command.SET_POP:
                cashews_templates.caches.add(self)
            middlewares = [*middlewares, _measure]
        return original(self, cmd, backend, middlewares)

    return put_together


def _answered(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def note(self: Any, key: Any, **said: Any) -> Any:
        try:
            if said.get("name") in ("failover", "soft"):
                _count_failover(key, said)
        except Exception:
            guard.note("counting an old answer of cashews")
        return original(self, key, **said)

    return note


def _count_failover(key: Any, said: dict[str, Any]) -> None:
    read, in_force = _read.get(), runtime.current
    if in_force is None or read is None or read[0] != key:  # of a cache that is not measured
        return
    if said["name"] == "failover" or said["soft_expire_at"] <= datetime.now(timezone.utc):
        in_force.at(c.CACHE_FAILOVERS, read[1:]).record(1)


_all = Patches(lambda: [Patch(Wrapper, "_with_middlewares_for_backend", _with_ours)])


def _where_templates_are() -> list[Patch]:
    detect = type(defaults.context_cache_detect)
    # Without them there is less to tell, and what goes through the caches is measured all the same.
    patches = (
        [Patch(cashews.key, "default_format", cashews_templates.noted)] if "default_format" in vars(cashews.key) else []
    )
    return [*patches, Patch(detect, "_set", _answered)] if "_set" in vars(detect) else patches


_templates = Patches(_where_templates_are)


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
    _note(cmd, answer, lookup, args, kwargs)
    return answer


def _note(cmd: Command, answer: Any, lookup: Lookup, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keeps what was read, and counts a tag that was made void: commands of it come as long as they find enough."""
    if cmd is Command.GET:
        if lookup.result == "hit":
            labels = lookup.operation.labels
            _read.set((kwargs.get("key"), labels[0], labels[2]))
    elif cmd is Command.SET_POP and lookup.operation.error_type is None:
        try:
            key, in_force = kwargs.get("key", args[0] if args else ""), runtime.current
            if in_force is not None and key.startswith(_TAG) and len(answer or ()) != _POPPED:
                tag = cashews_templates.of_tag(key.removeprefix(_TAG))
                in_force.at(c.CACHE_INVALIDATIONS, (lookup.operation.labels[0], tag)).record(1)
        except Exception:
            guard.note("counting an invalidated tag")


def _started(cmd: Command, backend: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Lookup | None:
    try:
        if runtime.current is None or cmd in _ITERATORS or backend.is_disable(cmd):
            return None
        above = operation.current()
        if above is not None and above.within("cache"):
            return None
        keys = _keys(cmd, args, kwargs)
        return Lookup(_system(backend), cmd.value, [strategy_of(key) for key in keys], span=True)
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
