"""The exact number of Python calls that otel_perf adds: no timing, so a change of one call is seen the same day."""

from __future__ import annotations

import asyncio

import pytest

from tests.benchmarks import calls, counting


@pytest.fixture(scope="module")
def results():
    return calls.counted()


def test_the_counts_are_those_kept(results):
    """What each thing adds is what calls.json says for this Python, neither more nor less."""
    found, kept = calls.counts(results), calls.kept()["counts"].get(calls.python())
    assert kept is not None, f"no counts for Python {calls.python()}: python -m tests.benchmarks.calls --write"
    changed = {
        name: f"{kept.get(name)} -> {found.get(name)}" for name in {*kept, *found} if kept.get(name) != found.get(name)
    }
    assert not changed, "if this is meant: python -m tests.benchmarks.calls --write"


def test_the_counts_are_within_the_limits(results):
    """A request costs no more calls than it may, and the limits are those of calls.json."""
    limits = calls.kept()["limits"]
    found = calls.counts(results)
    over = {name: f"{found[name]}, at most {limit}" for name, limit in limits.items() if found[name] > limit}
    assert not over


def test_the_counts_do_not_depend_on_the_number_of_routes(results):
    """200 routes cost otel_perf as much as 5."""
    found = calls.counts(results)
    assert found["calls_200_routes"] == found["calls_5_routes"]


def test_the_counts_are_steady(results):
    """Nearly each turn takes the same number of calls; what is folded or flushed now and then adds little."""
    told = {**results.calls, **results.subjects}
    assert told
    unsteady = {key: each for key, each in told.items() if each["share"] < 0.9 or each["mean"] > each["usual"] + 2}
    assert not unsteady


def test_counting_is_exact():
    """Two calls more are two more, in functions as in coroutines."""

    def inner():
        return None

    def once():
        inner()

    def thrice():
        inner()
        inner()
        inner()

    async def awaiting():
        inner()
        await asyncio.sleep(0)

    assert counting.count(thrice).usual - counting.count(once).usual == 2
    assert counting.count(once) == counting.Count(2, 2.0, 1.0)
    assert asyncio.run(counting.count_async(awaiting)).share == 1.0
