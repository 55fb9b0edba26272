"""One contract for the runs of the maintenance: SQLite, PostgreSQL and Firestore account alike."""

from __future__ import annotations

import asyncio
from datetime import date, datetime, timedelta, timezone

import pytest

from examples.streak import rules
from examples.streak.records import Activity, Lease, Message, Range, SettledBatch, Tally
from examples.streak.stores import Database, LeaseLostError, OverlapError, Runs, Store

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = date(2026, 3, 4)
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)

# The emulator of Firestore does not keep transactions apart: two at once both read what was there before.
KEEPS_APART = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
async def runs(database: Database) -> Runs:
    """What the maintenance asks for and does, on each kind of database."""
    return database.runs


async def live(store: Store, user: str, days: int, missed: int) -> None:
    """Log one activity on each of so many days in a row, and then on none for so many that are over."""
    for before in range(days - 1, -1, -1):
        await store.log_activity(user, Activity("learn", 1), NOON - DAY * (before + missed + 1))


async def four_users(store: Store) -> None:
    """One of each fate: who is at risk, who spends a freeze, who loses without one, and who loses with one."""
    await live(store, "ada", 2, missed=0)
    await live(store, "bob", 7, missed=1)
    await live(store, "cleo", 3, missed=1)
    await live(store, "dan", 7, missed=3)
    await live(store, "done", 1, missed=-1)  # has done something today


ALL = Range("", "zzz")
FATES = Tally(processed=4, freezes_spent=2, missed=1, freezes_exhausted=1, at_risk=2)
MESSAGES = {"ada": "at_risk", "bob": "at_risk", "cleo": "broken", "dan": "broken"}


async def test_the_lease_is_one(runs: Runs) -> None:
    """Whoever comes first has it; others are told who has it, until it is given back."""
    mine = await runs.lease("a", NOON, 60)
    assert mine == Lease("a", NOON + SECOND * 60)
    assert await runs.lease("b", NOON + SECOND * 59, 60) == mine
    await runs.release("b")  # who does not have it
    assert await runs.lease("b", NOON + SECOND * 59, 60) == mine
    await runs.release("a")
    assert (await runs.lease("b", NOON + SECOND * 59, 60)).holder == "b"


async def test_the_lease_is_extended_and_runs_out(runs: Runs) -> None:
    """Its holder extends it; once it ran out somebody else may have it, and the first one learns of it."""
    await runs.lease("a", NOON, 60)
    assert await runs.lease("a", NOON + SECOND * 30, 60) == Lease("a", NOON + SECOND * 90)
    assert (await runs.lease("b", NOON + SECOND * 89, 60)).holder == "a"
    assert await runs.lease("b", NOON + SECOND * 90, 60) == Lease("b", NOON + SECOND * 150)
    assert (await runs.lease("a", NOON + SECOND * 91, 60)).holder == "b"


async def test_the_lease_of_one_who_is_gone(runs: Runs) -> None:
    """It is taken from a holder who is named as gone, and from nobody else."""
    await runs.lease("a", NOON, 60)
    assert (await runs.lease("b", NOON, 60, instead_of="c")).holder == "a"
    assert (await runs.lease("b", NOON, 60, instead_of="a")).holder == "b"
    assert (await runs.lease("c", NOON, 60, instead_of="a")).holder == "b"


@KEEPS_APART
async def test_of_many_at_once_one_gets_the_lease(runs: Runs) -> None:
    """All who ask at the same time are told of the same holder, when it is free and when it ran out."""
    for at in (NOON, NOON + SECOND * 60):
        leases = await asyncio.gather(*(runs.lease(f"h{number}-{at}", at, 60) for number in range(6)))
        assert len({lease.holder for lease in leases}) == 1


