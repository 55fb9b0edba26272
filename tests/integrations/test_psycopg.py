"""psycopg 3 on a real PostgreSQL, sync and async."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from psycopg import sql

from otel_perf import instrument, measure
from otel_perf.integrations import psycopg as ours
from otel_perf.integrations import statement
from otel_perf.telemetry import operation
from tests.conftest import Telemetry


@pytest.fixture
def connection(postgresql_server: Any) -> Iterator[Any]:
    """A connection with a table of its own."""
    with psycopg.connect(postgresql_server.dsn, autocommit=True) as made:
        made.execute("CREATE TEMPORARY TABLE people (name text UNIQUE)")
        yield made


def _names(telemetry: Telemetry) -> list[str]:
    return [span.name for span in telemetry.spans]


def _count(telemetry: Telemetry, **attributes: Any) -> int:
    return sum(each.count for each in telemetry.points("db.client.operation.duration", **attributes))


def test_what_a_query_says(telemetry: Telemetry, connection: Any, postgresql_server: Any) -> None:
    """A query is a CLIENT span by the conventions, with the rows that came back and without its literals."""
    with instrument("psycopg"):
        connection.execute("INSERT INTO people VALUES ('secret-a'), ('secret-b')")
        cursor = connection.execute("SELECT name FROM people WHERE name <> 'x' AND %s", (True,))
        assert len(cursor.fetchall()) == 2
        connection.cursor().executemany("INSERT INTO people VALUES (%s)", [("secret-c",), ("secret-d",)])
        connection.execute(b"SELECT 1")

    insert, select, many, _ = telemetry.spans
    assert select.kind is SpanKind.CLIENT
    assert dict(select.attributes or {}) == {
        "db.system.name": "postgresql", "db.operation.name": "SELECT", "db.collection.name": "people",
        "db.namespace": "otel_perf", "db.query.summary": "SELECT people", "server.address": "127.0.0.1",
        "db.query.text": "SELECT name FROM people WHERE name <> ? AND %s", "server.port": postgresql_server.port,
        "db.response.returned_rows": 2,
    }  # fmt: skip
    assert "db.response.returned_rows" not in (insert.attributes or {})
    assert (many.attributes or {})["db.operation.batch.size"] == 2
    assert not any("secret" in span.to_json() for span in telemetry.spans)
    assert _count(telemetry) == 4


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("SELECT 'a'", "SELECT 'a'"),
        (b"SELECT \xff", "SELECT \ufffd"),
        (sql.SQL("SELECT {} FROM {}").format(sql.Literal("secret"), sql.Identifier('t"')), 'SELECT ? FROM "t"""'),
        (sql.SQL("SELECT {}").format(sql.Placeholder("x")), "SELECT %s"),
        (sql.SQL("SELECT ") + sql.Composed([sql.Literal(1), sql.SQL(", "), sql.Literal(b"secret")]), "SELECT ?, ?"),
        (SimpleNamespace(strings=("SELECT ", " FROM a")), "SELECT ? FROM a"),
        (object(), "?"),
    ],
)  # fmt: skip
def test_the_text_of_a_query(query: object, text: str) -> None:
    """What is composed of parts is read without its values, whatever it is made of."""
    assert ours._text(query) == text


def test_streams_copies_and_server_cursors(telemetry: Telemetry, connection: Any) -> None:
    """Each is one operation, until its last row; what the application does in between is not within it."""
    with instrument("psycopg"):
        with connection.cursor() as cursor, cursor.copy("COPY people FROM STDIN") as copying:
            assert operation.current() is None
            for number in range(50):
                copying.write_row([f"n{number}"])
        rows = connection.cursor().stream("SELECT name FROM people")
        next(rows)
        assert operation.current() is None
        assert len(list(rows)) == 49
        unfinished = connection.cursor().stream("SELECT name FROM people")
        next(unfinished)
        unfinished.close()
        with connection.transaction(), connection.cursor("named") as cursor:
            cursor.execute("SELECT name FROM people")
            assert len(list(cursor)) == 50
    assert _names(telemetry) == ["COPY people"] + ["SELECT people"] * 3
    assert [(span.attributes or {}).get("db.response.returned_rows") for span in telemetry.spans] == [None, 50, 1, None]
    assert not any("error.type" in (span.attributes or {}) for span in telemetry.spans)


