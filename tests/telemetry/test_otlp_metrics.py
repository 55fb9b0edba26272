"""Metrics on the wire: decoded by opentelemetry-proto they equal what the stock encoder makes of the same points."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk import metrics as sdk_metrics
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf.telemetry.otlp_metrics import metrics_request, parts

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
attribute_sets = st.dictionaries(texts.filter(bool), texts | st.booleans() | st.integers(0, 99), max_size=3)
times = st.integers(1, (1 << 63) - 1)
wholes = st.integers(0, (1 << 63) - 1)
floats = st.floats(allow_nan=False)
numbers = st.integers(-(1 << 63), (1 << 63) - 1) | floats
ids = st.integers(1, (1 << 64) - 1)
exemplars = st.lists(st.builds(Exemplar, attribute_sets, numbers, times, st.none() | ids, st.none() | ids), max_size=2)
temporalities = st.sampled_from([AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE])
number_points = st.lists(st.builds(NumberDataPoint, attribute_sets, times, times, numbers, exemplars), max_size=3)
buckets = st.builds(Buckets, st.integers(-(1 << 31), (1 << 31) - 1), st.lists(wholes, max_size=4))
explicit_points = st.builds(
    HistogramDataPoint, attribute_sets, times, times, wholes, floats, st.lists(wholes, max_size=4),
    st.lists(floats, max_size=3), floats, floats, exemplars,
)  # fmt: skip
exponential_points = st.builds(
    ExponentialHistogramDataPoint, attribute_sets, times, times, wholes, floats, st.integers(-10, 20), wholes, buckets,
    buckets, st.integers(0, 3), floats, floats, exemplars,
)  # fmt: skip
data = (
    st.builds(Gauge, number_points)
    | st.builds(Sum, number_points, temporalities, st.booleans())
    | st.builds(Histogram, st.lists(explicit_points, max_size=2), temporalities)
    | st.builds(ExponentialHistogram, st.lists(exponential_points, max_size=2), temporalities)
)
scopes = st.sampled_from([InstrumentationScope("a"), InstrumentationScope("b", "1", "http://s", {"x": 1})])
metrics = st.builds(Metric, texts, texts, texts, data)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(scopes, st.lists(metrics, max_size=3), max_size=2))
def test_random_metrics_are_what_the_stock_encoder_sends(by_scope):
    """Whatever is in them, with and without exemplars."""
    grouped = [ScopeMetrics(scope, listed, scope.schema_url or "") for scope, listed in by_scope.items()]
    sent = MetricsData([ResourceMetrics(Resource({"service.name": "x"}, "http://r"), grouped, "http://r")])
    # Stock makes no field for the data of an instrument without points, which nobody sends.
    for each in grouped:
        each.metrics[:] = [metric for metric in each.metrics if metric.data.data_points]
    assert ExportMetricsServiceRequest.FromString(metrics_request(sent)) == encode_metrics(sent)


def test_what_an_sdk_recorded():
    """Every instrument of the SDK, explicit and exponential."""
    for aggregation in (None, ExponentialBucketHistogramAggregation()):
        preferred = {sdk_metrics.Histogram: aggregation} if aggregation else None
        reader = InMemoryMetricReader(preferred_aggregation=preferred)
        provider = sdk_metrics.MeterProvider([reader], Resource({}), shutdown_on_exit=False)
        meter = provider.get_meter("m", "2")
        histogram = meter.create_histogram("h", "s", "d")
        for number in range(50):
            histogram.record(2 ** (number - 10), {"a": number % 3})
        meter.create_counter("c").add(3, {"x": "y"})
        meter.create_up_down_counter("u").add(-4)
        meter.create_gauge("g").set(-1.5, {"q": True})
        collected = reader.get_metrics_data()
        assert metrics_request(collected) == encode_metrics(collected).SerializeToString()
        provider.shutdown()


def test_numbers_that_no_field_holds():
    """A whole number beyond 64 bits goes out as a double; a smallest value that is unknown is left out."""
    point = NumberDataPoint({}, 1, 2, 1 << 70, [])
    histogram = HistogramDataPoint({}, 1, 2, 0, 0.0, [], [], None, None, [])  # type: ignore[arg-type]  # as views may
    listed = [
        Metric("big", "", "", Sum([point], AggregationTemporality.CUMULATIVE, True)),
        Metric("empty", "", "", Histogram([histogram], AggregationTemporality.DELTA)),
    ]
    sent = MetricsData([ResourceMetrics(Resource({}), [ScopeMetrics(InstrumentationScope("a"), listed, "")], "")])
    request = ExportMetricsServiceRequest.FromString(metrics_request(sent))
    big, empty = request.resource_metrics[0].scope_metrics[0].metrics
    assert big.sum.data_points[0].as_double == float(1 << 70)
    assert not empty.histogram.data_points[0].HasField("min")


def test_metrics_in_parts():
    """Each point goes out once, with its metric, scope and resource; no request is larger, unless a point is."""
    reader = InMemoryMetricReader()
    provider = sdk_metrics.MeterProvider([reader], Resource({"service.name": "x"}), shutdown_on_exit=False)
    for scope in ("a", "b"):
        counter = provider.get_meter(scope).create_counter("c")
        histogram = provider.get_meter(scope).create_histogram("h")
        for number in range(20):
            counter.add(number, {"n": number})
            histogram.record(number, {"n": number})
    collected = reader.get_metrics_data()
    [whole] = parts(collected, 1 << 20)
    assert (whole.request, whole.points) == (metrics_request(collected), 80)
    found = list(parts(collected, 2000))
    assert len(found) > 3
    assert all(len(part.request) <= 2000 for part in found)
    assert sum(part.points for part in found) == 80

    def said(request: bytes) -> list[str]:
        message = ExportMetricsServiceRequest.FromString(request)
        return [
            f"{resource.resource} {scope.scope.name} {metric.name} {metric.sum.is_monotonic} {point}"
            for resource in message.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in (*metric.sum.data_points, *metric.histogram.data_points)
        ]

    assert [line for part in found for line in said(part.request)] == said(whole.request)
    assert [part.points for part in parts(collected, 1)] == [1] * 80
    assert all(metrics_request(part.data) == part.request for part in found)
    provider.shutdown()
