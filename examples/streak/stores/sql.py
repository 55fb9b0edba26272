"""What users ask for and do, on SQLite or PostgreSQL.

Each write is one transaction that holds the user's row, so that two at a time cannot both take the last freeze or
both earn the bonus: PostgreSQL locks the row, SQLite the file. Statements are made once, when this is imported.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Select, TextClause, and_, bindparam, func, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.ext.asyncio import AsyncConnection

from examples.streak import rules
from examples.streak.records import Activity, Day, Entry, Kpis, Profile, Receipt, Standing, Total, new_id
from examples.streak.stores import Database, StoreUnavailableError
from examples.streak.stores.sql_runs import SqlRuns
from examples.streak.stores.sql_session import SqlSession, TakenBack, make_engine
from examples.streak.stores.sql_states import STATE_COLUMNS, to_columns, to_state
from examples.streak.stores.sql_versions import prepare
from examples.streak.stores.tables import HAS_A_STREAK, activities, users
from otel_perf import measure

__all__ = ["SqlStore", "open_sql"]

R = TypeVar("R", rules.Applied, rules.Recovered)

_u, _a = users.c, activities.c
_HELD = range(rules.MAX_FREEZES + 1)

_PING = select(1)
_PROFILE = select(_u.id, _u.joined_on, _u.streak, _u.longest, _u.freezes, _u.xp, _u.held_until).where(
    _u.id == bindparam("user")
)
_STATE = select(*STATE_COLUMNS).where(_u.id == bindparam("user"))
_HELD_STATE = _STATE.with_for_update()
_HELD_CHANGE = _HELD_STATE.add_columns(_u.last_change_id)
# The parameters of an UPDATE must not have the names of the columns.
_WRITE_STATE = (
    update(users)
    .where(_u.id == bindparam("user"))
    .values({column: bindparam(f"new_{column.name}") for column in STATE_COLUMNS})
)
_WRITE_CHANGE = _WRITE_STATE.values({_u.last_change_id: bindparam("change_id")})

_ENTRIES = select(_a.id, _a.at, _a.day, _a.category, _a.minutes, _a.note, _a.xp, _a.bonus_xp)
_ENTRY = _ENTRIES.where(_a.id == bindparam("id"), _a.user_id == bindparam("user"))
_REPEATED = _ENTRIES.where(
    or_(_a.id == bindparam("id"), and_(_a.user_id == bindparam("user"), _a.client_key == bindparam("client_key")))
)


def _page(*where: Any) -> Select[Any]:
    return _ENTRIES.where(_a.user_id == bindparam("user"), *where).order_by(_a.id.desc()).limit(bindparam("limit"))


_OF_CATEGORY = _a.category == bindparam("category")
_BEFORE = _a.id < bindparam("before")
_PAGES = {
    (False, False): _page(),
    (False, True): _page(_BEFORE),
    (True, False): _page(_OF_CATEGORY),
    (True, True): _page(_OF_CATEGORY, _BEFORE),
}

_CALENDAR = (
    select(_a.day, func.count(), func.sum(_a.xp))
    .where(_a.user_id == bindparam("user"), _a.day >= bindparam("since"), _a.day <= bindparam("until"))
    .group_by(_a.day)
    .order_by(_a.day)
)
_BY_CATEGORY = (
    select(_a.category, func.count(), func.sum(_a.minutes), func.sum(_a.xp)).group_by(_a.category).order_by(_a.category)
)
_TOTALS = _BY_CATEGORY.where(_a.user_id == bindparam("user"))
_REPORT = _BY_CATEGORY.where(_a.day >= bindparam("since"))
# A streak holds as long as there are freezes for the days that were missed: with none today, with one tomorrow too.
_HOLDS = and_(
    HAS_A_STREAK,
    or_(*(and_(_u.freezes >= held, _u.held_until >= bindparam(f"since_{held}")) for held in _HELD)),
)
_LEADERBOARD = (
    select(_u.id, _u.streak, _u.xp)
    .where(_HOLDS)
    .order_by(_u.streak.desc(), _u.xp.desc(), _u.id)
    .limit(bindparam("limit"))
)
_MOST_ACTIVE = (
    select(_u.id)
    .where(_u.last_active.is_not(None))
    .order_by(_u.last_active.desc(), _u.xp.desc(), _u.id)
    .limit(bindparam("limit"))
)
_KPIS = select(
    func.count(),
    func.count().filter(_HOLDS),
    func.count().filter(_u.bonus, _u.week == bindparam("week")),
    func.coalesce(func.sum(_u.freezes_earned), 0),
    func.coalesce(func.sum(_u.freezes_used), 0),
    func.count().filter(_u.longest >= rules.DAYS_PER_FREEZE),
    func.count().filter(_HOLDS, _u.streak >= rules.DAYS_PER_FREEZE),
    func.coalesce(func.sum(_u.streak).filter(_HOLDS), 0),
)


def open_sql(url: str) -> Database:
    """Open an SQLite file or a PostgreSQL database."""
    engine = make_engine(url)
    session = SqlSession(engine)
    # An engine that has the same pool as another one is measured with it.
    measured = (engine, engine.writer) if session.sqlite else (engine,)
    return Database(SqlStore(session), SqlRuns(session), measured, partial(prepare, session), engine.dispose)


class SqlStore:
    """What users ask for and do, in SQL."""

    def __init__(self, session: SqlSession) -> None:
        self._session = session
        dialect, plain = (sqlite, SQLiteDialect) if session.sqlite else (postgresql, PGDialect)
        # Nothing is written, and no error made, when there is such a one: a transaction that failed is of no more use.
        self._write_entry = _as_text(dialect.insert(activities).on_conflict_do_nothing().returning(_a.id), plain)
        self._write_user = _as_text(dialect.insert(users).on_conflict_do_nothing(), plain)

    async def ping(self) -> None:
        """Raise `StoreUnavailableError` when the database does not answer."""
        try:
            await self._session.read(_PING)
        except StoreUnavailableError:
            raise
        except Exception as error:
            raise StoreUnavailableError(type(error).__name__) from error

    async def profile(self, user: str) -> Profile | None:
        """Return a user's profile, as it is written; None before their first activity."""
        rows = await self._session.read(_PROFILE, user=user)
        return Profile(*rows[0]) if rows else None

    async def state(self, user: str) -> rules.State:
        """Return what the rules know of a user, as it is written; of someone new, that is nothing."""
        rows = await self._session.read(_STATE, user=user)
        return to_state(rows[0]) if rows else rules.State()

    async def activity(self, user: str, activity_id: str) -> Entry | None:
        """Return one of the user's own activities."""
        rows = await self._session.read(_ENTRY, user=user, id=activity_id)
        return Entry(*rows[0]) if rows else None

    async def activities(
        self, user: str, *, limit: int, before: str | None = None, category: rules.Category | None = None
    ) -> list[Entry]:
        """Return the user's activities, newest first: those with an id below `before`, of one category or of all."""
        values: dict[str, object] = {"user": user, "limit": limit}
        if category is not None:
            values["category"] = category
        if before is not None:
            values["before"] = before
        page = _PAGES[category is not None, before is not None]
        return [Entry(*row) for row in await self._session.read(page, **values)]

    async def calendar(self, user: str, since: date, until: date) -> list[Day]:
        """Return the days, oldest first, on which the user did something."""
        rows = await self._session.read(_CALENDAR, user=user, since=since, until=until)
        return [Day(day, int(count), int(xp)) for day, count, xp in rows]

    async def totals(self, user: str) -> list[Total]:
        """Return what the user has done of each category, in the order of their names; nothing of it is left out."""
        return [_total(row) for row in await self._session.read(_TOTALS, user=user)]

    async def leaderboard(self, limit: int, today: date) -> list[Standing]:
        """Return the longest streaks that hold today: by streak, then XP, then name."""
        return [Standing(*row) for row in await self._session.read(_LEADERBOARD, limit=limit, **_since(today))]

    async def most_active(self, limit: int) -> list[str]:
        """Return the users who did something last: by the last day, then XP, then name."""
        return [row[0] for row in await self._session.read(_MOST_ACTIVE, limit=limit)]

    async def report(self, since: date) -> list[Total]:
        """Return what everybody did since a day, by category."""
        return [_total(row) for row in await self._session.read(_REPORT, since=since)]

    async def kpis(self, today: date) -> Kpis:
        """Count what the KPIs are made of. A streak that is over today counts as none."""
        (row,) = await self._session.read(_KPIS, week=rules.week_of(today), **_since(today))
        return Kpis(*map(int, row))

    async def log_activity(self, user: str, activity: Activity, at: datetime) -> Receipt:
        """Write an activity and what it does to the streak, unless the user has one of this client key already.

        It is never done twice, not even when the answer to a commit gets lost: each attempt writes the same id.
        """
        today = rules.day_of(at)
        entry_id = new_id(at)
        receipt: Receipt | None = None
        state = rules.State()

        async def log(connection: AsyncConnection) -> Receipt:
            nonlocal receipt, state
            state = await self._hold(connection, user, today)
            logged = await _update_weekly_consistency(connection, user, state, activity, today)
            entry = _entry_of(entry_id, at, activity, logged)
            values = _entry_row(user, entry, activity.client_key)
            if (await connection.execute(self._write_entry, values)).first() is None:
                # The user's row must not keep what was written to it just now.
                raise TakenBack
            receipt = Receipt(entry, logged.state, logged)
            return receipt

        try:
            return await self._session.write("log_activity", log)
        except TakenBack:
            (row,) = await self._session.read(_REPEATED, user=user, id=entry_id, client_key=activity.client_key)
        # The same id: an attempt before, whose commit was not answered, has written it.
        if receipt is not None and row.id == entry_id:
            return receipt
        return Receipt(Entry(*row), state, logged=None)

    async def apply_freeze(self, user: str, today: date) -> rules.Applied:
        """Let a freeze hold today, as `rules.apply_freeze` has it. Whoever is unknown has no streak."""
        return await self._change(
            "apply_freeze",
            user,
            lambda state: rules.apply_freeze(state, today),
            lambda applied: applied.applied or applied.settled.changed,
        )

    async def recover(self, user: str, today: date) -> rules.Recovered:
        """Buy back the streak that ended last, as `rules.recover` has it."""
        return await self._change(
            "recover",
            user,
            lambda state: rules.recover(state, today),
            lambda recovered: bool(recovered.recovered or recovered.settled.changed),
        )

    async def _change(
        self, operation: str, user: str, decide: Callable[[rules.State], R], is_change: Callable[[R], bool]
    ) -> R:
        """Decide and write, once: an attempt whose commit was not answered is known by its id."""
        change_id = secrets.token_hex(16)
        sent: R | None = None

        async def change(connection: AsyncConnection) -> R:
            nonlocal sent
            row = (await connection.execute(_HELD_CHANGE, {"user": user})).first()
            if row is None:
                return decide(rules.State())
            *state, last_change_id = row
            if sent is not None and last_change_id == change_id:
                return sent
            decided = decide(to_state(state))
            if is_change(decided):
                values = {"user": user, "change_id": change_id, **_new_values(decided.state)}
                await connection.execute(_WRITE_CHANGE, values)
                sent = decided
            return decided

        return await self._session.write(operation, change)

    async def _hold(self, connection: AsyncConnection, user: str, today: date) -> rules.State:
        """Return the user's state and keep others from changing it; someone new is added first."""
        state = await _find(connection, user)
        if state is None:
            new = {"id": user, "joined_on": today, "last_change_id": None, **to_columns(rules.State())}
            await connection.execute(self._write_user, new)
            state = await _find(connection, user)
            assert state is not None
        return state


