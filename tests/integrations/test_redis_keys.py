"""Keys of Redis commands as cache operations: strategies, hits and misses."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from otel_perf import instrument, measure
from otel_perf.integrations import redis_keys
from tests.conftest import Telemetry
from tests.integrations.redis_work import DURATION, both, cache_counts, counted

pytestmark = pytest.mark.usefixtures("strategies")


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

    both(redis_server.url, work)
    assert cache_counts(telemetry) == {
        ("get", "USER", "miss"): 2,
        ("get", "USER", "hit"): 2,
        ("set", "USER", "none"): 2,
        ("exists", "USER", "hit"): 2,
        ("hget", "USER", "miss"): 2,
        ("del", "USER", "none"): 2,
    }
    assert sum(point.count for point in telemetry.points(DURATION)) == 14
    assert len(telemetry.spans) == 14
    hits = [span for span in telemetry.spans if (span.attributes or {}).get("cache.result") == "hit"]
    assert len(hits) == 4


def test_keys_asked_together_are_counted_one_by_one(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """MGET, EXISTS and pipelines count each key of a strategy, so that hit ratios are shares of keys."""
    redis_client.mset({"user:1": 1, "user:2": 2, "page:1": 1})
    with instrument(redis_client):
        assert redis_client.mget("user:1", b"user:2", "user:3", "page:1", "page:2", "other") == [
            b"1",
            b"2",
            None,
            b"1",
            None,
            None,
        ]
        redis_client.exists("user:1", "user:2", "user:9")
        with redis_client.pipeline() as pipe:
            pipe.get("user:1").set("user:7", 1).get("user:8").hgetall("user:9").execute()

    assert cache_counts(telemetry) == {
        ("mget", "USER", "hit"): 2,
        ("mget", "USER", "miss"): 1,
        ("mget", "PAGE", "hit"): 1,
        ("mget", "PAGE", "miss"): 1,
        ("exists", "USER", "hit"): 2,
        ("exists", "USER", "miss"): 1,
        ("multi", "USER", "hit"): 1,
        ("multi", "USER", "miss"): 2,
    }
    shown = [(span.attributes or {})["cache.result"] for span in telemetry.spans]
    assert shown == ["partial"] * 3


def test_a_huge_mget_counts_its_first_keys(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """The cost of one call is bounded."""
    with instrument(redis_client):
        redis_client.mget([f"user:{n}" for n in range(1000)])

    assert cache_counts(telemetry) == {("mget", "USER", "miss"): 256}


def test_within_measure_cache_the_cache_is_not_counted_again(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """The outermost cache operation counts; the command is a query all the same."""
    with instrument(redis_client), measure.cache("get", strategy="USER", system="redis") as op:
        op.hit = redis_client.get("user:1") is not None

    assert cache_counts(telemetry) == {("get", "USER", "miss"): 1}
    assert telemetry.points(DURATION)[0].count == 1
    assert [span.name for span in telemetry.spans] == ["GET", "cache get"]


def test_a_dead_server(telemetry: Telemetry) -> None:
    """A refused connection is a failed operation, for the cache neither hit nor miss."""
    dead = redis.Redis(port=1, retry=None)
    with instrument(dead), pytest.raises(redis.ConnectionError):
        dead.get("user:1")

    error = "redis.exceptions.ConnectionError"
    assert telemetry.points(DURATION, error__type=error)[0].count == 1
    (point,) = telemetry.points("cache.operation.duration")
    assert dict(point.attributes)["cache.result"] == "none"
    assert dict(point.attributes)["error.type"] == error


@pytest.mark.parametrize(
    ("asked", "shown"),
    [(("user:1", "page:1"), "hit"), (("user:8", "page:8"), "miss"), (("user:1", "page:8"), "partial")],
)
def test_a_partial_hit(telemetry: Telemetry, redis_client: redis.Redis, asked: tuple[str, str], shown: str) -> None:
    """The span of a read of several keys says `partial` where some were there; no metric does."""
    redis_client.mset({"user:1": 1, "page:1": 1})
    with instrument(redis_client):
        redis_client.mget(asked)

    assert (telemetry.span("MGET").attributes or {})["cache.result"] == shown
    found = {"hit": ("hit", "hit"), "miss": ("miss", "miss"), "partial": ("hit", "miss")}[shown]
    assert cache_counts(telemetry) == {("mget", "USER", found[0]): 1, ("mget", "PAGE", found[1]): 1}


def test_hundreds_of_thousands_of_keys(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """100,000 distinct keys make one series and no memory of ours grows with them."""
    with instrument(redis_client), redis_client.pipeline(transaction=False) as pipe:
        for start in range(0, 100_000, 10_000):
            for number in range(start, start + 10_000):
                pipe.get(f"user:{number}")
            pipe.execute()

    assert cache_counts(telemetry) == {("pipeline", "USER", "miss"): 10 * 256}
    assert len(telemetry.points(DURATION)) == 1


@pytest.mark.parametrize("kind", [str, bytes, bytearray, memoryview])
def test_a_key_of_a_megabyte(telemetry: Telemetry, redis_client: redis.Redis, kind: Any) -> None:
    """Its strategy is found by its two ends; neither span nor series holds it."""
    measure.strategy("TAIL", "tail:*:end")
    key = "tail:" + "x" * 2**20 + ":end"
    with instrument(redis_client):
        redis_client.get(key if kind is str else kind(key.encode()))

    assert cache_counts(telemetry) == {("get", "TAIL", "miss"): 1}
    assert len(telemetry.span("GET").to_json()) < 3000


def test_an_answer_that_is_none_of_redis(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """A response callback of the application's may answer anything: the command is counted all the same."""
    redis_client.set_response_callback("EXISTS", lambda *_, **__: 3)
    with instrument(redis_client):
        assert redis_client.exists("user:1", "user:2") == 3

    assert cache_counts(telemetry) == {("exists", "USER", "hit"): 2}


