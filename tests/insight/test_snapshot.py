"""The document of /api/performance."""

from __future__ import annotations

import json

import pytest

from otel_perf import catalogue, measure
from otel_perf import conventions as c
from otel_perf.insight import live
from otel_perf.insight.health import Losses, health
from otel_perf.insight.snapshot import snapshot


@pytest.fixture
def read(telemetry):
    def read_now():
        return snapshot(telemetry.runtime, live.of(telemetry.runtime))

    return read_now


def test_empty_document_says_null_and_not_zero_milliseconds(read):
    """Before anything happened there are no percentiles and no hit rate, and it is JSON all the same."""
    document = json.loads(json.dumps(read()))
    assert document["requests"]["count"] == 0
    assert document["requests"]["p95_ms"] is None
    assert document["cache"]["hit_rate"] is None
    assert document["export"] == {
        "sending": False, "made": None, "delivered": None, "queued": 0, "capacity": None,
        "lost": 0, "lost_by_reason": {},
        "metrics": {"sending": False, "interval_s": 10.0, "lost": 0, "lost_by_reason": {}},
    }  # fmt: skip


def test_requests_by_route(read):
    """Routes carry their own counts; 5xx and exceptions are errors, 4xx are rejected and no errors."""
    for status, error in ((200, None), (404, None), (500, "500"), (200, "ValueError")):
        with measure.request("GET", "/items/{id}") as op:
            op.label(c.HTTP_STATUS, status)
            if error:
                op.fail(error)
    document = read()["requests"]
    assert (document["count"], document["errors"], document["rejected"]) == (4, 2, 1)
    (row,) = document["routes"]
    assert (row["method"], row["route"], row["count"], row["errors"], row["rejected"]) == (
        "GET",
        "/items/{id}",
        4,
        2,
        1,
    )
    assert row["recent"]["count"] == 4
    assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]


def test_queries_slow_ones_counted(telemetry):
    """A query at or over the threshold counts as slow, and is in its operation's row."""
    telemetry.restart(slow_query_s=0.01)
    with measure.query("SELECT", collection="users", system="postgresql") as op:
        op.started_ns -= 20_000_000
    with measure.query("SELECT", collection="users", system="postgresql"):
        pass
    document = snapshot(telemetry.runtime, live.of(telemetry.runtime))["queries"]
    assert (document["count"], document["slow"]) == (2, 1)
    assert document["operations"][0]["collection"] == "users"
    assert document["operations"][0]["p99_ms"] == pytest.approx(20, rel=0.05)


def test_cache_by_strategy_with_what_was_expected(read):
    """Hits and misses are told per strategy beside the declared expectation; writes count in neither."""
    measure.strategy("PROFILE", "snapshot:profile:*", ttl_s=900, expected_hit_rate=0.9)
    for hit in (True, True, True, False, None):
        with measure.cache("get", strategy="PROFILE") as op:
            op.hit = hit
    document = read()["cache"]
    assert (document["hits"], document["misses"], document["hit_rate"]) == (3, 1, 0.75)
    (row,) = document["strategies"]
    assert (row["strategy"], row["count"], row["hit_rate"]) == ("PROFILE", 5, 0.75)
    assert (row["ttl_s"], row["expected_hit_rate"]) == (900, 0.9)


def test_external_and_steps(read):
    """External calls and steps have their rows, with errors and items."""
    with measure.external("stripe", "pay", category="payments"):
        pass
    with pytest.raises(ValueError, match="no"), measure.external("stripe", "pay", category="payments"):
        raise ValueError("no")
    measure.record("validate", seconds=0.5, items=100, category="data")
    document = read()
    (row,) = document["external"]["services"]
    assert (row["service"], row["operation"], row["category"], row["count"], row["errors"]) == (
        "stripe", "pay", "payments", 2, 1,
    )  # fmt: skip
    (step,) = document["steps"]["steps"]
    assert (step["step"], step["category"], step["items"], step["count"]) == ("validate", "data", 100, 1)


