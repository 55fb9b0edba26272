"""Private names of the SDK: each is used where it is there, and there is a way without it."""

from __future__ import annotations

import contextvars
import importlib
import threading
from typing import Any

import pytest
from opentelemetry import context, metrics, trace
from opentelemetry.sdk import metrics as stock
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf.conventions import Metric
from otel_perf.telemetry import sdk
from otel_perf.telemetry.aggregation import Explicit, Exponential, Sum
from otel_perf.telemetry.series import Registry, Series


def series(kind: str = "histogram", buckets: tuple[float, ...] = ()) -> Series:
    metric = Metric("m", "1", kind, "", (), buckets)  # type: ignore[arg-type]
    return Registry().instrument(metric, InstrumentationScope("t")).of({})


def wants(**preferences: Any) -> sdk.Preferences:
    return sdk.preferences(InMemoryMetricReader(**preferences))


def test_a_reader_gets_the_temporality_that_it_asks_for():
    """Changes for the kinds it names, totals for the others."""
    asked = wants(preferred_temporality={stock.Counter: AggregationTemporality.DELTA})
    assert [kind for kind in ("counter", "updowncounter", "histogram", "gauge") if asked.delta(kind)] == ["counter"]  # type: ignore[arg-type]


def test_a_reader_gets_the_aggregation_that_it_asks_for():
    """Exponential, explicit with bounds of its own, none at all; the bounds of a metric win over the reader's."""
    exponential = wants(preferred_aggregation={stock.Histogram: ExponentialBucketHistogramAggregation(20, 5)})
    cell = exponential.cell(series())
    assert isinstance(cell, Exponential)
    assert (cell.scale, cell._max_size) == (5, 20)
    assert isinstance(exponential.cell(series("counter")), Sum)

    explicit = wants(preferred_aggregation={stock.Histogram: ExplicitBucketHistogramAggregation([1, 2])})
    assert explicit.cell(series()).bounds == (1, 2)
    assert explicit.cell(series(buckets=(5.0,))).bounds == (5.0,)

    unbounded = wants(preferred_aggregation={stock.Histogram: ExplicitBucketHistogramAggregation()})
    assert len(unbounded.cell(series()).bounds) == 15
    assert wants(preferred_aggregation={stock.Counter: DropAggregation()}).cell(series("counter")) is None


def test_an_exporter_is_asked_as_a_reader_is():
    """What a stock exporter prefers comes out the same; one that prefers nothing gets totals."""

    class Exporter:
        def __init__(self) -> None:
            self._preferred_temporality = {stock.Histogram: AggregationTemporality.DELTA}
            self._preferred_aggregation = {stock.Histogram: ExponentialBucketHistogramAggregation()}

    asked = sdk.exporter_preferences(Exporter())  # type: ignore[arg-type]
    assert asked.delta("histogram")
    assert isinstance(asked.cell(series()), Exponential)
    plain = sdk.exporter_preferences(object())  # type: ignore[arg-type]
    assert not plain.delta("counter")
    assert isinstance(plain.cell(series()), Explicit)


def test_without_its_private_tables_a_reader_gets_the_usual():
    """An SDK that renames them costs preferences, not metrics."""
    reader = InMemoryMetricReader({stock.Counter: AggregationTemporality.DELTA})
    del reader._instrument_class_temporality
    del reader._instrument_class_aggregation
    asked = sdk.preferences(reader)
    assert not asked.delta("counter")
    assert isinstance(asked.cell(series()), Explicit)


def test_a_reader_that_cannot_be_connected_is_named(caplog):
    """An SDK without the way to connect it says so once, and nothing breaks."""

    class Foreign:
        pass

    assert not sdk.bind_reader(Foreign(), lambda: None, metrics.NoOpMeterProvider())  # type: ignore[arg-type]
    assert "no way to connect Foreign" in caplog.text


def test_a_reader_without_a_place_for_the_provider_is_connected_all_the_same():
    """Only the collect function is needed."""

    class Old:
        def _set_collect_callback(self, collect):
            self.collect = collect

    reader = Old()
    assert sdk.bind_reader(reader, len, metrics.NoOpMeterProvider())  # type: ignore[arg-type]
    assert reader.collect is len


def test_suppression_is_the_sdks_own():
    """What exporters set so that nobody instruments them is seen, and its name is there without the private one."""
    assert not sdk.suppressed()
    token = context.attach(context.set_value(sdk.SUPPRESS_KEY, True))
    assert sdk.suppressed()
    context.detach(token)


def test_detaching_elsewhere_raises_and_logs_nothing(caplog, monkeypatch):
    """The public `detach` logs an error with a traceback, ours tells the caller; it is the fall-back."""
    token = context.attach(context.set_value("k", "v"))
    with pytest.raises(ValueError, match="different Context"):
        contextvars.copy_context().run(sdk.detach, token)
    assert not caplog.records
    monkeypatch.delattr(context, "_RUNTIME_CONTEXT")
    calls = []
    monkeypatch.setattr(context, "detach", calls.append)
    sdk.detach(token)
    assert calls == [token]
    monkeypatch.undo()
    sdk.detach(token)


def test_proxies_are_told_from_providers():
    """Only what stands for a provider that is to come is a proxy."""
    assert not sdk.is_proxy(metrics.NoOpMeterProvider())
    proxy = type("_ProxyMeterProvider", (metrics.NoOpMeterProvider,), {})()
    assert sdk.is_proxy(proxy)


def test_a_provider_gets_another_resource_in_place():
    """Tracers that libraries hold make spans with it; a lock that the fork left held does no harm."""
    provider = TracerProvider(resource=Resource({"service.instance.id": "parent"}), shutdown_on_exit=False)
    tracer = provider.get_tracer("held")
    provider._tracers_lock.acquire()
    sdk.renew_resource(provider, Resource({"service.instance.id": "child"}))
    assert tracer.start_span("s").resource.attributes["service.instance.id"] == "child"
    sdk.renew_resource(trace.NoOpTracerProvider(), Resource({}))  # one that has no resource is left alone


@pytest.mark.parametrize("name", ["_SUPPRESS_INSTRUMENTATION_KEY", "_Gauge"])
def test_the_module_loads_without_private_names(monkeypatch, name):
    """Each private name that is looked up at import has a stand-in."""
    monkeypatch.delattr(context if hasattr(context, name) else metrics, name)
    before = dict(vars(sdk))
    try:
        importlib.reload(sdk)
        assert sdk.SUPPRESS_KEY
        assert sdk.ApiGauge
    finally:
        vars(sdk).update(before)


def test_a_process_has_one_id(monkeypatch):
    """The SDK's own, so that spans and metrics agree after a fork; without its detector, one of ours."""
    assert sdk.instance_id() == sdk.instance_id() == Resource.create({}).attributes["service.instance.id"]
    monkeypatch.delattr(sdk.resources, "ServiceInstanceIdResourceDetector")
    assert sdk.instance_id() != sdk.instance_id()


def test_threads_have_their_own_suppression():
    """Suppression is a matter of the context, so another thread is not suppressed."""
    token = context.attach(context.set_value(sdk.SUPPRESS_KEY, True))
    seen = []
    thread = threading.Thread(target=lambda: seen.append(sdk.suppressed()))
    thread.start()
    thread.join()
    context.detach(token)
    assert seen == [False]
