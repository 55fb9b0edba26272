"""What is written after its day is over: maintenance, or the next day's activity, was faster."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from examples.streak import rules
from tests.streak.lives import MONDAY, Step, categories, days_of, end_of, few, steps


@few
@given(steps, st.booleans(), categories)
def test_an_activity_that_is_written_after_its_day(
    lived: list[Step], also_today: bool, category: rules.Category
) -> None:
    """An activity that maintenance was faster than, or one of the next day, costs neither the streak nor a freeze."""
    day, state = end_of(lived)
    yesterday, today = day + timedelta(days=1), day + timedelta(days=2)
    # Where there was no streak, none was missed: one that has begun today begins no earlier for it.
    assume(rules.settle(state, yesterday).state.streak > 0)

    def then(state: rules.State) -> rules.State:
        state = rules.settle(state, today).state
        return rules.log_activity(state, "move", 0, today).state if also_today else state

    in_time = then(rules.log_activity(state, category, 0, yesterday).state)
    late = rules.log_activity(then(state), category, 0, yesterday)
    assert late.grew
    assert (late.state.streak, late.state.longest) == (in_time.streak, in_time.longest)
    assert (late.state.freezes, late.state.held_until) == (in_time.freezes, in_time.held_until)
    assert late.state.last_active == in_time.last_active
    assert late.state.freezes == late.state.freezes_earned - late.state.freezes_used
    ended = rules.settle(rules.settle(state, yesterday).state, today).broken
    assert late.restored == ended
    assert not rules.log_activity(late.state, category, 0, yesterday).grew


def test_a_lost_streak_is_given_back() -> None:
    """The last moment of a day, written after the next day has begun: the streak and its freezes are as in time."""
    end = MONDAY + timedelta(days=5)
    ended = rules.settle(days_of(5), end + timedelta(days=1)).state
    assert (ended.streak, ended.lost_streak, ended.missed_on) == (0, 5, end)
    late = rules.log_activity(ended, "move", 0, end)
    assert (late.state.streak, late.restored, late.state.lost_streak, late.state.lost_on) == (6, 5, 0, None)
    frozen = rules.settle(days_of(8), MONDAY + timedelta(days=9)).state
    assert (frozen.freezes, frozen.freezes_used) == (0, 1)
    late = rules.log_activity(frozen, "move", 0, MONDAY + timedelta(days=8))
    assert (late.state.streak, late.state.freezes, late.state.freezes_used, late.freeze_returned) == (9, 1, 0, True)


@pytest.mark.parametrize("ago", [2, 3, 9])
def test_more_than_a_day_is_not_given_back(ago: int) -> None:
    """A server whose clock is far behind brings back no streak that was missed for longer, or that another replaced."""
    missed = MONDAY + timedelta(days=5)
    anew = days_of(2, rules.settle(days_of(5), missed + timedelta(days=ago)).state, missed + timedelta(days=ago))
    late = rules.log_activity(anew, "move", 0, missed)
    assert (late.restored, late.state) == (0, replace(anew, done=late.state.done, xp=late.state.xp))
    before = rules.settle(days_of(8), MONDAY + timedelta(days=10)).state  # two days, of which the second ended it
    assert before.missed_on == MONDAY + timedelta(days=9)
    late = rules.log_activity(before, "move", 0, MONDAY + timedelta(days=8))
    assert (late.restored, late.freeze_returned) == (0, False)


def test_what_a_hand_applied_or_xp_bought_is_not_given_back() -> None:
    """A freeze that was applied by hand stays spent, and what a recovery has paid for is paid."""
    today = MONDAY + timedelta(days=7)
    rested = rules.apply_freeze(days_of(7), today).state
    late = rules.log_activity(rules.settle(rested, today + timedelta(days=1)).state, "move", 0, today)
    assert (late.state.streak, late.state.freezes, late.freeze_returned) == (8, 0, False)
    bought = rules.recover(days_of(3), MONDAY + timedelta(days=4)).state
    late = rules.log_activity(bought, "move", 0, MONDAY + timedelta(days=3))
    assert (late.restored, late.freeze_returned, late.state.streak) == (0, False, 4)
