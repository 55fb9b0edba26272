"""redis-py, sync and async: clients, pipelines and cluster clients.

redis-py has metrics of its own (`redis.observability`) but no hook around a command, so `execute_command` of the
clients and `execute` of the pipelines are wrapped in their classes. A client is known by its connection pool: its
pipelines share that, and so do other clients on the same pool. Pub/sub and the handshake of a connection are not
measured.

Each command is a query. It is a cache operation too when its key belongs to a declared strategy, unless a layer above
(cashews, `measure.cache`) counts it already.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
import redis.asyncio.client
import redis.asyncio.cluster
import redis.client
import redis.cluster

from otel_perf import conventions as c
from otel_perf import guard, redaction, strategy
from otel_perf.integrations.commands import known, waits
from otel_perf.integrations.lookup import MAX_KEYS, Lookup, strategy_name
from otel_perf.integrations.patch import Holds, Patch, Patches
from otel_perf.integrations.registry import Undo
from otel_perf.telemetry import operation, runtime
from otel_perf.telemetry.operation import QUERY, Operation

__all__ = ["instrument", "matches"]

_CLIENTS = (redis.Redis, redis.asyncio.Redis, redis.RedisCluster, redis.asyncio.RedisCluster)
_SHOWN = 8  # so many commands of a pipeline are in its query text

_READS = frozenset({"GET", "GETEX", "GETDEL", "HGET", "HGETALL", "MGET", "EXISTS"})
_WRITES = frozenset(
    {"SET", "SETEX", "PSETEX", "SETNX", "GETSET", "MSET", "APPEND", "DEL", "UNLINK", "EXPIRE", "PEXPIRE", "PERSIST",
     "INCR", "INCRBY", "DECR", "DECRBY", "HSET", "HDEL"}
)  # fmt: skip

_MANY = frozenset({"MGET", "EXISTS"})  # they take keys only

_Commands = Sequence[tuple[Any, ...]]

_upstream = Holds()
_servers: MutableMapping[Any, _Server] = WeakKeyDictionary()


class _Server:
    """What is known of a server from the arguments of its connections."""

    __slots__ = ("attributes", "namespace")

    def __init__(self, pool: Any) -> None:
        arguments: Mapping[str, Any] = getattr(pool, "connection_kwargs", {})
        self.namespace = str(arguments.get("db") or 0)
        self.attributes: dict[str, Any] = {}
        if "path" in arguments:
            self.attributes[c.SERVER_ADDRESS] = str(arguments["path"])
        elif hasattr(pool, "service_name"):  # Sentinel chooses the address at each connect
            self.attributes[c.SERVER_ADDRESS] = str(pool.service_name)
        elif hasattr(pool, "get_connection"):  # no cluster
            self.attributes[c.SERVER_ADDRESS] = str(arguments.get("host") or "localhost")
            self.attributes[c.SERVER_PORT] = int(arguments.get("port") or 6379)


class _Key(NamedTuple):
    """A key that is read: by which command, as its which key, and which strategy it belongs to."""

    place: int
    name: str
    position: int
    strategy: str


def matches(target: object) -> bool:
    """Whether this is a client."""
    return isinstance(target, _CLIENTS)


def instrument(target: Any = None, *, engine: Literal["ours", "upstream"] = "ours") -> Undo:
    """Measures the commands of one client, or with None of all clients there are and will be.

    `engine="upstream"` leaves the spans to opentelemetry-instrumentation-redis and adds the metrics.

    Raises:
        ImportError: for `engine="upstream"` where that package is not installed.
        ValueError: for an engine that is neither.
    """
    if engine == "ours":
        return _patches.take(None if target is None else _pool(target))
    if engine != "upstream":
        raise ValueError(f"engine {engine!r} is unknown; it is 'ours' or 'upstream'")
    try:
        from opentelemetry.instrumentation.redis import RedisInstrumentor
    except ImportError as error:
        raise ImportError("engine='upstream' needs its instrumentor: pip install 'otel-perf[upstream]'") from error
    instrumentor: Any = RedisInstrumentor()
    provider = runtime.current.tracer_provider if runtime.current is not None else None
    pool = redis.Redis if target is None else _pool(target)
    # Ours first: theirs takes hold of the methods that it finds, and lets go of them only where it is on top.
    ours = _patches.take(None if target is None else pool)
    if target is None:
        theirs = _upstream.take(
            pool, lambda: instrumentor.instrument(tracer_provider=provider), instrumentor.uninstrument
        )
    else:
        theirs = _upstream.take(
            pool,
            lambda: instrumentor.instrument_client(target, tracer_provider=provider),
            lambda: instrumentor.uninstrument_client(target),
        )
    return Undo(ours.undo, theirs.undo)


def _pool(client: Any) -> Any:
    pool = getattr(client, "connection_pool", None)
    if pool is not None:
        return pool
    # A cluster client has many pools; what it shares with its pipelines is a manager of nodes, or itself.
    client = getattr(client, "cluster_client", None) or getattr(client, "_client", client)
    return client if isinstance(client, redis.asyncio.RedisCluster) else client.nodes_manager


def _spans_elsewhere(pool: Any) -> bool:
    module: Any = sys.modules.get("opentelemetry.instrumentation.redis")
    if module is None:
        return False
    return pool in _upstream or bool(module.RedisInstrumentor().is_instrumented_by_opentelemetry)


def _counted_elsewhere(name: str) -> bool:
    # redis-py's own metrics, once switched on, record db.client.operation.duration of the same commands.
    module: Any = sys.modules.get("redis.observability.providers")
    if module is None:
        return False
    manager = module.get_observability_instance().get_provider_manager()
    if manager is None or not manager.config.is_enabled():
        return False
    config = manager.config
    group = sys.modules["redis.observability.config"].MetricGroup.COMMAND
    return bool(config.metric_groups & group) and bool(config.should_track_command(name))


@functools.lru_cache(maxsize=1024)
def _command_name(command: object) -> str:
    """`GET`, `CONFIG SET` or `OTHER`; never an argument, although redis-py takes `execute_command("GET key")`."""
    return known(command.decode("latin-1") if isinstance(command, bytes) else str(command))


def _asked(commands: _Commands) -> list[_Key]:
    """The keys that these commands read and that belong to a declared strategy."""
    keys: list[_Key] = []
    for place, command in enumerate(commands):
        name = _command_name(command[0])
        if name in _READS:
            read = command[1:] if name in _MANY else command[1:2]
            for position, key in enumerate(read[: MAX_KEYS - len(keys)]):
                found = strategy_name(key)
                if found is not None:
                    keys.append(_Key(place, name, position, found))
    return keys


def _hit(key: _Key, answers: Sequence[Any]) -> bool:
    answer = answers[key.place]
    if key.name == "MGET":
        return answer[key.position] is not None
    if key.name == "EXISTS":  # it says how many, not which: the share is true all the same
        return key.position < int(answer)
    return bool(answer) if key.name == "HGETALL" else answer is not None


class _Call:
    """One command or pipeline in flight."""

    __slots__ = ("_batch", "_keys", "_lookup", "_query")

    def __init__(self, query: Operation | None, name: str, commands: _Commands, *, batch: bool) -> None:
        self._query = query
        self._batch = batch
        self._keys: list[_Key] = []
        self._lookup: Lookup | None = None
        above = operation.current()
        if not strategy.declared() or (above is not None and above.within("cache")):
            return
        self._keys = _asked(commands)
        strategies = [key.strategy for key in self._keys]
        if not strategies:
            written = (
                strategy_name(each[1]) for each in commands if len(each) > 1 and _command_name(each[0]) in _WRITES
            )
            strategies = [found for found in written if found is not None][:1]
        if strategies:
            self._lookup = Lookup("redis", name.partition(" ")[0].lower(), strategies, span=False)

    def stop(self, answer: Any = None, error: BaseException | None = None) -> None:
        """Ends what was started, the cache operation first: its outcome is shown on the query's span."""
        query, lookup = self._query, self._lookup
        try:
            if lookup is not None:
                answers: Sequence[Any] = answer if self._batch else (answer,)
                found = [_hit(key, answers) for key in self._keys] if error is None else []
                lookup.stop(found or None, error)
                if query is not None:
                    query.set(c.CACHE_STRATEGY, lookup.operation.labels[2])
                    query.set(c.CACHE_RESULT, lookup.operation.labels[3])
        except Exception:
            guard.note("reading a Redis answer")
        if query is not None:
            query.stop(error)