async def test_a_run_and_its_end(runs: Runs) -> None:
    """A run is under way, completed or failed, and can be taken up again; the newest of a day is found."""
    assert await runs.last_of(TODAY) is None
    run = await runs.begin(TODAY, "cli", NOON)
    assert (run.day, run.trigger, run.state, run.started_at, run.ended_at) == (TODAY, "cli", "running", NOON, None)
    assert (run.resumed, run.error, run.tally) == (0, None, Tally())
    assert await runs.last_of(TODAY) == run
    failed = await runs.end(run.id, NOON + SECOND, "OSError")
    assert (failed.state, failed.error, failed.ended_at) == ("failed", "OSError", NOON + SECOND)
    again = await runs.take_up(run.id)
    assert (again.state, again.resumed, again.error, again.ended_at) == ("running", 1, None, None)
    completed = await runs.end(run.id, NOON + SECOND * 2)
    assert (completed.state, completed.resumed, completed.error) == ("completed", 1, None)
    assert await runs.last_of(TODAY) == completed
    # A completed one is the day's, whatever was begun after it.
    newer = await runs.begin(TODAY, "http", NOON + SECOND * 3)
    assert await runs.last_of(TODAY) == completed
    assert (await runs.end(newer.id, NOON + SECOND * 4)).state == "completed"
    assert (await runs.last_of(TODAY) or completed).id == newer.id
    assert await runs.last_of(TODAY + DAY) is None


async def test_whoever_has_lost_the_lease_writes_no_run(runs: Runs) -> None:
    """Beginning, taking up and ending a run are refused to all but the holder of the lease, and nothing is written."""
    await runs.lease("a", NOON, 60)
    run = await runs.begin(TODAY, "cli", NOON, holder="a")
    await runs.lease("b", NOON + SECOND * 60, 60)
    for change in (
        lambda: runs.begin(TODAY + DAY, "cli", NOON, holder="a"),
        lambda: runs.take_up(run.id, holder="a"),
        lambda: runs.end(run.id, NOON, "OSError", holder="a"),
    ):
        with pytest.raises(LeaseLostError):
            await change()
    assert await runs.history(5) == [run]
    assert (await runs.take_up(run.id, holder="b")).resumed == 1
    assert (await runs.end(run.id, NOON, holder="b")).state == "completed"


async def test_a_day_has_one_run(runs: Runs) -> None:
    """Who stalled until another one was through with the day, and has the lease again, does none of it again."""
    await runs.lease("a", NOON, 60)
    run = await runs.begin(TODAY, "cli", NOON, holder="a")
    completed = await runs.end(run.id, NOON + SECOND, holder="a")
    assert await runs.end(run.id, NOON + SECOND, holder="a") == completed  # the first answer got lost
    for change in (
        lambda: runs.begin(TODAY, "cli", NOON + SECOND, holder="a"),
        lambda: runs.take_up(run.id, holder="a"),
        lambda: runs.end(run.id, NOON, "interrupted", holder="a"),
        lambda: runs.settle(run.id, Range("", "z"), TODAY, holder="a"),
    ):
        with pytest.raises(LeaseLostError):
            await change()
    assert await runs.history(5) == [completed]


async def test_the_lease_goes_by_the_clock_of_the_database(runs: Runs) -> None:
    """Without a moment of the caller's, it is now for the database, and says so: a healthy lease is nobody else's."""
    mine = await runs.lease("a", None, 60)
    assert mine.asked_at is not None
    assert abs(mine.asked_at - datetime.now(timezone.utc)) < DAY
    assert mine.until - mine.asked_at == SECOND * 60
    other = await runs.lease("b", None, 60)
    assert (other, other.asked_at is not None) == (mine, True)
    # One whose lease ran out, by that clock.
    await runs.lease("a", mine.asked_at - SECOND * 61, 60)
    assert (await runs.lease("b", None, 60)).holder == "b"


async def test_a_run_that_nobody_knows(runs: Runs) -> None:
    """An unknown run cannot be ended or taken up."""
    with pytest.raises(LookupError, match="there is no run"):
        await runs.end("0" * 32, NOON)
    with pytest.raises(LookupError, match="there is no run"):
        await runs.take_up("0" * 32)
    assert await runs.done("0" * 32) == []
    assert await runs.unsent("0" * 32, 10) == []


