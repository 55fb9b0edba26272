"""The figures of the Redis servers that an application talks to, by `INFO`, off the path of its requests.

One thread looks at each server every `redis_info_interval_s`, over a connection of its own that is made from the
arguments of the application's: it never takes one of the pool's, so nobody waits for it and it waits for nobody. It
runs while a client is measured and `configure()` was called.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.retry import Retry

from otel_perf import catalogue, guard, redaction
from otel_perf import conventions as c
from otel_perf.integrations.patch import Patches
from otel_perf.integrations.redis_calls import servers
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.rising import Rising
from otel_perf.metric import Metric
from otel_perf.telemetry import runtime

__all__ = ["look"]

_log = logging.getLogger("otel_perf")

_NODES = 16  # so many primaries of a cluster are looked at
_SERVERS = 64  # and so many servers in all
_USERS = 8  # by so many of the users that the application has at one
_TIMEOUT_S = 2.0
_FIGURES: tuple[tuple[Metric, str, bool], ...] = (
    (c.REDIS_MEMORY, "used_memory", False),
    (c.REDIS_MEMORY_PEAK, "used_memory_peak", False),
    (c.REDIS_CLIENTS, "connected_clients", False),
    (c.REDIS_COMMANDS, "total_commands_processed", True),
    (c.REDIS_RATE, "instantaneous_ops_per_sec", False),
    (c.REDIS_HITS, "keyspace_hits", True),
    (c.REDIS_MISSES, "keyspace_misses", True),
    (c.REDIS_EVICTED, "evicted_keys", True),
)
# Of the arguments of the application's connections those that say where the server is and how to get in.
_ARGUMENTS = frozenset({"host", "port", "path", "username", "password", "credential_provider", "socket_type"})

# Asking again would be no better: no permission, or a way to connect that is not as we know it.
_HOPELESS = (NoPermissionError, AuthenticationError, TypeError, ValueError, AttributeError, NotImplementedError)

_Address = tuple[str, int | None]
_Way = tuple[type, dict[str, Any]]


class _Figures:
    """What a server said last."""

    __slots__ = ("at_s", "counts", "refused", "values", "version")

    def __init__(self) -> None:
        self.at_s = float("-inf")
        self.values: dict[str, int] = {}
        self.version = ""
        self.counts: dict[str, Rising] = {}
        #: The ways in, by a hash of them, that are of no use.
        self.refused: set[int] = set()

    def take(self, said: Mapping[str, Any]) -> None:
        """Keeps what is of interest."""
        self.version = redaction.text(str(said.get("redis_version", "")), 32)
        values = {key: int(said[key]) for _, key, _ in _FIGURES if key in said}
        for _, key, rises in _FIGURES:
            if rises and key in values:
                values[key] = self.counts.setdefault(key, Rising()).total(values[key])
        values["uptime_in_seconds"] = int(said.get("uptime_in_seconds", 0))
        self.values = values
        self.at_s = time.monotonic()


class _Look:
    """The thread, while it is wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._patches: Patches | None = None
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._known_to: runtime.Runtime | None = None
        self.figures: dict[_Address, _Figures] = {}

    def take(self, patches: Patches) -> Undo:
        """Wants it until the answer is undone."""
        with self._lock:
            self._holders += 1
            if self._patches is None:
                self._patches = patches
                catalogue.watch(c.REDIS_UPTIME, self._uptimes)
                for metric, key, _ in _FIGURES:
                    catalogue.watch(metric, functools.partial(self._values, key))
        self.start()
        return Undo(self._release)

    def _release(self) -> None:
        with self._lock:
            self._holders -= 1
            wanted = self._holders > 0
        if not wanted:
            self.stop()
            self.figures.clear()

    def start(self) -> None:
        """Starts the thread where it is wanted and not there: also at a collect, since `configure()` may come later."""
        in_force = runtime.current
        if in_force is None or in_force.settings.redis_info_interval_s <= 0 or not servers():
            return
        with self._lock:
            if not self._holders or (self._stop is not None and self._known_to is in_force):
                return
            if self._known_to is not in_force:
                self._known_to = in_force
                in_force.pipeline.on_fork(self._after_fork)
                in_force.pipeline.on_end(lambda: self.stop(of=in_force))
            self._run_anew(in_force.settings.redis_info_interval_s)

    def _run_anew(self, interval_s: float) -> None:
        if self._stop is not None:
            self._stop.set()
        self._stop = stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(stop, interval_s), name="otel_perf-redis-info", daemon=True
        )
        self._thread.start()

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        if self._stop is not None and self._known_to is not None:
            self._stop = None
            self._run_anew(self._known_to.settings.redis_info_interval_s)

    def stop(self, of: runtime.Runtime | None = None) -> None:
        """Ends the thread, of one runtime or of whichever."""
        with self._lock:
            if self._stop is None or (of is not None and of is not self._known_to):
                return
            self._stop.set()
            self._stop = None
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(0.25)  # a server that does not answer holds it for a moment longer

    def _run(self, stop: threading.Event, interval_s: float) -> None:
        while True:
            try:
                self._look(stop)
            except Exception:
                guard.note("looking at Redis servers")
            if stop.wait(interval_s):
                return

    def _look(self, stop: threading.Event) -> None:
        found: dict[_Address, dict[int, _Way]] = {}
        for address, kind, arguments in self._addresses():
            if address in found or len(found) < _SERVERS:
                ways = found.setdefault(address, {})
                if len(ways) < _USERS:
                    ways.setdefault(_user(kind, arguments), (kind, arguments))
        for address in set(self.figures) - set(found):
            del self.figures[address]
        for address, ways in found.items():
            figures = self.figures.setdefault(address, _Figures())
            figures.refused &= ways.keys()
            error: Exception | None = None
            for user, (kind, arguments) in ways.items():
                if stop.is_set():
                    return
                if user not in figures.refused:
                    error = _ask(kind, arguments, figures)
                    if error is None:
                        break
                    figures.refused.add(user)
            if error is not None:
                _tell(address, error)

    def _addresses(self) -> Iterator[tuple[_Address, type, dict[str, Any]]]:
        patches = self._patches
        for server in servers():
            pool = server.pool()
            if pool is None or patches is None or not patches.measures(pool):
                continue
            for held in _pools(pool):
                kind, arguments = _connection(held)
                where = arguments.get("path") or arguments.get("host") or "localhost"
                port = None if "path" in arguments else int(arguments.get("port") or 6379)
                yield (str(where), port), kind, arguments

    def _fresh(self) -> Iterator[tuple[dict[str, Any], _Figures]]:
        self.start()
        in_force = runtime.current
        if in_force is None:
            return
        oldest_s = time.monotonic() - 3 * in_force.settings.redis_info_interval_s
        for (where, port), figures in list(self.figures.items()):
            if figures.at_s >= oldest_s:
                labels: dict[str, Any] = {c.SERVER_ADDRESS: where}
                yield labels if port is None else {**labels, c.SERVER_PORT: port}, figures

    def _values(self, key: str) -> list[tuple[int, dict[str, Any]]]:
        return [(figures.values[key], labels) for labels, figures in self._fresh() if key in figures.values]

    def _uptimes(self) -> list[tuple[int, dict[str, Any]]]:
        return [
            (figures.values["uptime_in_seconds"], {**labels, c.REDIS_VERSION: figures.version})
            for labels, figures in self._fresh()
        ]


