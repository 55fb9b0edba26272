"""One contract for the stores: SQLite, PostgreSQL and Firestore remember alike what users do."""

from __future__ import annotations

import asyncio
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest

from examples.streak import rules
from examples.streak.records import Activity, Entry, Kpis, Range, Receipt, Standing, Total
from examples.streak.stores import Database, Store, StoreUnavailableError, open_database

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = date(2026, 3, 4)
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
NO_ID = "f" * 32

# The emulator of Firestore does not keep transactions apart: two at once both read what was there before.
KEEPS_APART = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


async def live(store: Store, user: str, days: int, until: datetime = NOON) -> None:
    """Log one activity on each of so many days in a row."""
    for before in range(days - 1, -1, -1):
        await store.log_activity(user, Activity("learn", 10), until - DAY * before)


async def test_nobody_is_known_at_first(store: Store) -> None:
    """An empty store answers, and knows nobody."""
    await store.ping()
    assert await store.profile("ada") is None
    assert await store.state("ada") == rules.State()
    assert await store.activity("ada", NO_ID) is None
    assert await store.activities("ada", limit=10) == []
    assert await store.calendar("ada", TODAY, TODAY) == []
    assert await store.totals("ada") == []
    assert await store.leaderboard(10, TODAY) == []
    assert await store.most_active(10) == []
    assert await store.report(TODAY) == []
    assert await store.kpis(TODAY) == Kpis()


async def test_what_is_logged_is_remembered(store: Store) -> None:
    """An activity is in the state, the profile, the page, the calendar, the totals, the board and the report."""
    note = "ünïcode 🎻 'quoted'; --"
    receipt = await store.log_activity("ada", Activity("learn", 20, note), NOON)
    assert receipt.logged is not None
    assert await store.state("ada") == receipt.state == receipt.logged.state
    expected = Entry(receipt.entry.id, NOON, TODAY, "learn", 20, note, xp=30, bonus_xp=0)
    assert receipt.entry == await store.activity("ada", receipt.entry.id) == expected
    assert await store.activities("ada", limit=10) == [expected]
    assert receipt.entry.at.tzinfo is not None
    (day,) = await store.calendar("ada", TODAY, TODAY)
    assert (day.day, day.activities, day.xp) == (TODAY, 1, 30)
    profile = await store.profile("ada")
    assert profile is not None
    assert (profile.name, profile.joined_on, profile.streak, profile.xp) == ("ada", TODAY, 1, 30)
    assert await store.leaderboard(10, TODAY) == [Standing("ada", 1, 30)]
    assert await store.report(TODAY) == await store.totals("ada") == [Total("learn", 1, 20, 30)]


async def test_a_moment_of_another_zone_is_the_same_moment(store: Store) -> None:
    """The day is the rules' day, whatever zone the moment came in."""
    there = timezone(timedelta(hours=9))
    receipt = await store.log_activity("ada", Activity("learn", 1), datetime(2026, 3, 5, 12, 30, tzinfo=there))
    assert receipt.entry.day == TODAY  # it is 3:30 UTC: the day of before is not over
    assert receipt.entry.at == datetime(2026, 3, 5, 3, 30, tzinfo=timezone.utc)
    assert await store.activity("ada", receipt.entry.id) == receipt.entry


async def test_pages_go_back_in_time_and_miss_nothing(store: Store) -> None:
    """Pages are newest first, and the last id of one is the cursor of the next, with a category or without."""
    entries = []
    for number in range(7):
        category = rules.CATEGORIES[number % 2]
        receipt = await store.log_activity("ada", Activity(category, number), NOON + SECOND * number)
        entries.insert(0, receipt.entry)
    await store.log_activity("bob", Activity("learn", 1), NOON)
    seen: list[Entry] = []
    while page := await store.activities("ada", limit=3, before=seen[-1].id if seen else None):
        seen += page
    assert seen == entries
    learned = [entry for entry in entries if entry.category == "learn"]
    first = await store.activities("ada", limit=2, category="learn")
    assert first == learned[:2]
    assert await store.activities("ada", limit=9, category="learn", before=first[-1].id) == learned[2:]


