"""The quickstart, run as a user runs it."""

from __future__ import annotations

import httpx

from otel_perf.testing import FakeCollector, attributes
from tests.examples.running import ROOT, running

_COMMAND = ("uvicorn", "examples.quickstart:app", "--port", "0")


def test_it_measures_itself():
    """Three requests are three spans and three durations at the collector, and on the page; the page is none."""
    with FakeCollector() as collector:
        with running(*_COMMAND, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as url:
            for name in ("ada", "bob", "eve"):
                assert httpx.get(f"{url}/hello/{name}").json() == {"hello": name}
            assert "<html" in httpx.get(f"{url}/performance").text
            (route,) = httpx.get(f"{url}/api/performance").json()["requests"]["routes"]
            assert "http_server_request_duration_seconds" in httpx.get(f"{url}/metrics").text
            assert httpx.get(f"{url}/api/health").json()["status"] == "healthy"

        assert (route["method"], route["route"], route["count"]) == ("GET", "/hello/{name}", 3)
        assert [span.name for span in collector.spans] == ["GET /hello/{name}"] * 3
        assert {span.resource["service.name"] for span in collector.spans} == {"quickstart"}
        (point,) = collector.metric("http.server.request.duration").points
        assert point.count == 3
        assert attributes(point)["http.route"] == "/hello/{name}"
        assert not collector.errors


def test_it_runs_with_nobody_to_send_to():
    """Without an endpoint it serves its page all the same, and ends as quietly."""
    with running(*_COMMAND) as url:
        httpx.get(f"{url}/hello/ada")
        assert httpx.get(f"{url}/api/performance").json()["requests"]["count"] == 1


def test_it_is_short():
    """It has twenty lines at most, empty ones too, of which three are otel_perf's beside the imports."""
    lines = (ROOT / "examples/quickstart.py").read_text().splitlines()
    assert len(lines) <= 20
    assert sum(line.startswith(("configure(", "instrument(", "mount(")) for line in lines) == 3
