"""The meter provider is the SDK's to everyone: the same program gives the same points, stock readers work on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk import metrics as stock
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogramDataPoint,
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    MetricReader,
    NumberDataPoint,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client import CollectorRegistry, generate_latest

from otel_perf import conventions as c
from otel_perf import guard
from otel_perf.telemetry.meter import MeterProvider, Readers, sampled
from otel_perf.telemetry.series import Registry

DELTA = dict.fromkeys(
    (stock.Counter, stock.UpDownCounter, stock.Histogram, stock.ObservableCounter, stock.ObservableUpDownCounter),
    AggregationTemporality.DELTA,
)


def provider(**options: Any) -> MeterProvider:
    return MeterProvider(Registry(), Resource({"service.name": "t"}), **options)


# The same program on both ---------------------------------------------------------------------------------------------

STEP = st.tuples(
    st.sampled_from(["counter", "updown", "histogram", "advised", "gauge", "collect"]),
    st.integers(min_value=-5, max_value=20_000)
    | st.floats(min_value=-2, max_value=20_000, allow_nan=False, allow_subnormal=False),
    st.dictionaries(st.sampled_from("ab"), st.sampled_from(["x", "y", True, 3]), max_size=2),
)


def run(target: stock.MeterProvider, reader: InMemoryMetricReader, program: Sequence[tuple]) -> list[Any]:
    meter = target.get_meter("program", "1.0", "https://schema", {"scope": "yes"})
    observed = {"n": 0}

    def told(_: CallbackOptions):
        observed["n"] += 2
        return [Observation(observed["n"], {"a": "seen"}), Observation(1)]

    def telling():
        options = yield []
        while True:
            assert isinstance(options, CallbackOptions)
            options = yield [Observation(observed["n"], {"by": "generator"})]

    use = {
        "counter": meter.create_counter("c", "By", "counts").add,
        "updown": meter.create_up_down_counter("u").add,
        "histogram": meter.create_histogram("h", "s").record,
        "advised": meter.create_histogram("adv", explicit_bucket_boundaries_advisory=[1.0, 10.0]).record,
        "gauge": meter.create_gauge("g").set,
    }
    meter.create_observable_counter("oc", [told])
    meter.create_observable_up_down_counter("ou", [told])
    meter.create_observable_gauge("og", [telling()])
    collected = []
    for what, amount, attributes in (*program, ("collect", 0, {})):
        if what == "collect":
            collected.append(comparable(reader.get_metrics_data()))
        else:
            use[what](amount, attributes)
    return collected


def comparable(data: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                shape = {k: v for k, v in vars(metric.data).items() if k != "data_points"}
                points = sorted((point(each) for each in metric.data.data_points), key=str)
                names = (scope.scope.name, scope.scope.version, scope.scope.schema_url, metric.unit, metric.description)
                found[metric.name] = (names, type(metric.data).__name__, shape, points)
    return found


def point(each: Any) -> tuple:
    labels = sorted((key, str(value)) for key, value in each.attributes.items())
    if isinstance(each, NumberDataPoint):
        return labels, pytest.approx(each.value)
    totals = (labels, each.count, pytest.approx(each.sum), each.min, each.max)
    if isinstance(each, ExponentialHistogramDataPoint):
        return *totals, each.zero_count, Spread(each), sum(each.negative.bucket_counts)
    return *totals, each.bucket_counts, each.explicit_bounds


class Spread:
    """The buckets of an exponential point, equal to those of a point that is as fine or coarser.

    The SDK's own totals are coarser than they need be where a collect came between a zero and the first other value.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, each: ExponentialHistogramDataPoint) -> None:
        self.scale = each.scale
        self.filled = {each.positive.offset + i: n for i, n in enumerate(each.positive.bucket_counts) if n}

    def at(self, scale: int) -> dict[int, int]:
        coarse: dict[int, int] = {}
        for index, count in self.filled.items():
            coarse[index >> (self.scale - scale)] = coarse.get(index >> (self.scale - scale), 0) + count
        return coarse

    def __eq__(self, theirs: object) -> bool:
        assert isinstance(theirs, Spread)
        if not self.filled:
            return not theirs.filled
        return self.scale >= theirs.scale and self.at(theirs.scale) == theirs.filled


