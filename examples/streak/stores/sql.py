"""What is remembered, on SQLite or PostgreSQL, through one SQLAlchemy engine.

Each write is one transaction that holds the user's row, so that two at a time cannot both take the last freeze or
both earn the bonus: PostgreSQL locks the row, SQLite the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import date, datetime
from typing import Any

from sqlalchemy import Select, bindparam, event, func, insert, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from otel_perf import measure

from . import rules, tables
from .records import Activity, Batch, Day, Entry, Profile, Receipt, Standing, Total
from .tables import activities, users

__all__ = ["Store", "make_engine", "to_columns"]

# Any number, as long as all processes of the service take the same one.
_CREATE_TABLES_LOCK = 724_115


def make_engine(url: str) -> AsyncEngine:
    """Return an engine for a `sqlite+aiosqlite` or `postgresql+asyncpg` address. It connects on first use."""
    if not url.startswith("sqlite"):
        return create_async_engine(url, pool_pre_ping=True)
    # Without a level the driver starts no transactions of its own: writes begin theirs below, reads need none.
    engine = create_async_engine(url, connect_args={"isolation_level": None, "timeout": 10})
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # With a write-ahead log, readers do not wait for a writer.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class Store:
    """The service's memory."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        # SQLite has one writer at a time. Waiting for one's turn here is fair; in SQLite it is by polling.
        self._turn = asyncio.Lock() if self._sqlite else nullcontext()

    async def create_tables(self) -> None:
        """Create what is missing. Several processes may do so at once."""
        async with self._writing() as connection:
            if not self._sqlite:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATE_TABLES_LOCK})
            await connection.run_sync(tables.metadata.create_all)

    async def ping(self) -> None:
        """Raise when the database does not answer."""
        await self._read(select(1))

    async def profile(self, user: str) -> Profile | None:
        """Return a user's profile; None before their first activity."""
        columns = (users.c.id, users.c.joined_on, users.c.streak, users.c.longest, users.c.freezes, users.c.xp)
        rows = await self._read(select(*columns).where(users.c.id == user))
        return Profile(*rows[0]) if rows else None

    async def activity(self, user: str, activity_id: int) -> Entry | None:
        """Return one of the user's own activities."""
        rows = await self._read(_entries().where(activities.c.id == activity_id, activities.c.user_id == user))
        return Entry(*rows[0]) if rows else None

    async def calendar(self, user: str, since: date, until: date) -> list[Day]:
        """Return the days, oldest first, on which the user did something."""
        day = activities.c.day
        query = (
            select(day, func.count(), func.sum(activities.c.xp))
            .where(activities.c.user_id == user, day >= since, day <= until)
            .group_by(day)
            .order_by(day)
        )
        return [Day(day, int(count), int(xp)) for day, count, xp in await self._read(query)]

    async def state(self, user: str) -> rules.State:
        """Return what the rules know of a user; of someone new, that is nothing."""
        rows = await self._read(select(users).where(users.c.id == user))
        return _state(rows[0]._mapping) if rows else rules.State()

    async def leaderboard(self, limit: int) -> list[Standing]:
        """Return the longest streaks that are going on, the more XP first among equals."""
        query = (
            select(users.c.id, users.c.streak, users.c.xp)
            .where(users.c.streak > 0)
            .order_by(users.c.streak.desc(), users.c.xp.desc(), users.c.id)
            .limit(limit)
        )
        return [Standing(*row) for row in await self._read(query)]

    async def report(self, since: date) -> list[Total]:
        """Return what everybody did since a day, by category."""
        columns = (func.count(), func.sum(activities.c.minutes), func.sum(activities.c.xp))
        query = (
            select(activities.c.category, *columns)
            .where(activities.c.day >= since)
            .group_by(activities.c.category)
            .order_by(activities.c.category)
        )
        return [Total(category, *map(int, sums)) for category, *sums in await self._read(query)]

    async def log_activity(self, user: str, activity: Activity, at: datetime) -> Receipt:
        """Write an activity and what it does to the streak, unless the user has one of this client key already."""
        today = rules.day_of(at)
        async with self._writing() as connection:
            state = await self._hold(connection, user, today)
            before = await _find_repeated(connection, user, activity.client_key)
            if before is not None:
                return Receipt(before, state, logged=None)
            logged = await _update_weekly_consistency(connection, user, state, activity, today)
            entry = await _write_entry(connection, user, activity, logged, at)
        return Receipt(entry, logged.state, logged)

    async def settle_batch(self, today: date, *, after: str, size: int, dry_run: bool = False) -> Batch:
        """Account for the missed days of the next users by name who have a streak and were not seen yet today."""
        query = (
            select(users)
            .where(users.c.id > after, users.c.streak > 0, users.c.held_until < today)
            .where(or_(users.c.settled_on.is_(None), users.c.settled_on < today))
            .order_by(users.c.id)
            .limit(size)
        )
        if dry_run:
            return _settle(await self._read(query), today)
        async with self._writing() as connection:
            batch = _settle((await connection.execute(query.with_for_update())).all(), today)
            if batch.settled:
                await connection.execute(_SETTLE, [_settled_row(name, s, today) for name, s in batch.settled])
        return batch

    async def _read(self, query: Select[Any]) -> Sequence[Any]:
        async with self._engine.connect() as connection:
            rows: Sequence[Any] = (await connection.execute(query)).all()
        return rows

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        async with self._turn, self._engine.begin() as connection:
            if self._sqlite:
                # Takes the file's lock now: a transaction that reads first and then wants to write may be refused.
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    async def _hold(self, connection: AsyncConnection, user: str, today: date) -> rules.State:
        """Return the user's state and keep others from changing it; someone new is added first."""
        query = select(users).where(users.c.id == user).with_for_update()
        row = (await connection.execute(query)).mappings().first()
        if row is None:
            dialect = sqlite if self._sqlite else postgresql
            values = {"id": user, "joined_on": today}
            await connection.execute(dialect.insert(users).values(values).on_conflict_do_nothing())
            row = (await connection.execute(query)).mappings().one()
        return _state(row)


