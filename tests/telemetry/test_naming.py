"""Names that no exporter could write are refused as the SDK refuses them, or made text; they cost nobody a batch."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider as Stock
from opentelemetry.sdk.resources import Resource

import otel_perf
from otel_perf.telemetry import naming
from otel_perf.telemetry.meter import MeterProvider
from otel_perf.telemetry.series import Registry
from otel_perf.testing import FakeCollector

MAKERS = [
    f"create_{kind}"
    for kind in (
        "counter", "up_down_counter", "histogram", "gauge", "observable_counter", "observable_up_down_counter",
        "observable_gauge",
    )
]  # fmt: skip
GIVEN = [
    ("ok", "s"), ("a/b-c.d_e", ""), ("a" * 255, "x" * 63), ("", "s"), ("a\nb 1", "s"), ("1bad", "s"), ("é", "s"),
    ("with space", "s"), ("a" * 256, "s"), ("c", "x" * 64), ("c", "é"), ("c", "x\ny"),
]  # fmt: skip


class Version(str, enum.Enum):
    ONE = "1"


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("name", "unit"), GIVEN)
def test_names_and_units_are_refused_as_the_sdk_does(maker, name, unit):
    """By the same class of exception, of every kind of instrument, and what the SDK takes is taken."""

    def outcome(provider: Any) -> type | None:
        try:
            getattr(provider.get_meter("m"), maker)(name, unit=unit)
        except Exception as error:
            return type(error)
        return None

    assert outcome(MeterProvider(Registry(), Resource({}))) is outcome(Stock(shutdown_on_exit=False))


@pytest.mark.parametrize("name", [None, 5, b"c"])
def test_a_name_that_is_no_text_is_refused(name):
    """It is said what a name is."""
    with pytest.raises(Exception, match="the name of an instrument"):
        naming.check(name, "")
    with pytest.raises(Exception, match="the unit of c"):
        naming.check("c", name)


@pytest.mark.parametrize("name", ["", None])
def test_a_meter_without_a_name_records_nothing(name, caplog):
    """As in the SDK it is said, and its instruments do nothing."""
    made = MeterProvider(Registry(), Resource({}))
    meter = made.get_meter(name)
    meter.create_counter("c").add(1)
    assert isinstance(meter, metrics.NoOpMeter)
    assert "a meter needs a name" in caplog.text
    assert made.registry.instruments() == []


def test_no_description_and_no_unit_are_empty_ones():
    """What the SDK means to do, and fails at."""
    made = MeterProvider(Registry(), Resource({}))
    made.get_meter("m").create_counter("c", None, None)  # type: ignore[arg-type]
    made.get_meter("m").create_counter("d", "1", "\ud800")
    assert [(each.metric.unit, each.metric.about) for each in made.registry.instruments()] == [("", ""), ("1", "?")]


def test_a_scope_is_made_text():
    """Of an enumeration it is the value; None stays, and attributes are those of a series."""
    made = naming.scope(5, Version.ONE, None, {"a": {"b": 1}, "": 1, "c": [1]})
    assert (made.name, made.version, made.schema_url) == ("5", "1", "")
    assert dict(made.attributes or {}) == {"a": "{'b': 1}", "c": (1,)}
    odd: Any = ["no mapping"]
    assert dict(naming.scope("m", None, 7, odd).attributes or {}) == {}


def test_versions_that_are_no_text_cost_no_batch():
    """Meters and tracers of such a version are sent, and so is what others record."""
    odd: Any = 5
    with FakeCollector() as collector:
        otel_perf.configure("shop", endpoint=collector.url)
        metrics.get_meter("good").create_counter("good").add(1)
        otel_metrics: Any = metrics.get_meter_provider()
        otel_metrics.get_meter(odd, odd, odd, {"a": {"b": object()}}).create_counter("odd").add(1)
        trace.get_tracer("good").start_span("good").end()
        otel_traces: Any = trace.get_tracer_provider()
        otel_traces.get_tracer(odd, odd, odd, {"a": odd}).start_span("odd").end()
        assert otel_perf.flush()
        assert {"good", "odd"} <= {each.name for each in collector.metrics}
        assert {(each.name, each.scope) for each in collector.spans} == {("good", "good"), ("odd", "5")}
        otel_perf.shutdown()
