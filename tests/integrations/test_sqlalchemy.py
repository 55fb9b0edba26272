"""SQLAlchemy, sync and async, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from otel_perf import instrument, measure
from otel_perf.integrations import sqlalchemy as integration
from otel_perf.integrations import sqlalchemy_events
from otel_perf.telemetry import operation
from tests.conftest import Telemetry

_METADATA = sa.MetaData()
_USERS = sa.Table(
    "users", _METADATA, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String, unique=True)
)
#: Long enough to be cancelled in between, on SQLite.
_SLOW = "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 3000000) SELECT count(*) FROM r"


@pytest.fixture(params=["methods", "events"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to measure: the second is for a SQLAlchemy that has not the methods that we wrap."""
    monkeypatch.setattr(integration, "_BY_METHODS", request.param == "methods")
    return str(request.param)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    """A database in a file, with one table, not measured yet."""
    made = sa.create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    _METADATA.create_all(made)
    yield made
    made.dispose()


_WITHOUT_GREENLET = """
import sys
sys.modules["greenlet"] = None  # to import it is an ImportError from now on
import sqlalchemy
import otel_perf
try:
    import sqlalchemy.ext.asyncio
except ImportError:
    pass
else:
    assert sqlalchemy.__version__ < "2.1", "it can do without greenlet; this test shows nothing"
    del sys.modules["sqlalchemy.ext.asyncio"], sqlalchemy.ext.asyncio
    sys.modules["sqlalchemy.ext.asyncio"] = None
from otel_perf.testing import capture
with capture() as telemetry:
    engine = sqlalchemy.create_engine("sqlite://")
    async def app(scope, receive, send): pass
    with otel_perf.instrument(engine), engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
    otel_perf.instrument(app)
    with otel_perf.instrument("sqlalchemy"), engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
    assert [each.name for each in telemetry.spans] == ["SELECT", "SELECT"], telemetry.spans
"""


