"""Users with a past, written all at once: for demonstrations and for measuring, where living it would take too long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import islice

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from examples.streak import rules
from examples.streak.records import Entry
from examples.streak.stores.sql_states import to_columns
from examples.streak.stores.tables import activities, users

__all__ = ["Past", "write_pasts"]

_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Past:
    """A user as they came to be."""

    name: str
    joined_on: date
    state: rules.State
    entries: Sequence[Entry] = ()


async def write_pasts(engine: AsyncEngine, pasts: Iterable[Past]) -> None:
    """Add users who are not there yet, a thousand to a statement; all of them or none."""
    left = iter(pasts)
    async with engine.begin() as connection:
        while some := list(islice(left, _AT_ONCE)):
            rows = [{"id": past.name, "joined_on": past.joined_on, **to_columns(past.state)} for past in some]
            await connection.execute(insert(users), rows)
            entries = [{**asdict(entry), "user_id": past.name} for past in some for entry in past.entries]
            if entries:
                await connection.execute(insert(activities), entries)