async def test_nobody_sees_what_another_did(store: Store) -> None:
    """An activity is found by its owner only."""
    receipt = await store.log_activity("ada", Activity("learn", 20), NOON)
    assert await store.activity("bob", receipt.entry.id) is None
    assert await store.activities("bob", limit=10) == []
    assert await store.totals("bob") == []


async def test_same_key_is_the_same_activity(store: Store) -> None:
    """A client key that is known writes nothing, whatever comes with it; another user may have the same."""
    first = await store.log_activity("ada", Activity("learn", 20, client_key="k"), NOON)
    again = await store.log_activity("ada", Activity("move", 60, client_key="k"), NOON + DAY)
    assert again.logged is None
    assert again.entry == first.entry
    assert again.state == first.state == await store.state("ada")
    assert len(await store.activities("ada", limit=10)) == 1
    other = await store.log_activity("bob", Activity("move", 60, client_key="k"), NOON)
    assert other.logged is not None


async def test_same_key_at_once(store: Store) -> None:
    """Of many at once under one key, one is logged and all get the same answer."""
    receipts = await at_once(store, *[Activity("learn", 20, client_key="k")] * 8)
    assert sum(receipt.logged is not None for receipt in receipts) == 1
    assert len({receipt.entry.id for receipt in receipts}) == 1
    assert (await store.state("ada")).xp == 30


@KEEPS_APART
async def test_streak_grows_once_under_a_rush(store: Store) -> None:
    """Many activities at once make one streak step, one bonus, and lose no XP."""
    receipts = await at_once(store, *(Activity(category, 10) for category in rules.CATEGORIES for _ in range(3)))
    logged = [receipt.logged for receipt in receipts if receipt.logged]
    assert sum(each.grew for each in logged) == 1
    assert sum(each.bonus_earned for each in logged) == 1
    state = await store.state("ada")
    assert (state.streak, state.bonus, state.xp) == (1, True, sum(each.xp for each in logged))
    assert state.xp == sum(entry.xp for entry in await store.activities("ada", limit=100))


async def at_once(store: Store, *activities: Activity) -> list[Receipt]:
    return list(await asyncio.gather(*(store.log_activity("ada", activity, NOON) for activity in activities)))


async def test_a_failed_write_leaves_nothing(store: Store) -> None:
    """A transaction that fails half-way takes all of it back."""
    broken = Activity("learn", 10, note=object())  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"(?i)type|expected|cannot"):
        await store.log_activity("ada", broken, NOON)
    assert await store.profile("ada") is None
    assert await store.activities("ada", limit=1) == []


async def test_a_freeze_holds_today(store: Store) -> None:
    """A freeze is spent on today, once; whoever has none, or no streak, is told so and nothing is written."""
    await live(store, "ada", 7, NOON - DAY)
    applied = await store.apply_freeze("ada", TODAY)
    assert applied.applied
    assert (applied.state.freezes, applied.state.held_until) == (0, TODAY)
    assert await store.state("ada") == applied.state
    assert (await store.apply_freeze("ada", TODAY)).refusal == "day_is_held"
    assert (await store.apply_freeze("ada", TODAY + DAY)).refusal == "no_freeze"
    assert (await store.apply_freeze("nobody", TODAY)).refusal == "no_streak"
    assert await store.profile("nobody") is None
    assert await store.state("ada") == applied.state


@KEEPS_APART
async def test_of_freezes_at_once_one_wins(store: Store) -> None:
    """Three applications of one freeze at once: one wins, and none is held afterwards, never less."""
    await live(store, "ada", 7, NOON - DAY)
    answers = await asyncio.gather(*(store.apply_freeze("ada", TODAY) for _ in range(3)))
    assert sorted(answer.applied for answer in answers) == [False, False, True]
    state = await store.state("ada")
    assert (state.freezes, state.freezes_used) == (0, 1)


async def test_what_a_refused_freeze_settles_is_written(store: Store) -> None:
    """The days that are over are accounted for even when no freeze is left to apply."""
    await live(store, "ada", 3, NOON - DAY * 4)
    applied = await store.apply_freeze("ada", TODAY)
    assert (applied.refusal, applied.settled.broken) == ("no_streak", 3)
    state = await store.state("ada")
    assert (state.streak, state.lost_streak) == (0, 3)
    assert state == applied.state