def test_without_greenlet_an_engine_is_measured_all_the_same() -> None:
    """Only SQLAlchemy's part for asyncio needs it; without it engines, and other targets, are instrumented."""
    done = subprocess.run([sys.executable, "-c", _WITHOUT_GREENLET], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_query_is_a_span_and_a_duration(telemetry: Telemetry, engine: sa.Engine) -> None:
    """A query is named by what it does and carries the conventions' attributes, without its literals."""
    with instrument(engine), engine.connect() as connection:
        connection.execute(sa.text("SELECT name FROM users WHERE name = 'alice' AND id = 4242"))

    span = telemetry.span("SELECT users")
    assert span.kind is SpanKind.CLIENT
    assert dict(span.attributes or {}) == {
        "db.system.name": "sqlite",
        "db.operation.name": "SELECT",
        "db.collection.name": "users",
        "db.namespace": "app.db",
        "db.query.text": "SELECT name FROM users WHERE name = ? AND id = ?",
        "db.query.summary": "SELECT users",
    }
    (point,) = telemetry.points("db.client.operation.duration")
    assert point.count == 1
    assert dict(point.attributes) == {
        "db.system.name": "sqlite",
        "db.operation.name": "SELECT",
        "db.collection.name": "users",
        "db.namespace": "app.db",
    }


def test_executemany_is_one_operation_with_its_batch_size(telemetry: Telemetry, engine: sa.Engine) -> None:
    """Many rows in one call are one operation, whether the driver or SQLAlchemy puts them together."""
    rows = [{"name": f"n{n}"} for n in range(5)]
    more = [{"id": 100 + n, "name": f"m{n}"} for n in range(7)]
    with instrument(engine), engine.begin() as connection:
        connection.execute(_USERS.insert(), rows)
        assert len(connection.execute(_USERS.insert().returning(_USERS.c.id), more).all()) == 7

    sizes = [(span.attributes or {}).get("db.operation.batch.size") for span in telemetry.spans]
    assert sizes == [5, 7]
    assert [span.name for span in telemetry.spans] == ["INSERT users"] * 2
    # SQLite says 0 before the rows of a RETURNING are fetched.
    assert not any("db.response.returned_rows" in (span.attributes or {}) for span in telemetry.spans)


def test_transaction_control_is_no_query(telemetry: Telemetry, engine: sa.Engine) -> None:
    """BEGIN, COMMIT, ROLLBACK and savepoints are not counted."""
    with instrument(engine), engine.connect() as connection:
        with connection.begin_nested() as nested:
            nested.rollback()
        with connection.begin_nested():
            connection.execute(sa.text("SELECT 1"))
        connection.commit()

    assert [span.name for span in telemetry.spans] == ["SELECT"]


def test_an_error_has_the_type_of_the_driver_and_no_values(telemetry: Telemetry, engine: sa.Engine) -> None:
    """`error.type` is the driver's exception; no bound value reaches the span's events."""
    with instrument(engine), engine.connect() as connection:
        connection.execute(_USERS.insert(), {"name": "secret-alice"})
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(_USERS.insert(), {"name": "secret-alice"})

    _, span = telemetry.spans
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "sqlite3.IntegrityError"
    assert "secret" not in span.to_json()
    assert telemetry.points("db.client.operation.duration", error__type="sqlite3.IntegrityError")[0].count == 1


@pytest.mark.parametrize("way", ["methods"], indirect=True)
def test_every_failure_is_counted_and_names_are_bounded(telemetry: Telemetry, engine: sa.Engine) -> None:
    """2,500 failed statements, each of another table, are 2,500 failed measurements in a bounded number of series."""
    with instrument(engine), engine.connect() as connection:
        for number in range(2500):
            with pytest.raises(sa.exc.OperationalError):
                connection.exec_driver_sql(f"SELECT * FROM nowhere{number}")
    points = telemetry.points("db.client.operation.duration")
    assert sum(point.count for point in points) == len(telemetry.spans) == 2500
    assert len(points) <= 2001
    assert all((span.attributes or {})["error.type"] == "sqlite3.OperationalError" for span in telemetry.spans)


def test_a_failing_handler_of_the_application_leaves_nothing_open(telemetry: Telemetry, engine: sa.Engine) -> None:
    """Where an application's error handler raises, SQLAlchemy calls no later one; ours came first."""

    def handler(_context: object) -> None:
        raise LookupError("translated")

    event.listen(engine, "handle_error", handler)
    with instrument(engine), engine.connect() as connection:
        with pytest.raises(LookupError):
            connection.execute(sa.text("SELECT nope"))
        assert operation.current() is None
        connection.execute(sa.text("SELECT 1"))

    assert [span.name for span in telemetry.spans] == ["SELECT", "SELECT"]


@pytest.mark.parametrize("way", ["events"], indirect=True)
def test_an_operation_whose_end_never_came_is_ended_by_the_next(telemetry: Telemetry, engine: sa.Engine) -> None:
    """Should an end be kept from us, the next statement of the connection ends the old operation and is measured."""

    def interrupt(conn: object, cursor: object, statement: str, *_: object) -> None:
        if "1" in statement:
            raise LookupError

    with instrument(engine), engine.connect() as connection:
        event.listen(engine, "before_cursor_execute", interrupt)
        event.remove(sa.Engine, "handle_error", _hooks()["handle_error"])
        with pytest.raises(LookupError):
            connection.execute(sa.text("SELECT 1"))
        assert operation.current() is not None
        connection.execute(sa.text("SELECT name FROM users"))
        assert operation.current() is None
        event.listen(sa.Engine, "handle_error", _hooks()["handle_error"])

    assert [span.name for span in telemetry.spans] == ["SELECT", "SELECT users"]


def _hooks() -> dict[str, object]:
    return dict(sqlalchemy_events.HOOKS)


def test_all_engines_old_and_new(telemetry: Telemetry, engine: sa.Engine) -> None:
    """`instrument("sqlalchemy")` measures open connections, existing engines and later ones, until it is undone."""
    with engine.connect() as old:
        handle = instrument("sqlalchemy")
        old.execute(sa.text("SELECT 1"))
        later = sa.create_engine("sqlite://")
        with later.connect() as new:
            new.execute(sa.text("SELECT 2"))
            handle.undo()
            new.execute(sa.text("SELECT 3"))
        later.dispose()

    assert len(telemetry.spans) == 2


def test_twice_counts_once_and_the_last_undo_counts(telemetry: Telemetry, engine: sa.Engine) -> None:
    """An engine, the same engine again, its options and the whole library: one operation for one query."""
    first, second = instrument(engine), instrument(engine)
    third, fourth = instrument("sqlalchemy"), instrument(engine.execution_options(tag="x"))
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        assert len(telemetry.spans) == 1
        for handle in (first, third, fourth, first):
            handle.undo()
        connection.execute(sa.text("SELECT 2"))
        assert len(telemetry.spans) == 2
        second.undo()
        connection.execute(sa.text("SELECT 3"))
    assert len(telemetry.spans) == 2
    for name, hook in _hooks().items():
        assert not event.contains(engine, name, hook)
        assert not event.contains(sa.Engine, name, hook)


def test_within_measure_query_nothing_is_counted_twice(telemetry: Telemetry, engine: sa.Engine) -> None:
    """The outermost query measures."""
    with instrument(engine), engine.connect() as connection, measure.query("find", collection="users"):
        connection.execute(sa.text("SELECT 1"))

    assert [span.name for span in telemetry.spans] == ["find users"]


def test_the_query_is_current_for_the_driver(telemetry: Telemetry, engine: sa.Engine) -> None:
    """While the driver works, the operation and its span are current."""
    seen: list[str | None] = []

    with instrument(engine), engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None

        def look() -> int:
            current = operation.current()
            seen.append(current.name if current else None)
            return 1

        raw.create_function("look", 0, look)
        connection.execute(sa.text("SELECT look()"))
        raw.create_function("look", 0, None)

    assert seen == ["SELECT"]


@pytest.mark.parametrize("whole", [False, True])
def test_a_cancelled_query_is_ended(telemetry: Telemetry, tmp_path: Path, whole: bool) -> None:
    """A task cancelled in the middle of a query leaves no operation current, here or in the task."""

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
        async with engine.connect() as connection:
            after: list[object] = []

            async def work() -> None:
                try:
                    await connection.execute(sa.text(_SLOW))
                finally:
                    after.append(operation.current())

            task = asyncio.create_task(work())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert after == [None]
        await engine.dispose()

    with instrument("sqlalchemy"):
        asyncio.run(main())
    gc.collect()
    assert [(span.attributes or {})["error.type"] for span in telemetry.spans] == ["asyncio.exceptions.CancelledError"]
    assert telemetry.points("db.client.operation.duration")[0].count == 1


def test_many_tasks_at_once_keep_their_parents(telemetry: Telemetry, tmp_path: Path) -> None:
    """Concurrent queries of one async engine are children of the step of their own task."""

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")

        async def work(n: int) -> None:
            with measure(f"step {n}"):
                async with engine.connect() as connection:
                    await connection.execute(sa.text(f"SELECT 1 AS a{n}"))

        with instrument(engine):
            await asyncio.gather(*(work(n) for n in range(8)))
        await engine.dispose()

    asyncio.run(main())
    steps = {span.context.span_id: span.name for span in telemetry.spans if span.name.startswith("step")}
    queries = [span for span in telemetry.spans if span.name == "SELECT"]
    assert len(queries) == 8
    assert {steps[span.parent.span_id] for span in queries if span.parent} == {f"step {n}" for n in range(8)}


def test_pool_gauges(telemetry: Telemetry, tmp_path: Path) -> None:
    """Idle and used connections and the limit of a pool, also after a second `configure()`."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'app.db'}", pool_size=3, max_overflow=2)
    with instrument(engine):
        first, second = engine.connect(), engine.connect()
        second.close()
        for _ in range(2):
            count = {
                point.attributes["db.client.connection.state"]: point.value
                for point in telemetry.points("db.client.connection.count")
            }
            assert count == {"idle": 1, "used": 1}
            (limit,) = telemetry.points("db.client.connection.max")
            assert limit.value == 5
            assert dict(limit.attributes) == {"db.client.connection.pool.name": "sqlite/app.db"}
            telemetry.restart()
        first.close()
    assert not telemetry.points("db.client.connection.count")
    engine.dispose()


def test_hostile_statements(telemetry: Telemetry, engine: sa.Engine) -> None:
    """Empty, huge and broken statements are measured or left alone, and fail as they would without us."""
    hostile = ["SELEC", "\x00\x1b[31m", "SELECT '" + "x" * 100_000 + "'", "Q" * 5000, "/* unclosed"]
    with instrument(engine), engine.connect() as connection:
        for statement in hostile:
            with contextlib.suppress(sa.exc.StatementError, ValueError):
                connection.exec_driver_sql(statement)
            connection.rollback()

    assert len(telemetry.spans) == len(hostile)
    for span in telemetry.spans:
        assert all(len(value) <= 2048 for value in (span.attributes or {}).values() if isinstance(value, str))
        assert "\x1b" not in span.name


def test_postgresql_sync(telemetry: Telemetry, postgresql_server: object) -> None:
    """Through psycopg on a real PostgreSQL: server, database, rows, SQLSTATE, and no value of a unique violation."""
    engine = sa.create_engine(postgresql_server.sync_url)
    with instrument(engine), engine.begin() as connection:
        connection.execute(sa.text("CREATE TEMPORARY TABLE people (name text UNIQUE)"))
        connection.execute(sa.text("INSERT INTO people VALUES ('a'), ('b')"))
        connection.execute(sa.text("SELECT * FROM people")).all()
        with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(sa.text("INSERT INTO people VALUES (:name)"), {"name": "b"})
        with pytest.raises(sa.exc.ProgrammingError), connection.begin_nested():
            connection.execute(sa.text("SELECT * FROM nowhere"))
    engine.dispose()

    span = telemetry.span("SELECT people")
    attributes = dict(span.attributes or {})
    assert attributes["db.system.name"] == "postgresql"
    assert attributes["db.namespace"] == "otel_perf"
    assert (attributes["server.address"], attributes["server.port"]) == ("127.0.0.1", postgresql_server.port)
    assert attributes["db.response.returned_rows"] == 2
    inserts = [span for span in telemetry.spans if span.name == "INSERT people"]
    assert "db.response.returned_rows" not in (inserts[0].attributes or {})
    failed = dict(inserts[1].attributes or {})
    assert failed["error.type"] == "psycopg.errors.UniqueViolation"
    assert failed["db.response.status_code"] == "23505"
    assert "Key (" not in inserts[1].to_json()
    assert telemetry.points("db.client.operation.duration", error__type="psycopg.errors.UndefinedTable")


def test_postgresql_async_with_cancel(telemetry: Telemetry, postgresql_server: object) -> None:
    """Through asyncpg on a real PostgreSQL: an error, a cancelled `pg_sleep`, and the pool goes on working."""

    async def main() -> None:
        engine = create_async_engine(postgresql_server.url)
        with instrument(engine):
            async with engine.connect() as connection:
                with pytest.raises(sa.exc.DBAPIError):
                    await connection.execute(sa.text("SELECT CAST(:n AS integer)"), {"n": "secret-text"})
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(_run(engine, "SELECT pg_sleep(30)"), 0.2)
            assert operation.current() is None
            await _run(engine, "SELECT 1 AS one")
        await engine.dispose()

    asyncio.run(main())
    errors = [(span.attributes or {}).get("error.type") for span in telemetry.spans if "CAST" in _text(span)]
    assert errors[0] == "asyncpg.exceptions.DataError"
    assert not any("secret" in span.to_json() for span in telemetry.spans)
    (slept,) = (span for span in telemetry.spans if "pg_sleep" in _text(span))
    assert (slept.attributes or {})["error.type"] == "asyncio.exceptions.CancelledError"
    assert any("AS one" in _text(span) for span in telemetry.spans)


async def _run(engine: object, statement: str) -> None:
    async with engine.connect() as connection:
        await connection.execute(sa.text(statement))


def _text(span: object) -> str:
    return (span.attributes or {}).get("db.query.text", "")
