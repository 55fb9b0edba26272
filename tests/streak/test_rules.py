"""The rules hold for whatever anybody does."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.streak import rules

MONDAY = date(2026, 3, 2)

categories = st.sampled_from(rules.CATEGORIES)
# What somebody does over some weeks: the days since the last thing, and the thing; None is a maintenance run.
steps = st.lists(st.tuples(st.integers(0, 12), st.none() | categories), max_size=60)


def _live(lived: list[tuple[int, rules.Category | None]]) -> list[tuple[date, rules.State, rules.Logged | None]]:
    day, state = MONDAY, rules.State()
    seen: list[tuple[date, rules.State, rules.Logged | None]] = []
    for days, category in lived:
        day += timedelta(days=days)
        logged = rules.log_activity(state, category, 30, day) if category else None
        state = logged.state if logged else rules.settle(state, day).state
        seen.append((day, state, logged))
    return seen


@given(steps)
def test_bounds(lived: list[tuple[int, rules.Category | None]]) -> None:
    """A streak is never negative nor longer than the longest, and freezes stay within none and three."""
    for _, state, _ in _live(lived):
        assert 0 <= state.streak <= state.longest
        assert 0 <= state.freezes <= rules.MAX_FREEZES
        assert state.xp >= 0


@given(steps)
def test_streak_grows_at_most_once_a_day(lived: list[tuple[int, rules.Category | None]]) -> None:
    """However much is done on a day, the streak grows by one, and only the first activity does it."""
    grew_on: list[date] = []
    before = rules.State()
    for day, state, logged in _live(lived):
        if logged is not None and logged.grew:
            assert state.streak == rules.settle(before, day).state.streak + 1
            grew_on.append(day)
        before = state
    assert len(grew_on) == len(set(grew_on))


@given(steps)
def test_bonus_comes_exactly_once_a_week(lived: list[tuple[int, rules.Category | None]]) -> None:
    """The bonus is earned once in a week in which all four categories are done, and in no other."""
    done: dict[date, set[str]] = {}
    earned: dict[date, int] = {}
    for day, _, logged in _live(lived):
        if logged is None:
            continue
        week = rules.week_of(day)
        done.setdefault(week, set()).update(logged.state.done)
        earned[week] = earned.get(week, 0) + logged.bonus_earned
    for week, times in earned.items():
        assert times == (len(done[week]) == len(rules.CATEGORIES))


@given(steps)
def test_bonus_is_half_as_much_again(lived: list[tuple[int, rules.Category | None]]) -> None:
    """Activities earn the bonus from the one that completes the week on, rounded down, and nothing before."""
    for _, state, logged in _live(lived):
        if logged is not None:
            base = rules.base_xp(30)
            assert logged.xp == (int(base * 1.5) if state.bonus else base)
            assert logged.bonus_xp == logged.xp - base


@given(steps, st.integers(0, 20))
def test_settling_is_the_same_day_by_day(lived: list[tuple[int, rules.Category | None]], days: int) -> None:
    """One maintenance run after many days comes to what one on each day, or two on one day, come to."""
    seen = _live(lived)
    day, state = (seen[-1][0], seen[-1][1]) if seen else (MONDAY, rules.State())
    at_once = rules.settle(state, day + timedelta(days=days))
    stepwise, spent = state, 0
    for passed in range(days + 1):
        settled = rules.settle(stepwise, day + timedelta(days=passed))
        stepwise, spent = settled.state, spent + settled.freezes_spent
    assert stepwise.streak == at_once.state.streak
    assert stepwise.freezes == at_once.state.freezes
    assert spent == at_once.freezes_spent
    again = rules.settle(at_once.state, day + timedelta(days=days))
    assert not again.changed
    assert again.state == at_once.state


@given(steps, st.integers(0, 20), categories)
def test_maintenance_before_logging_changes_nothing(
    lived: list[tuple[int, rules.Category | None]], days: int, category: rules.Category
) -> None:
    """An activity leads to the same whether maintenance ran before it that day or has not yet."""
    seen = _live(lived)
    day, state = (seen[-1][0], seen[-1][1]) if seen else (MONDAY, rules.State())
    today = day + timedelta(days=days)
    settled_first = rules.log_activity(rules.settle(state, today).state, category, 30, today)
    assert rules.log_activity(state, category, 30, today).state == settled_first.state


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        (datetime(2026, 3, 2, 3, 59, 59, 999_999, timezone.utc), date(2026, 3, 1)),
        (datetime(2026, 3, 2, 4, tzinfo=timezone.utc), date(2026, 3, 2)),
        (datetime(2026, 3, 2, 23, 59, tzinfo=timezone.utc), date(2026, 3, 2)),
        (datetime(2026, 3, 2, 5, tzinfo=timezone(timedelta(hours=2))), date(2026, 3, 1)),
    ],
)
def test_day_starts_at_four(moment: datetime, day: date) -> None:
    """A day starts at 4:00 UTC, in whatever zone the moment is given."""
    assert rules.day_of(moment) == day


def test_moment_without_zone_is_refused() -> None:
    """A moment without a time zone belongs to no day."""
    with pytest.raises(ValueError, match="time zone"):
        rules.day_of(datetime(2026, 3, 2))  # noqa: DTZ001 - this is the mistake that is refused


def test_week_starts_on_monday_at_four() -> None:
    """The week changes on Monday at 4:00 UTC, and takes what was done and the bonus with it."""
    sunday_night = datetime(2026, 3, 9, 3, 59, tzinfo=timezone.utc)
    state = rules.State()
    for category in rules.CATEGORIES:
        state = rules.log_activity(state, category, 10, rules.day_of(sunday_night)).state
    assert state.week == MONDAY
    assert state.bonus
    after = rules.log_activity(state, "learn", 10, rules.day_of(sunday_night + timedelta(minutes=1))).state
    assert after.week == MONDAY + timedelta(days=7)
    assert after.done == {"learn"}
    assert not after.bonus


def test_week_never_goes_back() -> None:
    """A server whose clock is behind does not open the last week again."""
    state = rules.log_activity(rules.State(), "learn", 10, MONDAY).state
    late = rules.log_activity(state, "move", 10, MONDAY - timedelta(days=1)).state
    assert late.week == MONDAY
    assert late.streak == 1


def test_freezes_are_earned_and_spent() -> None:
    """Seven days earn a freeze, at most three are held, and each missed day spends one until the streak ends."""
    state, day = rules.State(), MONDAY
    for passed in range(35):
        day = MONDAY + timedelta(days=passed)
        state = rules.log_activity(state, "learn", 10, day).state
    assert (state.streak, state.freezes) == (35, 3)
    held = rules.settle(state, day + timedelta(days=3))
    assert (held.freezes_spent, held.state.streak, held.state.freezes) == (2, 35, 1)
    ended = rules.settle(held.state, day + timedelta(days=5))
    assert (ended.freezes_spent, ended.broken, ended.state.streak, ended.state.longest) == (1, 35, 0, 35)


def test_milestones() -> None:
    """The seventh day in a row is a milestone, on its first activity."""
    state = rules.State(streak=6, longest=6, held_until=MONDAY)
    logged = rules.log_activity(state, "learn", 10, MONDAY + timedelta(days=1))
    assert logged.milestone == 7
    assert rules.log_activity(logged.state, "learn", 10, MONDAY + timedelta(days=1)).milestone is None


def test_bounds_of_minutes_and_multiplier() -> None:
    """Minutes beyond an hour earn nothing more; negative ones and a multiplier out of bounds are refused."""
    assert rules.base_xp(60) == rules.base_xp(600)
    with pytest.raises(ValueError, match="negative"):
        rules.base_xp(-1)
    for multiplier in (0.5, 3.5, float("nan")):
        with pytest.raises(ValueError, match="multiplier"):
            rules.with_bonus(100, multiplier)
    assert rules.with_bonus(100) == 150
