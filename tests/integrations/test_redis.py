"""redis-py, sync and async, on a real Redis."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import redis
import redis.asyncio
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.trace import SpanKind, StatusCode

from collector import servers
from otel_perf import instrument, measure, strategy
from otel_perf.telemetry import operation
from tests.conftest import Telemetry
from tests.servers import find_or_skip

_DURATION = "db.client.operation.duration"


@pytest.fixture
def client(redis_server: Any) -> Iterator[redis.Redis]:
    """A client of database 2, emptied."""
    made = redis.Redis(host="127.0.0.1", port=redis_server.port, db=2)
    made.flushdb()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _strategies() -> Iterator[None]:
    """Two declared strategies, forgotten afterwards."""
    measure.strategy("USER", "user:{id}")
    measure.strategy("PAGE", "page:*")
    yield
    strategy._strategies.clear()


@asynccontextmanager
async def _async_client(url: str) -> AsyncIterator[redis.asyncio.Redis]:
    made = redis.asyncio.Redis.from_url(url, db=2)
    await made.flushdb()
    try:
        yield made
    finally:
        await made.aclose()


def _both(url: str, work: Callable[[Any], Any]) -> None:
    """Run the same work on a sync and on an async client; `work` makes results that may be awaitable."""
    sync = redis.Redis.from_url(url, db=2)
    sync.flushdb()
    with instrument(sync):
        work(sync)
    sync.close()

    async def main() -> None:
        async with _async_client(url) as client:
            with instrument(client):
                for step in work(client):
                    if inspect.isawaitable(step):
                        await step

    asyncio.run(main())


def test_a_command_is_a_query(telemetry: Telemetry, client: redis.Redis, redis_server: Any) -> None:
    """A command is a client span with the conventions' attributes, without key and value."""
    with instrument(client):
        assert client.set("secret-key", "secret-value") is True

    span = telemetry.span("SET")
    assert span.kind is SpanKind.CLIENT
    assert dict(span.attributes or {}) == {
        "db.system.name": "redis",
        "db.operation.name": "SET",
        "db.namespace": "2",
        "db.query.text": "SET ? ?",
        "server.address": "127.0.0.1",
        "server.port": redis_server.port,
    }
    (point,) = telemetry.points(_DURATION, db__operation__name="SET")
    assert point.count == 1
    assert "secret" not in span.to_json()


def test_async_command(telemetry: Telemetry, redis_server: Any) -> None:
    """The async client is measured like the sync one, and only while the handle holds."""

    async def main() -> None:
        async with _async_client(redis_server.url) as client:
            with instrument(client):
                await client.set("k", "v")
                assert await client.get("k") == b"v"
            await client.get("k")

    asyncio.run(main())
    assert [span.name for span in telemetry.spans] == ["SET", "GET"]


@pytest.mark.parametrize("raw", ["GET secret", b"GET secret", "get secret"])
def test_an_argument_in_the_name_is_not_shown(telemetry: Telemetry, client: redis.Redis, raw: Any) -> None:
    """redis-py takes `GET key` as one word; names of two words are kept where both belong to the command."""
    with instrument(client):
        client.execute_command(raw)
        client.config_get("maxmemory")

    assert [span.name for span in telemetry.spans] == ["GET", "CONFIG GET"]
    assert not any("secret" in span.to_json() for span in telemetry.spans)


def test_only_known_commands_become_labels(telemetry: Telemetry, client: redis.Redis) -> None:
    """Any other text is `OTHER`, alone, in a pipeline and as a second word; commands of modules are known."""
    with instrument(client):
        for each in ("s3ntinel", "CONFIG s3ntinel", "JSON.GET", "CLIENT INFO", "GETs3ntinel"):
            with suppress(redis.RedisError):
                client.execute_command(each)
        with suppress(redis.RedisError):
            client.pipeline(transaction=False).execute_command("s3ntinel").execute()

    names = [span.name for span in telemetry.spans]
    assert names == ["OTHER", "CONFIG", "JSON.GET", "CLIENT INFO", "OTHER", "PIPELINE OTHER"]
    assert {point.attributes["db.operation.name"] for point in telemetry.points(_DURATION)} == set(names)
    assert not any("S3NTINEL" in span.to_json().upper() for span in telemetry.spans)


