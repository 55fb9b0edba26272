"""Connection pools of redis-py: how many connections they hold, and how long they are waited for.

The numbers are looked at when metrics are collected. Only a blocking pool waits, so only its `get_connection` is
wrapped; what redis-py records by itself, once its own metrics are on, is left to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import redis

from otel_perf import catalogue, guard
from otel_perf import conventions as c
from otel_perf.integrations import redis_own
from otel_perf.integrations.patch import Begin, Patches
from otel_perf.integrations.redis_calls import server_of, servers
from otel_perf.telemetry import runtime

__all__ = ["observe", "of_wait"]

_UNLIMITED = 2**31  # the default before redis-py 7
_observed: list[Patches] = []


def observe(patches: Patches) -> None:
    """Reports the pools that are measured, at each collect from now on."""
    if not _observed:
        _observed.append(patches)
        catalogue.watch(c.POOL_COUNT, _counts)
        catalogue.watch(c.POOL_MAX, _limits)


def _pools() -> Iterable[tuple[str, Any]]:
    patches = _observed[0]
    seen: set[int] = set()
    for server in servers():
        pool = server.pool()
        if pool is None or not patches.measures(pool):
            continue
        for name, held in _held_by(server.name, pool):
            # Where all is measured, a node of a cluster may be known by itself too.
            if id(held) not in seen:
                seen.add(id(held))
                yield name, held


def _held_by(name: str, pool: Any) -> Iterable[tuple[str, Any]]:
    if hasattr(pool, "get_connection"):
        yield name, pool
        return
    for node in list(getattr(pool, "nodes_manager", pool).nodes_cache.values()):
        client = getattr(node, "redis_connection", node)
        if client is not None:
            yield f"{node.host}:{node.port}/0", getattr(client, "connection_pool", client)


def _idle_and_used(pool: Any) -> tuple[int, int] | None:
    if hasattr(pool, "_free"):  # a node of an async cluster
        idle = len(pool._free)
        return idle, len(pool._connections) - idle
    queue = getattr(pool, "pool", None)
    if queue is not None:  # the sync blocking pool
        idle = sum(1 for each in list(queue.queue) if each is not None)
        return idle, len(pool._connections) - idle
    if hasattr(pool, "_available_connections"):
        return len(pool._available_connections), len(pool._in_use_connections)
    return None


def _counts() -> list[tuple[int, Mapping[str, Any]]]:
    if redis_own.records("CONNECTION_BASIC"):
        return []
    counts: dict[tuple[str, str], int] = {}
    for name, pool in _pools():
        found = _idle_and_used(pool)
        for state, count in zip(("idle", "used"), found or (), strict=False):
            counts[name, state] = counts.get((name, state), 0) + max(count, 0)
    return [(count, {c.DB_POOL_NAME: name, c.DB_POOL_STATE: state}) for (name, state), count in counts.items()]


def _limits() -> list[tuple[int, Mapping[str, Any]]]:
    limits: dict[str, int] = {}
    for name, pool in _pools():
        limit = getattr(pool, "max_connections", None)
        if isinstance(limit, int) and limit < _UNLIMITED:
            limits[name] = limits.get(name, 0) + limit
    return [(limit, {c.DB_POOL_NAME: name}) for name, limit in limits.items()]


class _Wait:
    """One request for a connection."""

    __slots__ = ("_began", "_in_force", "_name", "_pending")

    def __init__(self, in_force: runtime.Runtime, name: str, *, pending: bool) -> None:
        self._in_force = in_force
        self._name = name
        self._pending = pending
        if pending:
            in_force.at(c.POOL_PENDING, (name,)).record(1)
        self._began = time.perf_counter()

    def stop(self, error: BaseException | None = None) -> None:
        """Counts how long it waited, or that it got none in time."""
        try:
            in_force, labels = self._in_force, (self._name,)
            if in_force is not runtime.current:
                return
            if self._pending:
                in_force.at(c.POOL_PENDING, labels).record(-1)
            if error is None:
                in_force.at(c.POOL_WAIT, labels).record(time.perf_counter() - self._began)
            elif isinstance(error, redis.ConnectionError) and str(error) == "No connection available.":
                in_force.at(c.POOL_TIMEOUTS, labels).record(1)
        except Exception:
            guard.note("measuring the wait for a Redis connection")


def of_wait(patches: Patches) -> Begin:
    """Starts a wait, around `get_connection` of a pool that waits."""

    def begin(pool: Any, _args: tuple[Any, ...]) -> _Wait | None:
        try:
            in_force = runtime.current
            if in_force is None or not patches.measures(pool) or redis_own.records("CONNECTION_ADVANCED"):
                return None
            queue = getattr(pool, "pool", None)
            free = pool.can_get_connection() if queue is None else not queue.empty()
            return _Wait(in_force, server_of(pool).name, pending=not free)
        except Exception:
            guard.note("starting the wait for a Redis connection")
            return None

    return begin