def test_every_failure_is_counted(telemetry: Telemetry, connection: Any) -> None:
    """N failed calls, of whatever kind, are N failed measurements, with SQLSTATE and without values."""
    connection.execute("INSERT INTO people VALUES ('secret-x')")

    def declare() -> None:
        with connection.transaction(), connection.cursor("named") as cursor:
            cursor.execute("SELECT * FROM nowhere")

    def copy() -> None:
        with connection.cursor().copy("COPY people FROM STDIN") as copying:
            copying.write_row(["secret-x"])

    calls = [
        lambda: connection.execute("INSERT INTO people VALUES ('secret-x')"),
        lambda: connection.execute("INSERT INTO people VALUES (%s)", ["secret-x"]),
        lambda: connection.cursor().executemany("INSERT INTO people VALUES (%s)", [["secret-x"]]),
        lambda: list(connection.cursor().stream("SELECT 1 / (x - 70) FROM generate_series(1, 100) x")),
        lambda: connection.execute("SELEC"),
        declare,
        copy,
    ]
    with instrument("psycopg"):
        for call in calls:
            with pytest.raises(psycopg.Error):
                call()
    points = telemetry.points("db.client.operation.duration")
    assert sum(each.count for each in points if "error.type" in each.attributes) == len(calls) == len(telemetry.spans)
    assert not any("secret" in span.to_json() for span in telemetry.spans)
    assert (telemetry.spans[0].attributes or {})["db.response.status_code"] == "23505"
    assert (telemetry.spans[0].attributes or {})["error.type"] == "psycopg.errors.UniqueViolation"


def test_async(telemetry: Telemetry, postgresql_server: Any) -> None:
    """The same in tasks: queries, streams, copies, transactions, and a query that is cancelled."""

    async def main() -> None:
        connection = await psycopg.AsyncConnection.connect(postgresql_server.dsn)
        async with connection:
            async with connection.transaction():
                await connection.execute("CREATE TEMPORARY TABLE people (name text UNIQUE)")
                async with connection.transaction():
                    await connection.cursor().executemany("INSERT INTO people VALUES (%s)", [("a",), ("b",)])
            assert [row async for row in connection.cursor().stream("SELECT name FROM people")] == [("a",), ("b",)]
            async with connection.cursor().copy("COPY people TO STDOUT") as copying:
                assert len([each async for each in copying]) == 2
            async with connection.cursor("named") as cursor:
                await cursor.execute("SELECT name FROM people")
            await connection.commit()
            task = asyncio.ensure_future(connection.execute("SELECT pg_sleep(30)"))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert operation.current() is None
            await connection.rollback()

    with instrument("psycopg"):
        asyncio.run(main())
    assert _names(telemetry) == [
        "CREATE people", "INSERT people", "SELECT people", "COPY people", "SELECT people", "SELECT",
    ]  # fmt: skip
    errors = [(span.attributes or {}).get("error.type") for span in telemetry.spans]
    assert errors == [None] * 5 + ["asyncio.exceptions.CancelledError"]
    outcomes = [
        (each.attributes["db.transaction.outcome"], each.attributes.get("error.type"), each.count)
        for each in telemetry.points("db.client.transaction.duration")
    ]
    assert sorted(outcomes, key=str) == [
        ("commit", None, 2), ("rollback", "asyncio.exceptions.CancelledError", 1)
    ]  # fmt: skip


def test_one_connection(telemetry: Telemetry, connection: Any, postgresql_server: Any) -> None:
    """Of two connections only the one that was handed over is measured, and undo puts all methods back."""
    before = list(vars(psycopg.Cursor).values())
    with instrument(connection), psycopg.connect(postgresql_server.dsn) as other:
        connection.execute("SELECT 1")
        other.execute("SELECT 2")
    assert _count(telemetry) == 1
    assert all(one is other for one, other in zip(before, vars(psycopg.Cursor).values(), strict=True))


def test_within_a_measured_query(telemetry: Telemetry, connection: Any) -> None:
    """The outermost query measures."""
    with instrument("psycopg"), measure.query("find", collection="people"):
        connection.execute("SELECT 1")
        assert len(list(connection.cursor().stream("SELECT 1"))) == 1
    assert _names(telemetry) == ["find people"]


@pytest.mark.parametrize("durations", [True, False])
def test_beside_upstream(
    telemetry: Telemetry, connection: Any, monkeypatch: pytest.MonkeyPatch, durations: bool
) -> None:
    """Where upstream's instrumentor makes the spans ours adds the durations, unless those are made there too."""
    module = SimpleNamespace(PsycopgInstrumentor=lambda: SimpleNamespace(is_instrumented_by_opentelemetry=True))
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.psycopg", module)
    monkeypatch.setattr(statement, "records_durations", lambda: durations)
    tracer = trace.get_tracer("opentelemetry.instrumentation.psycopg")
    with instrument("psycopg"), tracer.start_as_current_span("theirs"):
        connection.execute("SELECT 1")
    assert [span.name for span in telemetry.spans] == ["theirs"]
    assert _count(telemetry) == (0 if durations else 1)
    assert "psycopg" in (ours.elsewhere() or "")
