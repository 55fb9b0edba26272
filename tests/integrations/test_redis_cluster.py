"""Redis cluster clients on a real cluster of three nodes, and what becomes of a command when a node is lost."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from collector.redis_cluster import RedisCluster, redis_cluster
from otel_perf import instrument
from otel_perf.telemetry import operation
from tests.conftest import Telemetry
from tests.integrations.redis_work import cache_counts, counted
from tests.servers import find_or_skip

pytestmark = pytest.mark.usefixtures("strategies")


def test_commands_and_pipelines(telemetry: Telemetry, redis_cluster_server: RedisCluster) -> None:
    """Keys on all nodes, one by one and in a pipeline, sync and async: one operation for each call."""
    with redis.RedisCluster.from_url(redis_cluster_server.url) as sync:
        sync.delete(*(f"user:{number}" for number in range(9)))
        with instrument(sync):
            for number in range(9):
                sync.get(f"user:{number}")
            with sync.pipeline() as pipe:
                pipe.set("user:1", 1).get("user:1").get("user:2").execute()

    async def main() -> None:
        async with redis.asyncio.RedisCluster.from_url(redis_cluster_server.url) as client:
            with instrument(client):
                for number in range(9):
                    await client.get(f"user:{number}")
                await client.pipeline().set("user:1", 1).get("user:1").get("user:2").execute()

    asyncio.run(main())
    assert [span.name for span in telemetry.spans] == [*["GET"] * 9, "PIPELINE"] * 2
    assert counted(telemetry) == 20
    assert cache_counts(telemetry) == {
        ("get", "USER", "miss"): 17,
        ("get", "USER", "hit"): 1,
        ("pipeline", "USER", "hit"): 2,
        ("pipeline", "USER", "miss"): 2,
    }


def test_a_redirection_is_part_of_the_command(telemetry: Telemetry, redis_cluster_server: RedisCluster) -> None:
    """A client that has the slots wrong is sent on (MOVED): one operation, which has not failed."""
    with redis.RedisCluster.from_url(redis_cluster_server.url) as client:
        slots = client.nodes_manager.slots_cache
        first, last = slots[0], slots[16383]
        for slot in list(slots):
            slots[slot] = last if slots[slot][0].name == first[0].name else first
        with instrument(client):
            client.set("user:1", 1)

    (span,) = telemetry.spans
    assert (span.name, (span.attributes or {}).get("error.type")) == ("SET", None)
    assert counted(telemetry) == 1


def test_a_single_client_is_told_where_to_go(telemetry: Telemetry, redis_cluster_server: RedisCluster) -> None:
    """A client that knows of no cluster gets MOVED as an error, and the span has it as the status code."""
    with redis.Redis.from_url(redis_cluster_server.url) as client, instrument(client):
        for number in range(30):
            with suppress(redis.exceptions.MovedError):
                client.get(f"elsewhere:{number}")

    moved = [span for span in telemetry.spans if (span.attributes or {}).get("db.response.status_code") == "MOVED"]
    assert 0 < len(moved) < 30
    assert counted(telemetry, error__type="redis.exceptions.MovedError") == len(moved)


def test_a_subscriber_of_a_cluster(telemetry: Telemetry, redis_cluster_server: RedisCluster) -> None:
    """SUBSCRIBE is an operation of the cluster's client, and a handler a step."""
    got: list[Any] = []

    def on_news(message: Any) -> None:
        got.append(message["data"])

    with redis.RedisCluster.from_url(redis_cluster_server.url) as client, instrument(client):
        pubsub = client.pubsub()
        pubsub.subscribe(news=on_news)
        while not got:
            client.publish("news", "x")
            for _ in range(3):
                pubsub.get_message(timeout=0.2)
        pubsub.close()

    names = [span.name for span in telemetry.spans]
    assert names[0] == "SUBSCRIBE"
    assert any(name.endswith("on_news") for name in names)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # redis-py leaves the connections of a lost node open
def test_a_node_is_lost_in_the_middle(telemetry: Telemetry) -> None:
    """Whatever fails while a node is away is counted, each call once and none lost, sync and async."""
    find_or_skip("redis-server")
    with redis_cluster() as cluster:
        seen = {"good": 0, "bad": 0}
        keys = [f"k{number}" for number in range(12)]

        def work(client: redis.RedisCluster) -> None:
            for key in keys:
                try:
                    client.set(key, 1)
                    seen["good"] += 1
                except (redis.RedisError, OSError):
                    seen["bad"] += 1

        async def work_async(client: redis.asyncio.RedisCluster) -> None:
            for key in keys:
                try:
                    await client.set(key, 1)
                    seen["good"] += 1
                except (redis.RedisError, OSError):
                    seen["bad"] += 1

        async def main(sync: redis.RedisCluster) -> None:
            patient: Any = AsyncRetry(NoBackoff(), 1)
            async with redis.asyncio.RedisCluster.from_url(cluster.url, retry=patient) as client:
                with instrument(client), instrument(sync):
                    work(sync)
                    await work_async(client)
                    cluster.nodes[2].stop()
                    work(sync)
                    await work_async(client)

        with redis.RedisCluster.from_url(cluster.url, retry=Retry(NoBackoff(), 1)) as sync:
            asyncio.run(main(sync))

    gc.collect()
    assert seen["bad"] > 0
    assert seen["good"] >= 24
    failed = [point for point in telemetry.points("db.client.operation.duration") if "error.type" in point.attributes]
    assert sum(point.count for point in failed) == seen["bad"]
    assert counted(telemetry, db__operation__name="SET") == 48
    assert operation.current() is None


def test_nodes_are_looked_at(telemetry: Telemetry, redis_cluster_server: RedisCluster) -> None:
    """The pool and the figures of each node are reported, for the sync and the async client."""
    ports = {node.port for node in redis_cluster_server.nodes}
    with redis.RedisCluster.from_url(redis_cluster_server.url) as client, instrument(client):
        names = {point.attributes["db.client.connection.pool.name"] for point in _pools(telemetry)}
        assert names == {f"127.0.0.1:{port}/0" for port in ports}

    async def main() -> None:
        async with redis.asyncio.RedisCluster.from_url(redis_cluster_server.url) as later:
            with instrument(later):
                await later.get("a")
                counts = _pools(telemetry)
                assert {point.attributes["db.client.connection.pool.name"] for point in counts} == names
                assert sum(point.value for point in counts) >= 1

    asyncio.run(main())


def _pools(telemetry: Telemetry) -> list[Any]:
    return telemetry.points("db.client.connection.count")
