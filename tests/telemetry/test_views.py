"""Views of the application shape what readers see; tests/differential compares random ones to the stock SDK's."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk import metrics as stock
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    LastValueAggregation,
    SumAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource

import otel_perf
from otel_perf.telemetry import runtime
from otel_perf.telemetry.meter import MeterProvider
from otel_perf.telemetry.series import Registry


def seen(views: list[View], record: Any, limit: int = 2000) -> dict[str, dict[str, Any]]:
    own, reader = MeterProvider(Registry(limit), Resource({}), views=views), InMemoryMetricReader()
    own.add_metric_reader(reader)
    record(own.get_meter("m", "1", "https://schema"))
    data = reader.get_metrics_data()
    scopes = data.resource_metrics[0].scope_metrics if data else []
    return {
        metric.name: {str(dict(point.attributes)): point for point in metric.data.data_points}
        for scope in scopes
        for metric in scope.metrics
    }


def counted(meter: metrics.Meter) -> None:
    counter = meter.create_counter("c", "By")
    for user in range(50):
        counter.add(1, {"user": str(user), "route": "/"})


def test_what_no_view_keeps_is_not_kept_at_all(caplog):
    """A view that drops the label with too many values saves the metric from its limit."""
    found = seen([View(instrument_name="c", attribute_keys={"route"})], counted, limit=10)
    assert {labels: point.value for labels, point in found["c"].items()} == {"{'route': '/'}": 50}
    assert not caplog.records


def test_two_views_give_two_metrics(caplog):
    """Each with its own name and labels; the overflow of the finer one is told in the coarser one too."""
    views = [View(instrument_name="c", name="by_route", attribute_keys={"route"}), View(instrument_name="c")]
    found = seen(views, counted, limit=10)
    assert len(found["c"]) == 10
    assert found["c"]["{'otel.metric.overflow': True}"].value == 41
    assert {labels: point.value for labels, point in found["by_route"].items()} == {
        "{'route': '/'}": 9, "{'otel.metric.overflow': True}": 41,
    }  # fmt: skip


def test_a_view_has_a_limit_of_its_own(caplog):
    """The limit of the view counts for its metric."""
    found = seen([View(instrument_name="c", aggregation_cardinality_limit=5)], counted)
    assert len(found["c"]) == 5
    assert "metric c reached 5 series" in caplog.text


@pytest.mark.parametrize(
    ("criteria", "matches"),
    [
        ({"instrument_type": stock.Counter}, True),
        ({"instrument_type": metrics.Counter}, True),
        ({"instrument_type": stock.ObservableCounter}, False),
        ({"instrument_type": stock.UpDownCounter}, False),
        ({"instrument_name": "C"}, True),
        ({"instrument_name": "?"}, True),
        ({"instrument_name": "c?"}, False),
        ({"instrument_unit": "B*"}, True),
        ({"instrument_unit": "by"}, False),
        ({"meter_name": "m", "meter_version": "1", "meter_schema_url": "https://schema"}, True),
        ({"meter_name": "m", "meter_version": "2"}, False),
        ({"meter_schema_url": "https://other"}, False),
    ],
)
def test_criteria(criteria, matches):
    """Type, name, unit and meter choose the instruments; several must all fit."""
    found = seen([View(**criteria, aggregation=DropAggregation())], counted)
    assert ("c" in found) is not matches


def test_a_synchronous_gauge_is_chosen_by_its_type():
    """It has no public name in the SDK."""
    gauge_type = type(stock.MeterProvider(shutdown_on_exit=False).get_meter("m").create_gauge("g"))
    for wanted in (gauge_type, *[each for each in gauge_type.__mro__ if each.__name__.endswith("Gauge")]):
        view = View(instrument_type=wanted, name="renamed")
        assert list(seen([view], lambda meter: meter.create_gauge("g").set(1))) == ["renamed"]


def told(meter: metrics.Meter) -> None:
    def tell(_: CallbackOptions) -> list[Observation]:
        return [Observation(each, {"a": "x", "b": str(each)}) for each in (1, 2)]

    meter.create_observable_counter("oc", [tell])
    meter.create_observable_gauge("og", [tell])


def test_what_callbacks_tell_is_narrowed(caplog):
    """Sets that fall together are added up, of a gauge the last counts; a histogram cannot be made of them."""
    found = seen([View(instrument_name="o*", attribute_keys={"a"})], told)
    assert {name: {labels: point.value for labels, point in points.items()} for name, points in found.items()} == {
        "oc": {"{'a': 'x'}": 3}, "og": {"{'a': 'x'}": 2},
    }  # fmt: skip
    unfit = seen([View(instrument_name="o*", aggregation=ExplicitBucketHistogramAggregation())], told)
    assert len(unfit["oc"]) == len(unfit["og"]) == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_a_sum_of_what_is_no_counter_may_fall():
    """A histogram that is summed up is no monotonic sum, as in the stock SDK."""
    own = MeterProvider(Registry(), Resource({}), views=[View(instrument_name="h", aggregation=SumAggregation())])
    reader = InMemoryMetricReader()
    own.add_metric_reader(reader)
    own.get_meter("m").create_histogram("h").record(3)
    [metric] = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    assert (metric.data.is_monotonic, metric.data.data_points[0].value) == (False, 3)


def test_the_temporality_is_that_of_the_instrument():
    """A counter that a view makes a last value is still told as a change: an idle one has no point."""
    reader = InMemoryMetricReader({stock.Counter: AggregationTemporality.DELTA})
    own = MeterProvider(Registry(), Resource({}), views=[View(instrument_name="c", aggregation=LastValueAggregation())])
    own.add_metric_reader(reader)
    own.get_meter("m").create_counter("c").add(3)
    [metric] = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    assert type(metric.data).__name__ == "Gauge"
    assert metric.data.data_points[0].value == 3
    assert reader.get_metrics_data() is None


def test_without_the_private_names_a_view_is_left_out(monkeypatch, caplog):
    """An SDK that keeps its views otherwise costs the view, not the metric, and it is said."""
    view = View(instrument_name="c", name="renamed")
    del view._attribute_keys
    assert list(seen([view], counted)) == ["c"]
    assert "a view is not applied" in caplog.text


def test_configure_takes_views(telemetry):
    """They shape what is exposed until the next configuration."""
    otel_perf.configure(service_name="t", views=[View(instrument_name="c", name="renamed")])
    in_force = runtime.current
    assert in_force is not None
    in_force.meter_provider.get_meter("m").create_counter("c").add(1)
    assert "renamed_total{" in in_force.exposition.render(in_force.resource)
    otel_perf.configure(service_name="t")
    in_force = runtime.current
    assert in_force is not None
    in_force.meter_provider.get_meter("m").create_counter("c").add(1)
    assert "c_total{" in in_force.exposition.render(in_force.resource)
