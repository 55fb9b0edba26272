"""What is left of the metrics when Prometheus was away for a while."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from collector import process, readback, servers

_SECONDS_AWAY = 8
"""Longer than the exporter's default timeout of 5 s, after which points used to be dropped."""


def _send(otlp_http_url: str, value: int) -> float:
    """Send one point of a cumulative counter and return when it was taken."""
    now = time.time_ns()
    point = {"startTimeUnixNano": str(now - 10**9), "timeUnixNano": str(now), "asInt": str(value)}
    metric = {"name": "away", "sum": {"aggregationTemporality": 2, "isMonotonic": True, "dataPoints": [point]}}
    service = {"attributes": [{"key": "service.name", "value": {"stringValue": "outage"}}]}
    body = json.dumps({"resourceMetrics": [{"resource": service, "scopeMetrics": [{"metrics": [metric]}]}]}).encode()
    request = urllib.request.Request(f"{otlp_http_url}/v1/metrics", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10):
        return now / 1e9


def _values(prometheus_url: str) -> list[float]:
    found = readback.query(prometheus_url, 'max_over_time(away_total{job="outage"}[5m])')
    counted = readback.query(prometheus_url, 'count_over_time(away_total{job="outage"}[5m])')
    return [value for _, value in (*found, *counted)]


@pytest.mark.timeout(120)
def test_the_points_of_an_outage_arrive_after_it(otelcol_binary: Path, prometheus_binary: Path) -> None:
    """Every point that was sent while Prometheus was down is in it once it is back."""
    port = process.free_port()
    url = f"http://127.0.0.1:{port}"
    with servers.otelcol(env={"PROMETHEUS_REMOTE_WRITE_URL": f"{url}/api/v1/write"}) as otelcol:
        for value in range(1, _SECONDS_AWAY + 1):
            _send(otelcol.otlp_http_url, value)
            time.sleep(1)
        with servers.prometheus(port=port):
            give_up_at = time.monotonic() + 30
            while (found := _values(url)) != [_SECONDS_AWAY] * 2 and time.monotonic() < give_up_at:
                time.sleep(0.2)
    assert found == [_SECONDS_AWAY] * 2


@pytest.mark.timeout(120)
def test_a_stop_does_not_wait_for_a_prometheus_that_is_away(otelcol_binary: Path) -> None:
    """The Collector goes down within its grace period, however many writes wait."""
    with servers.otelcol(env={"PROMETHEUS_REMOTE_WRITE_URL": "http://127.0.0.1:1/api/v1/write"}) as otelcol:
        for value in range(20):
            _send(otelcol.otlp_http_url, value)
        began = time.monotonic()
    # Not how fast it is, but that it has an end: without one it would be 20 times two minutes.
    assert time.monotonic() - began < 60


def test_a_write_has_time_for_its_retries() -> None:
    """The exporter's timeout bounds its retries as well, so it is the longer of the two."""
    loaded = yaml.safe_load((servers.CONFIG / "otelcol.yaml").read_text(encoding="utf-8"))
    exporter = loaded["exporters"]["prometheus_remote_write"]
    timeout, elapsed = (
        text.removesuffix("s") for text in (exporter["timeout"], exporter["retry_on_failure"]["max_elapsed_time"])
    )
    assert int(timeout) > int(elapsed) > 60