def _as_text(statement: Any, dialect: Any) -> TextClause:
    """Return the text of an INSERT of all columns.

    SQLAlchemy 2.0 has no cache for what is a dialect's own: it would compile the statement each time.
    """
    compiled = statement.compile(dialect=dialect(paramstyle="named"))
    return text(str(compiled)).bindparams(*compiled.binds.values())


async def _find(connection: AsyncConnection, user: str) -> rules.State | None:
    row = (await connection.execute(_HELD_STATE, {"user": user})).first()
    return None if row is None else to_state(row)


@measure("update_weekly_consistency", category="streak")
async def _update_weekly_consistency(
    connection: AsyncConnection, user: str, state: rules.State, activity: Activity, today: date
) -> rules.Logged:
    logged = rules.log_activity(state, activity.category, activity.minutes, today)
    await _write_state(connection, user, logged.state)
    return logged


async def _write_state(connection: AsyncConnection, user: str, state: rules.State) -> None:
    await connection.execute(_WRITE_STATE, {"user": user, **_new_values(state)})


def _new_values(state: rules.State) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in to_columns(state).items()}


def _since(today: date) -> dict[str, date]:
    """Return how long ago the last day that counts may be, by the freezes that are held."""
    return {f"since_{held}": today - timedelta(days=1 + held) for held in _HELD}


def _entry_of(entry_id: str, at: datetime, activity: Activity, logged: rules.Logged) -> Entry:
    return Entry(
        id=entry_id,
        at=at.astimezone(timezone.utc),
        day=rules.day_of(at),
        category=activity.category,
        minutes=activity.minutes,
        note=activity.note,
        xp=logged.xp,
        bonus_xp=logged.bonus_xp,
    )


def _entry_row(user: str, entry: Entry, client_key: str | None) -> dict[str, Any]:
    names = Entry.__dataclass_fields__
    return {"user_id": user, "client_key": client_key, **{name: getattr(entry, name) for name in names}}


def _total(row: Any) -> Total:
    return Total(row[0], *map(int, row[1:]))
