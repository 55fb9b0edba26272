"""The stores do what the rules say: any operations, in any order, over some days, come to the same in both."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from examples.streak import rules
from examples.streak.records import Activity, Range
from examples.streak.stores import Database, open_database

FIRST = datetime(2026, 3, 2, 12, tzinfo=timezone.utc)
USERS = ("ada", "bob")
_numbers = itertools.count()

# An operation is its name, which user, and what it needs.
_user = st.sampled_from(USERS)
_operation = st.one_of(
    st.tuples(st.just("log"), _user, st.sampled_from(rules.CATEGORIES), st.integers(0, 90)),
    st.tuples(st.just("freeze"), _user),
    st.tuples(st.just("recover"), _user),
    st.tuples(st.just("settle")),
    st.tuples(st.just("wait"), st.integers(1, 4)),
)
# A week in a row at first, half of the time: who has no freeze and no long streak sees little of the rules.
_lives = st.tuples(st.booleans(), st.lists(_operation, min_size=3, max_size=15))


@dataclass
class Life:
    """What happens to some users whom nothing else knows, in a store and by the rules alone."""

    database: Database
    prefix: str
    at: datetime = FIRST
    states: dict[str, rules.State] = field(default_factory=lambda: dict.fromkeys(USERS, rules.State()))

    @property
    def today(self) -> date:
        return rules.day_of(self.at)

    async def live(self, after_a_week: bool, operations: Sequence[tuple[str, ...]]) -> None:
        if after_a_week:
            for _ in range(7):
                await self.log("ada", "learn", 10)
                self.wait(1)
        for name, *given_to in operations:
            done = getattr(self, name)(*given_to)
            if done is not None:
                await done
            self.at += timedelta(seconds=1)
        for user, state in self.states.items():
            assert await self.database.store.state(self.prefix + user) == state

    def wait(self, days: int) -> None:
        self.at += timedelta(days=days)

    async def log(self, user: str, category: rules.Category, minutes: int) -> None:
        expected = rules.log_activity(self.states[user], category, minutes, self.today)
        receipt = await self.database.store.log_activity(self.prefix + user, Activity(category, minutes), self.at)
        assert receipt.logged == expected
        assert (receipt.entry.xp, receipt.entry.bonus_xp) == (expected.xp, expected.bonus_xp)
        self.states[user] = expected.state

    async def freeze(self, user: str) -> None:
        expected = rules.apply_freeze(self.states[user], self.today)
        event(f"freeze: {expected.refusal}")
        assert await self.database.store.apply_freeze(self.prefix + user, self.today) == expected
        self.states[user] = expected.state

    async def recover(self, user: str) -> None:
        expected = rules.recover(self.states[user], self.today)
        event(f"recover: {expected.refusal}")
        assert await self.database.store.recover(self.prefix + user, self.today) == expected
        self.states[user] = expected.state

    async def settle(self) -> None:
        runs = self.database.runs
        due = [user for user, state in self.states.items() if state.streak and not state.held_on(self.today)]
        everybody = Range(self.prefix, self.prefix + "~")
        found = await runs.due(self.today, after=everybody.after, until=everybody.until, limit=10)
        assert found == [self.prefix + user for user in due]
        run = await runs.begin(self.today, "cli", self.at)
        tally = (await runs.settle(run.id, everybody, self.today)).tally
        settled = {user: rules.settle(state, self.today) for user, state in self.states.items()}
        event(f"settle: {sorted({str(each.reason) for each in settled.values()})}")
        assert tally.processed == len(due)
        assert tally.freezes_spent == sum(each.freezes_spent for each in settled.values())
        assert tally.broken == sum(each.broken > 0 for each in settled.values())
        self.states = {user: each.state for user, each in settled.items()}


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_operations_come_to_what_the_rules_say(database_url: str) -> None:
    """Activities, freezes, recoveries and maintenance in any order leave each user as the rules alone would."""

    # One database serves all examples: each has users of its own.
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(_lives)
    def play(life: tuple[bool, list[tuple[str, ...]]]) -> None:
        async def run() -> None:
            database = open_database(database_url)
            try:
                if not next(numbers):
                    await database.prepare()
                await Life(database, f"life-{next(_numbers)}-").live(*life)
            finally:
                await database.close()

        asyncio.run(run())

    numbers = itertools.count()
    play()
