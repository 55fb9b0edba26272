"""The versions of the tables: what Alembic makes is what the service works with, up, down, and by several at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Date, bindparam, inspect, text

from examples.streak import migrate as command
from examples.streak.stores import open_database, sql_versions, tables
from examples.streak.stores.sql_session import SqlSession, make_engine
from examples.streak.stores.sql_versions import VERSION_TABLE, VersionError, current_version, migrate

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True),
]

ROOT = Path(__file__).resolve().parents[2]
HEAD = "0002"


@pytest.fixture
async def session(database_url: str) -> AsyncIterator[SqlSession]:
    """A database without any table."""
    engine = make_engine(database_url)
    yield SqlSession(engine)
    await engine.dispose()


def plain(url: str) -> str:
    """The address as an operator writes it."""
    return url.replace("+aiosqlite", "").replace("+asyncpg", "")


async def table_names(session: SqlSession) -> set[str]:
    async with session.engine.connect() as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))


async def test_the_versions_lead_to_the_tables_of_today(session: SqlSession) -> None:
    """Nothing differs between what the versions make and what the code declares: no column, type, or index."""

    def differences(connection: Connection) -> list[object]:
        options = {"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata))

    assert await migrate(session, "head") == (None, HEAD)
    async with session.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
        await connection.execute(text("DROP INDEX ix_streak_users_due"))
        assert await connection.run_sync(differences) != []  # the comparison does see one


async def test_down_and_up_again(session: SqlSession) -> None:
    """The way down leaves no table; the way up again makes all of them; being there already does nothing."""
    assert await current_version(session.engine) is None
    assert await migrate(session, "head") == (None, HEAD)
    assert await migrate(session, "head") == (HEAD, HEAD)
    assert await table_names(session) == {*tables.metadata.tables, VERSION_TABLE}
    assert await migrate(session, "base") == (HEAD, None)
    assert await table_names(session) == {VERSION_TABLE}
    assert await migrate(session, HEAD) == (None, HEAD)
    assert await current_version(session.engine) == HEAD


async def test_rows_survive_the_second_version(session: SqlSession, database_url: str) -> None:
    """Users of the first version are there in the second, and live on in it; the way back keeps them as well."""
    assert await migrate(session, "0001") == (None, "0001")
    row = {
        "id": "ada", "streak": 8, "longest": 9, "freezes": 1, "freezes_earned": 1, "freezes_used": 0,
        "last_active": date(2026, 3, 3), "held_until": date(2026, 3, 3), "week": date(2026, 3, 2), "done": "learn",
        "bonus": False, "xp": 240, "lost_streak": 0, "joined_on": date(2026, 2, 1),
    }  # fmt: skip
    written = ", ".join(row), ", ".join(f":{name}" for name in row)
    insert = text(f"INSERT INTO streak_users ({written[0]}) VALUES ({written[1]})")
    dates = [bindparam(name, type_=Date) for name, value in row.items() if isinstance(value, date)]
    async with session.engine.begin() as connection:
        await connection.execute(insert.bindparams(*dates), row)

    async def kept() -> tuple[object, ...]:
        async with session.engine.connect() as connection:
            query = "SELECT id, streak, freezes, done, xp, held_until FROM streak_users"
            (found,) = (await connection.execute(text(query).columns(held_until=Date))).all()
            return tuple(found)

    before = await kept()
    assert before == ("ada", 8, 1, "learn", 240, date(2026, 3, 3))
    assert await migrate(session, "0002") == ("0001", "0002")
    assert await kept() == before
    database = open_database(database_url)
    try:
        await database.prepare()
        assert (await database.store.state("ada")).missed_on is None
        applied = await database.store.apply_freeze("ada", date(2026, 3, 4))
        assert applied.applied
        assert await database.store.state("ada") == applied.state
    finally:
        await database.close()
    assert await migrate(session, "0001") == ("0002", "0001")
    assert await kept() == ("ada", 8, 0, "learn", 240, date(2026, 3, 4))
    assert await migrate(session, "head") == ("0001", "0002")


async def test_a_version_that_fails_half_way_leaves_nothing(
    session: SqlSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making the tables is one transaction: what fails half-way is taken back, and works the next time."""

    def fail(*_: object) -> str | None:
        raise RuntimeError("the plug was pulled")

    def pull(_: object) -> None:
        patched.setattr(sql_versions, "_version_of", fail)

    with monkeypatch.context() as patched:
        patched.setattr(sql_versions, "_require_no_older_tables", pull)
        with pytest.raises(RuntimeError, match="plug"):
            await migrate(session, "head")
    assert await table_names(session) == set()
    assert await migrate(session, "head") == (None, HEAD)


