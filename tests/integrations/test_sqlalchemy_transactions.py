"""Transactions of SQLAlchemy on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from otel_perf import instrument
from otel_perf.telemetry import operation
from tests.conftest import Telemetry


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    """A database in a file with one table."""
    made = sa.create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    with made.begin() as connection:
        connection.execute(sa.text("CREATE TABLE a (x INTEGER UNIQUE)"))
    yield made
    made.dispose()


def _fail(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO a VALUES (3)"))
        raise LookupError


def _fail_late(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TEMPORARY TABLE late (x integer UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
        connection.execute(sa.text("INSERT INTO late VALUES (1), (1)"))


def _ended(telemetry: Telemetry) -> list[tuple[str, str | None]]:
    """The outcomes of all transactions, each with its error."""
    points = telemetry.points("db.client.transaction.duration")
    found = [(each.attributes["db.transaction.outcome"], each.attributes.get("error.type")) for each in points]
    return sorted((one for one, each in zip(found, points, strict=True) for _ in range(each.count)), key=str)


def test_commit_and_rollback(telemetry: Telemetry, engine: sa.Engine) -> None:
    """A transaction is counted once, by how it ends; a session that only reads ends with a rollback."""
    with instrument(engine):
        with engine.begin() as connection:
            connection.execute(sa.text("INSERT INTO a VALUES (1)"))
            connection.execute(sa.text("INSERT INTO a VALUES (2)"))
        assert _ended(telemetry) == [("commit", None)]
        with pytest.raises(LookupError):
            _fail(engine)
        with Session(engine) as session:
            session.execute(sa.text("SELECT * FROM a"))
    assert _ended(telemetry) == [("commit", None), ("rollback", None), ("rollback", None)]
    (point,) = telemetry.points("db.client.transaction.duration", db__transaction__outcome="commit")
    assert dict(point.attributes) == {
        "db.system.name": "sqlite", "db.namespace": "app.db", "db.transaction.outcome": "commit"
    }  # fmt: skip
    assert {span.name for span in telemetry.spans} == {"INSERT a", "SELECT a"}


def test_the_error_of_a_rollback_is_that_of_its_last_statement(telemetry: Telemetry, engine: sa.Engine) -> None:
    """An error that a savepoint made good is not the reason of a later rollback."""
    with instrument(engine), engine.connect() as connection:
        connection.execute(sa.text("INSERT INTO a VALUES (1)"))
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(sa.text("INSERT INTO a VALUES (1)"))
        connection.rollback()
        connection.execute(sa.text("INSERT INTO a VALUES (1)"))
        with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(sa.text("INSERT INTO a VALUES (1)"))
        connection.execute(sa.text("SELECT 1"))
        connection.rollback()
    assert _ended(telemetry) == [("rollback", "sqlite3.IntegrityError"), ("rollback", None)]


def test_nothing_is_no_transaction(telemetry: Telemetry, engine: sa.Engine) -> None:
    """An empty block sends nothing, and with autocommit there is no transaction."""
    with instrument(engine):
        with engine.begin():
            pass
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("INSERT INTO a VALUES (1)"))
            connection.commit()
        auto = engine.execution_options(isolation_level="AUTOCOMMIT")
        with auto.begin() as connection:
            connection.execute(sa.text("INSERT INTO a VALUES (2)"))
    assert not _ended(telemetry)
    assert len(telemetry.spans) == 2


def test_the_documented_way_to_begin_by_hand(telemetry: Telemetry, engine: sa.Engine) -> None:
    """A BEGIN that the application sends at SQLAlchemy's event is counted once, with the driver measured as well."""
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    sa.event.listen(engine, "connect", lambda raw, _: setattr(raw, "isolation_level", None))
    engine.dispose()
    with instrument("sqlite3"), instrument(engine), engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO a VALUES (1)"))
    assert _ended(telemetry) == [("commit", None)]
    assert [span.name for span in telemetry.spans] == ["INSERT a"]
    assert operation.current() is None


def test_undone_in_the_middle(telemetry: Telemetry, engine: sa.Engine) -> None:
    """What is undone within a transaction counts it no more, and wraps nothing any more."""
    before = sa.Connection._commit_impl
    with engine.begin() as connection:
        with instrument(engine):
            connection.execute(sa.text("INSERT INTO a VALUES (1)"))
            assert sa.Connection._commit_impl is not before
        assert sa.Connection._commit_impl is before
    assert not _ended(telemetry)


def test_a_commit_that_fails_and_two_phases(telemetry: Telemetry, postgresql_server: Any) -> None:
    """What only the COMMIT finds out is its error, by the driver's type; two phases are one transaction."""
    engine = sa.create_engine(postgresql_server.sync_url)
    with instrument(engine):
        with pytest.raises(sa.exc.IntegrityError):
            _fail_late(engine)
        assert _ended(telemetry) == [("commit", "psycopg.errors.UniqueViolation")]
        with engine.connect() as connection:
            prepared = connection.scalar(sa.text("SHOW max_prepared_transactions")) != "0"
            connection.commit()
            phases = connection.begin_twophase()
            connection.execute(sa.text("SELECT 1"))
            phases.rollback()
            if prepared:
                phases = connection.begin_twophase()
                connection.execute(sa.text("SELECT 1"))
                phases.prepare()
                phases.commit()
    engine.dispose()
    ended = _ended(telemetry)
    assert ended.count(("rollback", None)) == 1
    assert ended.count(("commit", None)) == 1 + prepared


def test_a_cancelled_session(telemetry: Telemetry, postgresql_server: Any) -> None:
    """A session that is cancelled in a query ends with a rollback, and one that commits with a commit."""

    async def main() -> None:
        engine = create_async_engine(postgresql_server.url)

        async def work(statement: str) -> None:
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(sa.text(statement))

        with instrument(engine):
            await work("SELECT 1")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(work("SELECT pg_sleep(30)"), 0.1)
        await engine.dispose()

    asyncio.run(main())
    # SQLAlchemy drops a connection whose query was cancelled, and with it the transaction.
    assert ("commit", None) in _ended(telemetry)
    assert {error for outcome, error in _ended(telemetry) if outcome == "rollback"} <= {
        "asyncio.exceptions.CancelledError"
    }


def test_what_sqlalchemy_asks_for_itself_is_none_of_ours(telemetry, postgresql_server):
    """When an engine first connects SQLAlchemy looks at the server: of the application's there is one query."""
    engine = sa.create_engine(postgresql_server.sync_url)
    with instrument(engine), engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT 42").scalar() == 42
    engine.dispose()
    assert [span.name for span in telemetry.spans] == ["SELECT"]
