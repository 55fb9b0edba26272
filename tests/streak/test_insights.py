"""What a user's own past says: history, best, and the risk of today."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.streak import rules
from examples.streak.insights import insights
from examples.streak.records import Day, Total

TODAY = date(2026, 3, 4)  # a Wednesday
NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
YESTERDAY = TODAY - timedelta(days=1)
HELD = rules.State(streak=5, longest=9, last_active=YESTERDAY, held_until=YESTERDAY)


def _day(ago: int, activities: int = 1, xp: int = 25) -> Day:
    return Day(TODAY - timedelta(days=ago), activities, xp)


def test_nothing_yet() -> None:
    """Somebody new has a history of nothing, without averages or a best, and nothing to lose."""
    seen = insights([], [], rules.State(), NOON)
    assert (seen.active_days_30, seen.active_days_365, seen.weeks, seen.categories) == (0, 0, (), ())
    assert seen.best_day is seen.best_weekday is seen.activities_per_active_day is seen.xp_per_active_day is None
    assert (seen.risk.level, seen.risk.reasons) == ("none", ("no_streak",))
    assert (seen.risk.weekday_missed, seen.risk.weekday_weeks) == (0, 0)


def test_history() -> None:
    """Active days are those of the last 30 and 365, today included; what is older or to come counts for nothing."""
    days = [_day(-1), _day(0), _day(29), _day(30), _day(364), _day(365, xp=1_000)]
    seen = insights(days, [], HELD, NOON)
    assert (seen.active_days_30, seen.active_days_365) == (2, 4)
    assert seen.best_day is not None
    assert seen.best_day.xp == 25
    assert (seen.streak, seen.longest, seen.today) == (5, 9, "2026-03-04")


def test_weeks_have_no_gap() -> None:
    """Weeks go from the first active one to this one, Monday by Monday, also those in which nothing was done."""
    seen = insights([_day(14, 2, 50), _day(15), _day(0, 3, 70)], [], HELD, NOON)
    assert [(week.monday, week.active_days, week.activities, week.xp) for week in seen.weeks] == [
        ("2026-02-16", 2, 3, 75),
        ("2026-02-23", 0, 0, 0),
        ("2026-03-02", 1, 3, 70),
    ]


def test_a_week_begins_on_its_monday() -> None:
    """On a Monday the week that begins with it is there already."""
    monday = datetime(2026, 3, 2, 12, tzinfo=timezone.utc)
    seen = insights([_day(2), _day(3)], [], HELD, monday)
    assert [week.monday for week in seen.weeks] == ["2026-02-23", "2026-03-02"]


def test_of_several_best_weekdays_the_first_counts() -> None:
    """Where two weekdays have as many XP, it is the one that comes first in the week."""
    best = insights([_day(1), _day(2), _day(3, xp=10)], [], HELD, NOON).best_weekday
    assert best is not None
    assert best.weekday == "Monday"


def test_best_and_averages() -> None:
    """The best day has the most XP, of several the last; the best weekday the most in all."""
    days = [_day(3, 1, 90), _day(2, 2, 90), _day(1, 1, 60), _day(8, 4, 60)]
    seen = insights(days, [], HELD, NOON)
    assert seen.best_day is not None
    assert (seen.best_day.day, seen.best_day.activities, seen.best_day.xp) == ("2026-03-02", 2, 90)
    assert seen.best_weekday is not None
    assert (seen.best_weekday.weekday, seen.best_weekday.active_days, seen.best_weekday.activities) == ("Tuesday", 2, 5)
    assert seen.best_weekday.xp == 120
    assert (seen.activities_per_active_day, seen.xp_per_active_day) == (2.0, 75.0)


def test_a_streak_that_is_over_is_not_shown() -> None:
    """Missed days that maintenance has not seen yet are accounted for."""
    over = replace(HELD, last_active=TODAY - timedelta(days=3), held_until=TODAY - timedelta(days=3))
    seen = insights([_day(3)], [], over, NOON)
    assert (seen.streak, seen.longest, seen.risk.level) == (0, 9, "none")


EARLY, EVENING, LATE = 12.0, 22.0, 26.5  # hours since midnight; the day ends at 28


@pytest.mark.parametrize(
    ("hour", "freezes", "weekday_missed", "level"),
    [
        (EARLY, 0, False, "medium"),
        (EARLY, 0, True, "high"),
        (EARLY, 1, False, "low"),
        (EARLY, 1, True, "medium"),
        (EVENING, 0, False, "high"),
        (EVENING, 1, False, "medium"),
        (LATE, 1, False, "medium"),
        (LATE, 0, True, "high"),
        (LATE, 3, True, "medium"),
    ],
)
def test_risk(hour: float, freezes: int, weekday_missed: bool, level: str) -> None:
    """Points add up to a level, each has its reason, and who holds a freeze never stands at high."""
    days = [_day(21), _day(20)] + ([] if weekday_missed else [_day(14), _day(7)])
    now = datetime(2026, 3, 4, tzinfo=timezone.utc) + timedelta(hours=hour)
    risk = insights(days, [], replace(HELD, freezes=freezes), now).risk
    expected = {
        "nothing_today": True,
        "few_hours_left": hour != EARLY,
        "no_freeze": freezes == 0,
        "weekday_often_missed": weekday_missed,
    }
    assert risk.reasons == tuple(reason for reason, holds in expected.items() if holds)
    assert (risk.level, risk.freezes, risk.weekday) == (level, freezes, "Wednesday")
    assert (risk.weekday_missed, risk.weekday_weeks) == (2 if weekday_missed else 0, 3)
    assert risk.hours_left == 28 - hour


def test_hours_left_end_at_four() -> None:
    """At six hours before 4:00 UTC few are left, a moment before that they are not, in whatever zone it is told."""
    ends = datetime(2026, 3, 5, 4, tzinfo=timezone.utc)
    state = replace(HELD, freezes=1)
    assert insights([], [], state, ends - timedelta(hours=6)).risk.level == "medium"
    assert insights([], [], state, ends - timedelta(hours=6, seconds=1)).risk.level == "low"
    last = insights([], [], state, (ends - timedelta(minutes=1)).astimezone(timezone(timedelta(hours=9)))).risk
    assert (last.hours_left, last.weekday) == (0.0, "Wednesday")


def test_a_day_that_counts_is_no_risk() -> None:
    """Nothing is at risk on a day on which something was done, or which a freeze holds."""
    done = insights([_day(0)], [], replace(HELD, last_active=TODAY, held_until=TODAY), NOON).risk
    assert (done.level, done.reasons) == ("none", ("done_today",))
    frozen = insights([_day(1)], [], replace(HELD, held_until=TODAY), NOON).risk
    assert (frozen.level, frozen.reasons) == ("none", ("frozen_today",))


def test_one_week_is_no_habit() -> None:
    """A weekday that came once and was missed says nothing yet."""
    risk = insights([_day(8)], [], replace(HELD, freezes=1), NOON).risk
    assert (risk.weekday_missed, risk.weekday_weeks, risk.level) == (1, 1, "low")


days_of_a_past = st.lists(st.builds(_day, st.integers(-3, 500), st.integers(1, 9), st.integers(10, 900)), max_size=40)


@given(days_of_a_past, st.integers(0, 23), st.integers(0, 3))
def test_it_is_json_and_adds_up(days: list[Day], hour: int, freezes: int) -> None:
    """It turns into JSON as it is; the weeks add up to the year, whatever the order of the days."""
    unique = list({day.day: day for day in days}.values())
    now = NOON.replace(hour=hour)
    seen = insights(unique, [Total("learn", 3, 45, 75)], replace(HELD, freezes=freezes), now)
    again = json.loads(json.dumps(asdict(seen)))
    assert again["categories"] == [{"category": "learn", "activities": 3, "minutes": 45, "xp": 75}]
    assert again["risk"]["level"] == seen.risk.level
    assert sum(week.active_days for week in seen.weeks) == seen.active_days_365 >= seen.active_days_30
    assert len(seen.weeks) <= 53
    assert seen == insights(unique[::-1], seen.categories, replace(HELD, freezes=freezes), now)
    if seen.best_day is not None and seen.xp_per_active_day is not None:
        assert seen.best_day.xp >= seen.xp_per_active_day
