"""The use cases by themselves: what they ask of store, cache and push API, and what they count."""

from __future__ import annotations

from datetime import date

import pytest
from cashews import Cache

from examples.streak import rules
from examples.streak.cache import ReadCache
from examples.streak.push import PushClient
from examples.streak.records import Activity
from examples.streak.service import Streaks, freezes
from examples.streak.stores import Store
from tests.conftest import Telemetry
from tests.streak.conftest import NOW

pytestmark = pytest.mark.anyio

TODAY = date(2026, 3, 4)


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
    assert await streaks.leaderboard() == [{"name": "ada", "streak": 1, "xp": 30}]
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


@pytest.mark.parametrize(("streak", "next_at"), [(0, 7), (6, 7), (7, 14), (13, 14), (700, 707)])
def test_next_freeze(streak: int, next_at: int) -> None:
    """The status says with which day of the streak the next freeze comes."""
    state = rules.State(streak=streak, held_until=TODAY, last_active=TODAY)
    assert freezes(state, TODAY)["next_at_streak"] == next_at
