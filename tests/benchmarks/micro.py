"""One span, one record, one encoding, alone: each in a process of its own, ours, stock and prometheus_client."""

from __future__ import annotations

import gc
import itertools
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from tests.benchmarks.subjects import FIVE

__all__ = ["MEMORY", "MICRO", "Orders"]

#: Answers nanoseconds of CPU for one turn of so many.
Measure = Callable[[int], float]

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_ENCODED_AT_ONCE = 512


def _timed(do: Callable[[], object], times: int) -> float:
    started_ns = time.process_time_ns()
    do()
    return (time.process_time_ns() - started_ns) / times


# Spans -------------------------------------------------------------------------------------------------------------


def _processor(ended: list[Any] | None) -> Any:
    from opentelemetry.sdk.trace import SpanProcessor

    class Keep(SpanProcessor):
        """Does nothing, or keeps what ended."""

        def on_end(self, span: Any) -> None:
            if ended is not None:
                ended.append(span)

    return Keep()


def _tracer(ours: bool, ended: list[Any] | None = None) -> Any:
    """A tracer whose provider has one processor and no exporter.

    Over otel_perf that comes beside its own processor, which hands spans to nobody, since no endpoint is configured.
    """
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    if ours:
        import otel_perf

        otel_perf.configure(service_name="bench")
    else:
        trace.set_tracer_provider(TracerProvider())
    provider: Any = trace.get_tracer_provider()
    provider.add_span_processor(_processor(ended))
    return trace.get_tracer("bench", "1")


def _span(ours: bool, _: str) -> Measure:
    tracer = _tracer(ours)
    pairs = tuple(FIVE.items())

    def turns(times: int) -> None:
        for _ in range(times):
            span = tracer.start_span("GET /items/{item}")
            for key, value in pairs:
                span.set_attribute(key, value)
            span.end()

    return lambda times: _timed(lambda: turns(times), times)


def _current_span(ours: bool, _: str) -> Measure:
    tracer = _tracer(ours)

    def turns(times: int) -> None:
        for _ in range(times):
            with tracer.start_as_current_span("GET /items/{item}", attributes=FIVE):
                pass

    return lambda times: _timed(lambda: turns(times), times)


# Values ------------------------------------------------------------------------------------------------------------


def _values(times: int) -> list[float]:
    """Durations as requests have them: most of some milliseconds, a few long ones."""
    chance = random.Random(7)
    return [chance.lognormvariate(-4, 1) for _ in range(times)]


def _all_recorded(record: Callable[[float], object], values: list[float]) -> None:
    for value in values:
        record(value)


def _recorder(record: Callable[[float], object], after: Callable[[], object] = lambda: None) -> Measure:
    def measure(times: int) -> float:
        values = _values(times)

        def turns() -> None:
            _all_recorded(record, values)
            after()

        return _timed(turns, times)

    return measure


def _record(ours: bool, sink: str, *, sampled: bool = False) -> Measure:
    """A record; ours with its share of the fold for all the readers that `configure` attaches."""
    measure = _record_ours(sink) if ours else _record_stock_api()
    if not sampled:
        return measure
    tracer = _tracer_beside(ours)

    def within(times: int) -> float:
        with tracer.start_as_current_span("request"):
            return measure(times)

    return within


def _tracer_beside(ours: bool) -> Any:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    return trace.get_tracer("bench") if ours else TracerProvider().get_tracer("bench")


def _record_ours(sink: str) -> Measure:
    import otel_perf
    from otel_perf.telemetry import runtime

    otel_perf.configure(service_name="bench", endpoint=sink + "/micro")
    in_force = runtime.current
    assert in_force is not None
    return _recorder(_our_histogram("bench.duration").bind(FIVE).record, in_force.registry.fold_all)


def _our_histogram(name: str) -> Any:
    from opentelemetry import metrics

    meter = metrics.get_meter_provider().get_meter("bench")
    return meter.create_histogram(name, "s", explicit_bucket_boundaries_advisory=_BOUNDS)


def _record_stock_api() -> Measure:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    meter = MeterProvider([InMemoryMetricReader()]).get_meter("bench")
    record = meter.create_histogram("bench.duration", "s", explicit_bucket_boundaries_advisory=_BOUNDS).record

    def measure(times: int) -> float:
        values = _values(times)

        def turns() -> None:
            for value in values:
                record(value, FIVE)

        return _timed(turns, times)

    return measure


def _record_unbound_ours(sink: str) -> Measure:
    """The OpenTelemetry API's own `record(value, attributes)`, over our registry."""
    import otel_perf
    from otel_perf.telemetry import runtime

    otel_perf.configure(service_name="bench", endpoint=sink + "/micro")
    in_force = runtime.current
    assert in_force is not None
    record = _our_histogram("bench.duration").record
    return _recorder(lambda value: record(value, FIVE), in_force.registry.fold_all)


def _record_prometheus(_: str) -> Measure:
    from prometheus_client import CollectorRegistry, Histogram

    labels = [key.replace(".", "_") for key in FIVE]
    histogram = Histogram("bench_duration", "bench", labels, buckets=_BOUNDS, registry=CollectorRegistry())
    return _recorder(histogram.labels(*map(str, FIVE.values())).observe)


