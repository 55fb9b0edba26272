"""The use cases by themselves: what they ask of store, cache and push API, and what they count."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from cashews import Cache

from examples.streak import answers, rules
from examples.streak.cache import ReadCache
from examples.streak.push import PushClient
from examples.streak.records import Activity
from examples.streak.service import Streaks, freezes
from examples.streak.stores import Store, StoreUnavailableError
from tests.conftest import Telemetry
from tests.streak.conftest import NOW

pytestmark = pytest.mark.anyio

TODAY = date(2026, 3, 4)
DAY = timedelta(days=1)


@pytest.fixture
def streaks(store: Store) -> Streaks:
    """The use cases over each kind of store, with a cache in memory and nobody to tell."""
    cache = Cache("tests")
    cache.setup("mem://")
    return Streaks(store, ReadCache(cache), PushClient(None))


async def test_use_cases_on_every_store(streaks: Streaks) -> None:
    """Whatever the database, what was logged shows in the list, the calendar, the week, the profile and the board."""
    receipt, is_new = await streaks.log_activity("ada", Activity("learn", 20, "scales", "k-1"), NOW)
    assert (is_new, receipt["xp"], receipt["notified"], receipt["repeated"]) == (True, 30, False, False)
    again, is_new = await streaks.log_activity("ada", Activity("move", 99, None, "k-1"), NOW)
    assert (is_new, again["id"], again["repeated"]) == (False, receipt["id"], True)
    page = await streaks.activities("ada", 10, None, None)
    assert page == {"activities": [await streaks.activity("ada", receipt["id"])], "next": None}
    assert (await streaks.calendar("ada", 7, TODAY))["days"] == [{"day": "2026-03-04", "activities": 1, "xp": 30}]
    assert (await streaks.consistency("ada", TODAY))["categories"]["learn"]
    assert await streaks.leaderboard(TODAY) == [{"name": "ada", "streak": 1, "xp": 30}]
    assert (await streaks.insights("ada", NOW))["categories"][0]["minutes"] == 20
    assert (await streaks.freeze("ada", TODAY))["reason"] == "day_is_held"
    assert (await streaks.recovery("ada", TODAY))["reason"] == "nothing_lost"
    assert (await streaks.health())["status"] == "ok"


async def test_steps_have_their_names(telemetry: Telemetry, streaks: Streaks) -> None:
    """Logging and retrieval are steps of these names; a calendar that is cached retrieves nothing."""
    await streaks.log_activity("ada", Activity("learn", 20), NOW)
    await streaks.activities("ada", 10, None, None)
    await streaks.calendar("ada", 30, TODAY)
    await streaks.calendar("ada", 365, TODAY)
    names = [span.name for span in telemetry.spans]
    assert names.count("log_activity") == 1
    assert names.count("update_weekly_consistency") == 1
    assert names.count("get_user_activities") == 2


async def test_what_is_earned_is_counted(telemetry: Telemetry, streaks: Streaks) -> None:
    """XP, bonus and freezes are counted once each, and a repeated activity counts for nothing."""
    for number, category in enumerate((*rules.CATEGORIES, "connect")):
        await streaks.log_activity("ada", Activity(category, 15, None, f"k-{min(number, 3)}"), NOW)
    assert sum(point.value for point in telemetry.points("streak.xp")) == 4 * 25 + 12
    assert telemetry.point("streak.bonuses").value == 1
    assert telemetry.point("streak.bonus_xp").value == 12


async def test_what_is_cached_follows_the_day(streaks: Streaks) -> None:
    """From 4:00 UTC on, profile and board say what the rules say, though both were cached the day before."""
    for before in range(9, -1, -1):
        await streaks.log_activity("ada", Activity("learn", 20), NOW - DAY * before)
    await streaks.log_activity("ben", Activity("learn", 20), NOW)
    for days, streak, freezes_held, board in ((0, 10, 1, 2), (1, 10, 1, 2), (2, 10, 0, 1), (3, 0, 0, 0), (50, 0, 0, 0)):
        today = TODAY + DAY * days
        profile = await streaks.profile("ada", today)
        assert profile is not None
        assert set(profile) == set(answers.Profile.model_fields)
        assert (profile["streak"], profile["freezes"], profile["longest"]) == (streak, freezes_held, 10)
        assert len(await streaks.leaderboard(today)) == board
        status = await streaks.freeze("ada", today)
        assert status["held"] == freezes_held
        assert (await streaks.insights("ada", NOW + DAY * days))["streak"] == streak


async def test_a_repeat_of_long_ago_shows_no_streak_that_is_over(streaks: Streaks) -> None:
    """What a known key is answered says what the rules say today."""
    await streaks.log_activity("ada", Activity("learn", 20, None, "k"), NOW)
    again, is_new = await streaks.log_activity("ada", Activity("learn", 20, None, "k"), NOW + DAY * 9)
    assert (is_new, again["streak"], again["longest"]) == (False, 0, 1)


class Unanswered:
    """A store that does what it is asked, and whose answer gets lost for good."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.loses = False

    def __getattr__(self, name: str) -> Any:
        ask = getattr(self._store, name)

        async def asked(*given: Any, **more: Any) -> Any:
            answer = await ask(*given, **more)
            if self.loses and name in ("log_activity", "apply_freeze", "recover"):
                raise StoreUnavailableError("ConnectionResetError")
            return answer

        return asked