def _begin(client: Any, name: str, commands: _Commands, batch: int | None = None) -> _Call | None:
    pool = _pool(client)
    above = operation.current()
    if above is not None and above.within("query"):
        if above.kind is QUERY and above.name == name and above.labels[0] == "redis":
            return None  # an older wrapper of ours that others kept, below the one in force
        return _Call(None, name, commands, batch=batch is not None)
    server = _servers.get(pool)
    if server is None:
        server = _servers[pool] = _Server(pool)
    shown = [redaction.redis_command(_command_name(each[0]), *each[1:]) for each in commands[:_SHOWN]]
    attributes = {**server.attributes, c.DB_QUERY_TEXT: "; ".join(shown), c.DB_BATCH_SIZE: batch}
    query = operation.start(
        QUERY, name, ("redis", name, None, server.namespace), {k: v for k, v in attributes.items() if v is not None},
        span=not _spans_elsewhere(pool), metrics=not _counted_elsewhere(name.partition(" ")[0] if batch else name),
    )  # fmt: skip
    if not name.startswith("MULTI"):  # nothing waits within a transaction
        query.waits = any(waits(_command_name(each[0]), each[1:]) for each in commands)
    return _Call(query, name, commands, batch=batch is not None)


def _command(client: Any, args: tuple[Any, ...]) -> _Call | None:
    try:
        if runtime.current is None or not args or not _patches.measures(_pool(client)):
            return None
        return _begin(client, _command_name(args[0]), (args,))
    except Exception:
        guard.note("starting a Redis command")
        return None