async def test_the_history_has_pages(runs: Runs) -> None:
    """Runs are newest first, and the last id of a page is the cursor of the next."""
    began = [await runs.begin(TODAY - DAY * (5 - n), "schedule", NOON - DAY * (5 - n)) for n in range(5)]
    first = await runs.history(2)
    assert first == began[:-3:-1]
    second = await runs.history(10, before=first[-1].id)
    assert first + second == began[::-1]


async def test_old_runs_are_forgotten_with_their_batches(database: Database) -> None:
    """What began before a moment is deleted, and what began then or later is kept."""
    runs = database.runs
    await four_users(database.store)
    old = await runs.begin(TODAY - DAY, "cli", NOON - DAY)
    await runs.settle(old.id, ALL, TODAY - DAY)
    kept = await runs.begin(TODAY, "cli", NOON)
    await runs.settle(kept.id, ALL, TODAY)
    assert await runs.forget_runs(NOON) == 1
    assert [run.id for run in await runs.history(10)] == [kept.id]
    assert await runs.done(old.id) == []
    assert await runs.done(kept.id) == [ALL]
    assert await runs.forget_runs(NOON) == 0


async def test_who_is_due_comes_by_name(database: Database) -> None:
    """Those whose streak nothing holds today, a page after the other, up to the last name with it."""
    await four_users(database.store)
    runs = database.runs
    assert await runs.due(TODAY, after="", until=None, limit=10) == ["ada", "bob", "cleo", "dan"]
    assert await runs.due(TODAY, after="", until=None, limit=2) == ["ada", "bob"]
    assert await runs.due(TODAY, after="bob", until=None, limit=2) == ["cleo", "dan"]
    assert await runs.due(TODAY, after="ada", until="cleo", limit=10) == ["bob", "cleo"]
    assert await runs.due(TODAY, after="dan", until=None, limit=10) == []
    assert await runs.due(TODAY + DAY, after="dan", until=None, limit=10) == ["done"]


async def test_a_range_is_settled_as_the_rules_say(database: Database) -> None:
    """Each fate is counted, told and written; nobody outside the range or with nothing to write is touched."""
    store, runs = database.store, database.runs
    await four_users(store)
    names = ("ada", "bob", "cleo", "dan", "done")
    before = {name: await store.state(name) for name in names}
    run = await runs.begin(TODAY, "cli", NOON)
    batch = await runs.settle(run.id, ALL, TODAY)
    assert batch.range == ALL
    assert batch.tally == FATES
    assert {message.user: message.kind for message in batch.messages} == MESSAGES
    assert sorted(batch.changed) == ["bob", "cleo", "dan"]
    for name in names:
        assert await store.state(name) == rules.settle(before[name], TODAY).state
    assert (await runs.end(run.id, NOON)).tally == FATES
    assert [each.tally for each in await runs.history(1)] == [FATES]


async def test_a_dry_run_writes_nothing(database: Database) -> None:
    """It tells what a run would do, needs no run, and leaves no trace."""
    store, runs = database.store, database.runs
    await four_users(store)
    before = await store.state("dan")
    batch = await runs.settle("", ALL, TODAY, dry_run=True)
    assert batch.tally == FATES
    assert {message.user: message.kind for message in batch.messages} == MESSAGES
    assert await store.state("dan") == before
    assert await runs.due(TODAY, after="", until=None, limit=10) == ["ada", "bob", "cleo", "dan"]
    assert await runs.history(1) == []
    run = await runs.begin(TODAY, "cli", NOON)
    assert await runs.done(run.id) == []


async def test_a_range_is_settled_once_a_run(database: Database) -> None:
    """A range that is repeated gives back what was written, whoever did something since; another run counts anew."""
    store, runs = database.store, database.runs
    await four_users(store)
    run = await runs.begin(TODAY, "cli", NOON)
    first = await runs.settle(run.id, ALL, TODAY)
    await store.log_activity("ada", Activity("learn", 1), NOON)
    again = await runs.settle(run.id, ALL, TODAY)
    assert by_name(again) == by_name(first)
    assert again.tally == first.tally
    assert (await runs.end(run.id, NOON)).tally == FATES
    other = await runs.begin(TODAY, "cli", NOON + SECOND)
    assert (await runs.settle(other.id, ALL, TODAY)).tally == Tally(processed=1, at_risk=1)  # bob


