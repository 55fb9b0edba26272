"""Upstream instrumentors and ours at work on the same libraries, in both orders; says as JSON what came of it.

Run by test_orders in the environment of upstream.lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import asyncpg
import httpx
import psycopg
import redis
import requests
import sqlalchemy as sa
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor

from otel_perf import guard, instrument
from otel_perf.testing import Captured, capture

_THEIRS: tuple[Any, ...] = (
    AsyncPGInstrumentor, PsycopgInstrumentor, SQLite3Instrumentor, RequestsInstrumentor, AioHttpClientInstrumentor,
    RedisInstrumentor, HTTPXClientInstrumentor, SQLAlchemyInstrumentor,
)  # fmt: skip
_PATCHED: tuple[tuple[Any, str], ...] = (
    (asyncpg.Connection, "execute"), (asyncpg.Connection, "fetch"), (psycopg.Cursor, "execute"), (sqlite3, "connect"),
    (requests.Session, "send"), (aiohttp.ClientSession, "_request"), (redis.Redis, "execute_command"),
    (httpx.Client, "send"), (sa.Engine, "raw_connection"),
)  # fmt: skip


async def _asyncpg(dsn: str, *_: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.execute("SELECT 1"), await connection.fetchval("SELECT $1::int", 2)
    finally:
        await connection.close()


async def _psycopg(dsn: str, *_: str) -> Any:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT 1").fetchone(), connection.cursor().execute("SELECT 2").fetchone()


async def _sqlite3(*_: str) -> Any:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        return connection.execute("SELECT 1").fetchone(), connection.cursor().execute("SELECT 2").fetchone()


async def _requests(_: str, __: str, url: str) -> Any:
    return (await asyncio.to_thread(requests.get, url, timeout=5)).status_code


async def _aiohttp(_: str, __: str, url: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status


async def _httpx(_: str, __: str, url: str) -> Any:
    async with httpx.AsyncClient() as client:
        return (await client.get(url)).status_code


async def _redis(_: str, store: str, __: str) -> Any:
    with redis.Redis.from_url(store) as client, client.pipeline() as pipeline:
        return str(client.get("orders:nothing")), pipeline.get("orders:nothing").execute()


async def _sqlalchemy(*_: str) -> Any:
    engine = sa.create_engine("sqlite://")  # with which upstream's sqlite3 makes spans of its own below
    with engine.connect() as connection:
        return connection.execute(sa.text("SELECT 1")).scalar()


_CALLS: tuple[Callable[..., Awaitable[Any]], ...] = (
    _asyncpg, _psycopg, _sqlite3, _requests, _aiohttp, _httpx, _redis, _sqlalchemy,
)  # fmt: skip


def _run(telemetry: Captured, where: tuple[str, ...]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for call in _CALLS:
        telemetry.clear()
        try:
            answer = repr(asyncio.run(call(*where)))  # type: ignore[arg-type]
        except Exception as error:
            answer = f"raised {error!r}"
        counts: Counter[str] = Counter()
        for name in ("db.client.operation.duration", "external.api.duration"):
            counts[name] += sum(each.count for each in telemetry.points(name))
        spans = [str(each.instrumentation_scope.name) for each in telemetry.spans if each.instrumentation_scope]
        said[call.__name__[1:]] = [answer, sorted(spans), sum(counts.values())]
    return said


def main(*where: str) -> dict[str, Any]:
    """Both orders; answers what each call answered, whose spans there were, and how many calls were measured."""
    before = [vars(owner)[name] for owner, name in _PATCHED]

    def restored() -> list[str]:
        pairs = zip(before, _PATCHED, strict=True)
        return [name for was, (owner, name) in pairs if vars(owner)[name] is not was]

    said: dict[str, Any] = {}
    with capture() as telemetry:
        for each in _THEIRS:
            each().instrument()
        with instrument():
            said["theirs first"] = _run(telemetry, where)
        for each in _THEIRS:
            each().uninstrument()
        said["left by theirs first"] = restored()
        with instrument():
            for each in _THEIRS:
                each().instrument()
            said["ours first"] = _run(telemetry, where)
            for each in _THEIRS:
                each().uninstrument()
        said["left by ours first"] = restored()
    return {**said, "errors": guard.errors}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
