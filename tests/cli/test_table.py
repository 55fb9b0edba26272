"""The terminal table."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from otel_perf import measure
from otel_perf.cli.table import render
from otel_perf.insight import live
from otel_perf.insight.snapshot import snapshot


@pytest.fixture
def shown(telemetry):
    def draw(**options):
        out = io.StringIO()
        document = snapshot(telemetry.runtime, live.of(telemetry.runtime))
        Console(file=out, width=150).print(render(document, **options))
        return out.getvalue()

    return draw


def test_table_shows_each_group(shown):
    """Routes, queries, strategies, services and jobs stand in the table with their figures."""
    measure.strategy("TABLE", "table:*", expected_hit_rate=0.9)
    with measure.request("GET", "/items/{id}") as op:
        op.label("http.response.status_code", 500)
    with measure.query("SELECT", collection="users", system="sqlite"):
        pass
    for hit in (True, False):
        with measure.cache("get", strategy="TABLE") as op:
            op.hit = hit
    with measure.external("push", "send"):
        pass
    with measure.job("nightly") as op:
        op.items = 1200
    text = shown()
    for part in (
        "GET /items/{id}",
        "sqlite SELECT users",
        "TABLE",
        "50.0 %",
        "90.0 %",
        "push send",
        "nightly",
        "1,200",
    ):
        assert part in text
    assert "spans not sent" in text


def test_long_tables_say_how_much_is_left_out(shown):
    """What does not fit is counted in the last line."""
    for number in range(6):
        with measure.request("GET", f"/{number}"):
            pass
    assert "... and 4 more" in shown(routes=2)


def test_terminal_controls_in_names_are_shown_harmlessly(shown):
    """An escape sequence in a name reaches the terminal as question marks."""
    with measure.request("GET", "/\x1b[2J\x07evil"):
        pass
    text = shown()
    assert "\x1b[2J" not in text
    assert "evil" in text


def test_lost_spans_and_slow_figures_are_told(telemetry, shown):
    """Losses stand in the headline, and durations from microseconds to many seconds are written with their unit."""
    telemetry.restart(endpoint="http://127.0.0.1:9", export_timeout_s=0.2)
    for seconds in (0.0005, 0.25, 42.0):
        with measure.query("SELECT", collection=f"t{seconds:g}", system="sqlite") as op:
            op.started_ns -= int(seconds * 1e9)
    telemetry.runtime.pipeline.flush(5)
    text = shown()
    assert "3 LOST" in text
    assert "metric points LOST" in " ".join(text.split())
    for part in (" ms", "250 ms", "42.0 s"):
        assert part in text


def test_a_service_that_sends_only_metrics(telemetry, shown):
    """It has no spans to tell of."""
    telemetry.restart(endpoint="http://127.0.0.1:9", export_timeout_s=0.2, traces_exporter="none")
    assert "spans not sent" in shown()
