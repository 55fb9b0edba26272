"""redis-py, sync and async, on a real Redis: commands and pipelines."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest
import redis
import redis.asyncio
from opentelemetry.trace import SpanKind, StatusCode

from otel_perf import instrument
from otel_perf.integrations import commands, redis_calls
from otel_perf.telemetry import operation
from tests.conftest import Telemetry
from tests.integrations.redis_work import DURATION, async_client, cache_counts, counted

pytestmark = pytest.mark.usefixtures("strategies")


def test_a_command_is_a_query(telemetry: Telemetry, redis_client: redis.Redis, redis_server: Any) -> None:
    """A command is a client span with the conventions' attributes, without key and value."""
    with instrument(redis_client):
        assert redis_client.set("secret-key", "secret-value") is True

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
    (point,) = telemetry.points(DURATION, db__operation__name="SET")
    assert point.count == 1
    assert "secret" not in span.to_json()


def test_async_command(telemetry: Telemetry, redis_server: Any) -> None:
    """The async client is measured like the sync one, and only while the handle holds."""

    async def main() -> None:
        async with async_client(redis_server.url) as client:
            with instrument(client):
                await client.set("k", "v")
                assert await client.get("k") == b"v"
            await client.get("k")

    asyncio.run(main())
    assert [span.name for span in telemetry.spans] == ["SET", "GET"]


@pytest.mark.parametrize("raw", ["GET secret", b"GET secret", "get secret"])
def test_an_argument_in_the_name_is_not_shown(telemetry: Telemetry, redis_client: redis.Redis, raw: Any) -> None:
    """redis-py takes `GET key` as one word; names of two words are kept where both belong to the command."""
    with instrument(redis_client):
        redis_client.execute_command(raw)
        redis_client.config_get("maxmemory")

    assert [span.name for span in telemetry.spans] == ["GET", "CONFIG GET"]
    assert not any("secret" in span.to_json() for span in telemetry.spans)


def test_only_known_commands_become_labels(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """Any other text is `OTHER`, alone, in a pipeline and as a second word; commands of modules are known."""
    with instrument(redis_client):
        for each in ("s3ntinel", "CONFIG s3ntinel", "JSON.GET", "CLIENT INFO", "GETs3ntinel"):
            with suppress(redis.RedisError):
                redis_client.execute_command(each)
        with suppress(redis.RedisError):
            redis_client.pipeline(transaction=False).execute_command("s3ntinel").execute()

    names = [span.name for span in telemetry.spans]
    assert names == ["OTHER", "CONFIG", "JSON.GET", "CLIENT INFO", "OTHER", "PIPELINE OTHER"]
    assert {point.attributes["db.operation.name"] for point in telemetry.points(DURATION)} == set(names)
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
    telemetry: Telemetry,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[Any, ...],
    slow: bool,
) -> None:
    """A command whose job is to wait is never a slow operation; its duration counts as ever."""
    monkeypatch.setattr(telemetry.runtime, "slow_query_s", 0.0)
    with instrument(redis_client):
        redis_client.execute_command(*command)
        redis_client.pipeline(transaction=False).execute_command(*command).execute()

    assert sum(point.count for point in telemetry.points(DURATION)) == 2
    assert sum(point.value for point in telemetry.points("db.client.slow_operations")) == 2 * slow


