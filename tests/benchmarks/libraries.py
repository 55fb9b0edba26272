"""What a call through a library costs: bare, measured by us, measured by the upstream instrumentor on the stock SDK.

Each of the three has a process of its own and talks to a real server: Redis, SQLite, an HTTP server on loopback. Export
is included, as with requests. `realistic` is a request that does what services do: three queries, two reads of Redis,
forty rows of JSON.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks import scenarios
from tests.benchmarks.scenarios import Ready

__all__ = ["ARMS", "LIBRARIES", "REDIS", "Orders", "name_of"]

ARMS = ("bare", "ours", "upstream")
_CALLS_AT_ONCE = 250  # as with requests: no queue overflows, and all pay for their export

Do = Callable[[], Any]


def name_of(library: str, arm: str) -> str:
    """What the process of one library and arm is called."""
    return f"{library}/{arm}"


def _redis(arm: str) -> Do:
    import redis

    client = redis.Redis.from_url(os.environ["BENCH_REDIS"])
    client.set("user:profile:42", "x" * 200)
    if arm == "ours":
        import otel_perf

        otel_perf.instrument(client)
    elif arm == "upstream":
        from opentelemetry.instrumentation.redis import RedisInstrumentor

        RedisInstrumentor().instrument()
    return lambda: client.get("user:profile:42")


def _sqlalchemy(arm: str) -> Do:
    from sqlalchemy import create_engine, text

    engine = create_engine("sqlite://")
    statement = text("SELECT id FROM streaks WHERE user_id = :user")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE streaks (id INTEGER, user_id INTEGER)"))
    if arm == "ours":
        import otel_perf

        otel_perf.instrument(engine)
    elif arm == "upstream":
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

        SQLAlchemyInstrumentor().instrument(engine=engine)

    def select() -> Any:
        with engine.connect() as connection:
            return connection.execute(statement, {"user": 1}).all()

    return select


def _httpx(arm: str) -> Do:
    import httpx

    url = os.environ["BENCH_HTTP"] + "/rates"
    client = httpx.Client(trust_env=False)
    if arm == "ours":
        import otel_perf

        otel_perf.instrument(client)
    elif arm == "upstream":
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

        HTTPXClientInstrumentor.instrument_client(client)
    return lambda: client.get(url)


def _cashews(arm: str) -> Do:
    from cashews import Cache

    cache = Cache()
    cache.setup("mem://", check_interval=3600)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(cache.set("user:profile:42", "x" * 200))
    if arm == "ours":
        import otel_perf

        otel_perf.instrument(cache)

    async def several() -> None:
        for _ in range(_CALLS_AT_ONCE):
            await cache.get("user:profile:42")

    return lambda: loop.run_until_complete(several())


def _realistic(arm: str) -> Do:
    import redis.asyncio
    from fastapi import FastAPI
    from sqlalchemy import create_engine, text

    from tests.benchmarks import asgi

    engine = create_engine("sqlite://")
    connection = engine.connect()
    connection.execute(text("CREATE TABLE streaks (id INTEGER PRIMARY KEY, user_id INTEGER, day TEXT, xp INTEGER)"))
    rows = [{"user": number % 5, "day": f"2026-01-{number % 28 + 1:02d}", "xp": number} for number in range(200)]
    connection.execute(text("INSERT INTO streaks (user_id, day, xp) VALUES (:user, :day, :xp)"), rows)
    client = redis.asyncio.Redis.from_url(os.environ["BENCH_REDIS"])
    app = FastAPI()

    async def calendar(item: str) -> list[dict[str, Any]]:
        await client.get("user:profile:42")
        await client.get("leaderboard")
        connection.execute(text("SELECT count(*) FROM streaks WHERE user_id = :user"), {"user": 1}).scalar()
        connection.execute(text("SELECT max(xp) FROM streaks WHERE user_id = :user"), {"user": 1}).scalar()
        found = connection.execute(text("SELECT id, day, xp FROM streaks WHERE user_id = :user"), {"user": 1}).all()
        return [{"id": row.id, "day": row.day, "xp": row.xp} for row in found]

    app.get("/items/{item}")(calendar)
    _measured_by(arm, app, engine, client)
    loop = asyncio.new_event_loop()
    return lambda: loop.run_until_complete(asgi.request(app, asgi.KINDS["plain"]))


def _measured_by(arm: str, app: Any, engine: Any, client: Any) -> None:
    if arm == "ours":
        import otel_perf

        for each in (app, engine, client):
            otel_perf.instrument(each)
    elif arm == "upstream":
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.instrumentation.redis import RedisInstrumentor
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

        FastAPIInstrumentor.instrument_app(app)
        RedisInstrumentor().instrument()
        SQLAlchemyInstrumentor().instrument(engine=engine)


#: Library -> how to make ready what is done once, and which arms it has.
LIBRARIES: dict[str, tuple[Callable[[str], Do], tuple[str, ...]]] = {
    "redis": (_redis, ARMS),
    "sqlalchemy": (_sqlalchemy, ARMS),
    "httpx": (_httpx, ARMS),
    "cashews": (_cashews, ("bare", "ours")),
    "realistic": (_realistic, ARMS),
}
#: Those that need a Redis.
REDIS = frozenset(("redis", "realistic"))


def _nothing() -> None:
    return None


class Orders:
    """Answers orders about one library and arm in a child process."""

    def __init__(self, name: str, sink: str) -> None:
        library, _, arm = name.partition("/")
        # Upstream at its best: the stable names, by which it makes metrics too.
        os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http,database"
        endpoint = f"{sink}/{library}_{arm}"
        self._ready = {
            "bare": lambda: Ready(_nothing, _nothing, _nothing),
            "ours": lambda: scenarios.ours(endpoint),
            "upstream": lambda: Ready(_nothing, *scenarios.stock_sdk(endpoint)),
        }[arm]()
        self._do = LIBRARIES[library][0](arm)
        self._at_once = _CALLS_AT_ONCE if library == "cashews" else 1

    def cpu(self, times: int) -> float:
        """Microseconds of CPU for one, after a warm-up; all threads and the export included."""
        self._turns(_CALLS_AT_ONCE)
        self._ready.flush()
        started_ns = time.process_time_ns()
        self._turns(times)
        self._ready.flush()
        return (time.process_time_ns() - started_ns) / times / 1000

    def _turns(self, times: int) -> None:
        for number in range(self._at_once, times + 1, self._at_once):
            self._do()
            if number % _CALLS_AT_ONCE == 0:
                self._ready.flush_spans()
