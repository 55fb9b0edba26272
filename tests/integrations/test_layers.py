"""Libraries that stand on each other: the outermost of a kind measures, nothing is counted twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import aiosqlite
import httpx
import pytest
import redis.asyncio
import sqlalchemy as sa
from cashews import Cache
from sqlalchemy.ext.asyncio import create_async_engine

from otel_perf import instrument, measure, strategy
from otel_perf.telemetry import operation
from tests.asking import scope
from tests.conftest import Telemetry

# cashews closes its Redis client by a name that redis-py does not want any more.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")


@pytest.fixture(autouse=True)
def _strategies() -> Iterator[None]:
    """A strategy that cashews and Redis would both count."""
    measure.strategy("LAYER", "layer:{id}")
    yield
    strategy._strategies.clear()


def _total(telemetry: Telemetry, name: str) -> int:
    return sum(point.count for point in telemetry.points(name))


def test_sqlalchemy_over_aiosqlite(telemetry: Telemetry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver below can see that a query is measured above it, and so leave it alone."""
    seen: list[Any] = []
    execute = aiosqlite.Cursor.execute

    async def watched(self: Any, *args: Any, **options: Any) -> Any:
        current = operation.current()
        seen.append(current is not None and current.within("query"))
        return await execute(self, *args, **options)

    monkeypatch.setattr(aiosqlite.Cursor, "execute", watched)

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
        with instrument():
            async with engine.begin() as connection:
                await connection.execute(sa.text("SELECT 1"))
        await engine.dispose()

    asyncio.run(main())
    assert True in seen
    assert _total(telemetry, "db.client.operation.duration") == 1
    assert len(telemetry.spans) == 1


def test_cashews_over_redis(telemetry: Telemetry, redis_server: Any) -> None:
    """A cached read is one cache operation, by cashews, with one query below it, by Redis."""

    async def main() -> None:
        cache = Cache()
        cache.setup(redis_server.url)
        with instrument("redis"), instrument(cache):
            await cache.set("layer:1", {"x": 1}, expire=60)
            assert await cache.get("layer:1") == {"x": 1}
            assert await cache.get_many("layer:1", "layer:2") == ({"x": 1}, None)
        await cache.close()

    asyncio.run(main())
    counts = {
        (point.attributes["cache.operation.name"], point.attributes["cache.result"]): point.count
        for point in telemetry.points("cache.operation.duration")
    }
    assert counts == {("set", "none"): 1, ("get", "hit"): 1, ("get_many", "hit"): 1, ("get_many", "miss"): 1}
    spans = {span.name: span for span in telemetry.spans}
    assert set(spans) == {"cache set", "SET", "cache get", "GET", "cache get_many", "MGET"}
    for outer, inner in (("cache set", "SET"), ("cache get", "GET"), ("cache get_many", "MGET")):
        assert spans[inner].parent.span_id == spans[outer].context.span_id
    assert _total(telemetry, "db.client.operation.duration") == 3


def test_cashews_over_a_dead_redis(telemetry: Telemetry) -> None:
    """Both layers say what failed, and it is no miss."""

    async def main() -> None:
        cache = Cache()
        cache.setup("redis://127.0.0.1:1/0")
        with instrument("redis"), instrument(cache):
            assert await cache.get("layer:1") is None
        await cache.close()

    asyncio.run(main())
    error = "redis.exceptions.ConnectionError"
    assert telemetry.points("db.client.operation.duration", error__type=error)
    (point,) = telemetry.points("cache.operation.duration", error__type=error)
    assert (point.count, point.attributes["cache.result"]) == (1, "none")


def test_external_over_httpx(telemetry: Telemetry) -> None:
    """Also with a step in between, the external call is counted once; the request below has its own span."""
    transport = httpx.MockTransport(lambda _request: httpx.Response(204))
    with httpx.Client(transport=transport) as client, instrument("httpx"):
        with measure.external("push", "send"), measure("retrying"):
            client.post("http://push.test/send")
        client.post("http://push.test/send")

    assert [span.name for span in telemetry.spans] == ["POST", "retrying", "push send", "POST"]
    assert telemetry.spans[0].parent.span_id == telemetry.spans[1].context.span_id
    assert _total(telemetry, "external.api.duration") == 2
    assert _total(telemetry, "http.client.request.duration") == 2


@pytest.mark.parametrize("foreign", [False, True])
def test_an_excluded_route_counts_what_it_calls(telemetry: Telemetry, redis_server: Any, foreign: bool) -> None:
    """Below an excluded route all libraries count and none makes a span; a span around it, if any, is passed on."""
    sent: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("traceparent"))
        return httpx.Response(200)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        async with redis.asyncio.Redis.from_url(redis_server.url) as client:
            await client.get("layer:1")
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            await http.get("http://api.internal/")
        engine = sa.create_engine("sqlite://")
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
        engine.dispose()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    tracer = telemetry.runtime.tracer_provider.get_tracer("theirs")

    async def ignore(_message: Any) -> None:
        """Takes the response."""

    with instrument(), tracer.start_as_current_span("theirs") if foreign else nullcontext():
        asyncio.run(instrument(app)(scope("/metrics"), ignore, ignore))  # type: ignore[arg-type]  # it reads nothing

    assert [span.name for span in telemetry.spans] == ["theirs"] * foreign
    theirs = f"{telemetry.spans[0].context.span_id:016x}" if foreign else ""
    assert [value is not None and theirs in value for value in sent] == [foreign]
    assert _total(telemetry, "http.server.request.duration") == 0
    assert _total(telemetry, "db.client.operation.duration") == 2
    assert _total(telemetry, "cache.operation.duration") == 1
    assert _total(telemetry, "http.client.request.duration") == 1
    assert _total(telemetry, "external.api.duration") == 1


def test_everything_at_once(telemetry: Telemetry, redis_server: Any, tmp_path: Path) -> None:
    """A cached function that misses, queries, asks Redis and calls out: each counted once, each below the step."""

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
        cache = Cache()
        cache.setup(redis_server.url)
        client = redis.asyncio.Redis.from_url(redis_server.url)
        await client.flushdb()
        transport = httpx.MockTransport(lambda _request: httpx.Response(200))

        @cache(ttl="1m", key="layer:{number}")
        async def load(number: int) -> int:
            assert operation.current().name == "step"
            async with engine.connect() as connection:
                await connection.execute(sa.text("SELECT 1"))
            await client.get("layer:other")
            async with httpx.AsyncClient(transport=transport) as http:
                await http.get("http://api.internal/")
            return number

        with instrument(), instrument(cache), measure("step"):
            await load(7)
            await load(7)
        await client.aclose()
        await cache.close()
        await engine.dispose()

    asyncio.run(main())
    step = telemetry.span("step")
    children = [span.name for span in telemetry.spans if span.parent and span.parent.span_id == step.context.span_id]
    assert children == ["cache get", "SELECT", "GET", "GET", "cache set", "cache get"]
    results = [
        (point.attributes["cache.operation.name"], point.attributes["cache.result"], point.count)
        for point in telemetry.points("cache.operation.duration")
    ]
    assert sorted(results) == [("get", "hit", 1), ("get", "miss", 2), ("set", "none", 1)]
    assert _total(telemetry, "db.client.operation.duration") == 5
    assert _total(telemetry, "http.client.request.duration") == 1
    assert _total(telemetry, "external.api.duration") == 1
