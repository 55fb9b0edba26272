"""Upstream engines together: stable names whichever comes first, and what the application chose before stays."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

_START = """
import logging, redis
from fastapi import FastAPI
from opentelemetry.instrumentation.redis import RedisInstrumentor
from otel_perf import instrument
from otel_perf.testing import capture
from tests.asking import ask
logging.basicConfig(format="%(message)s")
app = FastAPI()
@app.get("/")
def endpoint(): return 1
client = redis.Redis(port=PORT, db=3)
"""
_END = """
    ask(app, "/")
    client.set("k", "v")
    redis_span = next(span for span in tel.spans if span.name == "SET")
    server = next(span for span in tel.spans if span.kind.name == "SERVER")
    names = {*redis_span.attributes, *server.attributes, *tel.metrics()}
    print(*sorted(names))
"""


def names(port: int, *steps: str, **environ: str) -> tuple[set[str], str]:
    """The names that are there after these steps in a fresh process, and what it logged."""
    block = "".join(f"    {step}\n" for step in steps)
    program = f"{_START.replace('PORT', str(port))}with capture() as tel:\n{block}{_END}"
    kept = {key: value for key, value in os.environ.items() if key != "OTEL_SEMCONV_STABILITY_OPT_IN"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**kept, **environ},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split()), done.stderr


APP = 'instrument(app, engine="upstream"); ask(app, "/")'
REDIS = 'instrument(client, engine="upstream"); client.get("k")'


@pytest.mark.parametrize("steps", [(APP, REDIS), (REDIS, APP)])
def test_both_engines_have_stable_names(redis_server: Any, steps: tuple[str, ...]) -> None:
    """Whichever engine starts first in the process, both use stable names, and nothing is said."""
    found, logged = names(redis_server.port, *steps)
    assert {"db.system.name", "http.request.method", "http.server.request.duration"} <= found
    assert not {"db.system", "db.statement", "http.method", "http.server.duration"} & found
    assert "old names" not in logged


def test_names_that_the_application_began_with_stay_and_are_told_once(redis_server: Any) -> None:
    """An instrumentor that the application started by itself decides for the process; each convention is told once."""
    own = "RedisInstrumentor().instrument(); RedisInstrumentor().uninstrument()"
    found, logged = names(redis_server.port, own, REDIS, REDIS, APP)
    assert {"db.system", "http.method"} <= found
    assert "db.system.name" not in found
    assert logged.count("old names") == 2


def test_the_choice_of_the_environment_stays(redis_server: Any) -> None:
    """Who wants both names gets both."""
    found, _ = names(redis_server.port, REDIS, APP, OTEL_SEMCONV_STABILITY_OPT_IN="database/dup")
    assert {"db.system", "db.system.name", "http.request.method"} <= found
    assert "http.method" not in found
