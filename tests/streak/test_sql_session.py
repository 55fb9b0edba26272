"""Transactions that fail in passing are begun anew, and counted; what was committed is not done twice."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from datetime import date, datetime, timezone
from typing import Any

import pytest
from sqlalchemy import text

import otel_perf
from examples.streak.records import Activity
from examples.streak.stores import Database, StoreBusyError, StoreUnavailableError, open_database, sql_session
from examples.streak.stores.sql_session import SqlSession, make_engine
from tests.conftest import Telemetry

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = date(2026, 3, 4)
BOTH = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
async def session(database_url: str) -> AsyncIterator[SqlSession]:
    """A session on an empty database."""
    engine = make_engine(database_url)
    yield SqlSession(engine)
    await engine.dispose()


def counted(telemetry: Telemetry, name: str) -> dict[str, int]:
    return {str(point.attributes["operation"]): point.value for point in telemetry.points(name)}


@BOTH
async def test_what_fails_in_passing_is_begun_anew(session: SqlSession, telemetry: Telemetry) -> None:
    """Two failures that pass are two retries and no failure; the work of each attempt is taken back."""
    tries = 0

    async def work(connection: Any) -> int:
        nonlocal tries
        tries += 1
        await connection.exec_driver_sql(f"CREATE TABLE once_{tries} (x INTEGER)")
        if tries < 3:
            raise ConnectionResetError("gone")
        return tries

    assert await session.write("op", work) == 3
    assert counted(telemetry, "streak.transaction.retries") == {"op": 2}
    assert telemetry.points("streak.transaction.failures") == []
    with pytest.raises(Exception, match=r"(?i)no such table|does not exist"):
        async with session.engine.connect() as connection:
            await connection.execute(text("SELECT * FROM once_1"))


@BOTH
async def test_what_does_not_pass_is_given_up(session: SqlSession, telemetry: Telemetry) -> None:
    """A few attempts, and then the failure; an error that will not pass is not tried again."""
    tries: list[str] = []

    async def lost(_: Any) -> None:
        tries.append("lost")
        raise ConnectionResetError("gone")

    async def wrong(_: Any) -> None:
        tries.append("wrong")
        raise ValueError("no")

    with pytest.raises(StoreUnavailableError, match="ConnectionResetError"):
        await session.write("lost", lost)
    with pytest.raises(ValueError, match="no"):
        await session.write("wrong", wrong)
    assert tries == ["lost"] * sql_session.ATTEMPTS + ["wrong"]
    assert counted(telemetry, "streak.transaction.retries") == {"lost": sql_session.ATTEMPTS - 1}
    assert counted(telemetry, "streak.transaction.failures") == {"lost": 1, "wrong": 1}


@BOTH
async def test_a_lost_answer_to_a_commit_logs_once(
    database: Database, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nobody knows whether the commit was done, and it was, the second attempt finds out."""
    dialect = database.measured[0].writer.sync_engine.dialect
    commit = dialect.do_commit
    answers = iter([True])

    def lose(connection: Any) -> None:
        commit(connection)
        if next(answers, False):
            raise ConnectionResetError("the answer is lost")

    monkeypatch.setattr(dialect, "do_commit", lose)
    receipt = await database.store.log_activity("ada", Activity("learn", 10), NOON)
    assert receipt.logged is not None
    assert await database.store.activities("ada", limit=10) == [receipt.entry]
    assert await database.store.state("ada") == receipt.state
    assert counted(telemetry, "streak.transaction.retries") == {"log_activity": 1}


