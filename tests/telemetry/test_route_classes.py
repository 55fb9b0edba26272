"""Classes of routes by declared patterns."""

from __future__ import annotations

import pytest

import otel_perf
from otel_perf.sources import SettingsError
from otel_perf.telemetry.route_classes import Classes


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/pay", "payment"),
        ("/payments/{id}", "payment"),
        ("/admin/users", "admin"),
        ("/admin/search", "admin"),
        ("/x/search", "search"),
        ("/v1/a/b/me", "authenticated"),
        ("/", None),
        ("", None),
        ("/paY", None),
    ],
)
def test_the_first_rule_that_fits_counts(place, name):
    """`*` stands for any text, rules are tried in their order, and what no rule fits has no class."""
    classes = Classes(("payment=/pay*", "admin = /admin*", "search=*/search", "authenticated=/v1/*/b/*"))
    assert classes.of_path(place) == classes.of_template(place) == classes.of_template(place) == name


def test_there_may_be_no_rules():
    """Without rules nothing has a class."""
    assert Classes(()).of_path("/") is None


@pytest.mark.parametrize("rule", ["payment", "=/pay", "payment=", "payment=pay*", "a b=/x", f"{'x' * 65}=/x", "ü=/x"])
def test_a_bad_rule_is_refused_with_the_remedy(rule):
    """`configure()` says which rule it cannot read, and how one is written."""
    with pytest.raises(SettingsError, match=r"route_classes.*payment=/pay\*"):
        otel_perf.configure(route_classes=("ok=/ok", rule))


def test_memory_is_bounded():
    """100,000 routes and a path of a megabyte take no more memory than few, and a pattern of many parts ends."""
    classes = Classes(("a=/a*b*c*d*e*f*g",))
    for number in range(100_000):
        classes.of_template(f"/{number}")
    assert len(classes._known) <= 1024
    assert classes.of_path("/a" + "b" * 1_000_000) is None
    assert classes.of_path("/" + "abcdef" * 400) is None
