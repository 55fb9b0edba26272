"""Transactions of psycopg 3 on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from otel_perf import instrument
from tests.conftest import Telemetry


@pytest.fixture
def connection(postgresql_server: Any) -> Iterator[Any]:
    """A connection that begins transactions by itself, with a table of its own."""
    with psycopg.connect(postgresql_server.dsn) as made:
        made.execute("CREATE TEMPORARY TABLE people (name text UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        made.commit()
        with instrument(made):
            yield made


def _ended(telemetry: Telemetry) -> list[tuple[str, str | None]]:
    points = telemetry.points("db.client.transaction.duration")
    found = [(each.attributes["db.transaction.outcome"], each.attributes.get("error.type")) for each in points]
    return sorted((one for one, each in zip(found, points, strict=True) for _ in range(each.count)), key=str)


def test_what_begins_by_itself(telemetry: Telemetry, connection: Any) -> None:
    """A transaction begins with its first statement; a commit without one is none."""
    connection.commit()
    connection.execute("SELECT 1")
    connection.execute("SELECT 2")
    connection.commit()
    connection.execute("SELECT 3")
    connection.rollback()
    assert _ended(telemetry) == [("commit", None), ("rollback", None)]


def test_blocks(telemetry: Telemetry, connection: Any) -> None:
    """The outermost block is the transaction, by how it ends; an empty one is none."""
    with connection.transaction():
        pass
    with connection.transaction(), connection.transaction():
        connection.execute("SELECT 1")
    with connection.transaction(force_rollback=True):
        connection.execute("SELECT 1")
    with connection.transaction():
        connection.execute("SELECT 1")
        raise psycopg.Rollback
    assert _ended(telemetry) == [("commit", None), ("rollback", None), ("rollback", None)]


def test_errors(telemetry: Telemetry, connection: Any) -> None:
    """A rollback after an error has its type, and a commit that fails has its own."""
    with pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT * FROM nowhere")
    connection.rollback()
    connection.execute("INSERT INTO people VALUES ('a'), ('a')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.commit()
    with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
        connection.execute("INSERT INTO people VALUES ('a'), ('a')")
    assert _ended(telemetry) == [
        ("commit", "psycopg.errors.UniqueViolation"), ("commit", "psycopg.errors.UniqueViolation"),
        ("rollback", "psycopg.errors.UndefinedTable"),
    ]  # fmt: skip


def test_autocommit_and_by_hand(telemetry: Telemetry, connection: Any) -> None:
    """With autocommit there is none, unless the application begins one."""
    connection.set_autocommit(True)
    connection.execute("SELECT 1")
    assert not _ended(telemetry)
    connection.execute("BEGIN")
    connection.execute("SELECT 1")
    connection.execute("ROLLBACK")
    assert _ended(telemetry) == [("rollback", None)]
