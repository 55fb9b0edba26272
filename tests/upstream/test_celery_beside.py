"""Celery with opentelemetry-instrumentation-celery switched on as well: its spans, our metrics, nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.upstream.environment import EnvironmentMissingError, python

ROOT = Path(__file__).resolve().parents[2]

# Making the environment takes longer than a test usually may.
pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("first", ["upstream", "ours"])
def test_celery_beside(first):
    """In either order each task has one span, of the instrumentor, and one measurement; the report says so."""
    try:
        interpreter = python()
    except EnvironmentMissingError as error:
        if os.environ.get("OTEL_PERF_REQUIRE") == "all":
            pytest.fail(f"OTEL_PERF_REQUIRE=all: {error}", pytrace=False)
        pytest.skip(str(error))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "PYTHON"))}
    done = subprocess.run(
        [interpreter, str(ROOT / "tests" / "upstream" / "celery_beside.py"), first],
        capture_output=True, text=True, timeout=60, check=False, env={**environment, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    scope = "opentelemetry.instrumentation.celery"
    assert told["spans"] == [["run/bad", scope], ["run/good", scope]]
    assert told["runs"] == [["bad", 1], ["good", 1]]
    assert told["state"] == "already measured by someone else"
