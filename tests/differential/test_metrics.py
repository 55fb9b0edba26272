"""Random programs run on the stock SDK and on ours: every reader gets the same metrics, point by point.

What is compared: names, units, descriptions, kinds, temporality, monotony, attributes with their types, values, counts,
sums, extremes, buckets, and of explicit histograms the newest exemplar of each bucket. Where the stock SDK draws its
exemplars by lot (sums, gauges, exponential histograms) each of ours must be a value that was recorded in a sampled span
since the last point, and be there where the stock SDK has one.

Attributes of every kind are handed over. Callbacks raise midway, and tell attribute sets twice; of those the stock SDK
is told the last one, since it adds them up.

Not compared, since the stock SDK is at fault or another choice is made on purpose (see docs/metrics.md): mappings and
bytes as values of attributes, which are text in ours; the scale of exponential totals, which the SDK makes coarser than
need be, or fails over, where a collect came between a zero and the first other value; gauges that are not finite, which
it leaves out; the start of a series, of which ours is the first recording.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import Phase, given, reject, settings
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk import metrics as stock
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    InMemoryMetricReader,
    NumberDataPoint,
)
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    LastValueAggregation,
    SumAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_perf import guard
from otel_perf.telemetry.meter import MeterProvider
from otel_perf.telemetry.series import Registry

KINDS = (
    stock.Counter, stock.UpDownCounter, stock.Histogram, stock.ObservableCounter, stock.ObservableUpDownCounter,
)  # fmt: skip
TEMPORALITIES = (None, dict.fromkeys(KINDS, AggregationTemporality.DELTA))
AGGREGATIONS = (
    None,
    {stock.Histogram: ExponentialBucketHistogramAggregation()},
    {stock.Histogram: ExponentialBucketHistogramAggregation(max_size=8, max_scale=4)},
    {stock.UpDownCounter: DropAggregation()},
)
# One view at most is about the gauge: of what several views merge differently ours does not know the newest value.
VIEWS = (
    View(instrument_name="c", name="renamed", description="By a view"),
    View(instrument_name="c", name="last", aggregation=LastValueAggregation()),
    View(instrument_type=stock.Counter, name="by_b", attribute_keys={"b"}),
    View(instrument_name="u", aggregation=DropAggregation()),
    View(instrument_unit="s", attribute_keys={"a"}),
    View(instrument_name="h", name="wide", aggregation=ExplicitBucketHistogramAggregation([1, 100])),
    View(instrument_name="h", name="exponential", aggregation=ExponentialBucketHistogramAggregation(max_size=10)),
    View(instrument_name="adv*", aggregation=SumAggregation()),
    View(instrument_name="adv*", aggregation=ExplicitBucketHistogramAggregation()),
    View(instrument_name="O?", attribute_keys=set()),
    View(instrument_name="oc", name="level", aggregation=LastValueAggregation()),
    View(instrument_name="ou", aggregation=ExplicitBucketHistogramAggregation()),
    View(instrument_name="g", meter_name="program", meter_version="1.0", attribute_keys={"b"}),
    View(instrument_name="*", meter_name="somebody else", aggregation=DropAggregation()),
)
SPANS = {
    "none": None,
    "unsampled": NonRecordingSpan(SpanContext(7, 8, is_remote=False)),
    **{
        f"sampled {each}": NonRecordingSpan(SpanContext(each, each + 1, is_remote=False, trace_flags=TraceFlags(1)))
        for each in (1, 2, 3)
    },
}
AMOUNTS = (
    st.integers(min_value=-5, max_value=20_000)
    | st.floats(min_value=-2, max_value=20_000, allow_subnormal=False)
    | st.sampled_from([0, 0.0, 1, True, math.inf, -math.inf, math.nan])
)


class Shown:
    def __str__(self) -> str:
        return "shown"


class Bare:
    """Says nothing of itself but its address."""


# Python takes some of these for the same, OpenTelemetry does not. The last ones are no labels at all.
LABELS = st.dictionaries(
    st.sampled_from(["a", "b", "a", "b", "", None, 7, Bare()]),
    st.sampled_from(
        [
            "x",
            "",
            1,
            1.0,
            True,
            None,
            ("x", 1),
            ("x", True),
            ["x", 1],
            [],
            {"b": 1},
            {},
            b"x",
            Shown(),
            Bare(),
            [Bare()],
        ]
    ),
    max_size=2,
) | st.sampled_from([None, ["a"]])
STEP = st.tuples(
    st.sampled_from(["c", "u", "h", "adv", "g", "oc", "ou", "og", "collect"]),
    AMOUNTS, LABELS, st.sampled_from(list(SPANS)), st.booleans(),
)  # fmt: skip
MERGE_FAULT = "Incorrect merge scale"
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
READER = st.tuples(st.sampled_from(TEMPORALITIES), st.sampled_from(AGGREGATIONS))


class Program:
    """Instruments of every kind on one provider, and what was recorded in sampled spans since each reader's last."""

    def __init__(self, provider: stock.MeterProvider, readers: Sequence[InMemoryMetricReader], *, bound: bool) -> None:
        meter = provider.get_meter("program", "1.0", "https://schema", {"scope": "yes"})
        self.readers = readers
        self.bound = bound
        self.told: dict[str, list[tuple[Any, Any]]] = {"oc": [], "ou": [], "og": []}
        self.fails: dict[str, int] = {}
        self.instruments: dict[str, tuple[Any, str]] = {
            "c": (meter.create_counter("c", "By", "counts"), "add"),
            "u": (meter.create_up_down_counter("u"), "add"),
            "h": (meter.create_histogram("h", "s"), "record"),
            "adv": (meter.create_histogram("adv", "s", explicit_bucket_boundaries_advisory=[1.0, 10.0]), "record"),
            "g": (meter.create_gauge("g"), "set"),
        }
        meter.create_observable_counter("oc", [self.teller("oc")], "1", "told")
        meter.create_observable_up_down_counter("ou", [self.teller("ou")])
        meter.create_observable_gauge("og", [self.teller("og")])

    def teller(self, name: str) -> Any:
        def tell(_: CallbackOptions) -> Iterator[Observation]:
            told = self.told[name]
            fails = name in self.fails
            told = told[: self.fails[name]] if fails else told
            if not self.bound and name != "og":
                told = list({typed(attributes): (value, attributes) for value, attributes in told}.values())
            for value, attributes in told:
                yield Observation(value, attributes)
            if fails:
                raise LookupError(name)

        return tell

    def tell(self, what: str, amount: Any, attributes: Any, *, twice: bool, fails: bool) -> None:
        """Has a callback tell this from now on, for the second time or in place of the first; it fails from here."""
        told = self.told[what]
        if not twice:
            told[:] = [each for each in told if typed(each[1]) != typed(attributes)]
        told.append((amount, attributes))
        self.fails.pop(what, None)
        if fails:
            self.fails[what] = max(0, len(told) - 1)

    def run(self, steps: Sequence[tuple]) -> list[Any]:
        collected = []
        for what, amount, attributes, span, bound in steps:
            if what == "collect":
                collected += [comparable(reader.get_metrics_data()) for reader in self.readers]
            elif what in self.told:
                if math.isfinite(amount):
                    self.tell(what, amount, attributes, twice=bound, fails=span == "unsampled")
            elif what != "g" or math.isfinite(amount):
                self.record(what, amount, attributes, SPANS[span], bound)
        return collected

    def record(self, what: str, amount: Any, attributes: Any, span: trace.Span | None, bound: bool) -> None:
        instrument, verb = self.instruments[what]
        token = otel_context.attach(trace.set_span_in_context(span)) if span is not None else None
        try:
            if bound and self.bound:
                getattr(instrument.bind(attributes), verb)(amount)
            else:
                getattr(instrument, verb)(amount, attributes)
        finally:
            if token is not None:
                otel_context.detach(token)


