"""Upstream instrumentors at work over our providers; says as JSON what they made. Run by test_instrumentors.

It runs in an environment of its own (see `environment`), with the checkout on its path.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

# They read it when they are first used.
os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http,database"

import httpx
import redis
import redis.asyncio
import sqlalchemy
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from sqlalchemy import text

import otel_perf
from otel_perf import guard, measure
from otel_perf.telemetry import runtime


class Seen(SpanProcessor):
    """Every span that ends, as plain data."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []

    def on_end(self, span: ReadableSpan) -> None:
        scope = span.instrumentation_scope
        context = span.get_span_context()
        assert context is not None
        self.spans.append({
            "class": f"{type(span).__module__}.{type(span).__name__}",
            "scope": scope.name if scope else None,
            "name": span.name,
            "kind": span.kind.name,
            "trace_id": f"{context.trace_id:032x}",
            "span_id": f"{context.span_id:016x}",
            "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
            "attributes": dict(span.attributes or {}),
            "status": span.status.status_code.name,
            "events": [each.name for each in span.events],
            "times": [span.start_time, span.end_time],
        })  # fmt: skip


def blocking(engine: sqlalchemy.Engine, url: str, store_url: str) -> list[str]:
    """A database, an HTTP server and a Redis, asked the blocking way; answers the traceparents that arrived."""
    with measure("statements"), engine.begin() as connection:
        connection.execute(text("CREATE TABLE trips (id INTEGER)"))
        connection.execute(text("INSERT INTO trips VALUES (:id)"), {"id": 7})
        assert connection.execute(text("SELECT id FROM trips")).scalar() == 7
        with contextlib.suppress(sqlalchemy.exc.OperationalError):
            connection.execute(text("SELECT id FROM nowhere"))
    with measure("requests"), httpx.Client() as client:
        answers = [client.get(f"{url}/echo?q=1"), client.get(f"{url}/missing")]
    with measure("commands"), redis.Redis.from_url(store_url) as store:
        store.set("upstream:a", "1")
        assert store.get("upstream:a") == b"1"
        with contextlib.suppress(redis.ResponseError):
            store.lpush("upstream:a", "1")
        with store.pipeline() as pipeline:
            pipeline.get("upstream:a").delete("upstream:a").execute()
    return [answers[0].text]


async def concurrent(url: str, store_url: str) -> list[str]:
    """The same servers asked from two tasks at once."""

    async def one(number: int) -> str:
        connected = redis.asyncio.Redis.from_url(store_url)
        async with measure(f"task {number}"), httpx.AsyncClient() as client, connected as store:
            answer, _ = await asyncio.gather(client.get(f"{url}/echo"), store.ping())
            return answer.text

    return list(await asyncio.gather(one(1), one(2)))


def main(url: str, store_url: str, collector: str) -> dict[str, Any]:
    """Everything, sent to a collector; answers what was made."""
    otel_perf.configure(service_name="upstream", endpoint=collector, strict=True)
    in_force = runtime.current
    assert in_force is not None
    seen = Seen()
    in_force.tracer_provider.add_span_processor(seen)  # type: ignore[attr-defined]
    engine = sqlalchemy.create_engine("sqlite://")
    HTTPXClientInstrumentor().instrument()
    RedisInstrumentor().instrument()
    SQLAlchemyInstrumentor().instrument(engine=engine)
    with measure("all"):
        arrived = blocking(engine, url, store_url)
        arrived += asyncio.run(concurrent(url, store_url))
    registry = [
        {"scope": each.scope.name, "name": each.metric.name, "series": len(each.series)}
        for each in in_force.registry.instruments()
    ]
    flushed = otel_perf.flush()
    otel_perf.shutdown()
    return {
        "spans": seen.spans, "registry": registry, "arrived": arrived, "flushed": flushed, "errors": guard.errors,
        "from": str(Path(otel_perf.__file__).parent), "sqlalchemy": sqlalchemy.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
