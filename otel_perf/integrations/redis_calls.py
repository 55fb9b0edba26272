"""A Redis command or pipeline in flight, and what is known of the server that it goes to.

What a command shows depends on the server, its name and how many arguments it has: it is made once for each of those
and not at each call.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import ref

import redis
import redis.asyncio

from otel_perf import conventions as c
from otel_perf import guard, redaction, strategy
from otel_perf.integrations import redis_keys, redis_own
from otel_perf.integrations.commands import command_name, shown, waits, waits_on_wish
from otel_perf.integrations.lookup import Lookup
from otel_perf.integrations.patch import Answered, Begin, Patches
from otel_perf.integrations.redis_keys import Commands, Key
from otel_perf.telemetry import leaf, operation, runtime
from otel_perf.telemetry.opening import Known
from otel_perf.telemetry.operation import QUERY, Operation

__all__ = ["Server", "failed", "of_client", "of_pipeline", "pool_of", "server_of", "servers"]

_SHOWN = 8  # so many commands of a pipeline are in its query text
_MODULES = sys.modules
_INSTRUMENTOR = "opentelemetry.instrumentation.redis"
_OWN = "redis.observability.providers"
_PREFIX = re.compile(r"[A-Z][A-Z0-9_]{1,31}(?= )")


class _Shape(NamedTuple):
    """What all commands of one name and number of arguments show at one server."""

    name: str
    labels: list[Any]
    attributes: Known
    #: None: the arguments say.
    waits: bool | None


class Server:
    """What is known of a server from the arguments of its connections; one for each connection pool."""

    __slots__ = ("attributes", "name", "namespace", "pool", "shapes")

    def __init__(self, pool: Any, gone: Callable[[Any], object]) -> None:
        arguments: Mapping[str, Any] = getattr(pool, "connection_kwargs", None) or {}
        self.pool = ref(pool, gone)
        self.namespace = str(arguments.get("db") or 0)
        self.attributes: dict[str, Any] = {}
        if "path" in arguments:
            self.attributes[c.SERVER_ADDRESS] = str(arguments["path"])
        elif hasattr(pool, "service_name"):  # Sentinel chooses the address at each connect
            self.attributes[c.SERVER_ADDRESS] = str(pool.service_name)
        elif hasattr(pool, "get_connection"):  # no cluster
            self.attributes[c.SERVER_ADDRESS] = str(arguments.get("host") or "localhost")
            self.attributes[c.SERVER_PORT] = int(arguments.get("port") or 6379)
        address, port = self.attributes.get(c.SERVER_ADDRESS, "cluster"), self.attributes.get(c.SERVER_PORT)
        #: A name for the pool, as the conventions build one: `address:port/database`.
        self.name = f"{address}:{port}/{self.namespace}" if port else f"{address}/{self.namespace}"
        #: By a command as it is given and how many words it has.
        self.shapes: dict[tuple[object, int], _Shape] = {}

    def shape(self, args: tuple[Any, ...]) -> _Shape:
        """What a command shows."""
        count = min(10, len(args))
        found = self.shapes.get((args[0], count))
        if found is None:
            found = self._shape(args[0], count)
        return found

    def _shape(self, command: object, count: int) -> _Shape:
        name = command_name(command)
        known = {c.DB_SYSTEM: "redis", c.DB_OPERATION: name, c.DB_NAMESPACE: self.namespace}
        attributes = Known(redaction.redact({**known, **self.attributes, c.DB_QUERY_TEXT: shown(name, count - 1)}))
        waiting = None if waits_on_wish(name) else waits(name, ())
        made = _Shape(name, ["redis", name, None, self.namespace, None], attributes, waiting)
        if type(command) is str and command == name:  # so that there are no more of them than commands
            self.shapes[name, count] = made
        return made


#: The servers by the `id` of their pools, while these are alive.
_servers: dict[int, Server] = {}


def servers() -> list[Server]:
    """All servers that a pool is there for."""
    return list(_servers.values())


def server_of(pool: Any) -> Server:
    """The server of a connection pool."""
    key = id(pool)
    found = _servers.get(key)
    if found is None:
        found = _servers[key] = Server(pool, lambda _: _servers.pop(key, None))
    return found


def pool_of(client: Any) -> Any:
    """By what a client is known: its connection pool, or what a cluster client shares with its pipelines."""
    cluster = getattr(client, "cluster", None)  # a subscriber's
    if isinstance(cluster, (redis.RedisCluster, redis.asyncio.RedisCluster)):
        client = cluster
    pool = getattr(client, "connection_pool", None)
    if pool is not None:
        return pool
    client = getattr(client, "cluster_client", None) or getattr(client, "_client", client)
    return client if isinstance(client, redis.asyncio.RedisCluster) else client.nodes_manager


class _Call(Answered):
    """One command or pipeline that is a cache operation too."""

    __slots__ = ("_batch", "_keys", "_lookup", "_query")

    def __init__(self, query: Operation | None, lookup: Lookup, keys: Sequence[Key], *, batch: bool) -> None:
        self._query = query
        self._lookup = lookup
        self._keys = keys
        self._batch = batch

    def set(self, key: str, value: Any) -> None:
        """Puts an attribute on the span."""
        if self._query is not None:
            self._query.set(key, value)

    def stop(self, error: BaseException | None = None) -> None:
        """Ends what was started, after an exception."""
        self._stop([], error)

    def answered(self, answer: Any) -> None:
        """Ends what was started, after an answer."""
        try:
            found = redis_keys.found(self._keys, answer if self._batch else (answer,))
        except Exception:
            guard.note("reading a Redis answer")
            found = []
        self._stop(found, None)

    def _stop(self, found: Sequence[bool | None], error: BaseException | None) -> None:
        # The cache operation first: its outcome is shown on the query's span.
        query, lookup = self._query, self._lookup
        try:
            lookup.stop(found or None, error)
            if query is not None:
                query.set(c.CACHE_STRATEGY, lookup.operation.labels[2])
                query.set(c.CACHE_RESULT, lookup.result)
        except Exception:
            guard.note("showing what became of a Redis key")
        if query is not None:
            query.stop(error)


_Begun = Operation | _Call


def _with_keys(query: Operation | None, name: str, commands: Commands, *, batch: bool) -> _Begun | None:
    made = redis_keys.lookup(name, commands)
    return query if made is None else _Call(query, *made, batch=batch)


def _below(above: Operation, name: str, commands: Commands, *, batch: bool) -> _Begun | None:
    """Below another query it is none; it may be a cache operation."""
    if above.kind is QUERY and above.name == name and above.labels[0] == "redis":
        return None  # an older wrapper of ours that others kept, below the one in force
    if above.within("cache") or not strategy.any_declared():
        return None
    return _with_keys(None, name, commands, batch=batch)


def of_client(patches: Patches, *, subscriber: bool = False) -> Begin:
    """Starts a command of a client, or of a subscriber."""
    ids = patches.ids

    def begin(client: Any, args: tuple[Any, ...]) -> _Begun | None:
        query: Operation | None = None
        try:
            if runtime.current is None or not args:
                return None
            pool = None if subscriber else getattr(client, "connection_pool", None)
            if pool is None:
                pool = pool_of(client)
            key = id(pool)
            if not (patches.everything or key in ids):
                return None
            server = _servers.get(key) or server_of(pool)
            name, labels, attributes, waiting = server.shapes.get((args[0], len(args))) or server.shape(args)
            above = operation.current()
            if above is not None and above.within("query"):
                return _below(above, name, (args,), batch=False)
            own = _MODULES.get(_OWN)
            query = leaf.start(
                name,
                labels.copy(),
                attributes,
                attributes[c.DB_QUERY_TEXT],
                span=_INSTRUMENTOR not in _MODULES or not redis_own.spans(pool),
                # redis-py's metrics are mostly off; the private names spare each command five calls to see it.
                metrics=own is None
                or getattr(getattr(own, "_observability_instance", own), "_provider_manager", own) is None
                or not redis_own.counts(name),
            )
            if waiting is not False:
                query.waits = waiting or waits(name, args[1:])
            if strategy.any_declared() and (above is None or not above.within("cache")):
                return _with_keys(query, name, (args,), batch=False)
        except Exception:
            guard.note("starting a Redis command")
        return query

    return begin


def of_pipeline(patches: Patches) -> Begin:
    """Starts the commands of a pipeline, as one operation."""

    def begin(pipeline: Any, _args: tuple[Any, ...]) -> _Begun | None:
        try:
            batch = len(pipeline)
            if runtime.current is None or not batch or not patches.measures(pool := pool_of(pipeline)):
                return None
            return _begin_many(pipeline, pool, batch)
        except Exception:
            guard.note("starting a Redis pipeline")
            return None

    return begin


def _begin_many(pipeline: Any, pool: Any, batch: int) -> _Begun | None:
    in_cluster = getattr(pipeline, "_execution_strategy", pipeline)
    stacks = (getattr(in_cluster, each, None) for each in ("_command_queue", "_command_stack", "command_stack"))
    stack: Any = next(filter(None, stacks), ())
    commands: list[tuple[Any, ...]] = [each[0] if type(each) is tuple else each.args for each in stack]
    # `transaction` is a method on some pipelines; async ones have `is_transaction` beside it.
    transaction: Any = getattr(pipeline, "is_transaction", getattr(pipeline, "transaction", False))
    multi = (transaction and not callable(transaction)) or getattr(pipeline, "explicit_transaction", False)
    multi = multi or type(in_cluster).__name__ == "TransactionStrategy"
    names = [command_name(each[0]) for each in commands]
    kind = "MULTI" if multi else "PIPELINE"
    name = f"{kind} {names[0]}" if names and names.count(names[0]) == len(names) else kind
    above = operation.current()
    if above is not None and above.within("query"):
        return _below(above, name, commands, batch=True)
    server = server_of(pool)
    parts = [shown(each, len(command) - 1) for each, command in zip(names[:_SHOWN], commands, strict=False)]
    attributes = {
        **server.attributes,
        c.DB_QUERY_TEXT: redaction.Masked("; ".join(parts)),  # each of them is
        c.DB_BATCH_SIZE: batch,
    }
    query = operation.start(
        QUERY, name, ("redis", name, None, server.namespace), attributes,
        span=_INSTRUMENTOR not in _MODULES or not redis_own.spans(pool),
        metrics=_OWN not in _MODULES or not redis_own.counts(kind),
    )  # fmt: skip
    try:
        if not multi:  # nothing waits within a transaction
            query.waits = any(waits(each, command[1:]) for each, command in zip(names, commands, strict=True))
        if strategy.any_declared() and (above is None or not above.within("cache")):
            return _with_keys(query, name, commands, batch=True)
    except Exception:
        guard.note("reading the keys of a Redis pipeline")
    return query


def failed(begun: _Begun, error: BaseException) -> None:
    """Ends a call after an exception, with what the server said of it."""
    try:
        if isinstance(error, (redis.ResponseError, redis.ConnectionError)):
            begun.set(c.DB_STATUS, _status(error))
    except Exception:
        guard.note("reading a Redis error")
    begun.stop(error)


def _status(error: Exception) -> str | None:
    """The first word of what the server answered, such as WRONGTYPE or MOVED."""
    known = getattr(error, "status_code", None)
    if isinstance(known, str) and known:
        return known
    said = None
    if isinstance(error, redis.ResponseError):
        text = str(error)
        if text.startswith("Command # "):  # a pipeline says which one; what that was may be long
            text = text.rpartition(" caused error: ")[2]
        said = _PREFIX.match(text[:64])
    return _codes().get(type(error)) if said is None else said[0]


@functools.lru_cache(maxsize=1)
def _codes() -> dict[type, str]:
    """What redis-py cuts off from the answers that it has an exception for; before version 7 it kept it nowhere."""
    from redis._parsers.base import BaseParser

    known: Any = BaseParser.EXCEPTION_CLASSES
    codes = {kind: word for word, kind in known.items() if isinstance(kind, type)}
    return {redis.ResponseError: "ERR", **codes}
