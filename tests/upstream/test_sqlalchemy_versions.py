"""SQLAlchemy 2.0 and 2.1: the same script on both measures the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.upstream.environment import EnvironmentMissingError, python

ROOT = Path(__file__).resolve().parents[2]

# Making the environment takes longer than a test usually may.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", params=["2.0", "2.1"])
def said(request) -> dict[str, Any]:
    """What the script says on a version of SQLAlchemy."""
    interpreter = Path(sys.executable)
    if request.param == "2.0":
        try:
            interpreter = python()
        except EnvironmentMissingError as error:
            if os.environ.get("OTEL_PERF_REQUIRE") == "all":
                pytest.fail(f"OTEL_PERF_REQUIRE=all: {error}", pytrace=False)
            pytest.skip(str(error))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "PYTHON"))}
    done = subprocess.run(
        [interpreter, str(ROOT / "tests" / "upstream" / "sqlalchemy_core.py")],
        capture_output=True, text=True, timeout=60, check=False,
        env={**environment, "PYTHONPATH": str(ROOT), "OTEL_PERF_STRICT": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["sqlalchemy"].startswith(request.param)
    return found


def test_queries(said):
    """Each statement is a span and a duration, executemany with its rows, a failure with the driver's type."""
    assert [name for name, _ in said["spans"]] == [
        "CREATE users", "INSERT users", "SELECT users", "INSERT users", "INSERT users", "DELETE users", "SELECT",
        "CREATE parents", "CREATE children", "INSERT children",
    ]  # fmt: skip
    assert said["spans"][1][1]["db.operation.batch.size"] == 2
    assert said["spans"][2][1]["db.query.text"] == "SELECT name FROM users WHERE name = ?"
    failed = [attributes for _, attributes in said["spans"] if "error.type" in attributes]
    assert [each["error.type"] for each in failed] == ["sqlite3.IntegrityError"] * 2
    assert sum(count for count, *_ in said["durations"]) == len(said["spans"])
    assert [2, "INSERT", "app.db", "sqlite", "sqlite3.IntegrityError", "users"] in said["durations"]


def test_transactions(said):
    """Two commits, one that failed, one rollback after an error; none for savepoints, autocommit or an empty block."""
    assert said["transactions"] == [
        [1, "app.db", "commit", "sqlite", "sqlite3.IntegrityError"],
        [1, "app.db", "rollback", "sqlite", "sqlite3.IntegrityError"],
        [2, "app.db", "commit", "sqlite"],
    ]


def test_pools(said):
    """Waiting, giving up and the time it took; `dispose()` is survived; pools without a queue are left out."""
    pools = said["pools"]
    assert pools["waiting"] == [[1, "sqlite/long.db"]]
    assert pools["waits"] == [[1, "sqlite/short.db"], [3, "sqlite/long.db"]]
    assert pools["timeouts"] == [[1, "sqlite/short.db"]]
    assert pools["counts"] == [[0, "idle", "sqlite/long.db"], [1, "sqlite/long.db", "used"]]
    assert pools["limits"] == [[1, "sqlite/long.db"]]


def test_a_connection_that_cannot_be_had_is_a_failure(said):
    """Whoever gave up waiting has a failed operation, so that an outage shows where queries are looked at."""
    assert [1, "CONNECT", "short.db", "sqlalchemy.exc.TimeoutError", "sqlite"] in said["pools"]["failures"]


def test_beside_upstream_nothing_is_doubled(said):
    """Where upstream's instrumentor makes the spans we make none and add the durations; other engines keep theirs."""
    found = said["upstream"]
    if found is None:
        assert said["sqlalchemy"].startswith("2.1"), "the instrumentor belongs to the environment of 2.0"
        return
    assert found["scopes"] == ["opentelemetry.instrumentation.sqlalchemy", "otel_perf"]
    assert found["durations"] == [[2, "SELECT", "sqlite"]]
    assert found["states"] == ["already measured by someone else"]


def test_undo_puts_back_what_was_there(said):
    """The wrapped methods are the very same as before, and no fault of ours was kept from anyone."""
    assert said["undone"] is True
    assert said["errors"] == 0
