"""The table of names: complete, consistent, open."""

from __future__ import annotations

import re

import pytest

from otel_perf import conventions as c
from otel_perf.conventions import Metric


@pytest.fixture(autouse=True)
def _own_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "_declared", dict(c._declared))


def test_every_metric_constant_is_in_the_table():
    """No metric can be defined in the module and forgotten in `METRICS`."""
    defined = [value for value in vars(c).values() if isinstance(value, Metric)]
    assert set(defined) | set(c.WEB_VITALS) == set(c.METRICS)
    assert len({metric.name for metric in c.METRICS}) == len(c.METRICS)


@pytest.mark.parametrize("metric", c.METRICS, ids=lambda metric: metric.name)
def test_metrics_are_well_formed(metric):
    """Names are dotted lower case, durations are in seconds, bounds rise, and `error.type` is the last label."""
    assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+", metric.name)
    assert metric.about.endswith(".")
    assert list(metric.buckets or ()) == sorted(set(metric.buckets or ()))
    assert bool(metric.buckets) == (metric.kind == "histogram")
    if metric.name.endswith(".duration"):
        assert metric.unit == "s"
    if c.ERROR_TYPE in metric.attributes:
        assert metric.attributes[-1] == c.ERROR_TYPE
    assert len(set(metric.attributes)) == len(metric.attributes)


def test_buckets_hold_the_conventions_own_bounds():
    """The bounds of the semantic conventions are all there; ours only add to them."""
    http = {0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}
    database = {0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10}
    assert http <= set(c.REQUEST_DURATION.buckets)
    assert http <= set(c.HTTP_CLIENT_DURATION.buckets)
    assert database <= set(c.QUERY_DURATION.buckets)


def test_an_apps_metric_joins_the_catalogue():
    """A declared metric is known by name, with its buckets, behind ours."""
    mine = c.declare(Metric("shop.basket", "1", "histogram", "Items in a basket.", (), (1.0, 5.0)))
    assert c.declared()[-1] == mine
    assert c.buckets_for("shop.basket") == (1.0, 5.0)
    assert c.declare(Metric("shop.basket", "1", "histogram", "Items in a basket.", (), (1.0, 5.0))) is mine


def test_a_name_has_one_meaning():
    """The same name with another unit is refused, and the message says what is declared."""
    c.declare(Metric("shop.sold", "1", "counter", "Sold."))
    with pytest.raises(ValueError, match=r"'shop.sold' is declared already, with unit '1'"):
        c.declare(Metric("shop.sold", "By", "counter", "Sold."))


def test_buckets_of_others_are_not_ours():
    """A name outside the catalogue, and one without buckets, have none."""
    assert c.buckets_for("somebody.elses") is None
    assert c.buckets_for(c.REQUESTS_ACTIVE.name) is None
