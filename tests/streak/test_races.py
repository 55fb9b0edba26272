"""Real processes at the same rows of PostgreSQL: what may happen once happens once, and nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from datetime import date, datetime, timedelta, timezone
from typing import Any, TypeVar

import pytest

from examples.streak import rules
from examples.streak.records import Activity, Range, Tally
from examples.streak.stores import Database, open_database
from tests.streak.racing import Racers, racers

T = TypeVar("T")

NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = date(2026, 3, 4)
DAY = timedelta(days=1)
# So many users are raced for at once: each of them is a race of its own.
USERS = [f"user-{number:02}" for number in range(12)]


@pytest.fixture(scope="module")
def four() -> Iterator[Racers]:
    """Four processes that begin at the same moment."""
    with racers(4) as started:
        yield started


@pytest.fixture
def url(fresh_postgresql: str) -> str:
    """The address of a database with its tables."""

    async def prepare(_database: Database) -> None:
        return None

    with_database(fresh_postgresql, prepare)
    return fresh_postgresql


def with_database(url: str, work: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        database = open_database(url)
        try:
            await database.prepare()
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


def live(url: str, days: int, missed: int) -> None:
    """Let all users do something on each of so many days in a row, and then on none for so many that are over."""

    async def work(database: Database) -> None:
        for before in range(days - 1, -1, -1):
            at = NOON - DAY * (before + missed + 1)
            await asyncio.gather(*(database.store.log_activity(user, Activity("learn", 1), at) for user in USERS))

    with_database(url, work)


def states(url: str) -> dict[str, rules.State]:
    async def work(database: Database) -> dict[str, rules.State]:
        return {user: await database.store.state(user) for user in USERS}

    return with_database(url, work)


def log(category: str, key: str | None = None) -> list[list[Any]]:
    return [["log", user, category, key, NOON.isoformat()] for user in USERS]


def test_of_three_who_apply_one_freeze_one_wins(four: Racers, url: str) -> None:
    """One of three processes gets the freeze, and what is held is never less than nothing."""
    live(url, days=7, missed=0)
    assert {state.freezes for state in states(url).values()} == {1}
    answers = four.race(url, *[[["freeze", user, TODAY.isoformat()] for user in USERS]] * 3)
    assert [sum(of_one) for of_one in zip(*answers, strict=True)] == [1] * len(USERS)
    assert {(state.freezes, state.freezes_used) for state in states(url).values()} == {(0, 1)}


def test_a_streak_is_bought_back_once(four: Racers, url: str) -> None:
    """One of three processes buys the streak back, and its price is paid once."""
    live(url, days=3, missed=1)
    before = states(url)
    answers = four.race(url, *[[["recover", user, TODAY.isoformat()] for user in USERS]] * 3)
    assert [sorted(of_one) for of_one in zip(*answers, strict=True)] == [[0, 0, 3]] * len(USERS)
    price = rules.recovery_cost_xp(3)
    assert [state.xp for state in states(url).values()] == [state.xp - price for state in before.values()]


def test_the_bonus_is_earned_once(four: Racers, url: str) -> None:
    """Of four processes that log the four categories at once, one earns the bonus; the users are new to all."""
    answers = four.race(url, *(log(category) for category in rules.CATEGORIES))
    for user, of_one in zip(USERS, zip(*answers, strict=True), strict=True):
        assert sum(each["logged"][1] for each in of_one) == 1, user
        assert sum(each["logged"][0] for each in of_one) == 1, user
    found = states(url)
    for user, of_one in zip(USERS, zip(*answers, strict=True), strict=True):
        state = found[user]
        assert (state.streak, state.bonus, state.done) == (1, True, frozenset(rules.CATEGORIES))
        assert state.xp == sum(each["logged"][2] for each in of_one)


def test_the_streak_grows_once(four: Racers, url: str) -> None:
    """Four processes log for the same users at once, three times each: one streak step, and no XP is lost."""
    live(url, days=6, missed=0)
    before = states(url)
    answers = four.race(url, *[log("learn") * 3] * 4)
    grown = Counter(each["user"] for of_one in answers for each in of_one if each["logged"][0])
    assert grown == Counter(USERS)
    for user, state in states(url).items():
        assert (state.streak, state.freezes) == (7, 1)  # the seventh day earns its freeze once
        assert state.xp - before[user].xp == 12 * rules.base_xp(10)


def test_one_client_key_is_one_activity(four: Racers, url: str) -> None:
    """Four processes send the same activity: one logs it, and all get its id."""
    answers = four.race(url, *[log("learn", "same") * 2] * 4)
    for user in USERS:
        of_one = [each for some in answers for each in some if each["user"] == user]
        assert sum(each["logged"] is not None for each in of_one) == 1
        assert len({each["id"] for each in of_one}) == 1
    assert {(state.streak, state.xp) for state in states(url).values()} == {(1, rules.base_xp(10))}


def test_two_settlers_settle_each_user_once(four: Racers, url: str) -> None:
    """Two processes with the same ranges of one run spend one freeze of each user, and count each user once."""
    live(url, days=7, missed=1)
    names = ["", *USERS[2::3]]

    async def begin(database: Database) -> str:
        return (await database.runs.begin(TODAY, "cli", NOON)).id

    run_id = with_database(url, begin)
    parts = [["settle", run_id, *pair, TODAY.isoformat()] for pair in itertools.pairwise(names)]
    answers = four.race(url, parts, parts)
    assert answers[0] == answers[1]  # who comes second is told what the first has written
    assert {(state.freezes, state.freezes_used) for state in states(url).values()} == {(0, 1)}

    async def tally(database: Database) -> tuple[Tally, list[Range]]:
        return (await database.runs.end(run_id, NOON)).tally, await database.runs.done(run_id)

    count = len(USERS)
    assert with_database(url, tally) == (
        Tally(processed=count, freezes_spent=count, at_risk=count),
        [Range("", USERS[-1])],
    )


def test_maintenance_and_users_at_the_same_time(four: Racers, url: str) -> None:
    """Whoever comes first, the user's row or the range, the missed day is accounted for once and no activity lost."""
    live(url, days=7, missed=1)
    before = states(url)

    async def begin(database: Database) -> str:
        return (await database.runs.begin(TODAY, "cli", NOON)).id

    settle = ["settle", with_database(url, begin), "", USERS[-1], TODAY.isoformat()]
    four.race(url, [settle], log("move"), log("create")[::-1])
    for user, state in states(url).items():
        moved = rules.log_activity(before[user], "move", 10, TODAY).state
        assert state == rules.log_activity(moved, "create", 10, TODAY).state
        assert (state.streak, state.freezes_used) == (8, 1)