async def test_a_write_without_an_answer_is_not_served_from_the_cache(store: Store) -> None:
    """When nobody knows whether a write was made, and it was, what was cached before it is forgotten."""
    cache = Cache("tests")
    cache.setup("mem://")
    unanswered: Any = Unanswered(store)
    streaks = Streaks(unanswered, ReadCache(cache), PushClient(None))

    async def seen(today: date) -> tuple[int, int, list[int]]:
        profile = await streaks.profile("ada", today)
        assert profile is not None
        return profile["streak"], profile["freezes"], [line["streak"] for line in await streaks.leaderboard(today)]

    for before in range(7, 0, -1):
        await streaks.log_activity("ada", Activity("learn", 20), NOW - DAY * before)
    assert await seen(TODAY) == (7, 1, [7])
    unanswered.loses = True
    with pytest.raises(StoreUnavailableError):
        await streaks.apply_freeze("ada", TODAY)
    assert await seen(TODAY) == (7, 0, [7])
    with pytest.raises(StoreUnavailableError):
        await streaks.log_activity("ada", Activity("learn", 20), NOW)
    assert await seen(TODAY) == (8, 0, [8])
    assert await seen(TODAY + DAY * 2) == (0, 0, [])
    with pytest.raises(StoreUnavailableError):
        await streaks.recover("ada", TODAY + DAY * 2)
    assert await seen(TODAY + DAY * 2) == (8, 0, [8])


async def test_a_refusal_forgets_as_well(streaks: Streaks, store: Store) -> None:
    """What another process has written, and has not come to forget, is seen after a refusal."""
    for before in range(7, 0, -1):
        await streaks.log_activity("ada", Activity("learn", 20, None, f"k-{before}"), NOW - DAY * before)

    async def held() -> int:
        profile = await streaks.profile("ada", TODAY)
        return -1 if profile is None else int(profile["freezes"])

    assert await held() == 1
    await store.apply_freeze("ada", TODAY)
    assert await held() == 1  # as it is cached
    assert (await streaks.apply_freeze("ada", TODAY)).refusal == "day_is_held"
    assert await held() == 0
    await store.log_activity("ada", Activity("learn", 20, None, "k"), NOW)
    _, is_new = await streaks.log_activity("ada", Activity("learn", 20, None, "k"), NOW)
    profile = await streaks.profile("ada", TODAY)
    assert profile is not None
    assert (is_new, profile["streak"]) == (False, 8)


@pytest.mark.parametrize(("streak", "next_at"), [(0, 7), (6, 7), (7, 14), (13, 14), (700, 707)])
def test_next_freeze(streak: int, next_at: int) -> None:
    """The status says with which day of the streak the next freeze comes."""
    state = rules.State(streak=streak, held_until=TODAY, last_active=TODAY)
    assert freezes(state, TODAY)["next_at_streak"] == next_at
