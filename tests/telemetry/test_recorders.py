"""Instruments of the API and bound ones record the same, with the trace of a sampled span, and never raise."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_perf import guard
from otel_perf.telemetry.meter import MeterProvider
from otel_perf.telemetry.recorders import sampled
from otel_perf.telemetry.series import Registry

SAMPLED = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1)))
UNSAMPLED = NonRecordingSpan(SpanContext(3, 4, is_remote=False))
VERBS = {"counter": "add", "up_down_counter": "add", "histogram": "record", "gauge": "set"}


def provider(limit: int = 2000, **options: Any) -> tuple[MeterProvider, InMemoryMetricReader]:
    own, reader = MeterProvider(Registry(limit), Resource({}), **options), InMemoryMetricReader()
    own.add_metric_reader(reader)
    return own, reader


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    scopes = data.resource_metrics[0].scope_metrics if data else []
    return {metric.name: list(metric.data.data_points) for scope in scopes for metric in scope.metrics}


@pytest.mark.parametrize(("kind", "verb"), VERBS.items())
def test_a_bound_instrument_records_into_the_series_of_its_attributes(kind, verb):
    """Bound and unbound values of one attribute set are one series, each with its exemplar."""
    own, reader = provider()
    instrument = getattr(own.get_meter("m"), f"create_{kind}")("i")
    bound = instrument.bind({"a": "x"})
    with trace.use_span(SAMPLED):
        getattr(bound, verb)(2)
    with trace.use_span(UNSAMPLED):
        getattr(bound, verb)(3.0)
    getattr(instrument, verb)(4, {"a": "x"})
    getattr(instrument.bind(), verb)(5)
    found = {str(point.attributes): point for point in points(reader)["i"]}
    assert set(found) == {"{'a': 'x'}", "{}"}
    point = found["{'a': 'x'}"]
    assert getattr(point, "sum", None) == 9 or point.value == (4 if kind == "gauge" else 9)
    assert [(each.value, each.trace_id, each.span_id) for each in point.exemplars] == [(2, 1, 2)]


def test_exemplars_can_be_off():
    """Without them a value in a sampled span is a bare one."""
    own, reader = provider(exemplars=False)
    counter = own.get_meter("m").create_counter("c")
    with trace.use_span(SAMPLED):
        counter.bind().add(1)
        counter.add(1)
    assert not points(reader)["c"][0].exemplars


def test_a_context_that_is_handed_over_counts():
    """The trace is that of the given context, not of the current one."""
    current = trace.set_span_in_context(SAMPLED)
    assert sampled(5, current)[:3] == (5, 1, 2)  # type: ignore[index]
    assert sampled(5, trace.set_span_in_context(UNSAMPLED)) == 5
    assert sampled(5) == 5
    token = otel_context.attach(trace.set_span_in_context(UNSAMPLED))
    assert sampled(5, current)[:3] == (5, 1, 2)  # type: ignore[index]
    otel_context.detach(token)


@pytest.mark.parametrize("how", ["bound", "unbound"])
def test_what_cannot_be_added_up_is_left_out(monkeypatch, how):
    """Negative and endless amounts are, except where they have a meaning; what is no number is a counted fault."""
    monkeypatch.setattr(guard, "strict", False)
    own, reader = provider()
    meter = own.get_meter("m")
    for kind, verb in VERBS.items():
        instrument = getattr(meter, f"create_{kind}")(kind)
        target = instrument.bind() if how == "bound" else instrument
        for amount in (1, -2, float("inf"), float("nan"), "one"):
            getattr(target, verb)(amount)
    found = points(reader)
    assert found["counter"][0].value == 1
    assert found["up_down_counter"][0].value == -1
    assert (found["histogram"][0].count, found["histogram"][0].sum) == (1, 1)
    assert str(found["gauge"][0].value) == "nan"
    assert guard.errors == 4


def test_a_bound_instrument_folds_when_its_list_is_full():
    """Memory is bounded though no reader asks."""
    own, reader = provider()
    bound = own.get_meter("m").create_counter("c").bind({"a": "x"})
    for _ in range(512):
        bound.add(1)
    assert not bound._series.pending
    bound.add(1)
    assert points(reader)["c"][0].value == 513


def test_bound_instruments_outlive_a_new_configuration():
    """Libraries hold them: after a reset they start from zero, in the same series as everybody else's values."""
    own, _ = provider()
    counter = own.get_meter("m").create_counter("c")
    bound = counter.bind({"a": "x"})
    bound.add(1)
    own.registry.reset()
    reader = InMemoryMetricReader()
    own.add_metric_reader(reader)
    bound.add(2)
    counter.add(3, {"a": "x"})
    [point] = points(reader)["c"]
    assert point.value == 5


def test_binding_is_held_to_the_limit():
    """Over the limit a bound instrument records into the overflow series, also after a reset."""
    own, reader = provider(limit=3)
    counter = own.get_meter("m").create_counter("c")
    bound = [counter.bind({"a": str(index)}) for index in range(5)]
    for each in bound:
        each.add(1)
    assert sorted(point.value for point in points(reader)["c"]) == [1, 1, 3]
    own.registry.reset()
    later = InMemoryMetricReader()
    own.add_metric_reader(later)
    for each in bound:
        each.add(1)
    assert sorted(point.value for point in points(later)["c"]) == [1, 1, 3]


def test_nothing_is_lost_when_threads_record_while_others_collect():
    """Every bound and unbound value of six threads is in the totals once."""
    own, reader = provider()
    histogram = own.get_meter("m").create_histogram("h")
    bound = histogram.bind({"a": "x"})

    def record() -> None:
        for _ in range(5000):
            bound.record(0.1)
            histogram.record(0.1, {"a": "x"})

    threads = [threading.Thread(target=record) for _ in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        reader.collect()
    for thread in threads:
        thread.join()
    [point] = points(reader)["h"]
    assert point.count == sum(point.bucket_counts) == 60_000
