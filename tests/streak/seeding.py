"""Users with a past, written straight into a SQL database, many at a time."""

from __future__ import annotations

from datetime import date, timedelta

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from examples.streak import rules
from examples.streak.records import Tally
from examples.streak.stores import Database, tables
from examples.streak.stores.sql_states import STATE_COLUMNS, to_columns, to_state

__all__ = ["expected", "name_of", "past_of", "read_states", "seed_users"]

_AT_A_TIME = 1_000


def name_of(number: int) -> str:
    """Names come in the order of their numbers."""
    return f"user-{number:07d}"


def past_of(number: int, today: date) -> rules.State:
    """One of six pasts: half of them need a write, one is done for today, one has no streak."""
    streak, freezes, missed = (
        (9, 1, 0),  # at risk
        (8, 1, 1),  # spends its freeze
        (5, 0, 1),  # ends: missed
        (20, 2, 3),  # ends: the freezes do not suffice
        (3, 0, -1),  # is done for today
        (0, 0, 0),  # has none
    )[number % 6]
    held = today - timedelta(days=1 + missed) if streak else None
    return rules.State(
        streak=streak,
        longest=streak,
        freezes=freezes,
        freezes_earned=freezes,
        last_active=held,
        held_until=held,
        xp=10 * number,
    )


def expected(count: int, today: date) -> tuple[Tally, dict[str, rules.State]]:
    """What a run of today comes to, by the rules alone, and what the users are after it."""
    tally, states = Tally(), {}
    for number in range(count):
        before = past_of(number, today)
        settled = rules.settle(before, today)
        states[name_of(number)] = settled.state
        due = before.streak > 0 and not before.held_on(today)
        tally += Tally(
            processed=due,
            freezes_spent=settled.freezes_spent,
            missed=settled.reason == "missed",
            freezes_exhausted=settled.reason == "freezes_exhausted",
            at_risk=due and not settled.broken,
        )
    return tally, states


async def seed_users(database: Database, count: int, today: date) -> None:
    """Write so many users."""
    engine: AsyncEngine = database.measured[0]
    for first in range(0, count, _AT_A_TIME):
        rows = [
            {"id": name_of(number), "joined_on": today, **to_columns(past_of(number, today))}
            for number in range(first, min(first + _AT_A_TIME, count))
        ]
        async with engine.begin() as connection:
            await connection.execute(insert(tables.users), rows)


async def read_states(database: Database) -> dict[str, rules.State]:
    """All users as they are written."""
    engine: AsyncEngine = database.measured[0]
    async with engine.connect() as connection:
        rows = (await connection.execute(select(tables.users.c.id, *STATE_COLUMNS))).all()
    return {row[0]: to_state(row[1:]) for row in rows}