def test_one_of_four_gets_the_lease(four: Racers, url: str) -> None:
    """All processes are told of the same holder, when the lease is free and when it ran out."""
    for at in (NOON, NOON + timedelta(seconds=60)):
        answers = four.race(url, *([["lease", f"{at}-{number}", at.isoformat(), 60.0]] for number in range(4)))
        holders = {answer[0] for answer in answers}
        assert len(holders) == 1
        assert holders.pop().startswith(str(at))


def test_tables_are_made_by_one_of_four(four: Racers, fresh_postgresql: str) -> None:
    """Four processes that start at once on an empty database all find the tables made."""
    assert four.race(fresh_postgresql, *[[["prepare"]]] * 4) == [[None]] * 4
    four.race(fresh_postgresql, *[log("learn")[:1]] * 4)


def test_one_file_and_four_processes(four: Racers, tmp_path: Any) -> None:
    """On SQLite too: four processes share a file, its tables are made once, and no activity is lost."""
    url = f"sqlite+aiosqlite:///{tmp_path}/streak.db"
    assert four.race(url, *[[["prepare"]]] * 4) == [[None]] * 4
    answers = four.race(url, *(log(category) for category in rules.CATEGORIES))
    earned = Counter(each["user"] for some in answers for each in some if each["logged"][1])
    assert earned == Counter(USERS)
    assert {state.done for state in states(url).values()} == {frozenset(rules.CATEGORIES)}