def _pipeline(pipeline: Any, _args: tuple[Any, ...]) -> _Call | None:
    try:
        batch = len(pipeline)
        if runtime.current is None or not batch or not _patches.measures(_pool(pipeline)):
            return None
        strategy_of_cluster = getattr(pipeline, "_execution_strategy", pipeline)
        stacks = (getattr(strategy_of_cluster, n, None) for n in ("_command_queue", "_command_stack", "command_stack"))
        stack: Any = next(filter(None, stacks), ())
        commands: list[tuple[Any, ...]] = [each[0] if type(each) is tuple else each.args for each in stack]
        transaction: Any = getattr(pipeline, "transaction", False)  # a method on some cluster pipelines
        multi = (transaction and not callable(transaction)) or getattr(pipeline, "explicit_transaction", False)
        if type(strategy_of_cluster).__name__ == "TransactionStrategy":
            multi = True
        names = {_command_name(each[0]) for each in commands}
        same = f" {names.pop()}" if len(names) == 1 else ""
        return _begin(pipeline, f"{'MULTI' if multi else 'PIPELINE'}{same}", commands, batch)
    except Exception:
        guard.note("starting a Redis pipeline")
        return None


def _sync(begin: Callable[[Any, tuple[Any, ...]], _Call | None]) -> Callable[[Any], Any]:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def execute(self: Any, *args: Any, **options: Any) -> Any:
            call = begin(self, args)
            if call is None:
                return original(self, *args, **options)
            try:
                answer = original(self, *args, **options)
            except BaseException as error:
                call.stop(error=error)
                raise
            call.stop(answer)
            return answer

        return execute

    return wrap


def _async(begin: Callable[[Any, tuple[Any, ...]], _Call | None]) -> Callable[[Any], Any]:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        async def execute(self: Any, *args: Any, **options: Any) -> Any:
            call = begin(self, args)
            if call is None:
                return await original(self, *args, **options)
            try:
                answer = await original(self, *args, **options)
            except BaseException as error:
                call.stop(error=error)
                raise
            call.stop(answer)
            return answer

        return execute

    return wrap


_patches = Patches(
    lambda: [
        Patch(redis.client.Redis, "execute_command", _sync(_command)),
        Patch(redis.client.Pipeline, "immediate_execute_command", _sync(_command)),
        Patch(redis.client.Pipeline, "execute", _sync(_pipeline)),
        Patch(redis.cluster.RedisCluster, "execute_command", _sync(_command)),
        Patch(redis.cluster.ClusterPipeline, "execute", _sync(_pipeline)),
        Patch(redis.asyncio.client.Redis, "execute_command", _async(_command)),
        Patch(redis.asyncio.client.Pipeline, "immediate_execute_command", _async(_command)),
        Patch(redis.asyncio.client.Pipeline, "execute", _async(_pipeline)),
        Patch(redis.asyncio.cluster.RedisCluster, "execute_command", _async(_command)),
        Patch(redis.asyncio.cluster.ClusterPipeline, "execute", _async(_pipeline)),
    ]
)
