"""Lives of users, for the rules: any of them, or so many days in a row."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Literal

from hypothesis import settings
from hypothesis import strategies as st

from examples.streak import rules

__all__ = ["MONDAY", "Outcome", "Step", "categories", "days_of", "do", "end_of", "few", "live_through", "steps"]

MONDAY = date(2026, 3, 2)

Outcome = rules.Logged | rules.Settled | rules.Applied | rules.Recovered
Step = tuple[int, rules.Category | Literal["maintain", "freeze", "recover"]]

categories = st.sampled_from(rules.CATEGORIES)
# What somebody does over some weeks: the days since the last thing, and the thing. Most come back the next day, so
# that streaks get long enough for freezes.
steps = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 1, 1, 1, 2, 3, 5, 12]), categories | st.sampled_from(["maintain", "freeze", "recover"])
    ),
    max_size=80,
)
few = settings(max_examples=60, deadline=None)


def do(state: rules.State, what: str, day: date) -> Outcome:
    """Do one thing on a day."""
    if what == "maintain":
        return rules.settle(state, day)
    if what == "freeze":
        return rules.apply_freeze(state, day)
    if what == "recover":
        return rules.recover(state, day)
    return rules.log_activity(state, what, 30, day)  # type: ignore[arg-type] # it is a category now


def live_through(lived: list[Step]) -> list[tuple[date, rules.State, Outcome]]:
    """Live through it, and return for each step its day, the state before it, and what it led to."""
    day, state = MONDAY, rules.State()
    seen: list[tuple[date, rules.State, Outcome]] = []
    for days, what in lived:
        day += timedelta(days=days)
        outcome = do(state, what, day)
        seen.append((day, state, outcome))
        state = outcome.state
    return seen


def end_of(lived: list[Step]) -> tuple[date, rules.State]:
    """Live through it, and return the last day and the state after it."""
    seen = live_through(lived)
    return (seen[-1][0], seen[-1][2].state) if seen else (MONDAY, rules.State())


def days_of(count: int, state: rules.State | None = None, begin: date = MONDAY) -> rules.State:
    """Do something on so many days in a row."""
    state = state or rules.State()
    for passed in range(count):
        state = rules.log_activity(state, "learn", 0, begin + timedelta(days=passed)).state
    return state
