"""Whose tracers are lean, and whose are left alone."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Tracer as StockTracer
from opentelemetry.sdk.trace import TracerProvider as Stock
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import otel_perf
from otel_perf.telemetry import lean, runtime
from otel_perf.telemetry.provider import TracerProvider, over
from otel_perf.telemetry.tracer import LeanTracer


def test_what_the_provider_is_made_with_is_its_spans():
    """Resource, scope with its attributes, version and schema."""
    made = TracerProvider(resource=Resource({"service.name": "s"}), shutdown_on_exit=False)
    span: Any = made.get_tracer("name", "1", "http://schema", {"k": "v"}).start_span("s")
    scope = span.instrumentation_scope
    assert (scope.name, scope.version, scope.schema_url, dict(scope.attributes)) == (
        "name", "1", "http://schema", {"k": "v"},
    )  # fmt: skip
    assert span.resource is made.resource
    assert span.resource.attributes["service.name"] == "s"


def test_a_provider_that_makes_tracers_in_its_own_way_is_left_alone():
    """A subclass's own tracer is used as it is, and so is any other provider's."""

    class Own(Stock):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            return super().get_tracer(*args, **kwargs)

    class Plain(Stock):
        """One that changes nothing of it."""

    assert type(over(Own(shutdown_on_exit=False), "t")) is StockTracer
    assert type(over(Plain(shutdown_on_exit=False), "t")) is LeanTracer
    assert isinstance(over(trace.NoOpTracerProvider(), "t"), trace.NoOpTracer)


def test_only_the_scope_that_was_asked_for_is_lean_in_an_applications_provider():
    """Its other tracers stay the SDK's; what it tells its tracers later reaches ours, and the one it had."""
    made = Stock(shutdown_on_exit=False)
    held = made.get_tracer("t")
    ours: Any = over(made, "t")
    assert type(made.get_tracer("other")) is StockTracer
    made._update_resource(Resource({"later": True}))
    assert ours.start_span("s").resource.attributes["later"]
    assert held.start_span("s").resource.attributes["later"]  # type: ignore[attr-defined]
    off = type("Config", (), {"is_enabled": False})
    made._set_tracer_configurator(tracer_configurator=lambda scope: off)
    assert not ours.start_span("s").is_recording()
    assert not held.start_span("s").is_recording()


def test_an_sdk_that_is_switched_off_stays_so(monkeypatch):
    """`OTEL_SDK_DISABLED` gives tracers that do nothing."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert isinstance(TracerProvider(shutdown_on_exit=False).get_tracer("t"), trace.NoOpTracer)


def test_where_the_sdk_counts_spans_it_makes_them(monkeypatch):
    """Its metrics about itself are made by its own tracers."""
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    assert type(TracerProvider(shutdown_on_exit=False).get_tracer("t")) is StockTracer


def test_an_sdk_that_is_built_otherwise_makes_its_own_spans(monkeypatch, caplog):
    """It is said once, with what is missing."""
    monkeypatch.setattr(lean, "_works", None)
    monkeypatch.setattr(lean, "_TRACER_NAMES", ("_tracer_config", "_gone"))
    made = TracerProvider(shutdown_on_exit=False)
    assert type(made.get_tracer("t")) is StockTracer
    assert type(over(made, "u")) is StockTracer
    assert [record.getMessage().count("_gone") for record in caplog.records] == [1]


def test_two_threads_that_ask_at_once_get_one_tracer():
    """Whoever comes second gets what the first one made."""
    made = TracerProvider(shutdown_on_exit=False)
    stock: Any = Stock.get_tracer(made, "t")
    first = lean.replace_tracer(made, stock, LeanTracer)
    assert lean.replace_tracer(made, stock, LeanTracer) is first
    assert made.get_tracer("t") is first


def test_each_configure_is_followed_by_tracers_that_libraries_hold(telemetry):
    """They make lean spans, sampled as it says, until `shutdown`."""
    tracer = trace.get_tracer("library")
    assert tracer.start_span("s").is_recording()
    assert isinstance(telemetry.runtime.tracer, LeanTracer)
    telemetry.restart(sampler="always_off")
    assert not tracer.start_span("s").is_recording()
    telemetry.restart(resource_attributes={"again": "yes"})
    with tracer.start_as_current_span("held"):
        pass
    assert telemetry.span("held").resource.attributes["again"] == "yes"
    otel_perf.shutdown()
    assert runtime.current is None
    assert not tracer.start_span("s").is_recording()


@pytest.mark.parametrize("sampler", [None, ALWAYS_OFF])
def test_an_applications_own_provider_gets_a_lean_tracer(monkeypatch, sampler):
    """What `configure` joins decides, and what we measure goes through it."""
    theirs = Stock(sampler, shutdown_on_exit=False)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: theirs)
    otel_perf.configure(service_name="joined")
    try:
        assert isinstance(runtime.current.tracer, LeanTracer)
        assert runtime.current.tracer.span_processor is theirs._active_span_processor
        assert runtime.current.tracer.start_span("s").is_recording() is (sampler is None)
    finally:
        otel_perf.shutdown()