# Encoding ----------------------------------------------------------------------------------------------------------


def _encode(ours: bool, _: str) -> Measure:
    """Request spans to OTLP bytes; each span is new and its path its own, so that no cache knows it."""
    ended: list[Any] = []
    tracer = _tracer(ours, ended)
    encode = _our_encoder() if ours else _stock_encoder()
    serial = itertools.count()

    def measure(times: int) -> float:
        spent = 0.0
        for _ in range(max(1, times // _ENCODED_AT_ONCE)):
            ended.clear()
            for _ in range(_ENCODED_AT_ONCE):
                _request_span(tracer, next(serial))
            spans = tuple(ended)
            spent += _timed(lambda: encode(spans), 1)  # noqa: B023 -- called at once
        return spent / max(1, times // _ENCODED_AT_ONCE) / _ENCODED_AT_ONCE

    return measure


def _our_encoder() -> Callable[[Any], bytes]:
    from otel_perf.telemetry.otlp import spans_request

    return spans_request


def _stock_encoder() -> Callable[[Any], bytes]:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    return lambda spans: encode_spans(spans).SerializeToString()


def _request_span(tracer: Any, number: int) -> None:
    from opentelemetry.trace import SpanKind

    attributes = {
        **FIVE, "url.path": f"/items/{number}", "server.address": "shop.example.com", "server.port": 443,
        "client.address": f"192.0.2.{number % 250}", "user_agent.original": "Mozilla/5.0 (X11; Linux x86_64)",
    }  # fmt: skip
    tracer.start_span("GET /items/{item}", kind=SpanKind.SERVER, attributes=attributes).end()


# Memory ------------------------------------------------------------------------------------------------------------


def _bytes_each(make: Callable[[int], object], count: int) -> float:
    """Bytes that stay allocated for each of so many things; the first few pay for what is made once."""
    kept = [make(number) for number in range(200)]
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept += [make(number) for number in range(200, 200 + count)]
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / count


def _span_bytes(ours: bool, _: str) -> float:
    tracer = _tracer(ours)

    def make(number: int) -> Any:
        span = tracer.start_span("GET /items/{item}")
        for key, value in FIVE.items():
            span.set_attribute(key, value)
        return span

    return _bytes_each(make, 2000)


def _series_bytes_ours(sink: str) -> float:
    import otel_perf
    from otel_perf.telemetry import runtime

    otel_perf.configure(service_name="bench", endpoint=sink + "/micro", metric_interval_s=3600)
    in_force = runtime.current
    assert in_force is not None
    histogram = _our_histogram("bench.duration")

    def make(number: int) -> None:
        for value in (0.004, 0.2, 3.0):
            histogram.record(value, {**FIVE, "http.route": f"/route{number}"})
        if number % 100 == 99:
            in_force.registry.fold_all()

    return _bytes_each(make, 1500)


def _series_bytes_stock(_: str) -> float:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    provider = MeterProvider([InMemoryMetricReader()])
    meter = provider.get_meter("bench")
    histogram = meter.create_histogram("bench.duration", "s", explicit_bucket_boundaries_advisory=_BOUNDS)

    def make(number: int) -> None:
        for value in (0.004, 0.2, 3.0):
            histogram.record(value, {**FIVE, "http.route": f"/route{number}"})

    return _bytes_each(make, 1500)


MICRO: dict[str, Callable[[str], Measure]] = {
    "span_ours": lambda sink: _span(True, sink),
    "span_stock": lambda sink: _span(False, sink),
    "current_span_ours": lambda sink: _current_span(True, sink),
    "current_span_stock": lambda sink: _current_span(False, sink),
    "record_ours": lambda sink: _record(True, sink),
    "record_stock": lambda sink: _record(False, sink),
    "record_prometheus": _record_prometheus,
    "record_sampled_ours": lambda sink: _record(True, sink, sampled=True),
    "record_sampled_stock": lambda sink: _record(False, sink, sampled=True),
    "record_unbound_ours": _record_unbound_ours,
    "encode_ours": lambda sink: _encode(True, sink),
    "encode_stock": lambda sink: _encode(False, sink),
}

MEMORY: dict[str, Callable[[str], float]] = {
    "span_bytes_ours": lambda sink: _span_bytes(True, sink),
    "span_bytes_stock": lambda sink: _span_bytes(False, sink),
    "series_bytes_ours": _series_bytes_ours,
    "series_bytes_stock": _series_bytes_stock,
}


class Orders:
    """Answers orders about one of these in a child process."""

    def __init__(self, name: str, sink: str) -> None:
        self._name = name
        self._sink = sink
        self._measure = None if name in MEMORY else MICRO[name](sink)

    def cpu(self, times: int) -> float:
        """Nanoseconds of CPU for one turn, after a warm-up."""
        assert self._measure is not None
        self._measure(max(512, times // 5))
        return self._measure(times)

    def memory(self) -> float:
        """Bytes of one."""
        return MEMORY[self._name](self._sink)