@BOTH
async def test_a_commit_that_fails_leaves_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that was not done is done by the next attempt, and no transaction is left open behind it."""
    dialect = database.measured[0].writer.sync_engine.dialect
    commit = dialect.do_commit
    refusals = iter([True])

    def refuse(connection: Any) -> None:
        if next(refusals, False):
            raise ConnectionResetError("nothing was committed")
        commit(connection)

    monkeypatch.setattr(dialect, "do_commit", refuse)
    receipt = await database.store.log_activity("ada", Activity("learn", 10), NOON)
    assert receipt.logged is not None
    assert await database.store.activities("ada", limit=10) == [receipt.entry]


@BOTH
async def test_the_engine_begins_real_transactions(session: SqlSession) -> None:
    """What is raised within `begin` takes all of it back, although the engine's reads have no transactions."""
    async with session.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE kept (x INTEGER)"))
    with contextlib.suppress(ZeroDivisionError):
        async with session.engine.begin() as connection:
            await connection.execute(text("INSERT INTO kept VALUES (1)"))
            raise ZeroDivisionError
    async with session.engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM kept"))).scalar_one() == 0


@BOTH
async def test_a_cancelled_write_leaves_nothing(session: SqlSession) -> None:
    """Whoever is cancelled in the middle of a transaction holds nothing up, and nothing of it stays."""
    async with session.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE kept (x INTEGER)"))
    began = asyncio.Event()

    async def work(connection: Any) -> None:
        await connection.execute(text("INSERT INTO kept VALUES (1)"))
        began.set()
        await asyncio.sleep(3_600)

    writing = asyncio.create_task(session.write("op", work))
    await began.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    async with session.engine.begin() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM kept"))).scalar_one() == 0


@BOTH
async def test_transactions_are_measured(database: Database, telemetry: Telemetry) -> None:
    """Each write is one transaction with its outcome, a read is none, and all statements have their spans."""
    with contextlib.ExitStack() as undone:
        for engine in database.measured:
            undone.callback(otel_perf.instrument(engine).undo)
        await database.store.log_activity("ada", Activity("learn", 10, client_key="k"), NOON)
        await database.store.log_activity("ada", Activity("learn", 10, client_key="k"), NOON)
        await database.store.profile("ada")
    points = telemetry.points("db.client.transaction.duration")
    assert {point.attributes["db.transaction.outcome"]: point.count for point in points} == {"commit": 1, "rollback": 1}
    writes = ["SELECT", "UPDATE", "INSERT"]
    expected = [*writes[:1], "INSERT", *writes, *writes, "SELECT", "SELECT"]
    names = [span.name.split()[0] for span in telemetry.spans if "db.system.name" in (span.attributes or {})]
    assert names == expected


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_connection_that_the_server_ended(database: Database, session: SqlSession) -> None:
    """A pool whose connections all broke is no failure for anybody."""
    await asyncio.gather(*(database.store.ping() for _ in range(3)))
    async with session.engine.connect() as connection:
        await connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    assert (await database.store.log_activity("ada", Activity("learn", 1), NOON)).logged is not None
    assert await database.store.profile("ada") is not None


@BOTH
async def test_nobody_waits_for_a_lock_for_ever(
    database_url: str, session: SqlSession, monkeypatch: pytest.MonkeyPatch, telemetry: Telemetry
) -> None:
    """Who cannot have a lock in time tries again, and then gives up; the next one succeeds once it is free."""
    monkeypatch.setattr(sql_session, "_LOCK_TIMEOUT_S", 0.1 if session.sqlite else "0.1")
    database = open_database(database_url)
    await database.prepare()
    await database.store.log_activity("ada", Activity("learn", 1), NOON)
    async with session.engine.begin() as connection:
        await connection.execute(text("UPDATE streak_users SET xp = 5"))
        with pytest.raises(StoreBusyError) as busy:
            await database.store.apply_freeze("ada", TODAY)
    assert re.search(r"(?i)locked|lock timeout", str(busy.value.__cause__))
    assert counted(telemetry, "streak.transaction.retries")["apply_freeze"] == sql_session.ATTEMPTS - 1
    assert (await database.store.apply_freeze("ada", TODAY)).refusal == "day_is_held"
    await database.close()