_FORK = """
import os, signal, time
import otel_perf
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
held = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
import concurrent.futures.thread
child = os.fork()
if not child:
    os._exit(7)
for _ in range(2000):
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        break
    time.sleep(0.01)
else:
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_stock_provider_does_not_hold_up_a_fork():
    """What the SDK does in a forked child waits for no lock of the thread pools, once we are imported."""
    done = subprocess.run([sys.executable, "-c", _FORK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7"], done.stderr


EXPONENTIAL = {stock.Histogram: ExponentialBucketHistogramAggregation(max_size=20)}


@pytest.mark.parametrize("temporality", [None, DELTA], ids=["cumulative", "delta"])
@pytest.mark.parametrize("aggregation", [None, EXPONENTIAL], ids=["explicit", "exponential"])
def test_the_same_program_gives_the_stock_points(monkeypatch, caplog, temporality, aggregation):
    """Random programs over all instruments give what the stock provider gives, collect by collect."""
    caplog.set_level("CRITICAL")  # the stock SDK warns of each negative amount

    @settings(max_examples=60, deadline=None)
    @given(st.lists(STEP, max_size=40))
    def check(program):
        theirs, ours = (InMemoryMetricReader(temporality, aggregation) for _ in range(2))
        expected = run(stock.MeterProvider([theirs], Resource({}), shutdown_on_exit=False), theirs, program)
        own = provider()
        own.add_metric_reader(ours)
        assert run(own, ours, program) == expected

    check()


def test_bounds_of_the_catalogue_win_over_advice():
    """An instrument of another library with one of our names has our buckets."""
    own, reader = provider(), InMemoryMetricReader()
    own.add_metric_reader(reader)
    meter = own.get_meter("theirs")
    meter.create_histogram(c.REQUEST_DURATION.name, "s", explicit_bucket_boundaries_advisory=[1, 2]).record(0.1)
    [scope] = reader.get_metrics_data().resource_metrics[0].scope_metrics
    assert scope.metrics[0].data.data_points[0].explicit_bounds == c.REQUEST_DURATION.buckets


def test_a_library_that_misuses_an_instrument_hears_nothing(monkeypatch):
    """Wrong types, numbers without bounds and labels that cannot be keys are counted faults, never exceptions."""
    monkeypatch.setattr(guard, "strict", False)
    own, reader = provider(), InMemoryMetricReader()
    own.add_metric_reader(reader)
    meter = own.get_meter("theirs")
    counter, histogram = meter.create_counter("c"), meter.create_histogram("h")
    counter.add("one")  # type: ignore[arg-type]
    counter.add(1, {"a": {"b": object}})  # type: ignore[dict-item]
    counter.add(-1)
    counter.add(float("nan"))
    histogram.record(float("inf"))
    counter.add(2)
    assert comparable(reader.get_metrics_data())["c"][3][-1] == ([], 2)
    assert "h" not in comparable(reader.get_metrics_data())
    assert guard.errors == 1


@pytest.mark.parametrize("advice", [[2.0, 1.0], [1.0, 1.0], [float("inf")], ["a"], 7])
def test_advice_that_is_no_list_of_bounds_is_not_taken(advice, caplog):
    """The usual bounds are used, and it is said."""
    own, reader = provider(), InMemoryMetricReader()
    own.add_metric_reader(reader)
    own.get_meter("m").create_histogram("h", explicit_bucket_boundaries_advisory=advice).record(1)
    [scope] = reader.get_metrics_data().resource_metrics[0].scope_metrics
    assert len(scope.metrics[0].data.data_points[0].explicit_bounds) == 15
    assert "the bounds advised for h" in caplog.text


@pytest.mark.parametrize("aggregation", [None, EXPONENTIAL], ids=["explicit", "exponential"])
def test_advice_of_no_bounds_is_one_bucket(aggregation):
    """As in the SDK; a reader of exponential histograms gets those."""
    points = []
    for make in (lambda r: stock.MeterProvider([r], Resource({}), shutdown_on_exit=False), own_with):
        reader = InMemoryMetricReader(preferred_aggregation=aggregation)
        meter = make(reader).get_meter("m")
        meter.create_histogram("h", explicit_bucket_boundaries_advisory=[]).record(1)
        [scope] = reader.get_metrics_data().resource_metrics[0].scope_metrics
        points.append(scope.metrics[0].data.data_points[0])
    assert type(points[0]) is type(points[1])
    if aggregation is None:
        assert [(each.bucket_counts, each.explicit_bounds) for each in points] == [((1,), ()), ((1,), ())]


def own_with(reader):
    own = provider()
    own.add_metric_reader(reader)
    return own


@pytest.mark.parametrize("generator", [False, True])
def test_what_a_callback_told_before_it_raised_counts(monkeypatch, generator):
    """The rest of its values is missing, the fault is counted, and other callbacks are asked."""
    monkeypatch.setattr(guard, "strict", False)
    own, reader = provider(), InMemoryMetricReader()
    own.add_metric_reader(reader)

    def tell(_=None):
        yield Observation(1, {"a": "x"})
        yield Observation(2, ["a"])
        raise LookupError

    def telling():
        yield ()
        while True:
            yield tell()

    own.get_meter("m").create_observable_gauge(
        "g", [telling() if generator else tell, lambda _: [Observation(3, {"b": "y"})]]
    )
    for count in (1, 2):
        told = comparable(reader.get_metrics_data())["g"][3]
        assert sorted(told) == [([], 2), ([("a", "x")], 1), ([("b", "y")], 3)]
        assert guard.errors == count


def test_a_generator_that_ends_tells_nothing_more():
    """As in the stock SDK its end is no fault."""
    own, reader = provider(), InMemoryMetricReader()
    own.add_metric_reader(reader)

    def telling():
        yield []
        yield [Observation(5)]

    own.get_meter("m").create_observable_gauge("g", [telling()])
    assert comparable(reader.get_metrics_data())["g"][3] == [([], 5)]
    assert reader.get_metrics_data() is None


def test_instruments_made_twice_share_their_series_and_their_callbacks():
    """What libraries record into two objects of one name is one metric; every callback is asked."""
    own, reader = provider(), InMemoryMetricReader()
    own.add_metric_reader(reader)
    meter = own.get_meter("m")
    for name in ("c", "C"):
        meter.create_counter(name).add(1)
    for label in "xy":
        meter.create_observable_gauge("g", [lambda _, label=label: [Observation(1, {"a": label})]])
    found = comparable(reader.get_metrics_data())
    assert found["c"][3] == [([], 2)]
    assert found["g"][3] == [([("a", "x")], 1), ([("a", "y")], 1)]


def test_values_carry_the_trace_they_are_recorded_in():
    """Within a sampled span a value has an exemplar; switched off, or not sampled, it has none."""
    context = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
    unsampled = SpanContext(1, 2, is_remote=False)
    current = trace.set_span_in_context(NonRecordingSpan(context))
    assert sampled(5, current)[:3] == (5, 1, 2)
    assert sampled(5, trace.set_span_in_context(NonRecordingSpan(unsampled))) == 5
    assert sampled(5) == 5
    for exemplars in (True, False):
        own, reader = provider(exemplars=exemplars), InMemoryMetricReader()
        own.add_metric_reader(reader)
        own.get_meter("m").create_counter("c").add(5, context=current)
        [metric] = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        assert [each.trace_id for each in metric.data.data_points[0].exemplars] == ([1] if exemplars else [])


# Stock readers on our provider ----------------------------------------------------------------------------------------


class Kept(MetricExporter):
    """A stock exporter that keeps what it gets."""

    def __init__(self, **preferences: Any) -> None:
        super().__init__(**preferences)
        self.batches: list[Any] = []
        self.stopped = 0

    def export(self, metrics_data, timeout_millis=10_000, **kwargs):
        self.batches.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=10_000):
        return True

    def shutdown(self, timeout_millis=30_000, **kwargs):
        self.stopped += 1


def test_an_in_memory_reader_that_comes_later():
    """A reader sees what is recorded from its coming on."""
    own = provider()
    counter = own.get_meter("m").create_counter("c")
    counter.add(1)
    reader = InMemoryMetricReader()
    own.add_metric_reader(reader)
    counter.add(2)
    assert comparable(reader.get_metrics_data())["c"][3] == [([], 2)]
    assert reader.get_metrics_data().resource_metrics[0].resource.attributes == {"service.name": "t"}


def test_a_periodic_reader_sends_and_stops():
    """Its exporter gets the points on flush and a last time on shutdown, in the temporality that it asks for."""
    own, exporter = provider(), Kept(preferred_temporality=DELTA)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    own.add_metric_reader(reader)
    counter = own.get_meter("m").create_counter("c")
    counter.add(1)
    assert own.force_flush(5_000)
    counter.add(5)
    own.shutdown(5_000)
    assert [comparable(each)["c"][3] for each in exporter.batches] == [[([], 1)], [([], 5)]]
    assert exporter.stopped == 1
    own.shutdown()  # a second time there is nobody left


def test_a_prometheus_reader_exposes_our_series():
    """opentelemetry-exporter-prometheus serves what is recorded on our provider, scrape by scrape."""
    registry = CollectorRegistry()
    own, reader = provider(), PrometheusMetricReader(registry=registry)
    own.add_metric_reader(reader)
    own.get_meter("m").create_counter("shop.sold", "1").add(3, {"what": "tea"})
    for _ in range(2):
        text = generate_latest(registry).decode()
        [sample] = [line for line in text.splitlines() if line.startswith("shop_sold_total{")]
        assert 'what="tea"' in sample
        assert sample.endswith(" 3.0")
    own.shutdown()


def test_a_reader_is_added_once_and_can_be_removed():
    """Twice is a mistake that is named; a removed reader sees nothing more."""
    own, reader = provider(), InMemoryMetricReader()
    own.add_metric_reader(reader)
    with pytest.raises(ValueError, match="InMemoryMetricReader is connected already"):
        own.add_metric_reader(reader)
    counter = own.get_meter("m").create_counter("c")
    counter.add(1)
    own.remove_metric_reader(reader)
    own.remove_metric_reader(reader)
    assert reader.get_metrics_data() is None


class Broken(MetricReader):
    def _receive_metrics(self, metrics_data, timeout_millis=10_000, **kwargs):
        raise RuntimeError("theirs")

    def shutdown(self, timeout_millis=30_000, **kwargs):
        raise RuntimeError("theirs")


def test_a_failing_reader_is_kept_from_the_application(monkeypatch):
    """Flush says no, shutdown goes on to the next reader, and nothing is raised."""
    monkeypatch.setattr(guard, "strict", False)
    own, exporter = provider(), Kept()
    own.add_metric_reader(Broken())
    own.add_metric_reader(PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000))
    own.get_meter("m").create_counter("c").add(1)
    assert own.force_flush() is False
    assert own.force_flush(0) is False
    own.shutdown(5_000)
    assert exporter.stopped == 1
    assert guard.errors == 2


def test_readers_as_a_part_of_the_pipeline():
    """Flush reaches the readers that send, leaves the others to whoever reads them, and shutdown reaches all."""
    own, exporter, kept = provider(), Kept(), InMemoryMetricReader(DELTA)
    own.add_metric_reader(PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000))
    own.add_metric_reader(kept)
    own.get_meter("m").create_counter("c").add(1)
    part = Readers(own)
    own._bound_lock.acquire()
    part.after_fork()
    assert part.flush(5)
    assert comparable(kept.get_metrics_data())["c"][3] == [([], 1)]
    assert len(exporter.batches) == 1
    assert part.shutdown(5)
    assert exporter.stopped == 1