@measure("update_weekly_consistency", category="streak")
async def _update_weekly_consistency(
    connection: AsyncConnection, user: str, state: rules.State, activity: Activity, today: date
) -> rules.Logged:
    logged = rules.log_activity(state, activity.category, activity.minutes, today)
    await connection.execute(update(users).where(users.c.id == user).values(to_columns(logged.state)))
    return logged


async def _find_repeated(connection: AsyncConnection, user: str, client_key: str | None) -> Entry | None:
    if client_key is None:
        return None
    query = _entries().where(activities.c.user_id == user, activities.c.client_key == client_key)
    row = (await connection.execute(query)).first()
    return Entry(*row) if row is not None else None


async def _write_entry(
    connection: AsyncConnection, user: str, activity: Activity, logged: rules.Logged, at: datetime
) -> Entry:
    values = {
        "user_id": user,
        "day": rules.day_of(at),
        "at": at,
        "category": activity.category,
        "minutes": activity.minutes,
        "note": activity.note,
        "xp": logged.xp,
        "bonus_xp": logged.bonus_xp,
        "client_key": activity.client_key,
    }
    written = await connection.execute(insert(activities).values(values).returning(activities.c.id))
    return Entry(
        id=written.scalar_one(),
        day=rules.day_of(at),
        category=activity.category,
        minutes=activity.minutes,
        note=activity.note,
        xp=logged.xp,
        bonus_xp=logged.bonus_xp,
    )


def _entries() -> Select[Any]:
    a = activities.c
    return select(a.id, a.day, a.category, a.minutes, a.note, a.xp, a.bonus_xp)


_SETTLE = (
    update(users)
    .where(users.c.id == bindparam("name"))
    .values({name: bindparam(f"new_{name}") for name in ("streak", "freezes", "held_until", "settled_on")})
)


def _settled_row(name: str, settled: rules.Settled, today: date) -> dict[str, Any]:
    state = settled.state
    return {
        "name": name,
        "new_streak": state.streak,
        "new_freezes": state.freezes,
        "new_held_until": state.held_until,
        "new_settled_on": today,
    }


def _settle(rows: Sequence[Any], today: date) -> Batch:
    return Batch(tuple((row.id, rules.settle(_state(row._mapping), today)) for row in rows))


def _state(row: Mapping[Any, Any]) -> rules.State:
    return rules.State(
        streak=row["streak"],
        longest=row["longest"],
        freezes=row["freezes"],
        held_until=row["held_until"],
        week=row["week"],
        done=frozenset(filter(None, row["done"].split(","))),
        bonus=row["bonus"],
        xp=row["xp"],
    )


def to_columns(state: rules.State) -> dict[str, Any]:
    """Return a state as the columns of the user's row."""
    return {
        "streak": state.streak,
        "longest": state.longest,
        "freezes": state.freezes,
        "held_until": state.held_until,
        "week": state.week,
        "done": ",".join(sorted(state.done)),
        "bonus": state.bonus,
        "xp": state.xp,
    }
