"""Metrics as OTLP protobuf bytes, written directly from the SDK's data points.

Source of the field numbers: opentelemetry-proto, `metrics/v1/metrics.proto`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)

from otel_perf.telemetry.wire import DOUBLE, FIXED64, Attributes, resource_field, scope_field, sized, text, varint

__all__ = ["Part", "metrics_request", "parts"]

_number_attributes = Attributes(b"\x3a")
_histogram_attributes = Attributes(b"\x4a")
_exponential_attributes = Attributes(b"\x0a")
_filtered_attributes = Attributes(b"\x3a")


class Part(NamedTuple):
    """Metrics that go out in one request."""

    data: MetricsData
    request: bytes
    points: int


def parts(data: MetricsData, largest_bytes: int) -> Iterator[Part]:
    """The metrics in one request, or in as many as it takes for none to be larger than that; a point is not parted."""
    request, points = metrics_request(data), _count(data)
    if points < 2 or len(request) <= largest_bytes:
        yield Part(data, request, points)
        return
    del request
    yield from parts(_cut(data, 0, points // 2), largest_bytes)
    yield from parts(_cut(data, points // 2, points), largest_bytes)


def _count(data: MetricsData) -> int:
    return sum(
        len(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )


def _cut(data: MetricsData, first: int, end: int) -> MetricsData:
    """The points from one number to another, each with its metric, scope and resource."""
    at = 0
    resources: list[ResourceMetrics] = []
    for resource in data.resource_metrics:
        scopes: list[ScopeMetrics] = []
        for scope in resource.scope_metrics:
            metrics: list[Metric] = []
            for metric in scope.metrics:
                points = metric.data.data_points
                kept: Any = points[max(0, first - at) : max(0, end - at)]
                at += len(points)
                if kept:
                    held: Any = metric.data
                    metrics.append(
                        Metric(metric.name, metric.description, metric.unit, replace(held, data_points=kept))
                    )
            if metrics:
                scopes.append(ScopeMetrics(scope.scope, metrics, scope.schema_url))
        if scopes:
            resources.append(ResourceMetrics(resource.resource, scopes, resource.schema_url))
    return MetricsData(resources)


def metrics_request(data: MetricsData) -> bytes:
    """An ExportMetricsServiceRequest of collected metrics."""
    return b"".join(
        [
            sized(
                b"\x0a",
                resource_field(each.resource)
                + b"".join(map(_scope, each.scope_metrics))
                + text(b"\x1a", each.resource.schema_url),
            )
            for each in data.resource_metrics
        ]
    )


def _scope(of: ScopeMetrics) -> bytes:
    metrics = b"".join(map(_metric, of.metrics))
    return sized(b"\x12", scope_field(of.scope) + metrics + text(b"\x1a", of.scope.schema_url))


def _metric(metric: Metric) -> bytes:
    head = text(b"\x0a", metric.name) + text(b"\x12", metric.description) + text(b"\x1a", metric.unit)
    data = metric.data
    if isinstance(data, Gauge):
        body = sized(b"\x2a", _points(data.data_points, _gauge_point))
    elif isinstance(data, Sum):
        summed = _points(data.data_points, _sum_point) + _temporality(data.aggregation_temporality)
        body = sized(b"\x3a", summed + (b"\x18\x01" if data.is_monotonic else b""))
    elif isinstance(data, Histogram):
        body = sized(b"\x4a", _points(data.data_points, _histogram_point) + _temporality(data.aggregation_temporality))
    else:
        points = _points(data.data_points, _exponential_point)
        body = sized(b"\x52", points + _temporality(data.aggregation_temporality))
    return sized(b"\x12", head + body)


def _points(points: Sequence[Any], encode: Callable[[Any], bytes]) -> bytes:
    return b"".join([sized(b"\x0a", encode(point)) for point in points])


def _temporality(temporality: AggregationTemporality) -> bytes:
    return b"\x10" + varint(int(temporality))


# Fields that may be missing ------------------------------------------------------------------------------------------


def _fixed(tag: bytes, value: int | None) -> bytes:
    return tag + FIXED64(value) if value else b""


def _double(tag: bytes, value: float | None) -> bytes:
    return b"" if value is None else tag + DOUBLE(value)


def _number(value: float, as_double: bytes, as_int: bytes) -> tuple[bytes, bytes]:
    """A value in the one field or the other: the fields between them are written between them."""
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return b"", as_int + FIXED64(value & 0xFFFF_FFFF_FFFF_FFFF)
    return as_double + DOUBLE(value), b""


def _zigzag(value: int) -> bytes:
    return varint(((value << 1) ^ (value >> 31)) & 0xFFFF_FFFF)


# Points --------------------------------------------------------------------------------------------------------------


def _sum_point(point: NumberDataPoint) -> bytes:
    return _fixed(b"\x11", point.start_time_unix_nano) + _gauge_point(point)


def _gauge_point(point: NumberDataPoint) -> bytes:
    double, whole = _number(point.value, b"\x21", b"\x31")
    return b"".join((
        _fixed(b"\x19", point.time_unix_nano), double, _exemplars(b"\x2a", point.exemplars), whole,
        _number_attributes.field(point.attributes),
    ))  # fmt: skip


def _histogram_point(point: HistogramDataPoint) -> bytes:
    counts, bounds = point.bucket_counts, point.explicit_bounds
    return b"".join((
        _fixed(b"\x11", point.start_time_unix_nano), _fixed(b"\x19", point.time_unix_nano),
        _fixed(b"\x21", point.count), _double(b"\x29", point.sum),
        sized(b"\x32", _packing("Q", len(counts))(*counts)) if counts else b"",
        _bounds(tuple(bounds)) if bounds else b"",
        _exemplars(b"\x42", point.exemplars), _histogram_attributes.field(point.attributes),
        _double(b"\x59", point.min), _double(b"\x61", point.max),
    ))  # fmt: skip


@lru_cache(maxsize=256)
def _packing(letter: str, count: int) -> Callable[..., bytes]:
    return Struct(f"<{count}{letter}").pack


@lru_cache(maxsize=256)
def _bounds(bounds: tuple[float, ...]) -> bytes:
    return sized(b"\x3a", _packing("d", len(bounds))(*bounds))


def _exponential_point(point: ExponentialHistogramDataPoint) -> bytes:
    return b"".join((
        _exponential_attributes.field(point.attributes),
        _fixed(b"\x11", point.start_time_unix_nano), _fixed(b"\x19", point.time_unix_nano),
        _fixed(b"\x21", point.count), _double(b"\x29", point.sum),
        b"\x30" + _zigzag(point.scale) if point.scale else b"", _fixed(b"\x39", point.zero_count),
        _buckets(b"\x42", point.positive), _buckets(b"\x4a", point.negative),
        b"\x50" + varint(point.flags) if point.flags else b"",
        _exemplars(b"\x5a", point.exemplars), _double(b"\x61", point.min), _double(b"\x69", point.max),
    ))  # fmt: skip


def _buckets(tag: bytes, buckets: Buckets) -> bytes:
    counts = buckets.bucket_counts
    if not counts:
        return b""
    packed = sized(b"\x12", b"".join(map(varint, counts)))
    return sized(tag, (b"\x08" + _zigzag(buckets.offset) if buckets.offset else b"") + packed)


def _exemplars(tag: bytes, exemplars: Sequence[Exemplar]) -> bytes:
    return b"".join([sized(tag, _exemplar(each)) for each in exemplars]) if exemplars else b""


def _exemplar(exemplar: Exemplar) -> bytes:
    double, whole = _number(exemplar.value, b"\x19", b"\x31")
    trace = b""
    if exemplar.trace_id is not None and exemplar.span_id is not None:
        trace = b"\x22\x08" + exemplar.span_id.to_bytes(8, "big") + b"\x2a\x10" + exemplar.trace_id.to_bytes(16, "big")
    attributes = _filtered_attributes.field(exemplar.filtered_attributes)
    return _fixed(b"\x11", exemplar.time_unix_nano) + double + trace + whole + attributes
