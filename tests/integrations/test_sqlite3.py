"""sqlite3 of the standard library."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from sqlite3 import dbapi2
from types import SimpleNamespace
from typing import Any

import aiosqlite
import pytest
from opentelemetry import trace

from otel_perf import guard, instrument, measure
from otel_perf.integrations import sqlite3 as ours
from otel_perf.integrations import statement
from otel_perf.telemetry import operation
from tests.conftest import Telemetry


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A measured connection with one table, made before anything is recorded."""
    with instrument("sqlite3"), closing(sqlite3.connect(tmp_path / "app.db")) as made:
        made.execute("CREATE TABLE people (name text UNIQUE)")
        yield made


def _names(telemetry: Telemetry) -> list[str]:
    return [span.name for span in telemetry.spans]


def _count(telemetry: Telemetry, **attributes: Any) -> int:
    return sum(each.count for each in telemetry.points("db.client.operation.duration", **attributes))


def _ended(telemetry: Telemetry) -> list[tuple[str, str | None]]:
    points = telemetry.points("db.client.transaction.duration")
    found = [(each.attributes["db.transaction.outcome"], each.attributes.get("error.type")) for each in points]
    return sorted((one for one, each in zip(found, points, strict=True) for _ in range(each.count)), key=str)


def test_what_a_query_says(connection: sqlite3.Connection, telemetry: Telemetry) -> None:
    """By a connection's own short cuts as by cursors, a statement is one span and one duration."""
    connection.executemany("INSERT INTO people VALUES (?)", [("secret-a",), ("secret-b",)])
    cursor = connection.execute("SELECT name FROM people WHERE name <> 'x'")
    assert len(cursor.fetchall()) == 2
    assert cursor.execute("SELECT 1").fetchone() == (1,)  # the same cursor again
    connection.cursor().executescript("SELECT 1; SELECT 2")

    many, select, _, _ = telemetry.spans
    assert dict(select.attributes or {}) == {
        "db.system.name": "sqlite", "db.operation.name": "SELECT", "db.collection.name": "people",
        "db.namespace": "app.db", "db.query.summary": "SELECT people",
        "db.query.text": "SELECT name FROM people WHERE name <> ?",
    }  # fmt: skip
    assert (many.attributes or {})["db.operation.batch.size"] == 2
    assert not any("secret" in span.to_json() for span in telemetry.spans)
    assert _count(telemetry) == 4


# Python 3.13 wants to be told by name, and goes on for now.
@pytest.mark.filterwarnings("ignore:Passing more than 1 positional argument:DeprecationWarning")
def test_classes_stay_what_they_are(connection: sqlite3.Connection) -> None:
    """Connections and cursors are instances of the classes that were asked for, and rows are as ever."""

    class Cursor(sqlite3.Cursor):
        pass

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

    assert isinstance(connection, sqlite3.Connection)
    assert type(connection).__name__ == "Connection"
    assert isinstance(connection.cursor(), sqlite3.Cursor)
    connection.row_factory = sqlite3.Row
    assert connection.execute("SELECT 1 AS x").fetchone()["x"] == 1
    for made in (
        sqlite3.connect(":memory:", factory=Connection),
        dbapi2.connect(":memory:", 5, 0, "", True, Connection),
    ):
        assert isinstance(made, Connection)
        assert isinstance(made.cursor(), Cursor)
        assert isinstance(made.cursor(factory=sqlite3.Cursor), sqlite3.Cursor)
        assert made.execute("SELECT 1").fetchone() == (1,)
        made.close()
    plain = sqlite3.connect(":memory:", factory=functools.partial(sqlite3.Connection))  # type: ignore[arg-type]
    assert type(plain) is sqlite3.Connection
    plain.close()