async def test_a_lost_streak_is_bought_back(store: Store) -> None:
    """Recovery brings the streak back for its price, once."""
    await live(store, "ada", 5, NOON - DAY * 2)
    before = await store.state("ada")
    recovered = await store.recover("ada", TODAY)
    assert (recovered.recovered, recovered.paid_xp) == (5, rules.recovery_cost_xp(5))
    state = await store.state("ada")
    assert (state.streak, state.xp) == (5, before.xp - recovered.paid_xp)
    assert (await store.recover("ada", TODAY)).refusal == "nothing_lost"
    assert (await store.recover("nobody", TODAY)).refusal == "nothing_lost"
    assert await store.profile("nobody") is None
    assert await store.state("ada") == state


@KEEPS_APART
async def test_of_recoveries_at_once_one_pays(store: Store) -> None:
    """A streak is bought back once, however often it is asked for at the same time."""
    await live(store, "ada", 5, NOON - DAY * 2)
    before = await store.state("ada")
    answers = await asyncio.gather(*(store.recover("ada", TODAY) for _ in range(3)))
    assert sorted(answer.recovered for answer in answers) == [0, 0, 5]
    assert (await store.state("ada")).xp == before.xp - rules.recovery_cost_xp(5)


async def test_the_calendar_has_its_limits(store: Store) -> None:
    """The calendar has the days from the first to the last asked for, oldest first, both of them with it."""
    for before in (4, 3, 1, 0):
        await store.log_activity("ada", Activity("learn", 10), NOON - DAY * before)
    await store.log_activity("ada", Activity("move", 5), NOON - DAY * 3)
    days = await store.calendar("ada", TODAY - DAY * 3, TODAY - DAY)
    assert [(day.day, day.activities, day.xp) for day in days] == [
        (TODAY - DAY * 3, 2, 35),
        (TODAY - DAY, 1, 20),
    ]


async def test_the_order_of_the_boards(store: Store) -> None:
    """The longest streak is first, more XP among equals, then the name; the most active did something last."""
    for name, minutes in (("carl", 10), ("bea", 10), ("Zoe", 10), ("ada", 50)):
        await store.log_activity(name, Activity("learn", minutes), NOON)
    await live(store, "dora", 2)
    await live(store, "old", 3, NOON - DAY * 9)
    await store.apply_freeze("old", TODAY)  # which finds that the streak has ended
    # Names sort by their code points, capitals first, in every database.
    board = ["dora", "ada", "Zoe", "bea", "carl"]
    assert [line.name for line in await store.leaderboard(10, TODAY)] == board
    assert [line.name for line in await store.leaderboard(1, TODAY)] == ["dora"]
    assert await store.most_active(10) == ["ada", "dora", "Zoe", "bea", "carl", "old"]
    assert await store.most_active(2) == ["ada", "dora"]


async def test_a_streak_that_is_over_is_on_no_board(store: Store) -> None:
    """The board and the KPIs have the streaks that hold on their day, though no maintenance has been here."""
    await live(store, "ada", 14)  # two freezes: it holds for two days more than without
    await live(store, "bob", 7, NOON - DAY)
    await live(store, "cleo", 3)
    expected = [["ada", "bob", "cleo"]] * 2 + [["ada"]] * 2 + [[]] * 2
    for days, names in enumerate(expected):
        today = TODAY + DAY * days
        assert [line.name for line in await store.leaderboard(10, today)] == names
        kpis = await store.kpis(today)
        streaks = [line.streak for line in await store.leaderboard(10, today)]
        assert (kpis.active_streaks, kpis.streak_days) == (len(names), sum(streaks))
        assert kpis.kept_7_days == len([streak for streak in streaks if streak >= 7])
        assert (kpis.users, kpis.reached_7_days) == (3, 2)
    assert [line.name for line in await store.leaderboard(1, TODAY + DAY * 2)] == ["ada"]


async def test_an_activity_that_maintenance_was_faster_than(database: Database) -> None:
    """What is written after its day was settled as a missed one costs neither the streak nor the freeze."""
    store = database.store
    for user, days in (("ada", 8), ("bob", 3)):
        await live(store, user, days, NOON - DAY)
    run = await database.runs.begin(TODAY + DAY, "cli", NOON + DAY)
    await database.runs.settle(run.id, Range("", "z"), TODAY + DAY)
    assert ((await store.state("ada")).freezes, (await store.state("bob")).streak) == (0, 0)
    for user, streak, freezes in (("ada", 9, 1), ("bob", 4, 0)):
        receipt = await store.log_activity(user, Activity("learn", 1), NOON)
        state = await store.state(user)
        assert state == receipt.state
        assert (state.streak, state.freezes, state.held_until) == (streak, freezes, TODAY)


