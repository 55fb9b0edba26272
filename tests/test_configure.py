"""`configure` beside what was there before: an earlier configuration, the application's provider, the environment."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_perf
from examples.sink import Sink
from otel_perf import measure
from otel_perf.settings import Settings
from otel_perf.telemetry import runtime, transport, ways
from otel_perf.testing import FakeCollector

ROOT = Path(__file__).resolve().parents[1]


def refusing() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


# A provider is set once in a process, so that is looked at in a process of its own.
REPEATED = """
import otel_perf
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

otel_perf.configure(service_name="first", environment="one", sampler="always_off")
provider, tracer = trace.get_tracer_provider(), trace.get_tracer("library")
assert not tracer.start_span("x").is_recording()

otel_perf.configure(service_name="second", sampler="always_on")
assert trace.get_tracer_provider() is provider
old, kept = InMemorySpanExporter(), InMemorySpanExporter()
provider.add_span_processor(SimpleSpanProcessor(old))
tracer.start_span("held").end()
with otel_perf.measure("ours"):
    pass
for span in old.get_finished_spans():
    assert span.resource.attributes["service.name"] == "second", span.resource.attributes
    assert "deployment.environment.name" not in span.resource.attributes
assert [span.name for span in old.get_finished_spans()] == ["held", "ours"]

otel_perf.configure(service_name="third")
provider.add_span_processor(SimpleSpanProcessor(kept))
tracer.start_span("again").end()
assert [span.name for span in kept.get_finished_spans()] == ["again"]
assert len(old.get_finished_spans()) == 2, "a processor of the configuration before was kept"

otel_perf.configure(disabled=True)
assert not tracer.start_span("x").is_recording()
otel_perf.configure()
assert tracer.start_span("x").is_recording()
otel_perf.shutdown()
assert not tracer.start_span("x").is_recording()
"""


def test_tracers_that_libraries_hold_follow_each_configuration():
    """One provider for life: its sampler, resource and processors are those in force, and off is off."""
    done = subprocess.run([sys.executable, "-c", REPEATED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """A stock provider that the application set before us, with a resource of its own."""
    resource = Resource({"service.name": "theirs", "team": "a", "service.instance.id": "i-1"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    otel_perf.shutdown()


def _described() -> dict[str, object]:
    in_force = runtime.current
    assert in_force is not None
    assert in_force.resource is in_force.meter_provider.resource
    return dict(in_force.resource.attributes)


def test_the_resource_of_a_joined_provider_is_ours(foreign):
    """Spans and metrics carry one service name: the application's provider's."""
    otel_perf.configure()
    with measure("work"):
        pass
    (span,) = foreign.get_finished_spans()
    assert _described() == dict(span.resource.attributes)
    assert _described()["service.name"] == "theirs"


def test_what_is_set_here_wins_over_a_joined_provider(foreign):
    """Only what was given explicitly is ours."""
    otel_perf.configure(service_name="given", environment="staging")
    assert _described() == {
        "service.name": "given", "team": "a", "service.instance.id": "i-1", "deployment.environment.name": "staging",
    }  # fmt: skip


def test_an_endpoint_that_gets_no_spans_is_warned_of(foreign, caplog):
    """Once, with what to do; without an endpoint there is nothing to warn of."""
    otel_perf.configure()
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    with Sink() as sink:
        otel_perf.configure(endpoint=sink.url)
        for _ in range(2):
            with measure("work"):
                pass
        otel_perf.shutdown()
        assert not sink.spans
        assert sink.metric_points
    (warned,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert f"spans go to the application's own TracerProvider and not to {sink.url}/v1/traces" in warned


@pytest.mark.parametrize("value", ["none", "console", "prometheus"])
@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_a_signal_is_switched_off_by_its_standard_variable(monkeypatch, caplog, signal, value):
    """What is not for OTLP is not sent by us, which one line says; the other signal goes on."""
    monkeypatch.setenv(f"OTEL_{signal.upper()}_EXPORTER", value)
    caplog.set_level(logging.INFO, "otel_perf")
    with Sink() as sink:
        otel_perf.configure(service_name="t", endpoint=sink.url)
        with measure("work"):
            pass
        assert otel_perf.flush()
        otel_perf.shutdown()
        assert (bool(sink.spans), bool(sink.metric_points)) == (signal != "traces", signal != "metrics")
    said = [each.getMessage() for each in caplog.records if f"{signal}_exporter" in each.getMessage()]
    assert said == [f"otel_perf: {signal}_exporter is {value}, so no {signal} are sent"]


def test_otlp_among_others_sends(monkeypatch):
    """A list, and the names that Python's SDK has for OTLP."""
    for value in ("console,otlp", "otlp_proto_http"):
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", value)
        assert transport.traces_endpoint(Settings.load(endpoint="http://h")) == "http://h/v1/traces"


def test_protocols_may_differ(monkeypatch):
    """Each signal's own variable wins: the address and the exporter are those of its protocol."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
    settings = Settings.load(endpoint="http://127.0.0.1:9")
    assert transport.traces_endpoint(settings) == "http://127.0.0.1:9"
    assert transport.metrics_endpoint(settings) == "http://127.0.0.1:9/v1/metrics"
    spans = transport.span_way(settings, "http://127.0.0.1:9")()
    assert isinstance(spans, ways.StockSpans)
    spans.close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    settings = Settings.load(endpoint="http://127.0.0.1:9")
    metrics = transport.metric_way(settings, "http://127.0.0.1:9")()
    assert isinstance(metrics, ways.StockMetrics)
    metrics.close()
    assert isinstance(transport.span_way(settings, "http://127.0.0.1:9/v1/traces")(), ways.HttpSpans)


def test_headers_of_a_signal_win_over_the_general_ones(monkeypatch):
    """Spans carry their own, metrics the general ones, over a real connection."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=general")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=spans")
    with FakeCollector() as kept:
        otel_perf.configure(service_name="t", endpoint=kept.url)
        with measure("work"):
            pass
        assert otel_perf.flush()
        otel_perf.shutdown()
    sent = {each.path: each.headers["authorization"] for each in kept.requests}
    assert sent == {"/v1/traces": "spans", "/v1/metrics": "general"}


