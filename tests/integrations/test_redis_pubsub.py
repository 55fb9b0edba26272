"""Subscribers of Redis: commands are operations, handlers are steps, and waiting is nothing."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
import redis
import redis.asyncio
from opentelemetry.trace import SpanKind

from otel_perf import instrument
from otel_perf.telemetry import operation
from tests.conftest import Telemetry
from tests.integrations.redis_work import DURATION, async_client, counted

_STEP = "operation.duration"


def test_subscribing_is_an_operation_and_waiting_is_not(
    telemetry: Telemetry, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SUBSCRIBE and UNSUBSCRIBE are queries that are never slow; messages without a handler have no span."""
    monkeypatch.setattr(telemetry.runtime, "slow_query_s", 0.0)
    with instrument(redis_client), redis_client.pubsub() as pubsub:
        pubsub.subscribe("news", "user:7:alice")
        pubsub.psubscribe("room:*")
        assert [pubsub.get_message(timeout=1)["type"] for _ in range(3)] == ["subscribe", "subscribe", "psubscribe"]
        assert pubsub.get_message(timeout=0.05) is None
        redis_client.publish("news", "hush")
        assert next(pubsub.listen())["data"] == b"hush"
        pubsub.unsubscribe()

    assert [span.name for span in telemetry.spans] == ["SUBSCRIBE", "PSUBSCRIBE", "PUBLISH", "UNSUBSCRIBE"]
    assert (telemetry.span("SUBSCRIBE").attributes or {})["db.query.text"] == "SUBSCRIBE ? ?"
    assert not any("hush" in span.to_json() or "alice" in span.to_json() for span in telemetry.spans)
    slow = {point.attributes["db.operation.name"] for point in telemetry.points("db.client.slow_operations")}
    assert slow <= {"PUBLISH", "UNSUBSCRIBE"}
    assert operation.current() is None


def _on_news(message: Any) -> None:
    if message["data"] == b"bad":
        raise ValueError("no")


def test_a_handler_is_a_step(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """Each run of a handler is a step by the function's name, whatever the channel; one that fails is counted."""
    with instrument(redis_client), redis_client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(**{f"news:{number}": _on_news for number in range(20)})
        pubsub.psubscribe(**{"room:*": functools.partial(_on_news)})
        for number in range(20):
            redis_client.publish(f"news:{number}", "good")
        redis_client.publish("room:1", "bad")
        failed = 0
        for _ in range(42):
            try:
                pubsub.get_message(timeout=0.1)
            except ValueError:
                failed += 1
        assert operation.current() is None

    assert failed == 1
    good, bad = sorted(telemetry.points(_STEP), key=lambda point: len(point.attributes))
    assert (good.count, dict(good.attributes)) == (20, {"operation.name": "_on_news", "operation.category": "pubsub"})
    assert (bad.count, bad.attributes["error.type"]) == (1, "ValueError")
    steps = [span for span in telemetry.spans if span.name == "_on_news"]
    assert len(steps) == 21
    assert {(span.kind, span.parent) for span in steps} == {(SpanKind.INTERNAL, None)}
    assert (steps[0].attributes or {})["messaging.system"] == "redis"
    assert not any("news:" in span.to_json() for span in telemetry.spans)


def test_async_handlers(telemetry: Telemetry, redis_server: Any) -> None:
    """A handler that is a coroutine function is measured until it is done, and queries in it are its children."""

    async def main() -> None:
        async with async_client(redis_server.url) as client:
            done = asyncio.Event()

            async def on_message(message: Any) -> None:
                await client.set("last", message["data"])
                done.set()

            with instrument(client):
                async with client.pubsub() as pubsub:
                    await pubsub.subscribe(news=on_message)
                    await client.publish("news", "x")
                    while not done.is_set():
                        await pubsub.get_message(timeout=0.2)
                    await pubsub.unsubscribe()

    asyncio.run(main())
    (step,) = [span for span in telemetry.spans if span.name.endswith("on_message")]
    child = telemetry.span("SET")
    assert child.parent is not None
    assert step.context is not None
    assert child.parent.span_id == step.context.span_id
    assert counted(telemetry, db__operation__name="SUBSCRIBE") == 1


def test_a_subscriber_that_is_cancelled(telemetry: Telemetry, redis_server: Any) -> None:
    """Cancelled while it waits: no span is left open. Cancelled in its handler: the step says so."""

    async def main() -> None:
        async with async_client(redis_server.url) as client:
            started = asyncio.Event()

            async def hang(_: Any) -> None:
                started.set()
                await asyncio.sleep(30)

            with instrument(client):
                async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(news=hang)

                    async def listen() -> None:
                        async for _ in pubsub.listen():
                            pass

                    waiting = asyncio.create_task(listen())
                    await asyncio.sleep(0.05)
                    await client.publish("news", "x")
                    await asyncio.wait_for(started.wait(), 5)
                    waiting.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await waiting
                    assert operation.current() is None

    asyncio.run(main())
    (step,) = [span for span in telemetry.spans if span.name.endswith("hang")]
    assert (step.attributes or {})["error.type"] == "asyncio.exceptions.CancelledError"


def test_a_dead_server(telemetry: Telemetry) -> None:
    """Subscribing where nobody answers fails, and is counted each time."""
    with redis.Redis(port=1, retry=None) as client, instrument(client):
        for _ in range(3):
            with pytest.raises(redis.ConnectionError):
                client.pubsub().subscribe("news")

    (point,) = telemetry.points(DURATION)
    assert (point.count, point.attributes["error.type"]) == (3, "redis.exceptions.ConnectionError")


def test_of_another_client(telemetry: Telemetry, redis_client: redis.Redis, redis_server: Any) -> None:
    """A subscriber of a client that is not measured is left alone."""
    with redis.Redis(port=redis_server.port) as other, instrument(redis_client), other.pubsub() as pubsub:
        pubsub.subscribe(news=_on_news)
        redis_client.publish("news", "good")
        for _ in range(2):
            pubsub.get_message(timeout=0.2)

    assert [span.name for span in telemetry.spans] == ["PUBLISH"]