@pytest.fixture
def lose(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """For each error in the list one commit is made, and its answer is lost."""
    errors: list[Exception] = []
    dialect = database.measured[0].writer.sync_engine.dialect
    commit = dialect.do_commit

    def lost(connection: Any) -> None:
        commit(connection)
        if errors:
            raise errors.pop()

    monkeypatch.setattr(dialect, "do_commit", lost)
    return errors


@KEEPS_APART  # for Firestore see test_firestore_transactions.py
async def test_a_lost_answer_is_no_refusal(store: Store, lose: list[Exception]) -> None:
    """A freeze or a recovery whose commit was made, and not answered, is done once and said to be done."""
    await live(store, "ada", 7, NOON - DAY)
    lose.append(ConnectionResetError("lost"))
    applied = await store.apply_freeze("ada", TODAY)
    assert (applied.applied, applied.refusal, lose) == (True, None, [])
    assert await store.state("ada") == applied.state
    assert (await store.apply_freeze("ada", TODAY)).refusal == "day_is_held"
    await live(store, "bob", 5, NOON - DAY * 2)
    xp = (await store.state("bob")).xp
    lose.append(ConnectionResetError("lost"))
    recovered = await store.recover("bob", TODAY)
    assert (recovered.recovered, recovered.refusal, lose) == (5, None, [])
    assert await store.state("bob") == recovered.state
    assert recovered.state.xp == xp - recovered.paid_xp
    assert (await store.recover("bob", TODAY)).refusal == "nothing_lost"


async def test_the_report_and_the_kpis_count_everybody(store: Store) -> None:
    """The report is by category since a day; the KPIs are counts over all users."""
    await live(store, "ada", 7)  # seven days, and a freeze for them
    for category in rules.CATEGORIES:
        await store.log_activity("bob", Activity(category, 10), NOON)
    await live(store, "cleo", 8, NOON - DAY * 9)
    await store.apply_freeze("cleo", TODAY)  # spends the freeze on a missed day, and has none for the others
    kpis = await store.kpis(TODAY)
    assert kpis == Kpis(
        users=3,
        active_streaks=2,
        weekly_bonuses=1,
        freezes_earned=2,
        freezes_used=1,
        reached_7_days=2,
        kept_7_days=1,
        streak_days=8,
    )
    assert (await store.kpis(TODAY + DAY * 7)).weekly_bonuses == 0
    totals = await store.report(TODAY)
    assert [total.category for total in totals] == sorted(rules.CATEGORIES)
    assert {total.category: total.activities for total in totals} == {
        "connect": 1, "create": 1, "learn": 2, "move": 1,
    }  # fmt: skip
    assert sum(total.xp for total in totals) == 20 + sum(entry.xp for entry in await store.activities("bob", limit=9))


async def test_prepared_by_several_at_once(database: Database, database_url: str) -> None:
    """Whoever starts at the same time finds the tables ready, and preparing again loses nothing."""
    await database.store.log_activity("ada", Activity("learn", 1), NOON)
    others = [open_database(database_url) for _ in range(4)]
    try:
        await asyncio.gather(*(other.prepare() for other in others))
        assert (await others[0].store.state("ada")).streak == 1
    finally:
        for other in others:
            await other.close()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite+aiosqlite:////nowhere/at/all/streak.db",
        "postgresql+asyncpg://nobody:hunter2@127.0.0.1:1/streak",
    ],
)
async def test_a_database_that_is_not_there(url: str) -> None:
    """Ping says that there is no answer, names the kind of failure, and repeats no address and no password."""
    opened = open_database(url)
    try:
        with pytest.raises(StoreUnavailableError) as caught:
            await opened.store.ping()
    finally:
        await opened.close()
    assert not {"hunter2", "nobody", "nowhere", "127.0.0.1"} & set(str(caught.value).replace("/", " ").split())