def _proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_of_the_environment_is_not_asked_for_loopback(monkeypatch, host):
    """Spans and metrics reach a collector on this machine directly."""
    _proxied(monkeypatch)
    with Sink() as sink:
        otel_perf.configure(service_name="t", endpoint=sink.url.replace("127.0.0.1", host), export_timeout_s=1)
        with measure("work"):
            pass
        assert otel_perf.flush()
        otel_perf.shutdown()
        assert sink.spans["t"] == 1
        assert sink.metric_points


def test_a_proxy_of_the_environment_is_not_asked_for_loopback_by_grpc(monkeypatch):
    """The gRPC channel connects directly as well."""
    _proxied(monkeypatch)
    with FakeCollector() as collector:
        otel_perf.configure(
            service_name="t", traces_endpoint=collector.grpc_endpoint, protocol="grpc", export_timeout_s=5
        )
        with measure("work"):
            pass
        assert otel_perf.flush()
        otel_perf.shutdown()
    assert [each.name for each in collector.spans] == ["work"]


@pytest.mark.parametrize(
    ("endpoint", "direct"),
    [
        ("http://[::1]:4318", True),
        ("http://x.localhost", True),
        ("http://10.0.0.1", False),
        ("http://collector", False),
    ],
)
def test_only_loopback_is_direct(monkeypatch, endpoint, direct):
    """Elsewhere the environment's proxy is what the operator wants, and compression is worth its time."""
    _proxied(monkeypatch)
    assert (transport._proxy(endpoint) is None) is direct
    by_grpc = transport._by_grpc(Settings(), "traces", endpoint)
    assert ("channel_options" in by_grpc) is direct
    assert by_grpc["compression"] is (grpc.Compression.NoCompression if direct else grpc.Compression.Gzip)


REFUSED = """
import otel_perf, sys
otel_perf.configure(service_name="t", endpoint=sys.argv[1], protocol=sys.argv[2], flush_timeout_s=60,
                    export_timeout_s=60)
for _ in range(3):
    with otel_perf.measure("work"):
        pass
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_exit_does_not_wait_for_who_refuses(protocol):
    """Retries would go on for a minute; exit tries once, says in one line what was lost, and ends."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, refusing(), protocol], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=50,
    )  # fmt: skip
    assert done.returncode == 0
    said = [line for line in done.stderr.splitlines() if "could not be delivered" in line]
    assert said == ["otel_perf: 3 spans could not be delivered: 3 export_failed"], done.stderr


def test_a_wait_between_retries_ends_with_the_shutdown(caplog):
    """What is being retried when the shutdown comes is given up."""
    otel_perf.configure(service_name="t", endpoint=refusing(), export_timeout_s=300, flush_timeout_s=300)
    with measure("work"):
        pass
    assert not otel_perf.flush(0.1)
    assert not otel_perf.shutdown(120)
    assert "otel_perf: 1 spans could not be delivered: 1 export_failed" in caplog.messages


def test_nothing_is_said_when_nothing_was_lost(caplog):
    """The last line is for losses only."""
    with Sink() as sink:
        otel_perf.configure(service_name="t", endpoint=sink.url)
        with measure("work"):
            pass
        assert otel_perf.shutdown()
    assert not [each for each in caplog.messages if "delivered" in each]


def test_spans_without_an_answer_count_as_lost(caplog):
    """An endpoint that takes connections and never answers: the deadline holds and the loss is said."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        otel_perf.configure(service_name="t", endpoint=address, export_timeout_s=1)
        with measure("work"):
            pass
        assert not otel_perf.shutdown(0.2)
        (said,) = [each for each in caplog.messages if "could not be delivered" in each]
        assert said.startswith("otel_perf: 1 spans")


LIMITED = """
import asyncio, otel_perf
from opentelemetry import trace
from otel_perf.testing import capture

async def app(scope, receive, send):
    scope["route"] = type("R", (), {"path_format": "/a-long-route/{x}", "path_regex": __import__("re").compile(".*")})()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})

async def send(message): pass

scope = {"type": "http", "method": "GET", "path": "/a-long-route/1", "headers": [], "query_string": b""}
with capture() as captured:
    asyncio.run(otel_perf.instrument(app)(scope, None, send))
    with otel_perf.measure("work"):
        trace.get_current_span().set_attribute("text", "x" * 3000)
    texts = [v for each in captured.spans for v in each.attributes.values() if isinstance(v, str)]
    print(max(map(len, texts)), captured.spans[0].attributes["http.route"])
"""


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, "2048 /a-long-route/{x}"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "8 /a-long-"),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "8 /a-long-"),
    ],
)
def test_the_standard_limit_of_length_is_kept(variable, expected):
    """Without a limit in the environment texts end at 2048 characters; with one it holds, for routes as well."""
    environ = {**os.environ, **({variable: "8"} if variable else {})}
    done = subprocess.run([sys.executable, "-c", LIMITED], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