@pytest.mark.parametrize(
    ("command", "slow"),
    [
        (("GET", "k"), True),
        (("BLPOP", "list", 0.01), False),
        ((b"brpop", "list", 0.01), False),
        (("WAIT", 0, 1), False),
        (("XREAD", "COUNT", 1, b"BLOCK", 1, "STREAMS", "s", "$"), False),
        (("XREAD", "STREAMS", "BLOCK", "0"), True),
    ],
)
def test_waiting_is_not_slow(
    telemetry: Telemetry, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, command: tuple[Any, ...], slow: bool
) -> None:
    """A command whose job is to wait is never a slow operation; its duration counts as ever."""
    monkeypatch.setattr(telemetry.runtime, "slow_query_s", 0.0)
    with instrument(client):
        client.execute_command(*command)
        client.pipeline(transaction=False).execute_command(*command).execute()

    assert sum(point.count for point in telemetry.points(_DURATION)) == 2
    assert sum(point.value for point in telemetry.points("db.client.slow_operations")) == 2 * slow


def test_nothing_waits_in_a_transaction(
    telemetry: Telemetry, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within MULTI a blocking command answers at once: a slow transaction is slow."""
    monkeypatch.setattr(telemetry.runtime, "slow_query_s", 0.0)
    with instrument(client):
        client.pipeline().blpop("list", 1).execute()

    assert [point.value for point in telemetry.points("db.client.slow_operations")] == [1]


def test_an_error(telemetry: Telemetry, client: redis.Redis) -> None:
    """An error of the server reaches the user as it is and gives its type to span and metric."""
    client.set("user:1", "text")
    with instrument(client), pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.lpush("user:1", "x")

    span = telemetry.span("LPUSH")
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "redis.exceptions.ResponseError"
    assert telemetry.points(_DURATION, error__type="redis.exceptions.ResponseError")


def test_a_dead_server(telemetry: Telemetry) -> None:
    """A refused connection is a failed operation, for the cache neither hit nor miss."""
    dead = redis.Redis(port=1, retry=None)
    with instrument(dead), pytest.raises(redis.ConnectionError):
        dead.get("user:1")

    error = "redis.exceptions.ConnectionError"
    assert telemetry.points(_DURATION, error__type=error)[0].count == 1
    (point,) = telemetry.points("cache.operation.duration")
    assert dict(point.attributes)["cache.result"] == "none"
    assert dict(point.attributes)["error.type"] == error


def test_pipelines(telemetry: Telemetry, client: redis.Redis) -> None:
    """A pipeline is one operation, MULTI with a transaction, named by its command where there is only one."""
    with instrument(client):
        with client.pipeline(transaction=False) as pipe:
            pipe.set("secret", 1).get("secret")
            assert pipe.execute() == [True, b"1"]
        pipe = client.pipeline()
        for n in range(50):
            pipe.incr("n", n)
        pipe.execute()
        assert client.pipeline().execute() == []
        assert client.pipeline().set("a", 1).execute() == [True]

    assert [span.name for span in telemetry.spans] == ["PIPELINE", "MULTI INCRBY", "MULTI SET"]
    first, second, _ = telemetry.spans
    assert dict(first.attributes or {})["db.query.text"] == "SET ? ?; GET ?"
    assert dict(first.attributes or {})["db.operation.batch.size"] == 2
    assert dict(second.attributes or {})["db.operation.batch.size"] == 50
    assert len(dict(second.attributes or {})["db.query.text"]) < 200


def test_a_pipeline_error_shows_no_command(telemetry: Telemetry, client: redis.Redis) -> None:
    """redis-py repeats the failed command in its message; it is not in ours."""
    client.set("text", "x")
    with instrument(client), pytest.raises(redis.ResponseError), client.pipeline() as pipe:
        pipe.lpush("text", "hush-hush").execute()

    assert "hush" not in telemetry.span("MULTI LPUSH").to_json()


def test_async_pipeline_and_watch(telemetry: Telemetry, redis_server: Any) -> None:
    """Async pipelines, and the commands that are sent at once while a key is watched."""

    async def main() -> None:
        async with _async_client(redis_server.url) as client:
            with instrument(client):
                async with client.pipeline() as pipe:
                    await pipe.watch("k")
                    assert await pipe.get("k") is None
                    pipe.multi()
                    pipe.set("k", 1)
                    assert await pipe.execute() == [True]

    asyncio.run(main())
    assert [span.name for span in telemetry.spans] == ["WATCH", "GET", "MULTI SET"]


def test_pubsub_is_not_measured(telemetry: Telemetry, client: redis.Redis) -> None:
    """A subscription waits for others; it is no query."""
    with instrument(client), client.pubsub() as pubsub:
        pubsub.subscribe("news")
        assert pubsub.get_message(timeout=1)["type"] == "subscribe"

    assert telemetry.spans == []


def _cache(telemetry: Telemetry) -> dict[tuple[str, str, str], int]:
    return {
        tuple(point.attributes[f"cache.{key}"] for key in ("operation.name", "strategy", "result")): point.count
        for point in telemetry.points("cache.operation.duration")
    }


def test_declared_keys_are_cache_operations_too(telemetry: Telemetry, redis_server: Any) -> None:
    """Keys of a strategy give hits and misses; other keys give queries only. Sync and async alike."""

    def work(client: Any) -> list[Any]:
        return [
            client.get("user:1"),
            client.set("user:1", "x"),
            client.get("user:1"),
            client.exists("user:1"),
            client.hget("user:2", "field"),
            client.get("elsewhere"),
            client.delete("user:1"),
        ]

    _both(redis_server.url, work)
    assert _cache(telemetry) == {
        ("get", "USER", "miss"): 2,
        ("get", "USER", "hit"): 2,
        ("set", "USER", "none"): 2,
        ("exists", "USER", "hit"): 2,
        ("hget", "USER", "miss"): 2,
        ("del", "USER", "none"): 2,
    }
    assert sum(point.count for point in telemetry.points(_DURATION)) == 14
    assert len(telemetry.spans) == 14
    hits = [span for span in telemetry.spans if (span.attributes or {}).get("cache.result") == "hit"]
    assert len(hits) == 4


def test_keys_asked_together_are_counted_one_by_one(telemetry: Telemetry, client: redis.Redis) -> None:
    """MGET, EXISTS and pipelines count each key of a strategy, so that hit ratios are shares of keys."""
    client.mset({"user:1": 1, "user:2": 2, "page:1": 1})
    with instrument(client):
        assert client.mget("user:1", b"user:2", "user:3", "page:1", "page:2", "other") == [
            b"1",
            b"2",
            None,
            b"1",
            None,
            None,
        ]
        client.exists("user:1", "user:2", "user:9")
        with client.pipeline() as pipe:
            pipe.get("user:1").set("user:7", 1).get("user:8").hgetall("user:9").execute()

    assert _cache(telemetry) == {
        ("mget", "USER", "hit"): 2,
        ("mget", "USER", "miss"): 1,
        ("mget", "PAGE", "hit"): 1,
        ("mget", "PAGE", "miss"): 1,
        ("exists", "USER", "hit"): 2,
        ("exists", "USER", "miss"): 1,
        ("multi", "USER", "hit"): 1,
        ("multi", "USER", "miss"): 2,
    }
    assert (telemetry.span("MGET").attributes or {})["cache.result"] == "miss"


def test_a_huge_mget_counts_its_first_keys(telemetry: Telemetry, client: redis.Redis) -> None:
    """The cost of one call is bounded."""
    with instrument(client):
        client.mget([f"user:{n}" for n in range(1000)])

    assert _cache(telemetry) == {("mget", "USER", "miss"): 256}


def test_within_measure_cache_the_cache_is_not_counted_again(telemetry: Telemetry, client: redis.Redis) -> None:
    """The outermost cache operation counts; the command is a query all the same."""
    with instrument(client), measure.cache("get", strategy="USER", system="redis") as op:
        op.hit = client.get("user:1") is not None

    assert _cache(telemetry) == {("get", "USER", "miss"): 1}
    assert telemetry.points(_DURATION)[0].count == 1
    assert [span.name for span in telemetry.spans] == ["GET", "cache get"]


def test_all_clients_and_twice(telemetry: Telemetry, client: redis.Redis, redis_server: Any) -> None:
    """The library as a whole takes old and new clients; one command is one operation; undo puts the functions back."""
    before = (redis.Redis.execute_command, redis.client.Pipeline.execute, redis.asyncio.Redis.execute_command)
    first, second, third = instrument("redis"), instrument("redis"), instrument(client)
    client.get("a")
    later = redis.Redis.from_url(redis_server.url)
    later.get("b")
    assert len(telemetry.spans) == 2
    first.undo()
    second.undo()
    later.get("c")
    client.get("d")
    assert len(telemetry.spans) == 3
    third.undo()
    client.get("e")
    later.close()
    assert len(telemetry.spans) == 3
    after = (redis.Redis.execute_command, redis.client.Pipeline.execute, redis.asyncio.Redis.execute_command)
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_another_wrapper_stays(telemetry: Telemetry, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others wrapped the method meanwhile, undo leaves theirs, and ours below it passes calls through."""
    monkeypatch.setattr(redis.Redis, "execute_command", redis.Redis.execute_command)  # puts it back at the end
    handle = instrument(client)
    ours = redis.Redis.execute_command
    calls: list[Any] = []

    def theirs(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(args[0])
        return ours(self, *args, **options)

    theirs.__wrapped__ = ours  # type: ignore[attr-defined]
    monkeypatch.setattr(redis.Redis, "execute_command", theirs)
    handle.undo()
    client.get("a")
    assert (calls, telemetry.spans) == (["GET"], [])
    with instrument(client):
        client.get("a")
    assert len(telemetry.spans) == 1
    monkeypatch.setattr(redis.Redis, "execute_command", ours)
    with instrument(client):
        client.get("user:1")
    assert len(telemetry.spans) == 2
    assert _cache(telemetry) == {("get", "USER", "miss"): 1}


def test_a_wrapper_that_hides_ours(telemetry: Telemetry, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others wrapped ours without saying so, a second wrapper of ours comes above: one command is still one."""
    monkeypatch.setattr(redis.Redis, "execute_command", redis.Redis.execute_command)  # puts it back at the end
    handle = instrument(client)
    ours = redis.Redis.execute_command

    def theirs(self: Any, *args: Any, **options: Any) -> Any:
        return ours(self, *args, **options)

    monkeypatch.setattr(redis.Redis, "execute_command", theirs)
    handle.undo()
    with instrument(client):
        client.get("user:1")

    assert _cache(telemetry) == {("get", "USER", "miss"): 1}
    assert [span.name for span in telemetry.spans] == ["GET"]


def test_a_cancelled_command(telemetry: Telemetry, redis_server: Any) -> None:
    """A cancelled command is ended with the cancellation as its type; nothing stays current."""

    async def main() -> None:
        async with _async_client(redis_server.url) as client:
            with instrument(client):
                task = asyncio.create_task(client.blpop("never", timeout=30))
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert operation.current() is None

    asyncio.run(main())
    assert (telemetry.span("BLPOP").attributes or {})["error.type"] == "asyncio.exceptions.CancelledError"


def test_threads(telemetry: Telemetry, client: redis.Redis) -> None:
    """Many threads on one client: every command is counted."""
    with instrument(client):
        threads = [threading.Thread(target=lambda: [client.get("user:1") for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert telemetry.points(_DURATION)[0].count == 200
    assert _cache(telemetry) == {("get", "USER", "miss"): 200}


def test_redis_own_metrics_are_not_doubled(telemetry: Telemetry, client: redis.Redis) -> None:
    """Where redis-py's own command metrics are on, they count; the span stays, and what they leave out is ours."""
    from redis.observability import (
        MetricGroup,
        OTelConfig,
        get_observability_instance,
        recorder,
        reset_observability_instance,
    )

    config = OTelConfig(metric_groups=[MetricGroup.COMMAND], exclude_commands=["SET"])
    get_observability_instance().init(config)
    try:
        with instrument(client):
            client.get("user:1")
            client.set("user:1", 1)
    finally:
        get_observability_instance().shutdown()
        reset_observability_instance()
        recorder.reset_collector()

    assert [span.name for span in telemetry.spans] == ["GET", "SET"]
    assert [dict(point.attributes)["db.operation.name"] for point in telemetry.points(_DURATION)].count("SET") == 1
    assert sum(point.count for point in telemetry.points(_DURATION, db__operation__name="GET")) == 1
    assert _cache(telemetry)["get", "USER", "miss"] == 1


@pytest.mark.parametrize("whole", [False, True])
def test_the_upstream_engine_makes_the_spans(telemetry: Telemetry, client: redis.Redis, whole: bool) -> None:
    """`engine="upstream"`: one span, by opentelemetry-instrumentation-redis, and our metrics."""
    before = redis.Redis.execute_command
    with instrument("redis" if whole else client, engine="upstream"):
        client.get("user:1")
        client.pipeline().set("a", 1).execute()

    assert [span.instrumentation_scope.name for span in telemetry.spans] == ["opentelemetry.instrumentation.redis"] * 2
    assert sum(point.count for point in telemetry.points(_DURATION)) == 2
    assert _cache(telemetry) == {("get", "USER", "miss"): 1}
    client.get("user:1")
    assert len(telemetry.spans) == 2
    assert redis.Redis.execute_command is before
    with pytest.raises(ValueError, match="'ours' or 'upstream'"):
        instrument(client, engine="otel_perf")
    instrument(client, engine="ours").undo()


def test_upstream_that_is_there_already_is_seen(telemetry: Telemetry, client: redis.Redis) -> None:
    """Spans of an instrumentor that the application switched on itself are not doubled."""
    RedisInstrumentor().instrument(tracer_provider=telemetry.runtime.tracer_provider)
    try:
        with instrument(client):
            client.get("user:1")
    finally:
        RedisInstrumentor().uninstrument()

    assert [span.instrumentation_scope.name for span in telemetry.spans] == ["opentelemetry.instrumentation.redis"]
    assert telemetry.points(_DURATION)[0].count == 1


def test_hostile_commands(telemetry: Telemetry, client: redis.Redis) -> None:
    """Unknown, empty, huge and binary commands and keys neither break anything nor leave their text behind."""
    hostile: list[tuple[Any, ...]] = [("FOO" * 1000,), (b"\xff\xfe",), ("GET", b"\xff" * 100_000), ("\x1b[31m",), (7,)]
    with instrument(client):
        for command in hostile:
            with suppress(redis.RedisError, UnicodeError, TypeError, AttributeError):
                client.execute_command(*command)

    assert len(telemetry.spans) == len(hostile)
    assert all(len(span.name) <= 32 and span.name.isprintable() for span in telemetry.spans)


def test_cluster(telemetry: Telemetry) -> None:
    """Cluster clients and their pipelines, sync and async, as a whole and one by one."""
    find_or_skip("redis-server")
    with servers.redis(cluster=True) as server:
        with redis.Redis(port=server.port) as node:
            node.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            while node.cluster("info")["cluster_state"] != "ok":
                threading.Event().wait(0.05)
        sync = redis.RedisCluster(host="127.0.0.1", port=server.port)
        with instrument(sync):
            sync.get("user:1")
            with sync.pipeline() as pipe:
                pipe.set("user:1", 1).get("user:1").execute()
        sync.close()

        async def main() -> None:
            async with redis.asyncio.RedisCluster(host="127.0.0.1", port=server.port) as client:
                with instrument(client):
                    await client.get("user:2")
                    await client.pipeline().set("user:2", 1).get("user:2").execute()

        asyncio.run(main())

    assert [span.name for span in telemetry.spans] == ["GET", "PIPELINE"] * 2
    assert _cache(telemetry) == {
        ("get", "USER", "miss"): 2,
        ("pipeline", "USER", "hit"): 2,
    }