def test_a_class_of_ones_own_counts_once(telemetry: Telemetry) -> None:
    """A connection whose class has its own ways is measured once for each statement."""

    class Connection(sqlite3.Connection):
        def cursor(self) -> Any:  # type: ignore[override]  # without a way to name a class
            return super().cursor()

        def execute(self, *args: Any) -> Any:
            return self.cursor().execute(*args)

    with instrument("sqlite3"), closing(sqlite3.connect(":memory:", factory=Connection)) as made:
        made.execute("SELECT 1")
        made.executescript("SELECT 2")
        made.executescript("SELECT 1")
    assert _count(telemetry) == 3


def test_every_failure_is_counted(connection: sqlite3.Connection, telemetry: Telemetry) -> None:
    """N failed calls are N failed measurements, with SQLite's name for it and without values."""
    connection.execute("INSERT INTO people VALUES ('secret-x')")
    for _ in range(5):
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute("INSERT INTO people VALUES ('secret-x')")
    with pytest.raises(sqlite3.OperationalError):
        connection.cursor().executescript("SELEC")
    with pytest.raises(sqlite3.ProgrammingError):
        connection.execute("SELECT ?", ())
    assert _count(telemetry, error__type="sqlite3.IntegrityError") == 5
    assert sum(1 for span in telemetry.spans if "error.type" in (span.attributes or {})) == 7
    assert not any("secret" in span.to_json() for span in telemetry.spans)
    if sys.version_info >= (3, 11):
        assert (telemetry.spans[1].attributes or {})["db.response.status_code"] == "SQLITE_CONSTRAINT_UNIQUE"
    assert operation.current() is None


def test_transactions(connection: sqlite3.Connection, telemetry: Telemetry) -> None:
    """What begins by itself, by hand, and in a block; reading alone begins none."""
    connection.execute("SELECT 1")
    connection.commit()
    assert not _ended(telemetry)
    with connection:
        connection.execute("INSERT INTO people VALUES ('a')")
    with pytest.raises(sqlite3.IntegrityError), connection:
        connection.execute("INSERT INTO people VALUES ('a')")
    connection.execute("INSERT INTO people VALUES ('b')")
    connection.rollback()
    connection.execute("BEGIN")
    connection.execute("SAVEPOINT x")
    connection.execute("INSERT INTO people VALUES ('c')")
    connection.execute("END")
    assert _ended(telemetry) == [
        ("commit", None), ("commit", None), ("rollback", "sqlite3.IntegrityError"), ("rollback", None),
    ]  # fmt: skip


def test_a_connection_that_was_there_before(tmp_path: Path) -> None:
    """It cannot be measured, and the error says what to do instead."""
    with (
        closing(sqlite3.connect(":memory:")) as made,
        pytest.raises(TypeError, match=r'instrument\("sqlite3"\) before'),
    ):
        instrument(made)


def test_one_connection(connection: sqlite3.Connection, telemetry: Telemetry) -> None:
    """A connection that was made while all were measured can go on by itself; undo puts `connect` back."""
    before = sqlite3.connect
    with instrument(connection):
        assert sqlite3.connect is before
        connection.execute("SELECT 1")
    assert _count(telemetry) == 1
    handle = instrument("sqlite3")
    handle.undo()
    assert sqlite3.connect is before


def test_undo_in_any_order(telemetry: Telemetry) -> None:
    """The last who lets go puts back the very same function; connections made meanwhile are measured no more."""
    before = sqlite3.connect, dbapi2.connect
    first, second = instrument("sqlite3"), instrument("sqlite3")
    with closing(sqlite3.connect(":memory:")) as made:
        first.undo()
        made.execute("SELECT 1")
        second.undo()
        made.execute("SELECT 2")
    assert (sqlite3.connect, dbapi2.connect) == before
    assert _count(telemetry) == 1


def test_threads_keep_their_parents(telemetry: Telemetry, tmp_path: Path) -> None:
    """Queries of several threads are children of the step of their own thread."""

    def work(number: int) -> None:
        with measure(f"step {number}"), closing(sqlite3.connect(tmp_path / f"{number}.db")) as made:
            made.execute("SELECT 1")

    with instrument("sqlite3"):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    steps = {span.context.span_id: span.name for span in telemetry.spans if span.name.startswith("step")}
    parents = [steps[span.parent.span_id] for span in telemetry.spans if span.name == "SELECT"]
    assert sorted(parents) == [f"step {number}" for number in range(4)]


