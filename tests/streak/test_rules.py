"""The rules hold for whatever anybody does. Against a model of their own they stand in test_rules_model.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.streak import rules
from tests.streak.lives import MONDAY, Outcome, Step, categories, days_of, do, end_of, few, live_through, steps

SUNDAY = MONDAY - timedelta(days=1)


@few
@given(steps)
def test_bounds(lived: list[Step]) -> None:
    """Streak, longest, freezes and XP stay within their bounds, and the freezes held are those earned less used."""
    longest = 0
    for _, _, outcome in live_through(lived):
        state = outcome.state
        assert 0 <= state.streak <= state.longest
        assert state.longest >= longest
        longest = state.longest
        assert 0 <= state.freezes == state.freezes_earned - state.freezes_used <= rules.MAX_FREEZES
        assert state.xp >= 0
        assert state.held_until is None or (state.last_active is not None and state.held_until >= state.last_active)


@few
@given(steps)
def test_streak_grows_at_most_once_a_day(lived: list[Step]) -> None:
    """However much is done on a day, the streak grows by one, and only the first activity does it."""
    grew_on: list[date] = []
    for day, before, outcome in live_through(lived):
        settled = rules.settle(before, day).state
        if isinstance(outcome, rules.Logged):
            assert outcome.state.streak == settled.streak + outcome.grew
            grew_on += [day] * outcome.grew
        elif not isinstance(outcome, rules.Recovered):
            assert outcome.state.streak == settled.streak
    assert len(grew_on) == len(set(grew_on))


@few
@given(steps)
def test_bonus_comes_exactly_once_a_week(lived: list[Step]) -> None:
    """The bonus is earned once in a week in which all four categories are done, and in no other."""
    done: dict[date, set[str]] = {}
    earned: dict[date, int] = {}
    for (day, _, outcome), (_, what) in zip(live_through(lived), lived, strict=True):
        if not isinstance(outcome, rules.Logged):
            continue
        week = rules.week_of(day)
        done.setdefault(week, set()).add(what)
        earned[week] = earned.get(week, 0) + outcome.bonus_earned
        assert outcome.state.done == done[week]
        # Half as much again from the one that completes the week on, rounded down, and nothing before.
        base = rules.base_xp(30)
        assert outcome.xp == (int(base * 1.5) if outcome.state.bonus else base)
        assert outcome.bonus_xp == outcome.xp - base
    for week, times in earned.items():
        assert times == (len(done[week]) == len(rules.CATEGORIES))


@few
@given(steps)
def test_xp_is_what_was_earned_less_what_was_paid(lived: list[Step]) -> None:
    """XP come from activities alone and go to recoveries alone."""
    xp = 0
    for _, _, outcome in live_through(lived):
        if isinstance(outcome, rules.Logged):
            xp += outcome.xp
        elif isinstance(outcome, rules.Recovered):
            xp -= outcome.paid_xp
        assert outcome.state.xp == xp


@few
@given(steps)
def test_a_freeze_by_hand(lived: list[Step]) -> None:
    """It spends exactly one and holds its day, at most once a day; a refusal changes nothing but what was due."""
    applied_on: list[date] = []
    for day, before, outcome in live_through(lived):
        if not isinstance(outcome, rules.Applied):
            continue
        due = rules.settle(before, day)
        assert outcome.settled == due
        assert (outcome.refusal is None) == outcome.applied
        if not outcome.applied:
            assert outcome.state == due.state
            continue
        applied_on.append(day)
        assert outcome.state.freezes == due.state.freezes - 1
        assert outcome.state == replace(
            due.state, freezes=outcome.state.freezes, freezes_used=due.state.freezes_used + 1, held_until=day
        )
        assert not rules.settle(outcome.state, day + timedelta(days=1)).changed
    assert len(applied_on) == len(set(applied_on))


@few
@given(steps)
def test_a_recovery(lived: list[Step]) -> None:
    """It adds what was lost to what has grown, for its price, in its time, once; a refusal pays nothing."""
    for day, before, outcome in live_through(lived):
        if not isinstance(outcome, rules.Recovered):
            continue
        due = rules.settle(before, day).state
        if outcome.refusal is not None:
            assert (outcome.state, outcome.recovered, outcome.paid_xp) == (due, 0, 0)
            continue
        assert due.lost_on is not None
        assert 0 <= (day - due.lost_on).days < 2
        assert outcome.recovered == due.lost_streak > 0
        assert outcome.state.streak == due.streak + due.lost_streak
        assert outcome.paid_xp == rules.recovery_cost_xp(due.lost_streak) <= due.xp
        assert rules.recover(outcome.state, day).refusal == "nothing_lost"
        assert not rules.settle(outcome.state, day).changed


@few
@given(steps, st.integers(0, 20))
def test_settling_is_the_same_day_by_day(lived: list[Step], days: int) -> None:
    """One maintenance run after many days comes to what one on each day, or two on one day, come to."""
    day, state = end_of(lived)
    at_once = rules.settle(state, day + timedelta(days=days))
    stepwise, spent, ended = state, 0, [(0, None)]
    for passed in range(days + 1):
        settled = rules.settle(stepwise, day + timedelta(days=passed))
        stepwise, spent = settled.state, spent + settled.freezes_spent
        if settled.broken:
            ended.append((settled.broken, settled.reason))
    assert stepwise == at_once.state
    assert spent == at_once.freezes_spent
    assert ended[-1] == (at_once.broken, at_once.reason)
    assert len(ended) <= 2
    again = rules.settle(at_once.state, day + timedelta(days=days))
    assert not again.changed
    assert again.state == at_once.state


@few
@given(steps, st.integers(0, 20), categories | st.sampled_from(["freeze", "recover"]))
def test_maintenance_before_it_changes_nothing(lived: list[Step], days: int, what: str) -> None:
    """Whatever is done leads to the same whether maintenance ran before it that day or has not yet."""
    day, state = end_of(lived)
    today = day + timedelta(days=days)
    late = do(state, what, today)
    early = do(rules.settle(state, today).state, what, today)
    assert not isinstance(early, rules.Settled)
    assert not isinstance(late, rules.Settled)
    assert not early.settled.changed
    assert late.settled == rules.settle(state, today)
    assert replace(late, settled=early.settled) == early


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        (datetime(2026, 3, 2, 3, 59, 59, 999_999, timezone.utc), date(2026, 3, 1)),
        (datetime(2026, 3, 2, 4, tzinfo=timezone.utc), date(2026, 3, 2)),
        (datetime(2026, 3, 2, 23, 59, tzinfo=timezone.utc), date(2026, 3, 2)),
        (datetime(2026, 3, 2, 5, tzinfo=timezone(timedelta(hours=2))), date(2026, 3, 1)),
        (datetime(2028, 3, 1, 3, tzinfo=timezone.utc), date(2028, 2, 29)),
    ],
)
def test_day_starts_at_four(moment: datetime, day: date) -> None:
    """A day starts at 4:00 UTC, in whatever zone the moment is given."""
    assert rules.day_of(moment) == day


@given(st.integers(0, 60 * 24 * 3_000))
def test_days_touch(minutes: int) -> None:
    """A day ends where the next begins: at 4:00 UTC, one day after it began."""
    moment = datetime(2023, 12, 31, tzinfo=timezone.utc) + timedelta(minutes=minutes)
    day = rules.day_of(moment)
    assert rules.ends_at(day) - timedelta(days=1) <= moment < rules.ends_at(day)
    assert rules.day_of(rules.ends_at(day)) == day + timedelta(days=1)
    assert rules.week_of(day).weekday() == 0
    assert 0 <= (day - rules.week_of(day)).days < 7


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
    late = rules.log_activity(state, "move", 10, SUNDAY).state
    assert late.week == MONDAY
    assert late.done == {"learn", "move"}
    assert late.streak == 1


def test_a_held_day_never_goes_back() -> None:
    """A server whose clock is behind takes no freeze from the day that it was applied to."""
    # Six active days, a freeze by hand on the eighth, one that the missed seventh has spent.
    state = replace(days_of(6), freezes=2, freezes_earned=2)
    rested = rules.apply_freeze(state, MONDAY + timedelta(days=7)).state
    late = rules.log_activity(rested, "move", 10, MONDAY + timedelta(days=6)).state
    assert late.streak == 7
    assert late.last_active == MONDAY + timedelta(days=6)
    assert late.held_until == rested.held_until == MONDAY + timedelta(days=7)


def test_a_recovery_by_a_clock_that_is_behind() -> None:
    """What is bought back on a server whose clock is a day behind is not lost again at the next look."""
    lost = rules.settle(days_of(3), MONDAY + timedelta(days=4)).state
    assert lost.lost_on == MONDAY + timedelta(days=4)
    back = rules.recover(lost, MONDAY + timedelta(days=3))
    assert back.recovered == 3
    assert not rules.settle(back.state, MONDAY + timedelta(days=4)).changed


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


@pytest.mark.parametrize(
    ("before", "milestone"), [(5, None), (6, 7), (7, None), (29, 30), (99, 100), (363, None), (364, 365)]
)
def test_milestones(before: int, milestone: int | None) -> None:
    """The 7th, 30th, 100th and 365th day are milestones, on their first activity."""
    state = rules.State(streak=before, longest=before, held_until=MONDAY)
    logged = rules.log_activity(state, "learn", 10, MONDAY + timedelta(days=1))
    assert logged.milestone == milestone
    assert rules.log_activity(logged.state, "learn", 10, MONDAY + timedelta(days=1)).milestone is None


def test_bounds_of_minutes_and_multiplier() -> None:
    """Minutes beyond an hour earn nothing more; negative ones and a multiplier out of bounds are refused."""
    assert rules.base_xp(60) == rules.base_xp(600)
    with pytest.raises(ValueError, match="negative"):
        rules.base_xp(-1)
    for multiplier in (0.5, 3.5, float("nan")):
        with pytest.raises(ValueError, match="multiplier"):
            rules.with_bonus(100, multiplier)
    assert [rules.with_bonus(100, multiplier) for multiplier in (1.0, 1.5, 3.0)] == [100, 150, 300]
    assert rules.with_bonus(15) == 22


def test_a_planned_rest() -> None:
    """A freeze that is applied by hand holds today; an activity on the same day makes the streak grow all the same."""
    state = days_of(7)
    today = MONDAY + timedelta(days=7)
    rested = rules.apply_freeze(state, today)
    assert (rested.applied, rested.state.freezes, rested.state.streak) == (True, 0, 7)
    assert rules.apply_freeze(rested.state, today).refusal == "day_is_held"
    assert rules.log_activity(rested.state, "move", 10, today).state.streak == 8
    ended = rules.settle(rested.state, today + timedelta(days=2))
    assert (ended.broken, ended.reason) == (7, "freezes_exhausted")


def test_a_freeze_is_refused() -> None:
    """Without a streak, without a freeze, and on a day that counts already, none is applied."""
    assert rules.apply_freeze(rules.State(freezes=1, freezes_earned=1), MONDAY).refusal == "no_streak"
    assert rules.apply_freeze(days_of(3), MONDAY + timedelta(days=3)).refusal == "no_freeze"
    assert rules.apply_freeze(days_of(7), MONDAY + timedelta(days=6)).refusal == "day_is_held"
    over = rules.apply_freeze(days_of(3), MONDAY + timedelta(days=9))
    assert (over.refusal, over.settled.broken, over.settled.reason) == ("no_streak", 3, "missed")


@pytest.mark.parametrize(("ago", "refusal"), [(0, None), (1, None), (2, "too_late"), (9, "too_late")])
def test_when_a_streak_can_be_bought_back(ago: int, refusal: str | None) -> None:
    """It can on the first day without it and on the next, whether maintenance has seen the end or not."""
    lost_on = MONDAY + timedelta(days=4)
    recovered = rules.recover(days_of(3), lost_on + timedelta(days=ago))
    assert (recovered.refusal, recovered.settled.state.lost_on) == (refusal, lost_on)
    assert recovered.state.streak == (0 if refusal else 3)
    assert recovered.state.xp == (30 if refusal else 0)


def test_what_a_recovery_costs() -> None:
    """It is ten XP for each lost day, up to 500; one too few and nothing is bought."""
    assert [rules.recovery_cost_xp(days) for days in (0, 1, 49, 50, 51, 400)] == [0, 10, 490, 500, 500, 500]
    state = replace(days_of(3), xp=29)
    assert rules.recover(state, MONDAY + timedelta(days=4)).refusal == "too_few_xp"
    assert rules.recover(rules.State(xp=900), MONDAY).refusal == "nothing_lost"


def test_a_recovery_that_completes_a_seventh_day_earns_its_freeze() -> None:
    """Thirteen lost days and one new one are fourteen: the second freeze comes with the addition."""
    begin = MONDAY + timedelta(days=15)
    lost = rules.settle(replace(days_of(13), freezes=0, freezes_used=1), begin).state
    anew = rules.log_activity(lost, "learn", 0, begin)
    back = rules.recover(anew.state, begin)
    assert (anew.freeze_earned, back.freeze_earned) == (False, True)
    assert (back.state.streak, back.state.freezes, back.state.freezes_earned) == (14, 1, 2)
    full = rules.recover(replace(anew.state, freezes=3, freezes_earned=4), begin)
    assert (full.freeze_earned, full.state.freezes) == (False, 3)


@pytest.mark.parametrize("act", [rules.apply_freeze, rules.recover, rules.settle])
def test_a_clock_that_is_behind_settles_nothing(act: Callable[[rules.State, date], Outcome]) -> None:
    """A day before those that are held already spends nothing and ends nothing."""
    state = days_of(9)
    assert act(state, SUNDAY).state == state


def test_days_that_were_bought_are_no_freezes() -> None:
    """A streak that ends on the day after a recovery was missed: no freeze was spent on it."""
    bought = rules.recover(days_of(3), MONDAY + timedelta(days=4)).state
    again = rules.settle(bought, MONDAY + timedelta(days=5))
    assert (again.broken, again.reason) == (3, "missed")


@few
@given(steps)
def test_until_when_a_streak_holds(lived: list[Step]) -> None:
    """It is over on the day after the last on which it holds, and not before."""
    _, state = end_of(lived)
    last = rules.holds_until(state)
    assert (last is None) == (state.streak == 0)
    if last is not None:
        assert not rules.settle(state, last).broken
        assert rules.settle(state, last + timedelta(days=1)).broken


def test_the_bonus_is_exact() -> None:
    """However many XP there are, none is lost to a float; negative ones are refused."""
    assert rules.with_bonus(10**18 + 1) == (10**18 + 1) * 3 // 2
    assert rules.with_bonus(100, 1.15) == 115
    assert rules.with_bonus(30, Fraction(4, 3)) == 40
    assert rules.with_bonus(0) == 0
    with pytest.raises(ValueError, match="XP must not be negative"):
        rules.with_bonus(-3)
    for multiplier in (0.999, 3.0000001, float("inf"), float("-inf"), -1):
        with pytest.raises(ValueError, match="multiplier"):
            rules.with_bonus(11, multiplier)
