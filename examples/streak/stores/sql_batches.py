"""Batches of the maintenance in SQL: what a range comes to, and how it is written once and by nobody else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from typing import Any

from sqlalchemy import Integer, Select, and_, bindparam, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from examples.streak import rules
from examples.streak.records import Message, Range, SettledBatch, Tally
from examples.streak.stores import LeaseLostError
from examples.streak.stores.sql_session import TakenBack
from examples.streak.stores.sql_states import STATE_COLUMNS, to_state
from examples.streak.stores.tables import HAS_A_STREAK, batches, leases, runs, users

__all__ = [
    "BATCH",
    "COUNTS",
    "LEASE",
    "LEFT",
    "account",
    "from_messages",
    "rehearse",
    "require_lease",
    "to_batch",
    "to_messages",
]

#: The name of the one lease.
LEASE = "maintenance"
#: The columns that are added up, in the order of `Tally`.
COUNTS = ("processed", "freezes_spent", "missed", "freezes_exhausted", "at_risk", "notified")

_IN_RANGE = and_(HAS_A_STREAK, users.c.id > bindparam("after"), users.c.id <= bindparam("until"))
_MISSED = (
    select(users.c.id, *STATE_COLUMNS)
    .where(_IN_RANGE, users.c.held_until < bindparam("yesterday"))
    .order_by(users.c.id)
)
# PostgreSQL looks again at each row that it had to wait for: it may not belong here any more.
_HELD_MISSED = _MISSED.with_for_update()
_AT_RISK = select(users.c.id).where(_IN_RANGE, users.c.held_until == bindparam("yesterday")).order_by(users.c.id)
_WRITTEN = ("streak", "freezes", "freezes_used", "held_until", "lost_streak", "lost_on", "missed_on")
_SETTLE = (
    update(users).where(users.c.id == bindparam("name")).values({name: bindparam(f"new_{name}") for name in _WRITTEN})
)

_others = batches.alias()
_OVERLAPS = exists().where(
    _others.c.run_id == bindparam("run_id"),
    _others.c.after < bindparam("until"),
    _others.c.until > bindparam("after"),
)
# Whoever writes a batch does so alone, from here to the end of the transaction: so nobody writes one that overlaps it,
# and nobody takes the lease. Both rows are locked as they are by then, not as they were when it began to wait.
_ALONE = select(runs.c.id).where(runs.c.id == bindparam("run_id")).with_for_update(key_share=True)
_ALONE_WITH_LEASE = _ALONE.join(
    leases, and_(leases.c.name == bindparam("lease"), leases.c.holder == bindparam("holder"))
).where(runs.c.state == "running")
_LEASE_OF = (
    select(leases.c.name)
    .where(leases.c.name == bindparam("lease"), leases.c.holder == bindparam("holder"))
    .with_for_update()
)


class _Left(FunctionElement[int]):
    """How many messages a text has; none where there is no text."""

    inherit_cache = True
    type = Integer()


@compiles(_Left)
def _left(element: Any, compiler: Any, **how: Any) -> str:
    return f"json_array_length({compiler.process(element.clauses, **how)})"


@compiles(_Left, "postgresql")
def _left_on_postgresql(element: Any, compiler: Any, **how: Any) -> str:
    return f"json_array_length(CAST({compiler.process(element.clauses, **how)} AS json))"


#: How many messages of a batch are kept.
LEFT: Any = _Left(batches.c.messages)
_WRITE_BATCH = (
    insert(batches)
    .from_select(
        batches.c.keys(),
        select(*(bindparam(column.name, type_=column.type) for column in batches.c)).where(~_OVERLAPS),
    )
    .returning(batches.c.run_id)
)

#: The batch of a run that has just this range.
BATCH = select(batches).where(
    batches.c.run_id == bindparam("run_id"),
    batches.c.after == bindparam("after"),
    batches.c.until == bindparam("until"),
)


async def require_lease(connection: AsyncConnection, holder: str) -> None:
    """Raise `LeaseLostError` unless a holder has the lease; until the end of the transaction nobody takes it."""
    if (await connection.execute(_LEASE_OF, {"lease": LEASE, "holder": holder})).first() is None:
        raise LeaseLostError("somebody else has the lease now, or nobody")


async def rehearse(connection: AsyncConnection, part: Range, day: date) -> SettledBatch:
    """Return what a range would come to."""
    return (await _settle(connection, _MISSED, part, day))[0]


async def account(connection: AsyncConnection, run_id: str, part: Range, day: date, holder: str | None) -> SettledBatch:
    """Write what a range comes to; when it, or a part of it, is accounted for already, raise `TakenBack`."""
    batch, rows = await _settle(connection, _HELD_MISSED, part, day)
    if rows:
        await connection.execute(_SETTLE, rows)
    await _be_alone(connection, run_id, holder)
    if (await connection.execute(_WRITE_BATCH, _to_row(run_id, batch))).first() is None:
        raise TakenBack
    return batch


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


async def _be_alone(connection: AsyncConnection, run_id: str, holder: str | None) -> None:
    query = _ALONE if holder is None else _ALONE_WITH_LEASE
    values = {"run_id": run_id, "lease": LEASE, "holder": holder}
    if (await connection.execute(query, values)).first() is None:
        if holder is not None:
            raise LeaseLostError("somebody else has the lease now, or nobody")
        raise LookupError(f"there is no run {run_id[:32]}")


def _to_row(run_id: str, batch: SettledBatch) -> dict[str, Any]:
    key = {"run_id": run_id, "after": batch.range.after, "until": batch.range.until}
    counts = {name: getattr(batch.tally, name) for name in COUNTS}
    return {**key, **counts, "messages": from_messages(batch.messages), "changed": json.dumps(batch.changed)}


def to_batch(row: Any) -> SettledBatch:
    """Return a batch as it was written."""
    _, after, until, *counts, messages, changed = row
    return SettledBatch(Range(after, until), Tally(*counts), to_messages(messages), tuple(json.loads(changed)))


def from_messages(messages: Sequence[Message]) -> str | None:
    """Return messages as they are written; None when there are none."""
    return json.dumps([[message.user, message.kind] for message in messages]) if messages else None


def to_messages(text: str | None) -> tuple[Message, ...]:
    """Return the messages of a batch as they were written."""
    return tuple(Message(*pair) for pair in json.loads(text)) if text else ()
