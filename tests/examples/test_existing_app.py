"""The app that upstream OpenTelemetry instruments, with otel_perf beside it, run as a user runs it."""

from __future__ import annotations

from collections import Counter

import httpx
import pytest

from otel_perf.testing import FakeCollector, attributes
from tests.examples.running import running

UPSTREAM = "opentelemetry.instrumentation.fastapi"
REQUESTS = 3


def _counts(collector, name):
    """By scope, how often the newest export of a metric says that something happened."""
    newest = {each.scope: each for each in collector.metrics if each.name == name}
    return {scope: sum(point.count for point in each.points) for scope, each in newest.items()}


@pytest.mark.parametrize("opt_in", ["", "http"])
def test_nothing_is_measured_twice(opt_in):
    """One SERVER span and one query for each request, in one trace; each duration once, by whichever name."""
    with FakeCollector() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SEMCONV_STABILITY_OPT_IN": opt_in}
        with running("examples.existing_app", **env) as url:
            for number in range(REQUESTS):
                answer = httpx.get(f"{url}/orders/{number}")
                assert answer.json() == {"order": number, "price": number * 10}
                assert answer.headers["x-request-id"]
            page = httpx.get(f"{url}/api/performance").json()
            assert "<html" in httpx.get(f"{url}/performance").text

        assert Counter((span.name, span.scope) for span in collector.spans) == {
            ("GET /orders/{order_id}", UPSTREAM): REQUESTS,
            ("find_price", "orders"): REQUESTS,
            ("SELECT", "otel_perf"): REQUESTS,
        }
        by_id = {span.span_id: span for span in collector.spans}
        assert len(by_id) == 3 * REQUESTS
        for span in collector.spans:
            if span.name == "SELECT":
                find_price = by_id[span.parent_id]
                assert find_price.name == "find_price"
                request = by_id[find_price.parent_id]
                assert (request.scope, request.parent_id) == (UPSTREAM, "")
                assert {span.trace_id, find_price.trace_id} == {request.trace_id}
                assert "?" in span.attributes["db.query.text"]

        counted = _counts(collector, "http.server.request.duration")
        assert counted == ({UPSTREAM: REQUESTS} if opt_in else {"otel_perf": REQUESTS})
        assert _counts(collector, "http.server.duration") == ({} if opt_in else {UPSTREAM: REQUESTS})
        assert _counts(collector, "db.client.operation.duration") == {"otel_perf": REQUESTS}
        (sold,) = collector.metric("orders.sold").points
        assert sold.as_int == REQUESTS
        assert page["queries"]["count"] == REQUESTS
        # The stable duration is upstream's then, and goes past the page.
        assert page["requests"]["count"] == (0 if opt_in else REQUESTS)
        assert not collector.errors


def test_its_providers_are_joined():
    """All that arrives has the app's own resource, and came by its own exporters."""
    with FakeCollector() as collector:
        with running("examples.existing_app", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as url:
            httpx.get(f"{url}/orders/1")

        assert collector.spans
        for received in (*collector.spans, *collector.metrics):
            assert (received.resource["service.name"], received.resource["team"]) == ("orders", "shop")
        senders = {request.headers["user-agent"].partition("/")[0] for request in collector.requests}
        assert senders == {"OTel-OTLP-Exporter-Python"}
        (point,) = collector.metric("http.server.request.duration").points
        assert attributes(point)["http.route"] == "/orders/{order_id}"