def test_failed_reads_are_counted_each(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """N failed reads are N failed cache operations and N failed queries."""
    redis_client.lpush("user:1", "x")
    with instrument(redis_client):
        for _ in range(5):
            with pytest.raises(redis.ResponseError):
                redis_client.get("user:1")

    error = "redis.exceptions.ResponseError"
    assert counted(telemetry, error__type=error) == 5
    (point,) = telemetry.points("cache.operation.duration", error__type=error)
    assert (point.count, point.attributes["cache.result"]) == (5, "none")


@pytest.mark.parametrize("transaction", [False, True])
def test_failed_reads_of_a_pipeline_that_does_not_raise(
    telemetry: Telemetry, redis_server: Any, transaction: bool
) -> None:
    """They are neither hits nor misses, whichever command it is, and the other keys keep their outcomes."""

    def work(client: Any) -> list[Any]:
        made = client.pipeline(transaction=transaction)
        made.rpush("user:1", "x").set("page:1", "x")
        made.get("user:1").hget("user:1", "f").hgetall("user:1").get("user:2").get("page:1").exists("user:1")
        return [made.execute(raise_on_error=False)]

    both(redis_server.url, work)
    name = "multi" if transaction else "pipeline"
    assert cache_counts(telemetry) == {
        (name, "USER", "miss"): 2,
        (name, "USER", "hit"): 2,
        (name, "PAGE", "hit"): 2,
    }


def test_a_pipeline_of_failed_reads_only(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """Nothing was found and nothing was missed."""
    redis_client.rpush("user:1", "x")
    with instrument(redis_client), redis_client.pipeline(transaction=False) as pipe:
        pipe.get("user:1").get("user:1").execute(raise_on_error=False)
        pipe.get("user:1").execute(raise_on_error=False)
    assert cache_counts(telemetry) == {("pipeline", "USER", "none"): 2}


def test_failed_reads_in_any_answer() -> None:
    """Every command that reads may be answered by an exception."""
    failed = redis.ResponseError("x")
    keys = [redis_keys.Key(0, name, 0, "USER") for name in sorted(redis_keys._READS)]
    assert redis_keys.found(keys, [failed]) == [None] * len(keys)