def test_jobs_running_ones_and_declared_ones_included(read):
    """A job shows while it runs for the first time; afterwards with items, last success and its schedule."""
    with measure.job("snapshot.job", every="1d") as op:
        op.items = 12
        (row,) = [row for row in read()["jobs"]["jobs"] if row["job"] == "snapshot.job"]
        assert (row["count"], row["active"], row["last_success_unix_s"]) == (0, 1, None)
    (row,) = [row for row in read()["jobs"]["jobs"] if row["job"] == "snapshot.job"]
    assert (row["count"], row["active"], row["items"], row["every_s"]) == (1, 0, 12, 86_400)
    assert row["last_success_unix_s"] > 1_700_000_000


def test_own_metrics_of_the_app(read):
    """Counters, histograms and gauges of the app's own catalogue are in the document with unit and meaning."""
    catalogue.counter("snapshot.sold", unit="{item}", attributes=("kind",), about="Sold").add(3, kind="book")
    catalogue.histogram("snapshot.weight", unit="kg", buckets=(1, 10)).record(2.5)
    catalogue.gauge("snapshot.open", observe=lambda: 7)
    catalogue.gauge("snapshot.set").set(4)
    rows = {row["metric"]: row for row in read()["catalogue"] if row["metric"].startswith("snapshot.")}
    assert rows["snapshot.sold"] == {
        "metric": "snapshot.sold", "unit": "{item}", "about": "Sold", "attributes": {"kind": "book"}, "value": 3,
    }  # fmt: skip
    assert (rows["snapshot.weight"]["count"], rows["snapshot.weight"]["sum"]) == (1, 2.5)
    assert rows["snapshot.open"]["value"] == 7
    assert rows["snapshot.set"]["value"] == 4


def test_pools(telemetry):
    """What integrations observe of connection pools is told by pool."""
    telemetry.runtime.instrument(c.POOL_COUNT).observers.append(
        lambda: [
            (2, {c.DB_POOL_NAME: "main", c.DB_POOL_STATE: "used"}),
            (3, {c.DB_POOL_NAME: "main", c.DB_POOL_STATE: "idle"}),
        ]
    )
    telemetry.runtime.instrument(c.POOL_MAX).observers.append(lambda: [(10, {c.DB_POOL_NAME: "main"})])
    document = snapshot(telemetry.runtime, live.of(telemetry.runtime))
    assert document["pools"] == [{"pool": "main", "used": 2, "idle": 3, "max": 10}]


def test_export_tells_the_truth_about_a_dead_endpoint(telemetry):
    """With an endpoint that refuses, spans made are told, and after the flush all of them as lost."""
    telemetry.restart(endpoint="http://127.0.0.1:9", export_timeout_s=0.2)
    for _ in range(5):
        with measure("work"):
            pass
    assert telemetry.runtime.pipeline.flush(5) is False
    export = snapshot(telemetry.runtime, live.of(telemetry.runtime))["export"]
    assert export["sending"] is True
    assert (export["made"], export["delivered"], export["lost"], export["queued"]) == (5, 0, 5, 0)
    assert export["lost_by_reason"] == {"export_failed": 5}


def test_export_tells_of_metrics_that_nobody_took(telemetry):
    """Where only metrics are sent, that is sending; points that were refused are told, and degrade the health."""
    telemetry.restart(endpoint="http://127.0.0.1:9", export_timeout_s=0.2, traces_exporter="none")
    catalogue.counter("snapshot.refused").add(1)
    assert telemetry.runtime.pipeline.flush(5) is False
    document = snapshot(telemetry.runtime, live.of(telemetry.runtime))
    export = document["export"]
    assert (export["sending"], export["made"], export["lost"]) == (True, None, 0)
    assert export["metrics"]["sending"] is True
    assert export["metrics"]["lost"] == export["metrics"]["lost_by_reason"]["export_failed"] > 0
    assert health(document, losing=Losses().lately(document))["services"]["telemetry"] == "degraded"
