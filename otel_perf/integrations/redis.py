"""redis-py, sync and async: clients, pipelines, cluster clients and subscribers.

redis-py has metrics of its own (`redis.observability`) but no hook around a command, so `execute_command` of the
clients and `execute` of the pipelines are wrapped in their classes. A client is known by its connection pool: its
pipelines share that, and so do other clients on the same pool. The handshake of a connection is not measured.

Each command is a query. It is a cache operation too when its key belongs to a declared strategy, unless a layer above
(cashews, `measure.cache`) counts it already.
"""

from __future__ import annotations

from typing import Any, Literal

import redis
import redis.asyncio
import redis.asyncio.client
import redis.asyncio.cluster
import redis.client
import redis.cluster

from otel_perf.integrations import redis_own, redis_pools, redis_server, stability
from otel_perf.integrations.patch import Patch, Patches, around, around_async
from otel_perf.integrations.redis_calls import failed, of_client, of_pipeline, pool_of, server_of
from otel_perf.integrations.redis_own import elsewhere
from otel_perf.integrations.redis_pubsub import of_handler
from otel_perf.integrations.registry import Undo
from otel_perf.telemetry import runtime

__all__ = ["elsewhere", "instrument", "matches"]

_CLIENTS = (redis.Redis, redis.asyncio.Redis, redis.RedisCluster, redis.asyncio.RedisCluster)


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
        return _take(None if target is None else pool_of(target))
    if engine != "upstream":
        raise ValueError(f"engine {engine!r} is unknown; it is 'ours' or 'upstream'")
    try:
        from opentelemetry.instrumentation.redis import RedisInstrumentor
    except ImportError as error:
        raise ImportError("engine='upstream' needs its instrumentor: pip install 'otel-perf[upstream]'") from error
    instrumentor: Any = RedisInstrumentor()
    provider = runtime.current.tracer_provider if runtime.current is not None else None
    pool = redis.Redis if target is None else pool_of(target)
    # Ours first: theirs takes hold of the methods that it finds, and lets go of them only where it is on top.
    ours = _take(None if target is None else pool)
    with stability.opted_in("database"):
        if target is None:
            theirs = redis_own.upstream.take(
                pool, lambda: instrumentor.instrument(tracer_provider=provider), instrumentor.uninstrument
            )
        else:
            theirs = redis_own.upstream.take(
                pool,
                lambda: instrumentor.instrument_client(target, tracer_provider=provider),
                lambda: instrumentor.uninstrument_client(target),
            )
    return Undo(ours.undo, theirs.undo)


def _take(pool: Any | None) -> Undo:
    taken = _patches.take(pool)
    if pool is not None:
        server_of(pool)
    redis_pools.observe(_patches)
    looking = redis_server.look(_patches)
    return Undo(taken.undo, looking.undo)


def _made() -> list[Patch]:
    sync, later = redis.client, redis.asyncio.client
    cluster, later_cluster = redis.cluster, redis.asyncio.cluster
    command, subscriber = of_client(_patches), of_client(_patches, subscriber=True)
    pipeline, handler, wait = of_pipeline(_patches), of_handler(_patches), redis_pools.of_wait(_patches)
    wanted = [
        (sync.Redis, "execute_command", around(command, failed)),
        (sync.Pipeline, "immediate_execute_command", around(command, failed)),
        (sync.Pipeline, "execute", around(pipeline, failed)),
        (sync.PubSub, "execute_command", around(subscriber, failed)),
        (sync.PubSub, "handle_message", around(handler)),
        (cluster.RedisCluster, "execute_command", around(command, failed)),
        (cluster.ClusterPipeline, "execute", around(pipeline, failed)),
        (cluster.ClusterPubSub, "execute_command", around(subscriber, failed)),
        (redis.BlockingConnectionPool, "get_connection", around(wait)),
        (later.Redis, "execute_command", around_async(command, failed)),
        (later.Pipeline, "immediate_execute_command", around_async(command, failed)),
        (later.Pipeline, "execute", around_async(pipeline, failed)),
        (later.PubSub, "execute_command", around_async(subscriber, failed)),
        (later.PubSub, "handle_message", around_async(handler)),
        (later_cluster.RedisCluster, "execute_command", around_async(command, failed)),
        (later_cluster.ClusterPipeline, "execute", around_async(pipeline, failed)),
        (redis.asyncio.BlockingConnectionPool, "get_connection", around_async(wait)),
    ]
    # A method that a version inherits is wrapped where it is; subscribers of async clusters are as old as version 8.
    subscribers: Any = getattr(later_cluster, "ClusterPubSub", None)
    if subscribers is not None:
        wanted.append((subscribers, "execute_command", around_async(subscriber, failed)))
    return [Patch(owner, name, wrap) for owner, name, wrap in wanted if name in vars(owner)]


_patches = Patches(_made)
