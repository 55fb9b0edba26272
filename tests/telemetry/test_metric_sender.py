"""Sending metrics: at the interval, on flush and at the end; what no endpoint took is counted."""

from __future__ import annotations

import math
import os
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf import guard
from otel_perf.conventions import Metric
from otel_perf.settings import Settings
from otel_perf.telemetry import delivery, sdk, transport
from otel_perf.telemetry.delivery import LOST, Answer
from otel_perf.telemetry.metric_sender import MetricSender
from otel_perf.telemetry.series import Registry
from otel_perf.testing import FakeCollector, behaviour

SCOPE = InstrumentationScope("t")


class Numbers:
    """A way that keeps the values it is given."""

    wants = sdk.Preferences(frozenset(), {})
    held_s = 0.0

    def __init__(self) -> None:
        self.answer: Answer | Exception = Answer(True)
        self.values: list[float] = []
        self.calls: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def send(self, data: MetricsData, within_s: float = math.inf) -> Answer:
        assert sdk.suppressed()
        self.entered.set()
        assert self.open.wait(20)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer.delivered:
            [metric] = data.resource_metrics[0].scope_metrics[0].metrics
            self.values += [point.value for point in metric.data.data_points]
        return self.answer

    def stop(self, deadline: float) -> None:
        self.calls.append("stop")

    def abort(self) -> None:
        self.calls.append("abort")
        self.answer = LOST
        self.open.set()

    def close(self) -> None:
        self.calls.append("close")


def counter(registry: Registry) -> Any:
    return registry.instrument(Metric("m", "1", "counter", ""), SCOPE).of({})


@pytest.fixture
def metrics():
    registry, kept = Registry(), Numbers()
    sender = MetricSender(lambda: kept, registry, lambda: Resource({}), 3600)
    yield sender, counter(registry), kept
    sender.shutdown(5)


def test_metrics_are_sent_on_flush_and_at_the_end(metrics):
    """Totals go out with each flush and a last time at the end; with nothing recorded nothing is sent."""
    sender, counted, kept = metrics
    assert sender.flush(5)
    assert kept.values == []
    counted.record(1)
    assert sender.flush(5)
    counted.record(1)
    assert sender.shutdown(5)
    assert kept.values == [1, 2]
    assert kept.calls == ["stop", "close"]
    assert sender.shutdown(5)
    assert kept.values == [1, 2]


def test_metrics_are_sent_at_their_interval():
    """Without anybody asking."""
    registry, kept = Registry(), Numbers()
    sender = MetricSender(lambda: kept, registry, lambda: Resource({}), 0.01)
    counter(registry).record(1)
    for _ in range(2000):
        if kept.values:
            break
        time.sleep(0.005)
    assert kept.values
    sender.shutdown(5)


@pytest.mark.parametrize("answer", [LOST, RuntimeError("broken")])
def test_a_failed_export_is_counted(metrics, monkeypatch, answer):
    """The points are counted as lost; the totals go out with the next export."""
    monkeypatch.setattr(guard, "strict", False)
    sender, counted, kept = metrics
    counted.record(5)
    kept.answer = answer
    assert not sender.flush(5)
    assert sender.lost == {"export_failed": 1}
    kept.answer = Answer(True)
    assert sender.flush(5)
    assert kept.values == [5]


def test_what_is_rejected_is_counted(metrics):
    """Not more than there was."""
    sender, counted, kept = metrics
    counted.record(5)
    kept.answer = Answer(True, 7)
    assert not sender.flush(5)
    assert sender.lost == {"rejected": 1}


def test_of_several_requests_one_may_be_lost(metrics):
    """Its points are counted, those of the others are not."""
    sender, counted, kept = metrics
    counted.record(5)
    kept.answer = Answer(True, 0, 1)
    assert not sender.flush(5)
    assert sender.lost == {"export_failed": 1}


def test_while_the_endpoint_is_to_be_left_alone_nothing_is_read():
    """Neither at the interval nor on a flush that ends before: changes are not taken from the registry."""
    registry, kept = Registry(), Numbers()
    kept.held_s = 60
    sender = MetricSender(lambda: kept, registry, lambda: Resource({}), 0.01)
    counter(registry).record(1)
    assert not sender.flush(1)
    assert not kept.entered.wait(0.1)
    assert sender.lost == {}
    kept.held_s = 0.0
    assert sender.flush(5)
    assert kept.values == [1]
    assert sender.shutdown(5)


def test_what_cannot_be_read_is_no_success(metrics, monkeypatch):
    """The fault is noted, and the thread goes on."""
    sender, _, kept = metrics
    monkeypatch.setattr(guard, "strict", False)
    monkeypatch.setattr(sender, "_resource", None)
    assert not sender.flush(5)
    assert guard.errors == 1
    assert kept.values == []