def typed(attributes: Any) -> str:
    """What tells attribute sets apart, handed over or read: by the names that count, and values with their types."""

    def shown(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return f"({', '.join(map(shown, value))})"
        if isinstance(value, (dict, bytes, Shown)):
            return repr(str(value))
        return repr(None if isinstance(value, Bare) else value)

    given = attributes.items() if isinstance(attributes, Mapping) else ()
    return str(sorted((str(key), shown(value)) for key, value in given if key and not isinstance(key, Bare)))


def comparable(data: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                shape = {k: v for k, v in vars(metric.data).items() if k != "data_points"}
                points = {typed(each.attributes): Point(each) for each in metric.data.data_points}
                assert len(points) == len(metric.data.data_points), "two points of one attribute set"
                assert all(isinstance(k, str) and k for each in metric.data.data_points for k in each.attributes)
                about = (scope.scope, scope.schema_url, metric.unit, metric.description, resource.resource)
                found.setdefault(metric.name, []).append((about, type(metric.data).__name__, shape, points))
    for metrics in found.values():
        metrics.sort(key=lambda each: (each[1], str(each[2])))
    return found


class Point:
    """A point that is equal to another one when what is to be compared of them is."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, point: Any) -> None:
        self.point = point
        self.exemplars = {(each.value, each.trace_id, each.span_id) for each in point.exemplars}

    def __repr__(self) -> str:
        return repr(self.point)

    def __eq__(self, theirs: object) -> bool:
        assert isinstance(theirs, Point)
        assert type(self.point) is type(theirs.point)
        return self.same_exemplars(theirs) and self.values(theirs.point) == theirs.values(self.point)

    def same_exemplars(self, theirs: Point) -> bool:
        if isinstance(self.point, HistogramDataPoint):
            return self.exemplars == theirs.exemplars
        # Of an exponential zero the stock SDK forgets the exemplar.
        return bool(self.exemplars) >= bool(theirs.exemplars) and len(self.exemplars) <= 1

    def values(self, other: Any) -> tuple[Any, ...]:
        point = self.point
        if isinstance(point, NumberDataPoint):
            return (pytest.approx(float(point.value)),)  # a flag is a number to us
        totals = (point.count, pytest.approx(float(point.sum)), point.min, point.max)
        if isinstance(point, ExponentialHistogramDataPoint):
            assert not any(point.negative.bucket_counts)
            return *totals, point.zero_count, buckets(point, min(point.scale, other.scale))
        return *totals, point.bucket_counts, tuple(point.explicit_bounds)


def buckets(point: ExponentialHistogramDataPoint, scale: int) -> dict[int, int]:
    """The filled buckets at a scale that is as coarse or coarser."""
    coarse: dict[int, int] = {}
    for index, count in enumerate(point.positive.bucket_counts, point.positive.offset):
        if count:
            at = index >> (point.scale - scale)
            coarse[at] = coarse.get(at, 0) + count
    return coarse


def same(ours: list[Any], theirs: list[Any]) -> None:
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.keys() == expected.keys()
        for name in mine:
            assert mine[name] == expected[name]


def own_provider(readers: Sequence[InMemoryMetricReader], views: Sequence[View] = ()) -> MeterProvider:
    made = MeterProvider(Registry(), Resource({"service.name": "t"}), views=views)
    for reader in readers:
        made.add_metric_reader(reader)
    return made


def readers_of(wanted: Sequence[tuple]) -> list[InMemoryMetricReader]:
    return [InMemoryMetricReader(*each) for each in wanted]


def test_the_same_program_gives_every_reader_the_stock_metrics(monkeypatch, caplog):
    """Readers of both temporalities and aggregations side by side, with views, spans and bound instruments."""
    monkeypatch.setattr(guard, "strict", False)  # callbacks raise
    caplog.set_level("CRITICAL")  # the stock SDK warns of each amount that it leaves out

    @settings(phases=PHASES, max_examples=250, deadline=None)
    @given(
        st.lists(READER, min_size=1, max_size=3),
        st.lists(st.sampled_from(VIEWS), max_size=8, unique_by=id),
        st.lists(STEP, max_size=40),
    )
    def check(wanted, views, steps):
        steps = [*steps, ("collect", 0, {}, "none", False)]
        theirs, ours = readers_of(wanted), readers_of(wanted)
        foreign = stock.MeterProvider(theirs, Resource({"service.name": "t"}), shutdown_on_exit=False, views=views)
        try:
            expected = Program(foreign, theirs, bound=False).run(steps)
        except Exception as error:
            if str(error) != MERGE_FAULT:
                raise
            reject()
        own = own_provider(ours, views)
        same(Program(own, ours, bound=True).run(steps), expected)

    check()


def test_a_zero_before_other_values_does_not_break_exponential_totals():
    """The stock SDK's collect fails then ("Incorrect merge scale"), and the random programs leave that out."""
    results = []
    for make in (lambda readers: stock.MeterProvider(readers, shutdown_on_exit=False), own_provider):
        [reader] = readers_of([(None, AGGREGATIONS[2])])
        histogram = make([reader]).get_meter("m").create_histogram("h")
        histogram.record(0)
        reader.collect()
        histogram.record(257)
        try:
            [[metric]] = [scope.metrics for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics]
            [point] = metric.data.data_points
            results.append((point.count, point.zero_count, point.sum))
        except Exception as error:
            results.append(str(error))
    assert results == [MERGE_FAULT, (2, 1, 257)]


def test_exemplars_are_values_of_sampled_spans_since_the_last_point(monkeypatch, caplog):
    """Of what is drawn by lot too: each was recorded in a sampled span, and none is told twice."""
    monkeypatch.setattr(guard, "strict", False)  # callbacks raise
    caplog.set_level("CRITICAL")

    @settings(phases=PHASES, max_examples=60, deadline=None)
    @given(READER, st.lists(STEP, max_size=40))
    def check(wanted, steps):
        [reader] = readers_of([wanted])
        own = own_provider([reader])
        program = Program(own, [reader], bound=True)
        may: set[tuple[str, Any, int]] = set()
        for step in (*steps, ("collect", 0, {}, "none", False)):
            for metrics in [each for collected in program.run([step]) for each in collected.items()]:
                name, [(_, _, _, points)] = metrics
                for point in points.values():
                    assert {(name, value, trace_id) for value, trace_id, _ in point.exemplars} <= may
            if step[0] == "collect":
                may.clear()
            elif step[3].startswith("sampled"):
                may.add((step[0], step[1], int(step[3].split()[1])))

    check()


def test_times_of_points_join(monkeypatch, caplog):
    """Changes begin where the last ones ended, totals keep their start, and nothing begins after its end."""
    monkeypatch.setattr(guard, "strict", False)  # callbacks raise
    caplog.set_level("CRITICAL")

    @settings(phases=PHASES, max_examples=60, deadline=None)
    @given(st.lists(STEP, max_size=40))
    def check(steps):
        totals, changes = readers_of([(None, None), (TEMPORALITIES[1], None)])
        own = own_provider([totals, changes])
        program = Program(own, [totals, changes], bound=True)
        starts: dict[tuple[str, str], int] = {}
        ended_ns = 0
        for step in (*steps, ("collect", 0, {}, "none", False)):
            if step[0] != "collect":
                program.run([step])
                continue
            for reader, collected in zip(("totals", "changes"), program.run([step]), strict=True):
                for name in collected.keys() - {"g", "og"}:  # a value of now has no start
                    for labels, point in collected[name][0][3].items():
                        start_ns, end_ns = point.point.start_time_unix_nano, point.point.time_unix_nano
                        assert start_ns <= end_ns
                        if reader == "totals":
                            assert starts.setdefault((name, labels), start_ns) == start_ns
                        elif ended_ns:
                            assert start_ns == ended_ns
            ended_ns = changes_ended(own, changes) or ended_ns

    check()


def changes_ended(own: MeterProvider, reader: InMemoryMetricReader) -> int:
    return own._bound[reader]._since_ns