def test_within_a_measured_query(connection: sqlite3.Connection, telemetry: Telemetry) -> None:
    """The outermost query measures."""
    with measure.query("find", collection="people"):
        connection.execute("SELECT 1")
    assert _names(telemetry) == ["find people"]


def test_connections_of_aiosqlite_are_left_alone(telemetry: Telemetry) -> None:
    """They are made in a thread that knows nothing of what is above; their own integration measures them."""

    async def main() -> None:
        async with aiosqlite.connect(":memory:") as made:
            assert type(made._conn) is sqlite3.Connection
            await made.execute("SELECT 1")

    with instrument("sqlite3"):
        asyncio.run(main())
    assert _count(telemetry) == 0


def test_a_connection_of_another_thread(connection: sqlite3.Connection, telemetry: Telemetry) -> None:
    """SQLite's own complaint reaches whoever caused it, is counted, and leaves nothing current."""
    seen: list[BaseException | None] = []

    def work() -> None:
        try:
            connection.execute("SELECT 1")
        except sqlite3.ProgrammingError as error:
            seen.append(error)
        seen.append(operation.current())  # type: ignore[arg-type]

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(seen[0], sqlite3.ProgrammingError)
    assert seen[1:] == [None]
    assert guard.errors == 0


@pytest.mark.parametrize("durations", [True, False])
def test_beside_upstream(
    connection: sqlite3.Connection, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, durations: bool
) -> None:
    """Where upstream's instrumentor makes the spans ours adds the durations, unless those are made there too."""
    module = SimpleNamespace(SQLite3Instrumentor=lambda: SimpleNamespace(is_instrumented_by_opentelemetry=True))
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.sqlite3", module)
    monkeypatch.setattr(statement, "records_durations", lambda: durations)
    tracer = trace.get_tracer("opentelemetry.instrumentation.sqlite3")
    with tracer.start_as_current_span("theirs"):
        connection.execute("SELECT 1")
    assert [span.name for span in telemetry.spans] == ["theirs"]
    assert _count(telemetry) == (0 if durations else 1)
    assert "sqlite3" in (ours.elsewhere() or "")


def test_each_failure_counts_once_before_a_statement_begins(
    connection: sqlite3.Connection, telemetry: Telemetry, tmp_path: Path
) -> None:
    """A database that cannot be opened, plain or by aiosqlite, and a closed connection, fail once for each call."""

    async def opened() -> None:
        with instrument("aiosqlite"):
            try:
                await aiosqlite.connect(tmp_path / "no" / "app.db")
            finally:
                await asyncio.sleep(0.05)  # its thread answers once more, to a loop that must be there

    connection.close()
    for _ in range(3):
        with pytest.raises(sqlite3.OperationalError):
            sqlite3.connect(tmp_path / "no" / "app.db")
        with pytest.raises(sqlite3.OperationalError):
            asyncio.run(opened())
        with pytest.raises(sqlite3.ProgrammingError):
            connection.execute("SELECT 1")
    points = telemetry.points("db.client.operation.duration")
    assert sorted((p.attributes["db.operation.name"], p.attributes.get("error.type"), p.count) for p in points) == [
        ("CONNECT", "sqlite3.OperationalError", 6), ("SELECT", "sqlite3.ProgrammingError", 3),
    ]  # fmt: skip
    assert guard.errors == 0


def test_a_factory_may_take_its_database_by_name_only(connection: sqlite3.Connection) -> None:
    """A class of connections whose constructor takes keywords only works as it does unmeasured."""

    class ByName(sqlite3.Connection):
        def __init__(self, *, database: str, **options: Any) -> None:
            super().__init__(database, **options)

    with closing(sqlite3.connect(database=":memory:", factory=ByName)) as made:
        assert made.execute("SELECT 1").fetchone() == (1,)
