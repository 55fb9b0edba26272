"""What the maintenance asks for and does, on SQLite or PostgreSQL."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import Select, and_, bindparam, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from examples.streak import rules
from examples.streak.records import Lease, Message, Range, Run, SettledBatch, Tally, Trigger, new_id
from examples.streak.stores.sql_session import SqlSession, TakenBack
from examples.streak.stores.sql_states import STATE_COLUMNS, to_state
from examples.streak.stores.tables import HAS_A_STREAK, batches, leases, runs, users

__all__ = ["SqlRuns"]

_LEASE = "maintenance"
_COUNTS = ("processed", "freezes_spent", "missed", "freezes_exhausted", "at_risk", "notified")

_DUE = (
    select(users.c.id)
    .where(HAS_A_STREAK, users.c.held_until < bindparam("day"), users.c.id > bindparam("after"))
    .order_by(users.c.id)
    .limit(bindparam("limit"))
)
_DUE_UNTIL = _DUE.where(users.c.id <= bindparam("until"))

_IN_RANGE = and_(HAS_A_STREAK, users.c.id > bindparam("after"), users.c.id <= bindparam("until"))
_MISSED = (
    select(users.c.id, *STATE_COLUMNS)
    .where(_IN_RANGE, users.c.held_until < bindparam("yesterday"))
    .order_by(users.c.id)
)
# PostgreSQL looks again at each row that it had to wait for: it may not belong here any more.
_HELD_MISSED = _MISSED.with_for_update()
_AT_RISK = select(users.c.id).where(_IN_RANGE, users.c.held_until == bindparam("yesterday")).order_by(users.c.id)
_WRITTEN = ("streak", "freezes", "freezes_used", "held_until", "lost_streak", "lost_on")
_SETTLE = (
    update(users).where(users.c.id == bindparam("name")).values({name: bindparam(f"new_{name}") for name in _WRITTEN})
)

_BATCH = select(batches).where(
    batches.c.run_id == bindparam("run_id"),
    batches.c.after == bindparam("after"),
    batches.c.until == bindparam("until"),
)
_DONE = (
    select(batches.c.after, batches.c.until)
    .where(batches.c.run_id == bindparam("run_id"))
    .order_by(batches.c.after, batches.c.until)
)
_UNSENT = (
    select(batches.c.after, batches.c.until, batches.c.messages)
    .where(batches.c.run_id == bindparam("run_id"), batches.c.messages.is_not(None))
    .order_by(batches.c.after, batches.c.until)
    .limit(bindparam("limit"))
)
# The messages are forgotten as they are counted: so nobody counts them twice.
_SENT = (
    update(batches)
    .where(
        batches.c.run_id == bindparam("of_run"),
        batches.c.after == bindparam("from_after"),
        batches.c.until == bindparam("to_until"),
        batches.c.messages.is_not(None),
    )
    .values(messages=None, notified=bindparam("taken"))
)

_OWN = tuple(runs.c.keys())
_SUMS = [func.coalesce(func.sum(batches.c[name]), 0).label(name) for name in _COUNTS]
_RUNS = select(runs, *_SUMS).outerjoin(batches, batches.c.run_id == runs.c.id).group_by(runs.c.id)
_RUN = _RUNS.where(runs.c.id == bindparam("run_id"))


def _newest(*where: Any) -> Any:
    # The sums are made of the runs that are wanted, and of no others.
    wanted = select(runs.c.id).where(*where).order_by(runs.c.id.desc()).limit(bindparam("limit"))
    return _RUNS.where(runs.c.id.in_(wanted)).order_by(runs.c.id.desc())


_LAST_OF = _newest(runs.c.day == bindparam("day"))
_HISTORY = _newest()
_HISTORY_BEFORE = _newest(runs.c.id < bindparam("before"))


class SqlRuns:
    """The runs of the maintenance, in SQL."""

    def __init__(self, session: SqlSession) -> None:
        self._session = session
        dialect = sqlite if session.sqlite else postgresql
        lease = dialect.insert(leases)
        free = or_(
            leases.c.holder == lease.excluded.holder,
            leases.c.until <= bindparam("at", type_=leases.c.until.type),
            leases.c.holder == bindparam("instead_of"),
        )
        self._take = lease.on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": lease.excluded.holder, "until": lease.excluded.until},
            where=free,
        ).returning(leases.c.holder, leases.c.until)
        self._write_batch = dialect.insert(batches).on_conflict_do_nothing().returning(batches.c.run_id)
        self._write_run = dialect.insert(runs).on_conflict_do_nothing()

    async def lease(self, holder: str, at: datetime, ttl_s: float, *, instead_of: str | None = None) -> Lease:
        """Take or extend the one lease, and return the lease that is in force, whoever holds it."""
        values = {
            "name": _LEASE,
            "holder": holder,
            "until": at + timedelta(seconds=ttl_s),
            "at": at,
            "instead_of": instead_of or holder,
        }

        async def take(connection: AsyncConnection) -> Lease:
            while True:
                row = (await connection.execute(self._take, values)).first()
                # Nothing was written, so somebody else has it; unless that one has just given it back.
                row = row or (await connection.execute(select(leases.c.holder, leases.c.until))).first()
                if row is not None:
                    return Lease(*row)

        return await self._session.write("lease", take)

    async def release(self, holder: str) -> None:
        """Give the lease back, if `holder` has it."""

        async def give_back(connection: AsyncConnection) -> None:
            await connection.execute(delete(leases).where(leases.c.holder == holder))

        await self._session.write("release", give_back)

    async def begin(self, day: date, trigger: Trigger, at: datetime) -> Run:
        """Write a new run that is under way."""
        run = Run(new_id(at), day, trigger, "running", at)
        values = {"id": run.id, "day": day, "trigger": trigger, "state": run.state, "started_at": at}

        async def write(connection: AsyncConnection) -> Run:
            await connection.execute(self._write_run, values)
            return await _read_run(connection, run.id)

        return await self._session.write("begin", write)

    async def take_up(self, run_id: str) -> Run:
        """Set a run that was ended half-way under way again, one more time resumed.

        When the answer to the commit gets lost, it may count one more.
        """
        return await self._change_run(
            "take_up", run_id, state="running", ended_at=None, error=None, resumed=runs.c.resumed + 1
        )

    async def end(self, run_id: str, at: datetime, error: str | None = None) -> Run:
        """Write that a run is completed, or, with the kind of its error, that it failed."""
        return await self._change_run(
            "end",
            run_id,
            state="failed" if error else "completed",
            ended_at=at,
            error=error[:128] if error else None,
        )

    async def _change_run(self, operation: str, run_id: str, **values: Any) -> Run:
        async def change(connection: AsyncConnection) -> Run:
            await connection.execute(update(runs).where(runs.c.id == run_id).values(values))
            return await _read_run(connection, run_id)

        return await self._session.write(operation, change)

    async def last_of(self, day: date) -> Run | None:
        """Return the newest run of a day."""
        rows = await self._session.read(_LAST_OF, day=day, limit=1)
        return _run(rows[0]) if rows else None

    async def history(self, limit: int, before: str | None = None) -> list[Run]:
        """Return runs, newest first: those with an id below `before`."""
        if before is None:
            return [_run(row) for row in await self._session.read(_HISTORY, limit=limit)]
        return [_run(row) for row in await self._session.read(_HISTORY_BEFORE, limit=limit, before=before)]

    async def due(self, day: date, *, after: str, until: str | None, limit: int) -> list[str]:
        """Return the next users by name who have a streak and for whom nothing holds `day` yet."""
        if until is None:
            rows = await self._session.read(_DUE, day=day, after=after, limit=limit)
        else:
            rows = await self._session.read(_DUE_UNTIL, day=day, after=after, until=until, limit=limit)
        return [row[0] for row in rows]

    async def done(self, run_id: str) -> list[Range]:
        """Return the ranges that a run has accounted for, by their beginning; adjacent ones are one."""
        merged: list[Range] = []
        for after, until in await self._session.read(_DONE, run_id=run_id):
            if merged and after <= merged[-1].until:
                merged[-1] = Range(merged[-1].after, max(merged[-1].until, until))
            else:
                merged.append(Range(after, until))
        return merged

    async def settle(self, run_id: str, part: Range, day: date, *, dry_run: bool = False) -> SettledBatch:
        """Account for the missed days of a range's users, and write it with the batch itself, in one transaction.

        A range that the run has accounted for already is not done again: what was written comes back.
        """
        key = {"run_id": run_id, "after": part.after, "until": part.until}

        async def look(connection: AsyncConnection) -> SettledBatch:
            return (await _settle(connection, _MISSED, part, day))[0]

        async def account(connection: AsyncConnection) -> SettledBatch:
            batch, rows = await _settle(connection, _HELD_MISSED, part, day)
            if rows:
                await connection.execute(_SETTLE, rows)
            if (await connection.execute(self._write_batch, _batch_row(key, batch))).first() is None:
                raise TakenBack
            return batch

        if dry_run:
            return await self._session.look("settle", look)
        try:
            return await self._session.write("settle", account)
        except TakenBack:
            (row,) = await self._session.read(_BATCH, **key)
            return _batch(row)

    async def unsent(self, run_id: str, limit: int) -> list[tuple[Range, tuple[Message, ...]]]:
        """Return batches of a run whose messages were not taken by the push API yet."""
        rows = await self._session.read(_UNSENT, run_id=run_id, limit=limit)
        return [(Range(after, until), _messages(text)) for after, until, text in rows]

    async def sent(self, run_id: str, part: Range, notified: int) -> None:
        """Write that the messages of a batch were taken, or are given up; they are forgotten, and counted."""
        values = {"of_run": run_id, "from_after": part.after, "to_until": part.until, "taken": notified}

        async def write(connection: AsyncConnection) -> None:
            await connection.execute(_SENT, values)

        await self._session.write("sent", write)

    async def forget_runs(self, before: datetime) -> int:
        """Delete runs that began before a moment, with their batches, and return how many.

        When the answer to the commit gets lost, it may return fewer.
        """

        async def forget(connection: AsyncConnection) -> int:
            return (await connection.execute(delete(runs).where(runs.c.started_at < before))).rowcount

        return await self._session.write("forget_runs", forget)


async def _settle(
    connection: AsyncConnection, query: Select[Any], part: Range, day: date
) -> tuple[SettledBatch, list[dict[str, Any]]]:
    values = {"after": part.after, "until": part.until, "yesterday": day - rules.ONE_DAY}
    missed = (await connection.execute(query, values)).all()
    kinds: dict[str, bool] = dict.fromkeys((await connection.execute(_AT_RISK, values)).scalars(), False)
    spent = without = exhausted = 0
    rows: list[dict[str, Any]] = []
    for row in missed:
        settled = rules.settle(to_state(row[1:]), day)
        state = settled.state
        spent += settled.freezes_spent
        without += settled.reason == "missed"
        exhausted += settled.reason == "freezes_exhausted"
        kinds[row[0]] = bool(settled.broken)
        rows.append({"name": row[0], **{f"new_{name}": getattr(state, name) for name in _WRITTEN}})
    tally = Tally(
        processed=len(kinds),
        freezes_spent=spent,
        missed=without,
        freezes_exhausted=exhausted,
        at_risk=len(kinds) - without - exhausted,
    )
    messages = tuple(Message(name, "broken" if broken else "at_risk") for name, broken in sorted(kinds.items()))
    return SettledBatch(part, tally, messages, tuple(row[0] for row in missed)), rows


async def _read_run(connection: AsyncConnection, run_id: str) -> Run:
    row = (await connection.execute(_RUN, {"run_id": run_id})).first()
    if row is None:
        raise LookupError(f"there is no run {run_id[:32]}")
    return _run(row)


def _run(row: Any) -> Run:
    own = dict(zip(_OWN, row, strict=False))
    return Run(**own, tally=Tally(*map(int, row[len(_OWN) :])))


def _batch_row(key: dict[str, Any], batch: SettledBatch) -> dict[str, Any]:
    messages = json.dumps([[message.user, message.kind] for message in batch.messages]) if batch.messages else None
    counts = {name: getattr(batch.tally, name) for name in _COUNTS}
    return {**key, **counts, "messages": messages, "changed": json.dumps(batch.changed)}


def _batch(row: Any) -> SettledBatch:
    _, after, until, *counts, messages, changed = row
    return SettledBatch(Range(after, until), Tally(*counts), _messages(messages), tuple(json.loads(changed)))


def _messages(text: str | None) -> tuple[Message, ...]:
    return tuple(Message(*pair) for pair in json.loads(text)) if text else ()