def by_name(batch: SettledBatch) -> tuple[Range, list[Message], list[str]]:
    return batch.range, sorted(batch.messages, key=lambda message: message.user), sorted(batch.changed)


@KEEPS_APART
async def test_of_many_at_once_one_settles(database: Database) -> None:
    """Of many who settle the same range of the same run at once, one does, and all get what it wrote."""
    await four_users(database.store)
    run = await database.runs.begin(TODAY, "cli", NOON)
    batches = await asyncio.gather(*(database.runs.settle(run.id, ALL, TODAY) for _ in range(4)))
    assert [by_name(batch) for batch in batches] == [by_name(batches[0])] * 4
    assert (await database.runs.end(run.id, NOON)).tally == FATES
    assert (await database.store.state("bob")).freezes_used == 1


async def test_who_has_lost_the_lease_settles_nothing(database: Database) -> None:
    """A holder that was too slow is refused, and nothing of the range is written; whoever has the lease may."""
    store, runs = database.store, database.runs
    await four_users(store)
    before = await store.state("bob")
    run = await runs.begin(TODAY, "cli", NOON)
    with pytest.raises(LeaseLostError):
        await runs.settle(run.id, ALL, TODAY, holder="a")  # nobody has it
    await runs.lease("a", NOON, 60)
    await runs.lease("b", NOON + SECOND * 60, 60)
    with pytest.raises(LeaseLostError):
        await runs.settle(run.id, ALL, TODAY, holder="a")
    assert await runs.done(run.id) == []
    assert await store.state("bob") == before
    assert (await runs.settle(run.id, ALL, TODAY, holder="b")).tally == FATES
    assert (await runs.end(run.id, NOON)).tally == FATES


@pytest.mark.parametrize(("after", "until"), [("", "b"), ("b", "zzzz"), ("b", "c"), ("", "zzzz"), ("", "zzz")])
async def test_no_user_is_in_two_ranges_of_a_run(database: Database, after: str, until: str) -> None:
    """A range that overlaps what is accounted for is refused and counts nobody again, unless it is the very same."""
    runs = database.runs
    await four_users(database.store)
    run = await runs.begin(TODAY, "cli", NOON)
    written = await runs.settle(run.id, Range("a", "zzz"), TODAY)
    assert written.tally == FATES
    with pytest.raises(OverlapError, match="accounted for"):
        await runs.settle(run.id, Range(after, until), TODAY)
    assert await runs.done(run.id) == [Range("a", "zzz")]
    assert (await runs.end(run.id, NOON)).tally == FATES


@KEEPS_APART
async def test_of_overlapping_ranges_at_once_one_is_settled(database: Database) -> None:
    """Two that overlap, at the same time: one is refused whole, and each user is counted once at most."""
    runs = database.runs
    await four_users(database.store)
    await asyncio.gather(*(database.store.ping() for _ in range(5)))
    for minute in range(5):
        run = await runs.begin(TODAY, "cli", NOON + SECOND * 60 * minute)
        parts = (Range("", "cleo"), Range("ada", "zzz"))
        answers = await asyncio.gather(*(runs.settle(run.id, part, TODAY) for part in parts), return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in answers) == ["OverlapError", "SettledBatch"]
        (batch,) = (answer for answer in answers if isinstance(answer, SettledBatch))
        assert await runs.done(run.id) == [batch.range]
        assert (await runs.end(run.id, NOON)).tally == batch.tally


async def test_an_empty_range_is_accounted_for_too(database: Database) -> None:
    """A range in which nobody is due is done, with nothing to send."""
    run = await database.runs.begin(TODAY, "cli", NOON)
    batch = await database.runs.settle(run.id, Range("a", "b"), TODAY)
    assert (batch.tally, batch.messages, batch.changed) == (Tally(), (), ())
    assert await database.runs.done(run.id) == [Range("a", "b")]
    assert await database.runs.unsent(run.id, 10) == []


