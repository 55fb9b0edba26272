"""What others measure of redis-py already: its own metrics, and opentelemetry-instrumentation-redis."""

from __future__ import annotations

import sys
from typing import Any

import redis

from otel_perf.integrations.patch import Holds

__all__ = ["counts", "elsewhere", "records", "spans", "upstream"]

#: Where `engine="upstream"` leaves the spans to the instrumentor.
upstream = Holds()


def spans(pool: Any) -> bool:
    """Whether the instrumentor makes the spans."""
    return pool in upstream or _instrumented()


def _instrumented() -> bool:
    module: Any = sys.modules.get("opentelemetry.instrumentation.redis")
    return module is not None and bool(module.RedisInstrumentor().is_instrumented_by_opentelemetry)


def _config() -> Any:
    module: Any = sys.modules.get("redis.observability.providers")
    if module is None:
        return None
    manager = module.get_observability_instance().get_provider_manager()
    return None if manager is None or not manager.config.is_enabled() else manager.config


def records(group: str) -> bool:
    """Whether redis-py records the metrics of one of its groups, such as CONNECTION_BASIC."""
    config = _config()
    if config is None:
        return False
    known: Any = sys.modules["redis.observability.config"]
    return bool(config.metric_groups & known.MetricGroup[group])


def counts(name: str) -> bool:
    """Whether redis-py records db.client.operation.duration of a command."""
    return records("COMMAND") and bool(_config().should_track_command(name))


def elsewhere() -> str | None:
    """Who measures redis-py already, or None."""
    who: list[str] = []
    if _instrumented() and redis.Redis not in upstream:
        who.append("opentelemetry-instrumentation-redis")
    if _config() is not None:
        who.append("redis-py's own metrics (redis.observability)")
    return " and ".join(who) or None