def test_nothing_waits_in_a_transaction(
    telemetry: Telemetry, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within MULTI a blocking command answers at once: a slow transaction is slow."""
    monkeypatch.setattr(telemetry.runtime, "slow_query_s", 0.0)
    with instrument(redis_client):
        redis_client.pipeline().blpop("list", 1).execute()

    assert [point.value for point in telemetry.points("db.client.slow_operations")] == [1]


def test_an_error(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """An error of the server reaches the user as it is and gives its type to span and metric."""
    redis_client.set("user:1", "text")
    with instrument(redis_client), pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        redis_client.lpush("user:1", "x")

    span = telemetry.span("LPUSH")
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "redis.exceptions.ResponseError"
    assert telemetry.points(DURATION, error__type="redis.exceptions.ResponseError")


def test_pipelines(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """A pipeline is one operation, MULTI with a transaction, named by its command where there is only one."""
    with instrument(redis_client):
        with redis_client.pipeline(transaction=False) as pipe:
            pipe.set("secret", 1).get("secret")
            assert pipe.execute() == [True, b"1"]
        pipe = redis_client.pipeline()
        for n in range(50):
            pipe.incr("n", n)
        pipe.execute()
        assert redis_client.pipeline().execute() == []
        assert redis_client.pipeline().set("a", 1).execute() == [True]

    assert [span.name for span in telemetry.spans] == ["PIPELINE", "MULTI INCRBY", "MULTI SET"]
    first, second, _ = telemetry.spans
    assert dict(first.attributes or {})["db.query.text"] == "SET ? ?; GET ?"
    assert dict(first.attributes or {})["db.operation.batch.size"] == 2
    assert dict(second.attributes or {})["db.operation.batch.size"] == 50
    assert len(dict(second.attributes or {})["db.query.text"]) < 200


def test_a_pipeline_error_shows_no_command(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """redis-py repeats the failed command in its message; it is not in ours."""
    redis_client.set("text", "x")
    with instrument(redis_client), pytest.raises(redis.ResponseError), redis_client.pipeline() as pipe:
        pipe.lpush("text", "hush-hush").execute()

    assert "hush" not in telemetry.span("MULTI LPUSH").to_json()


def test_async_pipeline_and_watch(telemetry: Telemetry, redis_server: Any) -> None:
    """Async pipelines, and the commands that are sent at once while a key is watched."""

    async def main() -> None:
        async with async_client(redis_server.url) as client:
            with instrument(client):
                async with client.pipeline() as pipe:
                    await pipe.watch("k")
                    assert await pipe.get("k") is None
                    pipe.multi()
                    pipe.set("k", 1)
                    assert await pipe.execute() == [True]

    asyncio.run(main())
    assert [span.name for span in telemetry.spans] == ["WATCH", "GET", "MULTI SET"]


def test_all_clients_and_twice(telemetry: Telemetry, redis_client: redis.Redis, redis_server: Any) -> None:
    """The library as a whole takes old and new clients; one command is one operation; undo puts the functions back."""
    before = (redis.Redis.execute_command, redis.client.Pipeline.execute, redis.asyncio.Redis.execute_command)
    first, second, third = instrument("redis"), instrument("redis"), instrument(redis_client)
    redis_client.get("a")
    later = redis.Redis.from_url(redis_server.url)
    later.get("b")
    assert len(telemetry.spans) == 2
    first.undo()
    second.undo()
    later.get("c")
    redis_client.get("d")
    assert len(telemetry.spans) == 3
    third.undo()
    redis_client.get("e")
    later.close()
    assert len(telemetry.spans) == 3
    after = (redis.Redis.execute_command, redis.client.Pipeline.execute, redis.asyncio.Redis.execute_command)
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_another_wrapper_stays(
    telemetry: Telemetry, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others wrapped the method meanwhile, undo leaves theirs, and ours below it passes calls through."""
    monkeypatch.setattr(redis.Redis, "execute_command", redis.Redis.execute_command)  # puts it back at the end
    handle = instrument(redis_client)
    ours = redis.Redis.execute_command
    calls: list[Any] = []

    def theirs(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(args[0])
        return ours(self, *args, **options)

    theirs.__wrapped__ = ours  # type: ignore[attr-defined]
    monkeypatch.setattr(redis.Redis, "execute_command", theirs)
    handle.undo()
    redis_client.get("a")
    assert (calls, telemetry.spans) == (["GET"], [])
    with instrument(redis_client):
        redis_client.get("a")
    assert len(telemetry.spans) == 1
    monkeypatch.setattr(redis.Redis, "execute_command", ours)
    with instrument(redis_client):
        redis_client.get("user:1")
    assert len(telemetry.spans) == 2
    assert cache_counts(telemetry) == {("get", "USER", "miss"): 1}


def test_a_wrapper_that_hides_ours(
    telemetry: Telemetry, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others wrapped ours without saying so, a second wrapper of ours comes above: one command is still one."""
    monkeypatch.setattr(redis.Redis, "execute_command", redis.Redis.execute_command)  # puts it back at the end
    handle = instrument(redis_client)
    ours = redis.Redis.execute_command

    def theirs(self: Any, *args: Any, **options: Any) -> Any:
        return ours(self, *args, **options)

    monkeypatch.setattr(redis.Redis, "execute_command", theirs)
    handle.undo()
    with instrument(redis_client):
        redis_client.get("user:1")

    assert cache_counts(telemetry) == {("get", "USER", "miss"): 1}
    assert [span.name for span in telemetry.spans] == ["GET"]


def test_a_cancelled_command(telemetry: Telemetry, redis_server: Any) -> None:
    """A cancelled command is ended with the cancellation as its type; nothing stays current."""

    async def main() -> None:
        async with async_client(redis_server.url) as client:
            with instrument(client):
                task = asyncio.create_task(client.blpop("never", timeout=30))
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert operation.current() is None

    asyncio.run(main())
    assert (telemetry.span("BLPOP").attributes or {})["error.type"] == "asyncio.exceptions.CancelledError"


def test_threads(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """Many threads on one client: every command is counted."""
    with instrument(redis_client):
        threads = [threading.Thread(target=lambda: [redis_client.get("user:1") for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert telemetry.points(DURATION)[0].count == 200
    assert cache_counts(telemetry) == {("get", "USER", "miss"): 200}


def test_hostile_commands(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """Unknown, empty, huge and binary commands and keys neither break anything nor leave their text behind."""
    hostile: list[tuple[Any, ...]] = [("FOO" * 1000,), (b"\xff\xfe",), ("GET", b"\xff" * 100_000), ("\x1b[31m",), (7,)]
    with instrument(redis_client):
        for command in hostile:
            with suppress(redis.RedisError, UnicodeError, TypeError, AttributeError):
                redis_client.execute_command(*command)

    assert len(telemetry.spans) == len(hostile)
    assert all(len(span.name) <= 32 and span.name.isprintable() for span in telemetry.spans)


@pytest.mark.parametrize(
    ("command", "status"),
    [(("LPUSH", "text", "x"), "WRONGTYPE"), (("EVALSHA", "0" * 40, 0), "NOSCRIPT"), (("HSET", "h"), "ERR")],
)
@pytest.mark.parametrize("in_pipeline", [False, True])
def test_what_the_server_said(
    telemetry: Telemetry, redis_client: redis.Redis, command: tuple[Any, ...], status: str, in_pipeline: bool
) -> None:
    """The first word of the server's error is the status code, also of the error of a pipeline."""
    redis_client.set("text", "x")
    pipe = redis_client.pipeline(transaction=False)
    caller = pipe.execute_command(*command) if in_pipeline else redis_client
    with instrument(redis_client), pytest.raises(redis.ResponseError):
        caller.execute() if in_pipeline else caller.execute_command(*command)

    assert (telemetry.spans[0].attributes or {})["db.response.status_code"] == status


def test_no_failure_is_lost(telemetry: Telemetry, redis_server: Any) -> None:
    """Every way to call Redis, failing three times each, sync and async, is counted three times."""

    def calls(client: Any) -> list[Any]:
        return [
            lambda: client.lpush("text", "x"),
            lambda: client.pipeline().lpush("text", "x").execute(),
            lambda: client.pipeline(transaction=False).lpush("text", "x").execute(),
        ]

    async def main() -> None:
        async with async_client(redis_server.url) as client:
            await client.set("text", "x")
            with instrument(client):
                for call in calls(client) * 3:
                    with pytest.raises(redis.ResponseError):
                        await call()

    with redis.Redis(port=redis_server.port, db=2) as sync:
        sync.set("text", "x")
        with instrument(sync):
            for call in calls(sync) * 3:
                with pytest.raises(redis.ResponseError):
                    call()
    asyncio.run(main())
    failed = {"error__type": "redis.exceptions.ResponseError"}
    for name in ("LPUSH", "MULTI LPUSH", "PIPELINE LPUSH"):
        assert counted(telemetry, db__operation__name=name, **failed) == 6
    assert operation.current() is None


def test_a_generator_that_is_left(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """`scan_iter` is one command for each page; leaving it early leaves nothing current."""
    redis_client.mset({f"k{number}": 1 for number in range(50)})
    with instrument(redis_client):
        for _ in redis_client.scan_iter(count=5):
            break

    assert [span.name for span in telemetry.spans] == ["SCAN"]
    assert operation.current() is None


def test_commands_of_a_megabyte_are_not_kept(telemetry: Telemetry, redis_client: redis.Redis) -> None:
    """What is remembered of a command, to know its name again, is short."""
    with instrument(redis_client):
        for number in range(5):
            redis_client.execute_command(f"ECHO {number}" + "x" * 2**20)

    (server,) = [each for each in redis_calls.servers() if each.pool() is redis_client.connection_pool]
    assert server.shapes == {}
    assert commands._name.cache_info().currsize <= 1024
    assert commands.command_name("ECHO " + "x" * 2**20) == "ECHO"
    assert [span.name for span in telemetry.spans] == ["ECHO"] * 5
