"""One contract for the stores: SQLite and PostgreSQL remember alike."""

from __future__ import annotations

import asyncio
from datetime import date, datetime, timedelta, timezone

import pytest

from examples.streak import rules
from examples.streak.records import Activity
from examples.streak.store import Store, make_engine

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = date(2026, 3, 4)


async def test_ping_and_nothing_known(store: Store) -> None:
    """An empty store answers, and knows nobody."""
    await store.ping()
    assert await store.profile("ada") is None
    assert await store.state("ada") == rules.State()
    assert await store.activity("ada", 2**63 - 1) is None
    assert await store.calendar("ada", TODAY, TODAY) == []
    assert await store.leaderboard(10) == []
    assert await store.report(TODAY) == []


async def test_what_is_logged_is_remembered(store: Store) -> None:
    """An activity is in the state, the profile, the calendar, the board and the report."""
    note = "ünïcode 🎻 'quoted'; --"
    receipt = await store.log_activity("ada", Activity("learn", 20, note), NOON)
    assert receipt.logged is not None
    assert await store.state("ada") == receipt.state == receipt.logged.state
    assert await store.activity("ada", receipt.entry.id) == receipt.entry
    assert receipt.entry.note == note
    (day,) = await store.calendar("ada", TODAY, TODAY)
    assert (day.day, day.activities, day.xp) == (TODAY, 1, 30)
    profile = await store.profile("ada")
    assert profile is not None
    assert (profile.name, profile.joined_on, profile.streak, profile.xp) == ("ada", TODAY, 1, 30)
    (standing,) = await store.leaderboard(10)
    assert (standing.name, standing.streak, standing.xp) == ("ada", 1, 30)
    (total,) = await store.report(TODAY)
    assert (total.category, total.activities, total.minutes, total.xp) == ("learn", 1, 20, 30)


async def test_same_key_is_the_same_activity(store: Store) -> None:
    """A client key that is known writes nothing, whatever comes with it."""
    first = await store.log_activity("ada", Activity("learn", 20, client_key="k"), NOON)
    again = await store.log_activity("ada", Activity("move", 60, client_key="k"), NOON + timedelta(days=1))
    assert again.logged is None
    assert again.entry == first.entry
    assert again.state == first.state == await store.state("ada")


async def test_same_key_at_once(store: Store) -> None:
    """Of many at once under one key, one is logged and all get the same answer."""
    tries = [store.log_activity("ada", Activity("learn", 20, client_key="k"), NOON) for _ in range(8)]
    receipts = await asyncio.gather(*tries)
    assert sum(receipt.logged is not None for receipt in receipts) == 1
    assert len({receipt.entry.id for receipt in receipts}) == 1


async def test_streak_grows_once_under_a_rush(store: Store) -> None:
    """Many activities at once make one streak step, one bonus, and lose no XP."""
    tries = [store.log_activity("ada", Activity(category, 10), NOON) for category in rules.CATEGORIES for _ in range(4)]
    receipts = [receipt.logged for receipt in await asyncio.gather(*tries)]
    assert sum(logged.grew for logged in receipts if logged) == 1
    assert sum(logged.bonus_earned for logged in receipts if logged) == 1
    state = await store.state("ada")
    assert (state.streak, state.bonus, state.xp) == (1, True, sum(logged.xp for logged in receipts if logged))


async def test_failed_write_leaves_nothing(store: Store) -> None:
    """A transaction that fails half-way takes all of it back."""
    too_long = "x" * 65
    bad = Activity("learn", 10, client_key=too_long)
    at_no_time = None
    with pytest.raises(AttributeError):
        await store.log_activity("ada", bad, at_no_time)  # type: ignore[arg-type]
    broken = Activity("learn", 10, note=object())  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"(?i)type|expected"):
        await store.log_activity("ada", broken, NOON)
    assert await store.profile("ada") is None


async def test_leaderboard_order(store: Store) -> None:
    """The longest streak is first, more XP among equals, then the name; ended streaks are not on it."""
    yesterday = NOON - timedelta(days=1)
    await store.log_activity("old", Activity("learn", 60), NOON - timedelta(days=9))
    for name, minutes in (("carl", 10), ("bea", 10), ("ada", 50)):
        await store.log_activity(name, Activity("learn", minutes), NOON)
    await store.log_activity("dora", Activity("learn", 1), yesterday)
    await store.log_activity("dora", Activity("learn", 1), NOON)
    await store.settle_batch(TODAY, after="", size=100)
    assert [line.name for line in await store.leaderboard(10)] == ["dora", "ada", "bea", "carl"]
    assert [line.name for line in await store.leaderboard(1)] == ["dora"]


async def test_batches_come_in_order_and_once_a_day(store: Store) -> None:
    """Batches go on after the last name; whoever was seen today, or was active, is not in any."""
    for number in range(5):
        await store.log_activity(f"u{number}", Activity("learn", 10), NOON - timedelta(days=1))
    await store.log_activity("u3", Activity("learn", 10), NOON)
    first = await store.settle_batch(TODAY, after="", size=2)
    second = await store.settle_batch(TODAY, after=first.last or "", size=2)
    assert [name for name, _ in first.settled + second.settled] == ["u0", "u1", "u2", "u4"]
    assert (await store.settle_batch(TODAY, after=second.last or "", size=2)).last is None
    assert (await store.settle_batch(TODAY, after="", size=10)).settled == ()
    assert len((await store.settle_batch(TODAY + timedelta(days=1), after="", size=10)).settled) == 5


async def test_runs_at_once_share_the_work(store: Store) -> None:
    """Two runs at the same time see each user once between them."""
    for number in range(20):
        await store.log_activity(f"u{number:02}", Activity("learn", 10), NOON - timedelta(days=3))
    batches = await asyncio.gather(*(store.settle_batch(TODAY, after="", size=20) for _ in range(4)))
    seen = [name for batch in batches for name, _ in batch.settled]
    assert sorted(seen) == [f"u{number:02}" for number in range(20)]


async def test_tables_are_created_by_several_at_once(store: Store, database_url: str) -> None:
    """Processes that start together all find their tables."""
    engines = [make_engine(database_url) for _ in range(4)]
    try:
        await asyncio.gather(*(Store(engine).create_tables() for engine in engines))
    finally:
        for engine in engines:
            await engine.dispose()
    assert await store.leaderboard(1) == []
