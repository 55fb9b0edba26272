"""What the maintenance asks for and does, on SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from examples.streak.records import Lease, Message, Range, Run, SettledBatch, Tally, Trigger, new_id
from examples.streak.stores import LeaseLostError, OverlapError, sql_batches
from examples.streak.stores.sql_batches import COUNTS, LEASE
from examples.streak.stores.sql_session import SqlSession, TakenBack
from examples.streak.stores.tables import HAS_A_STREAK, batches, leases, runs, users

__all__ = ["SqlRuns"]

_LEASED = select(leases.c.holder, leases.c.until)

_DUE = (
    select(users.c.id)
    .where(HAS_A_STREAK, users.c.held_until < bindparam("day"), users.c.id > bindparam("after"))
    .order_by(users.c.id)
    .limit(bindparam("limit"))
)
_DUE_UNTIL = _DUE.where(users.c.id <= bindparam("until"))

_DONE = (
    select(batches.c.after, batches.c.until)
    .where(batches.c.run_id == bindparam("run_id"))
    .order_by(batches.c.after, batches.c.until)
)
_UNSENT = (
    select(batches.c.after, batches.c.until, batches.c.messages)
    .where(
        batches.c.run_id == bindparam("run_id"),
        batches.c.after >= bindparam("after"),
        batches.c.messages.is_not(None),
    )
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
        bindparam("left") < sql_batches.LEFT,
    )
    .values(messages=bindparam("kept", type_=batches.c.messages.type), notified=batches.c.notified + bindparam("taken"))
)

_OWN = tuple(runs.c.keys())
_SUMS = [func.coalesce(func.sum(batches.c[name]), 0).label(name) for name in COUNTS]
_SUMS.append(func.coalesce(func.sum(sql_batches.LEFT), 0).label("unsent"))
_RUN = (
    select(runs, *_SUMS)
    .outerjoin(batches, batches.c.run_id == runs.c.id)
    .where(runs.c.id == bindparam("run_id"))
    .group_by(runs.c.id)
)


def _newest(*where: Any) -> Any:
    # The sums are made of the runs that are wanted, and of no others.
    wanted = select(runs).where(*where).order_by(runs.c.id.desc()).limit(bindparam("limit")).subquery()
    return (
        select(wanted, *_SUMS)
        .outerjoin(batches, batches.c.run_id == wanted.c.id)
        .group_by(*wanted.c)
        .order_by(wanted.c.id.desc())
    )


_OF_DAY = select(runs.c.id).where(runs.c.day == bindparam("day"), runs.c.id != bindparam("own")).limit(1)
_LAST_OF = _newest(runs.c.day == bindparam("day"))
_COMPLETED_OF = _newest(runs.c.day == bindparam("day"), runs.c.state == "completed")
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
        self._write_run = dialect.insert(runs).on_conflict_do_nothing()

    async def lease(self, holder: str, at: datetime | None, ttl_s: float, *, instead_of: str | None = None) -> Lease:
        """Take or extend the one lease, and return the lease that is in force, whoever holds it."""

        async def look(connection: AsyncConnection) -> Lease | None:
            now = at or await self._session.now(connection)
            for other, until in (await connection.execute(_LEASED)).all():
                if until > now and other not in (holder, instead_of):
                    return Lease(other, until, now)
            return None

        async def take(connection: AsyncConnection) -> Lease:
            while True:
                # Whoever has to wait for the row goes by a clock that is slow, and so takes nothing too early.
                now = at or await self._session.now(connection)
                values = {
                    "name": LEASE,
                    "holder": holder,
                    "until": now + timedelta(seconds=ttl_s),
                    "at": now,
                    "instead_of": instead_of or holder,
                }
                row = (await connection.execute(self._take, values)).first()
                # Nothing was written, so somebody else has it; unless that one has just given it back.
                row = row or (await connection.execute(_LEASED)).first()
                if row is not None:
                    return Lease(row.holder, row.until, now)

        # Whoever cannot have it is told so at once: taking it waits for a batch that its holder is writing.
        found = await self._session.look("lease", look)
        return await self._session.write("lease", take) if found is None else found

    async def release(self, holder: str) -> None:
        """Give the lease back, if `holder` has it."""

        async def give_back(connection: AsyncConnection) -> None:
            await connection.execute(delete(leases).where(leases.c.holder == holder))

        await self._session.write("release", give_back)

    async def begin(self, day: date, trigger: Trigger, at: datetime, *, holder: str | None = None) -> Run:
        """Write a new run that is under way."""
        run = Run(new_id(at), day, trigger, "running", at)
        values = {"id": run.id, "day": day, "trigger": trigger, "state": run.state, "started_at": at}

        async def write(connection: AsyncConnection) -> Run:
            if holder is not None:
                await sql_batches.require_lease(connection, holder)
                if (await connection.execute(_OF_DAY, {"day": day, "own": run.id})).first() is not None:
                    raise LeaseLostError("another run of this day has begun")
            await connection.execute(self._write_run, values)
            return await _read_run(connection, run.id)

        return await self._session.write("begin", write)

    async def take_up(self, run_id: str, *, holder: str | None = None) -> Run:
        """Set a run that was ended half-way under way again, one more time resumed.

        When the answer to the commit gets lost, it may count one more.
        """
        values = {"state": "running", "ended_at": None, "error": None, "resumed": runs.c.resumed + 1}
        return await self._change_run("take_up", run_id, holder, ("running", "failed"), values)

    async def end(self, run_id: str, at: datetime, error: str | None = None, *, holder: str | None = None) -> Run:
        """Write that a run is completed, or, with the kind of its error, that it failed."""
        state = "failed" if error else "completed"
        values = {"state": state, "ended_at": at, "error": error[:128] if error else None}
        return await self._change_run("end", run_id, holder, ("running", state), values)

    async def _change_run(
        self, operation: str, run_id: str, holder: str | None, states: tuple[str, ...], values: dict[str, Any]
    ) -> Run:
        """Change a run. A holder has to have the lease, and the run to be in one of these states."""

        async def change(connection: AsyncConnection) -> Run:
            if holder is not None:
                await sql_batches.require_lease(connection, holder)
                if (await _read_run(connection, run_id)).state not in states:
                    raise LeaseLostError("the run has ended already")
            await connection.execute(update(runs).where(runs.c.id == run_id).values(values))
            return await _read_run(connection, run_id)

        return await self._session.write(operation, change)

    async def last_of(self, day: date) -> Run | None:
        """Return the run of a day: the newest, but a completed one before all that are not."""
        rows = await self._session.read(_COMPLETED_OF, day=day, limit=1)
        rows = rows or await self._session.read(_LAST_OF, day=day, limit=1)
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

    async def settle(
        self, run_id: str, part: Range, day: date, *, holder: str | None = None, dry_run: bool = False
    ) -> SettledBatch:
        """Account for the missed days of a range's users, and write it with the batch itself, in one transaction.

        A range that the run has accounted for already is not done again: what was written comes back.
        """

        async def look(connection: AsyncConnection) -> SettledBatch:
            return await sql_batches.rehearse(connection, part, day)

        async def account(connection: AsyncConnection) -> SettledBatch:
            return await sql_batches.account(connection, run_id, part, day, holder)

        if dry_run:
            return await self._session.look("settle", look)
        try:
            return await self._session.write("settle", account)
        except TakenBack:
            found = await self._session.read(sql_batches.BATCH, run_id=run_id, after=part.after, until=part.until)
        if not found:
            raise OverlapError(f"a part of the range from {part.after!r} to {part.until!r} is accounted for already")
        return sql_batches.to_batch(found[0])

    async def unsent(self, run_id: str, limit: int, after: str = "") -> list[tuple[Range, tuple[Message, ...]]]:
        """Return batches of a run, from a name on, whose messages were not taken by the push API yet."""
        rows = await self._session.read(_UNSENT, run_id=run_id, limit=limit, after=after)
        return [(Range(after, until), sql_batches.to_messages(text)) for after, until, text in rows]

    async def sent(self, run_id: str, part: Range, notified: int, left: Sequence[Message] = ()) -> None:
        """Write that messages of a batch were taken, so many, or are given up; they are forgotten, and counted."""
        values = {
            "of_run": run_id,
            "from_after": part.after,
            "to_until": part.until,
            "taken": notified,
            "kept": sql_batches.from_messages(left),
            "left": len(left),
        }

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


async def _read_run(connection: AsyncConnection, run_id: str) -> Run:
    row = (await connection.execute(_RUN, {"run_id": run_id})).first()
    if row is None:
        raise LookupError(f"there is no run {run_id[:32]}")
    return _run(row)


def _run(row: Any) -> Run:
    own = dict(zip(_OWN, row, strict=False))
    *counts, unsent = map(int, row[len(_OWN) :])
    return Run(**own, tally=Tally(*counts), unsent=unsent)
