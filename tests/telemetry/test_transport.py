"""The stock exporters made from our settings: addresses, headers, compression, both protocols."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

import otel_perf
from otel_perf import measure
from otel_perf.settings import Settings, SettingsError
from otel_perf.telemetry import runtime, transport
from tests.telemetry.receiver import Receiver, dead, receiver


@pytest.mark.parametrize(
    ("given", "traces", "metrics"),
    [
        ({}, None, None),
        ({"endpoint": "http://h:4318"}, "http://h:4318/v1/traces", "http://h:4318/v1/metrics"),
        ({"endpoint": "http://h:4317", "protocol": "grpc"}, "http://h:4317", "http://h:4317"),
        ({"endpoint": "http://h", "traces_endpoint": "http://t/x"}, "http://t/x", "http://h/v1/metrics"),
        ({"metrics_endpoint": "http://m/x"}, None, "http://m/x"),
    ],
)
def test_where_signals_go(given, traces, metrics):
    """Below the endpoint by HTTP, the endpoint itself by gRPC, whole addresses as they are."""
    settings = Settings(**given)
    assert (transport.traces_endpoint(settings), transport.metrics_endpoint(settings)) == (traces, metrics)


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_headers_and_compression_reach_the_endpoint(compression):
    """Over HTTP, with header names in lower case."""
    with receiver() as kept:
        otel_perf.configure(
            service_name="t", endpoint=f"{kept.url}/base", headers={"X-Team": "a"}, compression=compression
        )
        with measure("work"):
            pass
        assert otel_perf.flush()
        otel_perf.shutdown()
        assert {path for path, _ in kept.requests} == {"/base/v1/traces", "/base/v1/metrics"}
        for _, headers in kept.requests:
            assert headers["x-team"] == "a"
            assert headers.get("content-encoding") == ("gzip" if compression == "gzip" else None)
        assert [span.name for _, span in kept.spans] == ["work"]


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, kept: Receiver) -> None:
        self.kept = kept

    def Export(self, request, context):  # noqa: N802  # gRPC's name
        self.kept.requests.append(("traces", dict(context.invocation_metadata())))
        self.kept.take_traces(request)
        return trace_service_pb2.ExportTraceServiceResponse()


class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, kept: Receiver) -> None:
        self.kept = kept

    def Export(self, request, context):  # noqa: N802  # gRPC's name
        self.kept.take_metrics(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_grpc_to_a_real_server(compression):
    """Spans and metrics arrive decoded, with the headers as metadata."""
    kept = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(kept), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(kept), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        otel_perf.configure(
            service_name="shop", endpoint=f"http://127.0.0.1:{port}", protocol="grpc", compression=compression,
            headers={"x-team": "a"},
        )  # fmt: skip
        for _ in range(600):
            with measure("work"):
                pass
        assert otel_perf.flush(20)
        otel_perf.shutdown()
    finally:
        server.stop(0).wait()
    assert len(kept.spans) == 600
    assert kept.spans[0][0]["service.name"] == "shop"
    assert kept.metric("operation.duration").histogram.data_points[0].count == 600
    assert kept.requests[0][1]["x-team"] == "a"


def test_grpc_without_its_extra_stops_start_up(monkeypatch, telemetry):
    """The message says what to install; what was configured before goes on; without an endpoint nobody needs it."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.exporter", None)
    before = runtime.current
    with pytest.raises(SettingsError, match=r"protocol='grpc' cannot be used.*pip install 'otel-perf\[grpc\]'"):
        otel_perf.configure(protocol="grpc", endpoint="http://h:4317")
    assert runtime.current is before
    transport.check(Settings(protocol="grpc"))
    transport.check(Settings(protocol="grpc", endpoint="http://h", disabled=True))


def test_a_signal_that_is_switched_off(caplog):
    """An exporter that is not OTLP's sends nothing, which is said once at the start."""
    caplog.set_level("INFO")
    settings = Settings(endpoint="http://h:4318", traces_exporter=("none",), metrics_exporter=("console",))
    assert (transport.traces_endpoint(settings), transport.metrics_endpoint(settings)) == (None, None)
    transport.check(settings)
    assert [record.message for record in caplog.records] == [
        "otel_perf: traces_exporter is none, so no traces are sent",
        "otel_perf: metrics_exporter is console, so no metrics are sent",
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_is_no_way_to_loopback(monkeypatch, host):
    """A proxy of the environment is left aside where the endpoint is on this machine."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, dead())
    with receiver() as kept:
        otel_perf.configure(service_name="t", endpoint=kept.url.replace("127.0.0.1", host))
        with measure("work"):
            pass
        assert otel_perf.shutdown()
        assert [span.name for _, span in kept.spans] == ["work"]


def test_a_proxy_is_used_for_other_hosts():
    """Both protocols take the environment's proxy as ever, on other hosts."""
    settings = Settings()
    assert "session" not in transport._by_http(settings, "http://collector:4318/v1/traces", {})
    assert "channel_options" not in transport._by_grpc(settings, "http://collector:4317", {})
    assert transport._by_grpc(settings, "http://app.localhost:4317", {})["channel_options"]