def _pools(pool: Any) -> list[Any]:
    if hasattr(pool, "service_name"):
        return []  # asking Sentinel where the server is would be a command of its own
    if hasattr(pool, "connection_class") and hasattr(pool, "get_connection"):
        return [pool]
    nodes = [
        node
        for node in list(getattr(pool, "nodes_manager", pool).nodes_cache.values())
        if node.server_type == "primary"
    ]
    held = [node if hasattr(node, "connection_class") else node.redis_connection for node in nodes[:_NODES]]
    return [getattr(each, "connection_pool", each) for each in held if each is not None]


def _connection(pool: Any) -> tuple[type, dict[str, Any]]:
    """The sync class that is like a pool's, and what to make one of it with."""
    kind: Any = pool.connection_class
    given: Mapping[str, Any] = pool.connection_kwargs
    arguments = {key: value for key, value in given.items() if key in _ARGUMENTS or key.startswith("ssl_")}
    if not issubclass(kind, AbstractConnection):  # an async one
        kind = (
            redis.UnixDomainSocketConnection if "path" in arguments
            else redis.SSLConnection if any("SSL" in each.__name__ for each in kind.__mro__)
            else redis.Connection
        )  # fmt: skip
    return kind, arguments


def _user(kind: type, arguments: Mapping[str, Any]) -> int:
    """Who asks, and how: what one user may not do another may."""
    names = ("username", "password")
    return hash((kind, *(str(arguments.get(each)) for each in names), id(arguments.get("credential_provider"))))


def _ask(kind: type, arguments: Mapping[str, Any], figures: _Figures) -> Exception | None:
    """Asks once; the answer is why there is no use in asking this way again, or None."""
    connection: Any = None
    try:
        connection = kind(
            **arguments, protocol=2, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )  # fmt: skip
        connection.connect()
        connection.send_command("INFO")
        answer = connection.read_response()
        figures.take(_parsed(answer))
    except _HOPELESS as error:
        return error
    except (RedisError, OSError):
        pass  # it is away: what it said last grows old, and its commands fail visibly
    finally:
        if connection is not None:
            connection.disconnect()
    return None


def _tell(address: _Address, error: Exception) -> None:
    _log.warning(
        "otel_perf: the figures of the Redis server at %s are not read: %s; grant INFO to its user, or set "
        "redis_info_interval_s to 0",
        ":".join(str(part) for part in address if part is not None), redaction.exception_type(error),
    )  # fmt: skip


def _parsed(answer: Any) -> dict[str, str]:
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value for key, colon, value in pairs if colon}


_look = _Look()


def look(patches: Patches) -> Undo:
    """Looks at the servers of what is measured, until the answer is undone."""
    return _look.take(patches)
