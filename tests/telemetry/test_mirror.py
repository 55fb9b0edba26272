"""What we measure reaches a provider of the application's own once, with its exemplars."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf import conventions as c
from otel_perf.conventions import Metric
from otel_perf.telemetry.mirror import Mirror
from otel_perf.telemetry.series import Registry

SCOPE = InstrumentationScope("theirs", "1.5", "https://schema")


@pytest.fixture
def both():
    reader = InMemoryMetricReader()
    foreign = MeterProvider([reader], Resource({}), exemplar_filter=AlwaysOnExemplarFilter(), shutdown_on_exit=False)
    registry, mirror = Registry(), Mirror(foreign)
    registry.cursor(mirror.cell)

    def read() -> dict[str, list]:
        registry.fold_all()
        mirror.observe(registry.instruments())
        data = reader.get_metrics_data()
        scopes = data.resource_metrics[0].scope_metrics if data else []
        assert all((scope.scope.name, scope.scope.version) == ("theirs", "1.5") for scope in scopes)
        return {metric.name: list(metric.data.data_points) for scope in scopes for metric in scope.metrics}

    yield registry, read
    foreign.shutdown()


def test_every_kind_arrives_once(both):
    """Counters, up-down counters, histograms with our buckets, gauges: the same labels and values, read after read."""
    registry, read = both
    for kind in ("counter", "updowncounter", "gauge"):
        metric = Metric(kind, "1", kind, "About.", ("who",))  # type: ignore[arg-type]
        registry.instrument(metric, SCOPE).at(("me",)).record(5)
    registry.instrument(c.REQUEST_DURATION, SCOPE).of({"who": "me"}).record(0.3)
    registry.instrument(Metric("plain", "1", "histogram", ""), SCOPE).of({}).record(7)
    for _ in range(2):
        points = read()
        assert {name: points[name][0].value for name in ("counter", "updowncounter", "gauge")} == {
            "counter": 5, "updowncounter": 5, "gauge": 5,
        }  # fmt: skip
        assert points["counter"][0].attributes == {"who": "me"}
        assert (points[c.REQUEST_DURATION.name][0].count, points["plain"][0].count) == (1, 1)
        assert points[c.REQUEST_DURATION.name][0].explicit_bounds == c.REQUEST_DURATION.buckets


def test_exemplars_keep_their_trace(both):
    """The value is handed on in the trace that it was recorded in."""
    registry, read = both
    registry.instrument(Metric("m", "1", "counter", ""), SCOPE).of({}).record((5, 0xA, 0xB, 1))
    [exemplar] = read()["m"][0].exemplars
    assert (exemplar.value, exemplar.trace_id, exemplar.span_id) == (5, 0xA, 0xB)


def test_what_callbacks_tell_arrives_too(both):
    """Observed counters and gauges, also those that were declared later."""
    registry, read = both
    registry.instrument(Metric("oc", "1", "counter", ""), SCOPE).observers.append(lambda: [(7, {"a": "x"})])
    registry.instrument(Metric("ou", "1", "updowncounter", ""), SCOPE).observers.append(lambda: [(-1, {})])
    points = read()
    assert (points["oc"][0].value, points["ou"][0].value) == (7, -1)
    registry.instrument(Metric("og", "1", "gauge", ""), SCOPE).observers.append(lambda: [(3.5, {})])
    points = read()
    assert (points["oc"][0].value, points["og"][0].value) == (7, 3.5)


def test_our_own_readers_see_what_they_always_see(both):
    """The mirror is one more reader; it takes nothing away from the page."""
    registry, read = both
    page = registry.cursor()
    registry.instrument(Metric("m", "1", "counter", ""), SCOPE).of({}).record(5)
    assert read()["m"][0].value == 5
    assert page.collect()[0].points[0].value == 5


def test_a_mirror_has_no_points_of_its_own(both):
    """It keeps nothing: collecting and resetting it are without effect."""
    registry, _ = both
    cell = Mirror(MeterProvider(shutdown_on_exit=False)).cell(
        registry.instrument(Metric("m", "1", "counter", ""), SCOPE).of({})
    )
    cell.feed([1])
    cell.reset()
    assert cell.point({}, 0, 0) is None
