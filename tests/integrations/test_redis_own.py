"""redis-py where others measure it too: its own metrics, and the upstream instrumentor."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from opentelemetry.instrumentation.redis import RedisInstrumentor

from otel_perf import instrument, integrations
from tests.conftest import Telemetry
from tests.integrations.redis_work import DURATION, cache_counts, counted

pytestmark = pytest.mark.usefixtures("strategies")


@contextmanager
def _own_metrics(**options: Any) -> Iterator[None]:
    from redis.observability import OTelConfig, get_observability_instance, recorder, reset_observability_instance

    get_observability_instance().init(OTelConfig(**options))
    try:
        yield
    finally:
        get_observability_instance().shutdown()
        reset_observability_instance()
        recorder.reset_collector()


def test_redis_own_metrics_are_not_doubled(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """Where redis-py's own command metrics are on, they count; the span stays, and what they leave out is ours."""
    from redis.observability import MetricGroup

    with _own_metrics(metric_groups=[MetricGroup.COMMAND], exclude_commands=["SET"]), instrument(redis_client):
        redis_client.get("user:1")
        redis_client.set("user:1", 1)
        assert "own metrics" in next(each.why for each in integrations.report() if each.library == "redis")

    assert [span.name for span in telemetry.spans] == ["GET", "SET"]
    assert [dict(point.attributes)["db.operation.name"] for point in telemetry.points(DURATION)].count("SET") == 1
    assert counted(telemetry, db__operation__name="GET") == 1
    assert cache_counts(telemetry)["get", "USER", "miss"] == 1


def test_own_metrics_of_connections_are_not_doubled(telemetry: Telemetry, redis_server: Any) -> None:
    """Where redis-py counts connections and waits, ours are left out."""
    from redis.observability import MetricGroup

    pool = redis.BlockingConnectionPool(port=redis_server.port, max_connections=2)
    groups = [MetricGroup.CONNECTION_BASIC, MetricGroup.CONNECTION_ADVANCED]
    with redis.Redis(connection_pool=pool) as client, instrument(client):
        with _own_metrics(metric_groups=groups):
            client.ping()
            ours = [point for point in telemetry.points("db.client.connection.count") if ":" in _pool_name(point)]
            assert not [point for point in ours if _pool_name(point).endswith("/0")]
            waits = telemetry.points("db.client.connection.wait_time")
            assert not [point for point in waits if _pool_name(point).endswith("/0")]
        client.ping()
        waits = telemetry.points("db.client.connection.wait_time")
        assert [point.count for point in waits if _pool_name(point).endswith("/0")] == [1]
    pool.disconnect()


def _pool_name(point: Any) -> str:
    return str(point.attributes["db.client.connection.pool.name"])


@pytest.mark.parametrize("whole", [False, True])
def test_the_upstream_engine_makes_the_spans(telemetry: Telemetry, redis_client: redis.Redis, whole: bool) -> None:
    """`engine="upstream"`: one span, by opentelemetry-instrumentation-redis, and our metrics."""
    before = redis.Redis.execute_command
    with instrument("redis" if whole else redis_client, engine="upstream"):
        redis_client.get("user:1")
        redis_client.pipeline().set("a", 1).execute()

    assert [span.instrumentation_scope.name for span in telemetry.spans] == ["opentelemetry.instrumentation.redis"] * 2
    assert sum(point.count for point in telemetry.points(DURATION)) == 2
    assert cache_counts(telemetry) == {("get", "USER", "miss"): 1}
    redis_client.get("user:1")
    assert len(telemetry.spans) == 2
    assert redis.Redis.execute_command is before
    with pytest.raises(ValueError, match="'ours' or 'upstream'"):
        instrument(redis_client, engine="otel_perf")
    instrument(redis_client, engine="ours").undo()


def test_upstream_that_is_there_already_is_seen(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """Spans of an instrumentor that the application switched on itself are not doubled."""
    RedisInstrumentor().instrument(tracer_provider=telemetry.runtime.tracer_provider)
    try:
        with instrument(redis_client):
            redis_client.get("user:1")
    finally:
        RedisInstrumentor().uninstrument()

    assert [span.instrumentation_scope.name for span in telemetry.spans] == ["opentelemetry.instrumentation.redis"]
    assert telemetry.points(DURATION)[0].count == 1


@pytest.mark.parametrize("kind", ["sync", "async", "pipeline", "async pipeline"])
def test_upstream_adds_our_metrics_once(telemetry: Telemetry, redis_server: Any, kind: str) -> None:
    """Beside the instrumentor's one span there is one query and one cache operation, however it is called."""

    def work(client: Any) -> Any:
        return client.pipeline().get("user:1").execute() if "pipeline" in kind else client.get("user:1")

    async def main() -> None:
        async with redis.asyncio.Redis(port=redis_server.port, db=2) as client:
            with instrument(client, engine="upstream"):
                await work(client)

    if "async" in kind:
        asyncio.run(main())
    else:
        with redis.Redis(port=redis_server.port, db=2) as client, instrument(client, engine="upstream"):
            work(client)
    (span,) = telemetry.spans
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "opentelemetry.instrumentation.redis"
    assert counted(telemetry) == 1
    assert sum(cache_counts(telemetry).values()) == 1


def test_the_report_names_the_instrumentor(telemetry: Telemetry) -> None:
    """An instrumentor that the application switched on is who measures redis-py already."""
    RedisInstrumentor().instrument(tracer_provider=telemetry.runtime.tracer_provider)
    try:
        with instrument("redis"):
            said = next(each for each in integrations.report() if each.library == "redis")
    finally:
        RedisInstrumentor().uninstrument()
    assert said.state == "already measured by someone else"
    assert said.why.startswith("opentelemetry-instrumentation-redis")