def test_a_hanging_export_holds_up_nobody(metrics):
    """A flush beside it comes back in time; the end gives it up."""
    sender, counted, kept = metrics
    counted.record(1)
    kept.open.clear()
    first = threading.Thread(target=lambda: sender.flush(60))
    first.start()
    assert kept.entered.wait(10)
    assert not sender.flush(0.05)
    assert not sender.shutdown(0.2)
    assert kept.calls == ["stop", "abort", "close"]
    first.join(10)
    assert sender.lost == {"export_failed": 1}


# Real endpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def collector(monkeypatch):
    monkeypatch.setattr(delivery, "_said", {})
    with FakeCollector() as made:
        yield made


def over_http(collector: FakeCollector, registry: Registry, **settings: Any) -> MetricSender:
    loaded = Settings(endpoint=collector.url, **settings)
    way = transport.metric_way(loaded, f"{collector.url}/v1/metrics")
    return MetricSender(way, registry, lambda: Resource({"service.name": "t"}), 3600)


def test_metrics_really_arrive(collector):
    """Decoded from protobuf by a real server."""
    registry = Registry()
    sender = over_http(collector, registry)
    counter(registry).record(3)
    assert sender.shutdown(10)
    assert collector.metric("m").points[0].as_int == 3


@pytest.mark.parametrize("act", [behaviour.hang(), behaviour.drip(0.02), behaviour.status(503, retry_after=50)])
def test_flush_and_shutdown_keep_their_time(collector, act):
    """Whatever the endpoint does; the points are counted."""
    collector.behaviour = act
    registry = Registry()
    sender = over_http(collector, registry, export_timeout_s=60)
    counter(registry).record(3)
    assert not sender.flush(0.2)
    assert not sender.shutdown(0.3)
    assert sender.lost == {"export_failed": 2}
    assert not sender._thread.is_alive()


@pytest.mark.parametrize(
    ("preference", "sums", "observed"),
    [
        ("delta", [5, 2], [5, 2]),
        ("LowMemory", [5, 2], [5, 7]),
        ("cumulative", [5, 7], [5, 7]),
        ("nonsense", [5, 7], [5, 7]),
        ("", [5, 7], [5, 7]),
    ],
)
def test_the_preferred_temporality(collector, monkeypatch, preference, sums, observed):
    """The standard variable decides whether changes or totals are sent; up-down counters are always totals."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference)
    registry = Registry()
    sender = over_http(collector, registry)
    up_down = registry.instrument(Metric("u", "1", "updowncounter", ""), SCOPE).of({})
    histogram = registry.instrument(Metric("h", "s", "histogram", "", (), (1.0, 2.0)), SCOPE).of({})
    told: list[int] = []
    watched = registry.instrument(Metric("o", "1", "counter", ""), SCOPE)
    watched.observers.append(lambda: [(sum(told), {})])
    for amount in (5, 2):
        told.append(amount)
        counter(registry).record(amount)
        up_down.record(amount)
        histogram.record(0.5)
        assert sender.flush(10)
    assert [each.points[0].as_int for each in collector.metrics if each.name == "m"] == sums
    assert [each.points[0].as_int for each in collector.metrics if each.name == "o"] == observed
    assert [each.points[0].as_int for each in collector.metrics if each.name == "u"] == [5, 7]
    assert collector.metric("h").points[0].count == (1 if sums == [5, 2] else 2)
    for name, points in (("m", sums), ("o", observed)):
        temporality = collector.metric(name).data.sum.aggregation_temporality
        assert temporality == (1 if points == [5, 2] else 2)  # delta, cumulative
    sender.shutdown(5)


@pytest.mark.parametrize("preference", ["delta", "lowmemory", "cumulative", "nonsense"])
def test_temporality_is_the_stock_exporters(collector, monkeypatch, preference):
    """What we want is what the stock exporter wants in the same environment, kind by kind."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference)
    stock = sdk.exporter_preferences(OTLPMetricExporter(endpoint=collector.url))
    ours = transport.metric_way(Settings(), collector.url)()
    assert ours.wants.delta_kinds == stock.delta_kinds
    ours.close()


@pytest.mark.parametrize("wanted", ["base2_exponential_bucket_histogram", "explicit_bucket_histogram", "nonsense"])
def test_the_preferred_buckets(collector, monkeypatch, wanted):
    """The standard variable turns histograms into exponential ones."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", wanted)
    registry = Registry()
    sender = over_http(collector, registry)
    registry.instrument(Metric("h", "s", "histogram", "", (), (1.0, 2.0)), SCOPE).of({}).record(0.5)
    assert sender.shutdown(10)
    assert hasattr(collector.metric("h").points[0], "scale") is wanted.startswith("base2")


# Fork ----------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_counts_for_itself(metrics):
    """The child's metrics begin at zero with a way of its own, even when the parent was just sending."""
    sender, counted, kept = metrics
    counted.record(5)
    sender.lost = {"export_failed": 3}

    with sender._lock:
        child = os.fork()
        if child == 0:
            done = False
            with suppress(BaseException):
                sender._cursor._registry.after_fork()
                sender.after_fork()
                counted.record(1)
                done = sender.lost == {} and sender.shutdown(5) and kept.values == [1]
            os._exit(0 if done else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sender.flush(5)
    assert kept.values == [5]