async def test_what_is_done_is_merged(database: Database) -> None:
    """Ranges that follow each other are one; gaps show, whatever the order they were done in."""
    runs = database.runs
    run = await runs.begin(TODAY, "cli", NOON)
    other = await runs.begin(TODAY, "cli", NOON + SECOND)
    for after, until in (("m", "p"), ("", "c"), ("f", "h"), ("c", "f")):
        await runs.settle(run.id, Range(after, until), TODAY)
    await runs.settle(other.id, Range("h", "m"), TODAY)
    assert await runs.done(run.id) == [Range("", "h"), Range("m", "p")]
    await runs.settle(run.id, Range("h", "m"), TODAY)
    assert await runs.done(run.id) == [Range("", "p")]


async def test_messages_are_kept_until_they_are_sent(database: Database) -> None:
    """What was not taken yet is found again; what was is forgotten, and counted once."""
    runs = database.runs
    await four_users(database.store)
    run = await runs.begin(TODAY, "cli", NOON)
    parts = (Range("", "bob"), Range("bob", "zzz"))
    batches = [await runs.settle(run.id, part, TODAY) for part in parts]
    unsent = await runs.unsent(run.id, 10)
    assert [part for part, _ in unsent] == list(parts)
    assert [sorted(messages, key=str) for _, messages in unsent] == [sorted(b.messages, key=str) for b in batches]
    assert [part for part, _ in await runs.unsent(run.id, 1)] == [parts[0]]
    await runs.sent(run.id, parts[0], 2)
    await runs.sent(run.id, parts[0], 2)
    assert [part for part, _ in await runs.unsent(run.id, 10)] == [parts[1]]
    await runs.sent(run.id, parts[1], 1)  # one of the two was given up
    assert await runs.unsent(run.id, 10) == []
    assert (await runs.end(run.id, NOON)).tally.notified == 3


async def test_messages_are_sent_a_part_at_a_time(database: Database) -> None:
    """What is left of a batch is kept and counted as unsent; writing the same part again counts nothing again."""
    runs = database.runs
    await four_users(database.store)
    run = await runs.begin(TODAY, "cli", NOON)
    batch = await runs.settle(run.id, ALL, TODAY)
    left = sorted(batch.messages, key=lambda message: message.user)[1:]
    assert [each.unsent for each in await runs.history(1)] == [4]
    for _ in range(2):
        await runs.sent(run.id, ALL, 1, left)
    ((part, kept),) = await runs.unsent(run.id, 10)
    assert (part, sorted(kept, key=lambda message: message.user)) == (ALL, left)
    assert await runs.unsent(run.id, 10, ALL.until) == []
    ended = await runs.end(run.id, NOON)
    assert (ended.tally.notified, ended.unsent) == (1, 3)
    await runs.sent(run.id, ALL, 2, left[2:])
    assert [(each.tally.notified, each.unsent) for each in await runs.history(1)] == [(3, 1)]
    await runs.sent(run.id, ALL, 0)  # given up
    assert [(each.tally.notified, each.unsent) for each in await runs.history(1)] == [(3, 0)]


async def test_names_of_any_letters(database: Database) -> None:
    """Names come by their code points, so that ranges mean the same to every database and to Python."""
    names = ["Zoe", "_x", "a-b", "a_b", "ab", "Äda", "ß"]
    for name in names:
        await live(database.store, name, 1, missed=0)
    expected = sorted(names)
    found: list[str] = []
    while page := await database.runs.due(TODAY, after=found[-1] if found else "", until=None, limit=2):
        found += page
    assert found == expected
    run = await database.runs.begin(TODAY, "cli", NOON)
    batch = await database.runs.settle(run.id, Range(expected[1], expected[4]), TODAY)
    assert sorted(message.user for message in batch.messages) == expected[2:5]
