"""Upstream instrumentors and ours on the same libraries, whoever was there first."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from collector import servers
from tests.serving import served
from tests.upstream.environment import EnvironmentMissingError, python

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(300)  # making the environment takes long

_RESULTS = {
    "asyncpg": "('SELECT 1', 2)", "psycopg": "((1,), (2,))", "sqlite3": "((1,), (2,))", "requests": "200",
    "aiohttp": "200", "httpx": "200", "redis": "('None', [None])", "sqlalchemy": "1",
}  # fmt: skip
_CALLS = {"asyncpg": 2, "psycopg": 2, "sqlite3": 2, "redis": 2}


async def _hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


@pytest.fixture(scope="module")
def said(redis_server: servers.Redis, postgresql_server: Any) -> dict[str, Any]:
    try:
        interpreter = python()
    except EnvironmentMissingError as error:
        if os.environ.get("OTEL_PERF_REQUIRE") == "all":
            pytest.fail(f"OTEL_PERF_REQUIRE=all: {error}", pytrace=False)
        pytest.skip(str(error))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "PYTHON"))}
    with served(Starlette(routes=[Route("/hello", _hello)])) as url:
        done = subprocess.run(
            [
                interpreter, str(ROOT / "tests" / "upstream" / "orders.py"),
                postgresql_server.dsn, redis_server.url, f"{url}/hello",
            ],
            capture_output=True, text=True, timeout=90, check=False, env={**environment, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("order", ["theirs first", "ours first"])
@pytest.mark.parametrize("library", list(_RESULTS))
def test_calls_work_and_count_once(said, order, library):
    """Each call answers as it should, has one span, and is measured once."""
    answer, spans, measured = said[order][library]
    calls = _CALLS.get(library, 1)
    assert (answer, measured) == (_RESULTS[library], calls)
    if library == "sqlite3":  # a connection's own execute has no span of upstream's
        assert spans == ["opentelemetry.instrumentation.sqlite3", "otel_perf"]
    elif library != "sqlalchemy":  # below which upstream's driver instrumentors make spans too
        assert len(spans) == calls
        assert all(each.startswith("opentelemetry.instrumentation.") for each in spans)


def test_both_can_be_undone(said):
    """What was patched is what it was, in both orders, and nothing of ours went wrong."""
    assert said["left by theirs first"] == said["left by ours first"] == []
    assert said["errors"] == 0
