"""How people measure.

    @measure                                                  # the name is the qualified name
    @measure("match_trips", category="processing")
    with measure("custom_operation") as op: op.items = 100    # op.seconds afterwards
    async with measure.external("stripe", "create_payment", category="payments"): ...

All of it is sugar over `otel_perf.telemetry.operation`: there is one timing loop, and it is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

from otel_perf import catalogue, client, guard, jobs, peers, runs, strategy
from otel_perf import conventions as c
from otel_perf.arguments import Told
from otel_perf.handle import Measured
from otel_perf.telemetry import runtime
from otel_perf.telemetry.meter import sampled
from otel_perf.telemetry.numbers import plain
from otel_perf.telemetry.operation import CACHE, EXTERNAL, JOB, QUERY, REQUEST, STEP

__all__ = ["Measure", "measure"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class Measure:
    """The entry to all kinds of measurement; there is one, `measure`."""

    @overload
    def __call__(self, name: F, /) -> F: ...

    @overload
    def __call__(
        self, name: str | None = None, /, *, category: str | None = None, attributes: Mapping[str, Any] | None = None
    ) -> Measured: ...

    def __call__(
        self, name: Any = None, /, *, category: str | None = None, attributes: Mapping[str, Any] | None = None
    ) -> Any:
        """A step of one's own: `operation.duration` by name and category, and a span. `op.items` counts items."""
        if name is not None and not isinstance(name, str):
            return Measured(STEP, None, (None, category), attributes)(name)
        return Measured(STEP, name, (name, category), attributes)

    def request(self, method: str, route: str, *, scheme: str | None = None) -> Measured:
        """A request of a server that no integration knows; `op.label("http.response.status_code", 200)` as it ends."""
        return Measured(REQUEST, f"{method} {route}", (method, route, None, scheme))

    def query(
        self, operation: str, *, collection: str | None = None, system: str = "other_sql", namespace: str | None = None,
        text: str | None = None,
    ) -> Measured:  # fmt: skip
        """A database call: `db.client.operation.duration`. `text` is SQL, whose literals are masked."""
        name = " ".join(part for part in (operation, collection) if part)
        attributes = {c.DB_QUERY_TEXT: text} if text else None
        return Measured(QUERY, name, (system, operation, collection, namespace), attributes)

    def cache(self, operation: str, *, strategy: str | None = None, system: str = "memory") -> Measured:
        """A cache call: set `op.hit` to True or False on reads; unset it counts as neither."""
        return Measured(CACHE, f"cache {operation}", (system, operation, strategy))

    def external(self, service: str, operation: str, *, category: str | None = None) -> Measured:
        """A call to an API of somebody else's: `external.api.duration`."""
        return Measured(EXTERNAL, f"{service} {operation}", (service, operation, category))

    def job(self, name: str, *, every: str | float | None = None, timezone: str | None = None) -> runs.JobHandle:
        """A background job run; `every` says how often it should start: `30s`, `15m`, `1d`, seconds, or a cron line.

        A cron line (`0 4 * * *`, which needs the extra `cron`) is read in `timezone`, or in UTC without one.
        """
        jobs.declare(name, every, timezone)
        return runs.JobHandle(JOB, name, (name,))

    def record(self, name: str, *, seconds: float, items: int | None = None, category: str | None = None) -> None:
        """Records a step that was timed elsewhere; it makes no span."""
        in_force = runtime.current
        if in_force is None:
            return
        try:
            _add_step(in_force, name, category, seconds, items)
        except Exception:
            guard.note("measure.record")

    def client(
        self, target: T, *, system: str, methods: Mapping[str, str], collection: str | None = None,
        collection_argument: str | None = None, filter_argument: str | None = None,
    ) -> T:  # fmt: skip
        """Wraps a client of one's own, so that the named methods are measured as queries.

        `collection_argument` and `filter_argument` name the arguments that say the collection and, masked, the filter.
        """
        told = Told(system, collection, collection_argument, filter_argument)
        return client.wrap(target, methods, told)

    def strategy(
        self, name: str | strategy.Strategy, pattern: str = "", *, ttl_s: float | None = None,
        expected_hit_rate: float | None = None,
    ) -> strategy.Strategy:  # fmt: skip
        """Declares a cache strategy: keys that match `pattern` (`user:profile:*`) are counted under its name.

        It may be given as one `Strategy` instead.
        """
        return strategy.declare(name, pattern, ttl_s=ttl_s, expected_hit_rate=expected_hit_rate)

    def peer(
        self, service: str, *hosts: str, category: str | None = None, operations: Mapping[str, str] | None = None
    ) -> peers.Peer:
        """Declares a service that the app calls over HTTP: `("push", "push.example.com", category="notifications")`.

        A host may have `*`, and the beginning of a path behind it. `operations` names what calls do:
        `{"POST /v1/messages": "send", "GET /v1/messages/{id}": "get"}`.
        """
        return peers.declare(service, *hosts, category=category, operations=operations)


def _add_step(in_force: runtime.Runtime, name: str, category: str | None, seconds: float, items: int | None) -> None:
    seconds = plain(seconds)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds of {name!r} is {seconds}: give a duration of 0 or more")
    value = sampled(seconds) if in_force.exemplars else seconds
    in_force.at(c.STEP_DURATION, (name, category, None)).record(value)
    if items and 0 < items < math.inf:
        in_force.at(c.STEP_ITEM_COUNT, (name, category)).record(plain(items))


measure = Measure()
catalogue.watch(c.JOB_MISSED, jobs.missed)
