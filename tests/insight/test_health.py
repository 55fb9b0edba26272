"""The judgement behind /api/health."""

from __future__ import annotations

from datetime import datetime

import pytest

from otel_perf import measure
from otel_perf.insight import live
from otel_perf.insight.health import Losses, health
from otel_perf.insight.snapshot import snapshot


def document(group=None, count=0, errors=0, **export):
    groups = {each: {"recent": {"count": 0, "errors": 0}} for each in ("requests", "queries", "cache")}
    if group:
        groups[group] = {"recent": {"count": count, "errors": errors}}
    return {
        **groups, "time_unix_s": 1_700_000_000.5,
        "export": {"sending": True, "queued": 0, "capacity": 100, "lost": 0, "metrics": {"lost": 0}, **export},
    }  # fmt: skip


@pytest.mark.parametrize(("group", "name"), [("requests", "requests"), ("queries", "database"), ("cache", "cache")])
@pytest.mark.parametrize(
    ("count", "errors", "word"),
    [(0, 0, "unknown"), (4, 4, "unknown"), (5, 2, "healthy"), (5, 3, "degraded"), (10, 5, "degraded")],
)
def test_half_of_five_or_more_failed(group, name, count, errors, word):
    """A group is degraded when half of at least five recent operations failed, and unknown below five."""
    judged = health(document(group, count, errors))
    assert judged["services"][name] == word
    assert judged["status"] == ("degraded" if word == "degraded" else "healthy")


@pytest.mark.parametrize(
    ("export", "losing", "word"),
    [
        ({}, False, "healthy"),
        ({"queued": 80}, False, "healthy"),
        ({"queued": 81}, False, "degraded"),
        ({}, True, "degraded"),
        ({"sending": False, "capacity": None}, False, "not_sending"),
        ({"capacity": None}, False, "healthy"),
        ({"capacity": None}, True, "degraded"),
    ],
)
def test_telemetry(export, losing, word):
    """A queue over 80 % and spans that are being lost degrade it; a service that sends nowhere is well."""
    judged = health(document(**export), losing=losing)
    assert judged["services"]["telemetry"] == word
    assert judged["status"] == ("degraded" if word == "degraded" else "healthy")


def test_not_configured():
    """Without configure() nothing is known, and that is told."""
    judged = health(None)
    assert judged["status"] == "degraded"
    assert judged["services"]["telemetry"] == "not_configured"
    assert judged["services"]["database"] == "unknown"


def test_the_time_is_that_of_the_document():
    """The timestamp is ISO 8601 in UTC."""
    assert datetime.fromisoformat(health(document())["timestamp"]).timestamp() == 1_700_000_000.5


def test_losses_are_forgotten_after_a_minute():
    """A count that rises is being lost, for a minute; one that starts anew with configure() is not."""
    now = 0.0
    losses = Losses(lambda: now)
    assert not losses.lately(document())
    assert losses.lately(document(lost=3))
    now = 59.0
    assert losses.lately(document(lost=3))
    now = 60.0
    assert not losses.lately(document(lost=3))
    assert not losses.lately(document(lost=0))
    assert losses.lately(document(lost=1))


def test_lost_metrics_are_losses():
    """A service whose metrics are refused is losing, whatever becomes of its spans."""
    now = 0.0
    losses = Losses(lambda: now)
    assert not losses.lately(document())
    for _ in range(3):  # between two exports that fail it does not look well
        document_now = document(metrics={"lost": now + 4, "interval_s": 60.0})
        assert losses.lately(document_now)
        now += 70
        assert losses.lately(document_now)
    now += 60
    assert not losses.lately(document_now)


def test_it_reads_a_real_snapshot(telemetry):
    """Failing queries of a configured service show as a degraded database."""
    for _ in range(5):
        with measure.query("SELECT", collection="users") as op:
            op.fail("timeout")
    judged = health(snapshot(telemetry.runtime, live.of(telemetry.runtime)))
    assert judged["status"] == "degraded"
    assert judged["services"] == {
        "requests": "unknown", "database": "degraded", "cache": "unknown", "telemetry": "not_sending",
    }  # fmt: skip
