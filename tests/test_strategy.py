"""Cache strategies: which keys belong to which."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_perf import measure, strategy


@pytest.fixture(autouse=True)
def _none_declared(monkeypatch):
    monkeypatch.setattr(strategy, "_strategies", {})


@pytest.mark.parametrize(
    ("pattern", "key", "belongs"),
    [
        ("user:profile:*", "user:profile:7", True),
        ("user:profile:*", "user:profile:", True),
        ("user:profile:*", "user:profil", False),
        ("user:{id}:streak", "user:7:streak", True),
        ("user:{id}:streak", "user:7:streak:old", False),
        ("user:{id}:streak", "user:streak", False),
        ("*:streak", "7:streak", True),
        ("exact", "exact", True),
        ("exact", "exact ", False),
        ("a*b*c", "a--b--c", True),
        ("a*b*c", "abc", True),
        ("a*b*c", "a--c--b", False),
        ("a*b*b", "ab", False),
        ("a**c", "ac", True),
        ("aa*aa", "aaa", False),
        ("{}:x", "7:x", True),
        ("a.c*", "abc", False),
    ],
)
def test_patterns(pattern, key, belongs):
    """`*` and `{name}` stand for anything, also for nothing; everything else is as it is written."""
    made = strategy.declare("S", pattern)
    assert strategy.find(key) == (made if belongs else None)


@given(st.text("ab*", min_size=1, max_size=8).filter(lambda p: p.strip("*")), st.text("ab", max_size=10))
def test_patterns_match_as_a_regular_expression_would(pattern, key):
    """The search without backtracking answers what the pattern means."""
    strategy._strategies.clear()
    made = strategy.declare("S", pattern)
    meant = re.fullmatch(pattern.replace("*", ".*"), key) is not None
    assert strategy.find(key) == (made if meant else None)


def test_the_first_that_matches_counts():
    """The order of declaration decides; a name declared again is replaced where it stood."""
    narrow = strategy.declare("NARROW", "user:7:*")
    strategy.declare("WIDE", "user:*")
    assert strategy.find("user:7:x") is narrow
    again = strategy.declare("NARROW", "user:8:*", ttl_s=5)
    assert [each.name for each in strategy.declared()] == ["NARROW", "WIDE"]
    assert strategy.find("user:8:x") is again
    assert strategy.find("user:7:x").name == "WIDE"


@pytest.mark.parametrize("rate", [-0.1, 1.1, 90, math.nan])
def test_a_hit_rate_is_a_share(rate):
    """A percentage is a mistake that is told."""
    with pytest.raises(ValueError, match=r"expected_hit_rate of 'S' is .*: give a share from 0 to 1"):
        strategy.declare("S", "a:*", expected_hit_rate=rate)


@pytest.mark.parametrize("ttl_s", [0, -1, math.nan])
def test_a_lifetime_is_positive(ttl_s):
    """Zero would mean that nothing is cached."""
    with pytest.raises(ValueError, match=r"ttl_s of 'S' is .*: give a lifetime in seconds above 0, or leave it out"):
        strategy.declare("S", "a:*", ttl_s=ttl_s)


@pytest.mark.parametrize("pattern", ["", "*", "{key}", "*{a}*"])
def test_a_pattern_for_everything_is_refused(pattern):
    """It would take the keys of all others."""
    with pytest.raises(ValueError, match="it would match every key; begin it with a prefix"):
        strategy.declare("S", pattern)
    assert strategy.declared() == ()


def test_a_strategy_may_be_one_object():
    """Declared as it is written down elsewhere: name, pattern, lifetime and expected hit rate in one."""
    profile = strategy.Strategy("USER_PROFILE", "user:profile:*", ttl_s=900, expected_hit_rate=0.90)
    assert measure.strategy(profile) is profile
    assert strategy.find("user:profile:7") is profile
    with pytest.raises(ValueError, match=r"expected_hit_rate of 'WRONG' is 90"):
        measure.strategy(strategy.Strategy("WRONG", "a:*", expected_hit_rate=90))


@given(st.lists(st.tuples(st.text("ab:", max_size=3), st.text("ab:", max_size=2)), max_size=8), st.text("ab:"))
def test_the_index_finds_what_a_walk_finds(made, key):
    """Whatever is declared, the first strategy that matches in the order of declaration is the one."""
    strategy._strategies.clear()
    for number, (first, last) in enumerate(made):
        if first or last:
            strategy.declare(f"S{number}", f"{first}*{last}")
    walked = (each for each in strategy.declared() if strategy.matches(key, strategy.split(each.pattern)))
    assert strategy.find(key) is next(walked, None)


def test_a_hundred_strategies_cost_as_much_as_one(monkeypatch):
    """Only the strategies that begin as the key does are held against it."""
    for number in range(100):
        strategy.declare(f"S{number:02}", f"family{number:02}:*")
    held = []
    matches = strategy.matches
    monkeypatch.setattr(strategy, "matches", lambda key, parts: held.append(parts) or matches(key, parts))
    assert strategy.find("family57:x").name == "S57"
    assert strategy.find("elsewhere") is None
    assert len(held) == 1