async def test_tables_of_an_older_example(session: SqlSession, database_url: str) -> None:
    """A database whose tables have no version is left alone, and the error says what to do."""
    async with session.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE streak_users (id VARCHAR(32) PRIMARY KEY)"))
    database = open_database(database_url)
    try:
        with pytest.raises(VersionError, match=r"streak_users of an earlier example.*drop these tables"):
            await database.prepare()
    finally:
        await database.close()
    assert await table_names(session) == {"streak_users"}


async def test_a_newer_service_has_been_here(session: SqlSession, database_url: str) -> None:
    """Tables of a version that is unknown here are left alone, with a word on who made them."""
    await migrate(session, "head")
    async with session.engine.begin() as connection:
        await connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    database = open_database(database_url)
    try:
        with pytest.raises(VersionError, match="a newer version of this service"):
            await database.prepare()
    finally:
        await database.close()


async def test_preparing_again_takes_no_lock(session: SqlSession, database_url: str) -> None:
    """Who starts while somebody writes does not wait when the tables are of this version."""
    await migrate(session, "head")
    database = open_database(database_url)
    async with session.engine.begin() as connection:
        if not session.sqlite:
            await connection.execute(text("SELECT pg_advisory_xact_lock(724115)"))
        await database.prepare()
    await database.close()


def test_the_command(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It tells the version, goes up and down, and says what it did."""
    monkeypatch.setenv("DATABASE_URL", plain(database_url))
    for arguments, told in (
        (["--current"], "no tables yet"),
        ([], f"nothing -> {HEAD}"),
        ([], f"{HEAD} already"),
        (["--current"], HEAD),
        (["--to", "base", "--yes"], f"{HEAD} -> nothing"),
        (["--to", HEAD], f"nothing -> {HEAD}"),
    ):
        assert command.main(arguments) == 0
        assert capsys.readouterr().out.strip() == told
    assert command.main(["--to", "0042"]) == 2
    assert "0042" in capsys.readouterr().err


async def test_the_sql_on_paper_makes_the_tables(
    session: SqlSession, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `--sql` prints touches nothing, and does the same when somebody runs it."""
    monkeypatch.setenv("DATABASE_URL", plain(database_url))
    assert command.main(["--sql"]) == 0
    script = capsys.readouterr().out
    assert await table_names(session) == set()
    lines = "\n".join(line for line in script.splitlines() if not line.startswith("--"))
    statements = [each.strip() for each in lines.split(";")]
    async with session.engine.begin() as connection:
        for statement in statements:
            if statement and statement not in ("BEGIN", "COMMIT"):
                await connection.exec_driver_sql(statement)
    assert await table_names(session) == {*tables.metadata.tables, VERSION_TABLE}
    assert await current_version(session.engine) == HEAD


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("", "DATABASE_URL is not set"),
        ("firestore://project/(default)", "no tables to migrate"),
        ("mysql://secret@host/x", "use sqlite:///"),
    ],
)
def test_what_cannot_be_migrated(
    database_url: str, address: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a SQL database the command says what it wants, and repeats no address."""
    monkeypatch.setenv("DATABASE_URL", address)
    assert command.main([]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert "secret" not in err


def test_the_help_teaches(database_url: str) -> None:
    """`--help` says when the command is needed, with an example of each use."""
    run = [sys.executable, "-m", "examples.streak.migrate", "--help"]
    told = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for word in ("--current", "--sql >", "--to 0001", "as it starts", "wait for each other"):
        assert word in told
