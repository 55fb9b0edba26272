"""What the questions of the service cost in SQL: each finds its index, and a write takes few statements."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event, insert, text

from examples.streak.records import Activity, Range
from examples.streak.stores import Database, open_database, tables

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True),
]

NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = date(2026, 3, 4)
DAY = timedelta(days=1)
USER = "u00001"


@pytest.fixture
async def filled(database_url: str) -> AsyncIterator[Database]:
    """A database with enough rows for an index to be worth it."""
    opened = open_database(database_url)
    await opened.prepare()
    users = [
        {
            "id": f"u{number:05}",
            "joined_on": TODAY,
            "streak": number % 7 if number % 2 else 0,
            "last_active": TODAY - DAY * (number % 40),
            "held_until": TODAY - DAY * (number % 3),
            "xp": number,
        }
        for number in range(3_000)
    ]
    entries = [
        {
            "id": f"{number:032x}",
            "user_id": f"u{number % 50:05}",
            "day": TODAY - DAY * (number % 400),
            "at": NOON,
            "category": ("learn", "move", "create", "connect")[number // 50 % 4],
            "minutes": 1,
            "xp": 11,
            "bonus_xp": 0,
        }
        for number in range(10_000)
    ]
    runs = [
        {
            "id": f"{number:032x}",
            "day": TODAY - DAY * number,
            "trigger": "cli",
            "state": "completed",
            "started_at": NOON,
        }
        for number in range(1_000)
    ]
    counts = dict.fromkeys(("processed", "freezes_spent", "missed", "freezes_exhausted", "at_risk", "notified"), 1)
    batches = [
        {
            "run_id": run["id"],
            "after": f"u{number:05}",
            "until": f"u{number + 1:05}",
            "messages": None if number else "[]",
            "changed": "[]",
            **counts,
        }
        for run in runs
        for number in range(10)
    ]
    async with opened.measured[0].begin() as connection:
        await connection.execute(insert(tables.users), users)
        await connection.execute(insert(tables.activities), entries)
        await connection.execute(insert(tables.runs), runs)
        await connection.execute(insert(tables.batches), batches)
        await connection.execute(text("ANALYZE"))
    yield opened
    await opened.close()


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """The statements that are sent, with the beginning and the end of transactions; reads have none."""
    seen: list[str] = []
    writer = database.measured[0].writer.sync_engine

    def see(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement.split(maxsplit=1)[0])

    def see_control(name: str, conn: Any) -> None:
        if conn.engine is writer:
            seen.append(name)

    listeners: list[tuple[Any, str, Any]] = [
        (engine.sync_engine, "before_cursor_execute", see) for engine in database.measured
    ]
    listeners += [(writer, name, partial(see_control, name.upper())) for name in ("begin", "commit", "rollback")]
    for listener in listeners:
        event.listen(*listener)
    yield seen
    for listener in listeners:
        event.remove(*listener)


@contextmanager
def explained(database: Database) -> Iterator[list[str]]:
    """The plans of the queries that are sent; what they return is their plan."""
    engine = database.measured[0].sync_engine
    how = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    plans: list[str] = []

    def explain(_conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        cursor.execute(how + statement, parameters)
        plans.append("\n".join(str(row[-1]) for row in cursor.fetchall()))
        return statement, parameters

    event.listen(engine, "before_cursor_execute", explain, retval=True)
    yield plans
    event.remove(engine, "before_cursor_execute", explain)


async def test_each_question_finds_its_index(filled: Database) -> None:
    """Pages, the calendar, the boards and who is due are found by an index made for them; no table is read whole."""
    store, runs = filled.store, filled.runs
    old = "f" * 32
    questions = (
        (store.activities(USER, limit=20), "ix_streak_activities_page"),
        (store.activities(USER, limit=20, before=old), "ix_streak_activities_page"),
        (store.activities(USER, limit=20, category="learn"), "ix_streak_activities_category"),
        (store.activities(USER, limit=20, category="learn", before=old), "ix_streak_activities_category"),
        (store.calendar(USER, TODAY - DAY * 30, TODAY), "ix_streak_activities_calendar"),
        (store.leaderboard(10, TODAY), "ix_streak_users_board"),
        (store.most_active(10), "ix_streak_users_active"),
        (runs.due(TODAY, after="u00100", until=None, limit=100), "ix_streak_users_due"),
    )
    for question, index in questions:
        with explained(filled) as plans:
            assert await question
        assert len(plans) == 1
        assert index in plans[0], plans[0]
        assert "SCAN streak" not in plans[0]
        assert "Seq Scan" not in plans[0]


async def test_the_runs_find_their_index(filled: Database) -> None:
    """What is done or unsent of a run, and the newest runs with their sums, are found without reading a table whole."""
    runs = filled.runs
    run_id = f"{500:032x}"
    of_its_key = ("streak_runs_pkey", "sqlite_autoindex_streak_runs_1")
    for question, indexes in (
        (runs.unsent(run_id, 10), ("streak_batches_pkey", "sqlite_autoindex_streak_batches_1")),
        (runs.done(run_id), ("streak_batches_pkey", "sqlite_autoindex_streak_batches_1")),
        (runs.last_of(TODAY - DAY * 500), ("ix_streak_runs_day",)),
        (runs.history(5), of_its_key),
        (runs.history(5, before=run_id), of_its_key),
    ):
        with explained(filled) as plans:
            assert await question
        assert len(plans) == 1
        assert any(index in plans[0] for index in indexes), plans[0]
        assert "Seq Scan" not in plans[0], plans[0]
        assert "SCAN streak_batches" not in plans[0], plans[0]


async def test_a_range_is_found_by_its_names(filled: Database) -> None:
    """Settling reads the users of its range only, whichever index of names is the better."""
    with explained(filled) as plans:
        batch = await filled.runs.settle("", Range("u00100", "u00300"), TODAY, dry_run=True)
    assert batch.tally.processed > 50
    assert len(plans) == 2
    for plan in plans:
        assert "ix_streak_users_due" in plan or "streak_users_pkey" in plan
        assert "Seq Scan" not in plan


async def test_a_write_takes_three_statements(filled: Database) -> None:
    """An activity is a read that locks, an update and an insert, with a client key too; a read is one statement."""
    begin = ["BEGIN"]
    for key in (None, "k"):
        with statements(filled) as seen:
            await filled.store.log_activity(USER, Activity("learn", 5, client_key=key), NOON)
        assert seen == [*begin, "SELECT", "UPDATE", "INSERT", "COMMIT"]
    with statements(filled) as seen:
        await filled.store.log_activity(USER, Activity("learn", 5, client_key="k"), NOON)
    assert seen == [*begin, "SELECT", "UPDATE", "INSERT", "ROLLBACK", "SELECT"]
    with statements(filled) as seen:
        await filled.store.activities(USER, limit=20)
        await filled.store.profile(USER)
    assert seen == ["SELECT", "SELECT"]


async def test_a_batch_takes_five_statements(filled: Database) -> None:
    """A batch is two reads, one update for all who need it, a lock, and its record, however many users it has."""
    run = await filled.runs.begin(TODAY, "cli", NOON)
    await filled.runs.lease("a", NOON, 60)
    with statements(filled) as seen:
        batch = await filled.runs.settle(run.id, Range("", "u00500"), TODAY, holder="a")
    assert len(batch.changed) > 50
    assert seen == ["BEGIN", "SELECT", "SELECT", "UPDATE", "SELECT", "INSERT", "COMMIT"]
