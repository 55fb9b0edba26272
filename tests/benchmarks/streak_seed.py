"""Fills a database of the streak service in bulk: lived through by its rules, 100,000 users would take minutes."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time, timedelta, timezone
from typing import Any
from urllib.parse import urlsplit

from examples.streak import rules
from examples.streak.records import new_id
from examples.streak.stores import open_database

__all__ = ["expected", "query", "readers", "seed", "settled_users"]

_DAYS_BACK = 12
_AT_ONCE = 5_000

_USER = (
    "id", "streak", "longest", "freezes", "freezes_earned", "freezes_used", "last_active", "held_until", "week",
    "done", "bonus", "xp", "lost_streak", "lost_on", "joined_on",
)  # fmt: skip
_ACTIVITY = ("id", "user_id", "day", "at", "category", "minutes", "note", "xp", "bonus_xp", "client_key")

Rows = Iterable[tuple[Any, ...]]


def readers(today: date, *, hot: int, cold: int) -> tuple[Rows, Rows]:
    """Users with some days behind them: those whom the load's users are, and those whom nobody asked for lately."""
    names = [f"load-{n:03}" for n in range(hot)] + [f"cold-{n:05}" for n in range(cold)]
    yesterday = today - timedelta(days=1)
    users = (_user(name, 12, 1, yesterday, today) for name in names)
    return users, (row for name in names for row in _activities(name, today))


def _activities(name: str, today: date) -> Iterator[tuple[Any, ...]]:
    for back in range(_DAYS_BACK, 0, -1):
        day = today - timedelta(days=back)
        at = datetime.combine(day, time(12), timezone.utc)
        yield (new_id(at), name, day, at, rules.CATEGORIES[back % 4], 20, None, 30, 0, None)


def _user(name: str, streak: int, freezes: int, held_until: date, today: date) -> tuple[Any, ...]:
    earned = streak // rules.DAYS_PER_FREEZE
    return (
        name, streak, streak, freezes, max(earned, freezes), max(earned, freezes) - freezes, held_until, held_until,
        rules.week_of(held_until), "learn", False, streak * 30, 0, None, today - timedelta(days=streak + 2),
    )  # fmt: skip


def settled_users(count: int, today: date) -> Rows:
    """Users whom the maintenance of today has to look at, half of whom missed a day: a freeze goes, or the streak."""
    for n in range(count):
        back = 1 + n % 2
        yield _user(f"user-{n:06}", 5 + n % 20, n // 2 % 2, today - timedelta(days=back), today)


def expected(count: int, today: date) -> dict[str, tuple[Any, ...]]:
    """What the rules, applied once to each of `settled_users`, leave of streak, freezes and what was lost."""
    told = {}
    for row in settled_users(count, today):
        named = dict(zip(_USER, row, strict=True))
        state = rules.State(**{
            name: named[name]
            for name in rules.State.__dataclass_fields__ if name in named and name not in ("done", "bonus")
        })  # fmt: skip
        after = rules.settle(state, today).state
        told[named["id"]] = (after.streak, after.freezes, after.freezes_used, after.lost_streak)
    return told


def seed(url: str, users: Rows, activities: Rows = ()) -> None:
    """Makes the tables by the service's own migrations, and fills them."""
    asyncio.run(_prepare(url))
    for table, columns, rows in (("streak_users", _USER, users), ("streak_activities", _ACTIVITY, activities)):
        if url.startswith("sqlite"):
            _sqlite(url, table, columns, rows)
        else:
            asyncio.run(_postgresql(url, table, columns, rows))
    query(url, "ANALYZE")


async def _prepare(url: str) -> None:
    database = open_database(url)
    try:
        await database.prepare()
    finally:
        await database.close()


def _sqlite_path(url: str) -> str:
    return url.partition("///")[2]


def _sqlite(url: str, table: str, columns: Sequence[str], rows: Rows) -> None:
    marks = ", ".join("?" * len(columns))
    connection = sqlite3.connect(_sqlite_path(url))
    try:
        with connection:
            connection.executemany(
                f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})",
                (tuple(_for_sqlite(value) for value in row) for row in rows),
            )
    finally:
        connection.close()


def _for_sqlite(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")
    return value.isoformat() if isinstance(value, date) else value


def dsn(url: str) -> str:
    """The address as asyncpg takes it."""
    return urlsplit(url)._replace(scheme="postgresql").geturl()


async def _postgresql(url: str, table: str, columns: Sequence[str], rows: Rows) -> None:
    import asyncpg

    connection = await asyncpg.connect(dsn(url))
    try:
        left = iter(rows)
        while some := list(itertools.islice(left, _AT_ONCE)):
            await connection.copy_records_to_table(table, records=some, columns=list(columns))
    finally:
        await connection.close()


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    """The rows of one statement, over a connection of its own."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(_sqlite_path(url), timeout=30, isolation_level=None)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()
    return asyncio.run(_asked(url, statement))


async def _asked(url: str, statement: str) -> list[tuple[Any, ...]]:
    import asyncpg

    connection = await asyncpg.connect(dsn(url))
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()
