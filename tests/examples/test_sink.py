"""The small OTLP endpoint of the demo."""

from __future__ import annotations

import gzip

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import otel_perf
from examples.sink import Sink
from otel_perf import measure


@pytest.fixture
def sink():
    with Sink() as running:
        yield running


def test_it_counts_the_spans_that_really_left(sink, telemetry):
    """Spans and metrics of a configured service arrive decoded, counted by service."""
    telemetry.restart(service_name="shop", endpoint=sink.url)
    for _ in range(700):
        with measure("work"):
            pass
    assert otel_perf.flush()
    assert sink.spans == {"shop": 700}
    assert sink.metric_points > 0


def test_compressed_and_plain(sink):
    """It takes gzip and plain bodies."""
    for encode, headers in ((gzip.compress, {"content-encoding": "gzip"}), (bytes, {})):
        body = encode(ExportTraceServiceRequest().SerializeToString())
        assert httpx.post(f"{sink.url}/v1/traces", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/traces", b"\xff\xff\xff", {}, 400),
        ("/v1/traces", b"not gzip", {"content-encoding": "gzip"}, 400),
        ("/v1/logs", b"", {}, 404),
    ],
)
def test_what_it_cannot_take_is_refused(sink, path, body, headers, status):
    """Garbage and other signals are refused, and counted as nothing."""
    assert httpx.post(f"{sink.url}{path}", content=body, headers=headers).status_code == status
    assert not sink.spans


def test_it_says_what_arrived_when_asked_to(capsys):
    """A verbose sink prints spans by service and the names of metrics."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add()
    spans.scope_spans.add().spans.add(name="x")
    metrics = ExportMetricsServiceRequest()
    metrics.resource_metrics.add().scope_metrics.add().metrics.add(name="http.server.request.duration")
    with Sink(verbose=True) as sink:
        httpx.post(f"{sink.url}/v1/traces", content=request.SerializeToString())
        httpx.post(f"{sink.url}/v1/metrics", content=metrics.SerializeToString())
    printed = capsys.readouterr().out
    assert "{'unknown': 1}" in printed
    assert "http.server.request.duration" in printed
