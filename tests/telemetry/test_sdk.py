"""Private names of the SDK: each is used where it is there, and there is a way without it."""

from __future__ import annotations

import ast
import contextvars
import importlib
import inspect
import json
import re
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import opentelemetry.sdk.trace
import pytest
from opentelemetry import context, metrics, trace
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.sdk import metrics as stock
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf.conventions import Metric
from otel_perf.telemetry import current_span, lean, provider, sdk, span, tracer, views
from otel_perf.telemetry.aggregation import Explicit, Exponential, Sum
from otel_perf.telemetry.series import Registry, Series


def series(kind: str = "histogram", buckets: tuple[float, ...] | None = None) -> Series:
    metric = Metric("m", "1", kind, "", (), buckets)  # type: ignore[arg-type]
    return Registry().instrument(metric, InstrumentationScope("t")).of({})


def wants(**preferences: Any) -> sdk.Preferences:
    return sdk.preferences(InMemoryMetricReader(**preferences))


def test_a_reader_gets_the_temporality_that_it_asks_for():
    """Changes for the kinds it names, totals for the others."""
    asked = wants(preferred_temporality={stock.Counter: AggregationTemporality.DELTA})
    assert asked.delta_kinds == {("counter", False)}
    assert asked.delta("counter", False)
    assert not asked.delta("counter", True)
    observed = wants(preferred_temporality={stock.ObservableCounter: AggregationTemporality.DELTA})
    assert observed.delta_kinds == {("counter", True)}


def test_a_reader_gets_the_aggregation_that_it_asks_for():
    """Exponential, explicit with bounds of its own, none at all; the bounds of a metric win over the reader's."""
    exponential = wants(preferred_aggregation={stock.Histogram: ExponentialBucketHistogramAggregation(20, 5)})
    cell = exponential.cell(series())
    assert isinstance(cell, Exponential)
    assert (cell.scale, cell._max_size) == (5, 20)
    assert isinstance(exponential.cell(series("counter")), Sum)

    explicit = wants(preferred_aggregation={stock.Histogram: ExplicitBucketHistogramAggregation([1, 2])})
    assert explicit.cell(series()).bounds == (1, 2)
    assert explicit.cell(series(buckets=(5.0,))).bounds == (5.0,)

    unbounded = wants(preferred_aggregation={stock.Histogram: ExplicitBucketHistogramAggregation()})
    assert len(unbounded.cell(series()).bounds) == 15
    assert wants(preferred_aggregation={stock.Counter: DropAggregation()}).cell(series("counter")) is None


def test_an_exporter_is_asked_as_a_reader_is():
    """What a stock exporter prefers comes out the same; one that prefers nothing gets totals."""

    class Exporter:
        def __init__(self) -> None:
            self._preferred_temporality = {stock.Histogram: AggregationTemporality.DELTA}
            self._preferred_aggregation = {stock.Histogram: ExponentialBucketHistogramAggregation()}

    asked = sdk.exporter_preferences(Exporter())  # type: ignore[arg-type]
    assert asked.delta("histogram", False)
    assert isinstance(asked.cell(series()), Exponential)
    plain = sdk.exporter_preferences(object())  # type: ignore[arg-type]
    assert not plain.delta("counter", False)
    assert isinstance(plain.cell(series()), Explicit)


def test_without_its_private_tables_a_reader_gets_the_usual():
    """An SDK that renames them costs preferences, not metrics."""
    reader = InMemoryMetricReader({stock.Counter: AggregationTemporality.DELTA})
    del reader._instrument_class_temporality
    del reader._instrument_class_aggregation
    asked = sdk.preferences(reader)
    assert not asked.delta("counter", False)
    assert isinstance(asked.cell(series()), Explicit)


def test_a_reader_that_cannot_be_connected_is_named(caplog):
    """An SDK without the way to connect it says so once, and nothing breaks."""

    class Foreign:
        pass

    assert not sdk.bind_reader(Foreign(), lambda: None, metrics.NoOpMeterProvider())  # type: ignore[arg-type]
    assert "no way to connect Foreign" in caplog.text


def test_a_reader_without_a_place_for_the_provider_is_connected_all_the_same():
    """Only the collect function is needed."""

    class Old:
        def _set_collect_callback(self, collect):
            self.collect = collect

    reader = Old()
    assert sdk.bind_reader(reader, len, metrics.NoOpMeterProvider())  # type: ignore[arg-type]
    assert reader.collect is len


def test_suppression_is_the_sdks_own():
    """What exporters set so that nobody instruments them is seen, and its name is there without the private one."""
    assert not sdk.suppressed()
    token = context.attach(context.set_value(sdk.SUPPRESS_KEY, True))
    assert sdk.suppressed()
    context.detach(token)


def test_putting_back_the_context_elsewhere_raises_and_logs_nothing(caplog):
    """The public `detach` logs an error with a traceback, ours tells the caller."""
    token = sdk.set_context(context.set_value("k", "v"))
    assert context.get_value("k") == "v"
    with pytest.raises(ValueError, match="different Context"):
        contextvars.copy_context().run(sdk.reset_context, token)
    assert not caplog.records
    sdk.reset_context(token)
    assert context.get_value("k") is None


def test_another_way_to_keep_the_context_is_used_by_the_public_functions(monkeypatch):
    """Where the context is not kept in a context variable, or not where it was, the API's own functions serve."""

    class Kept(ContextVarsRuntimeContext):
        """One that an application has chosen."""

    public = (context.get_current, context.attach, context.detach)
    assert sdk._context_calls() != public
    with monkeypatch.context() as patched:
        patched.setattr(context, "_RUNTIME_CONTEXT", Kept())
        assert sdk._context_calls() == public
        patched.delattr(context, "_RUNTIME_CONTEXT")
        assert sdk._context_calls() == public


def test_proxies_are_told_from_providers():
    """Only what stands for a provider that is to come is a proxy."""
    assert not sdk.is_proxy(metrics.NoOpMeterProvider())
    assert not sdk.is_proxy(MeterProvider(shutdown_on_exit=False))
    assert sdk.is_proxy(metrics._internal._ProxyMeterProvider())


def test_a_provider_gets_another_resource_in_place():
    """Tracers that libraries hold make spans with it; a lock that the fork left held does no harm."""
    provider = TracerProvider(resource=Resource({"service.instance.id": "parent"}), shutdown_on_exit=False)
    tracer = provider.get_tracer("held")
    provider._tracers_lock.acquire()
    sdk.renew_resource(provider, Resource({"service.instance.id": "child"}))
    assert tracer.start_span("s").resource.attributes["service.instance.id"] == "child"
    sdk.renew_resource(trace.NoOpTracerProvider(), Resource({}))  # one that has no resource is left alone


@pytest.mark.parametrize("name", ["_SUPPRESS_INSTRUMENTATION_KEY", "_Gauge"])
def test_the_module_loads_without_private_names(monkeypatch, name):
    """Each private name that is looked up at import has a stand-in."""
    monkeypatch.delattr(context if hasattr(context, name) else metrics, name)
    before = dict(vars(sdk))
    try:
        importlib.reload(sdk)
        assert sdk.SUPPRESS_KEY
        assert sdk.ApiGauge
    finally:
        vars(sdk).update(before)


def test_a_process_has_one_id(monkeypatch):
    """The SDK's own, so that spans and metrics agree after a fork; without its detector, one of ours."""
    assert sdk.instance_id() == sdk.instance_id() == Resource.create({}).attributes["service.instance.id"]
    monkeypatch.delattr(sdk.resources, "ServiceInstanceIdResourceDetector")
    assert sdk.instance_id() != sdk.instance_id()


def test_threads_have_their_own_suppression():
    """Suppression is a matter of the context, so another thread is not suppressed."""
    token = context.attach(context.set_value(sdk.SUPPRESS_KEY, True))
    seen = []
    thread = threading.Thread(target=lambda: seen.append(sdk.suppressed()))
    thread.start()
    thread.join()
    context.detach(token)
    assert seen == [False]


# An SDK that has another name for something -------------------------------------------------------------------------

_RENAMING = Path(__file__).with_name("renamed.py")


@pytest.fixture(scope="module")
def renamed() -> dict[str, Any]:
    """What became of otel_perf on an SDK without each of the names."""
    done = subprocess.run(
        [sys.executable, _RENAMING, "_no_name_of_the_sdk", *sdk.PRIVATE_NAMES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {each["name"]: each for each in map(json.loads, done.stdout.splitlines())}


# What a view keeps its arguments under.
_OF_VIEWS = {f"_{field.name}" for field in fields(views._View)}


def test_with_all_names_spans_are_lean_and_nothing_is_said(renamed):
    """What the others are compared with."""
    usual = {"lean": True, "viewed": True, "said": []}
    assert renamed["_no_name_of_the_sdk"] == {"name": "_no_name_of_the_sdk", **usual}


@pytest.mark.parametrize("name", sdk.PRIVATE_NAMES)
def test_without_a_private_name_it_works_all_the_same(renamed, name):
    """Spans and metrics are made and sent; where lean spans cannot be made, the SDK's own are, and it is said once.

    A view that cannot be read is not applied, and that is said too.
    """
    became = renamed[name]
    assert "error" not in became, became["error"]
    assert became["viewed"] == (name not in _OF_VIEWS)
    of_spans = [each for each in became["said"] if "its own spans are used" in each]
    of_views = [each for each in became["said"] if "a view is not applied" in each]
    assert len(of_spans) == (not became["lean"]), became["said"]
    assert len(of_views) == (0 if became["viewed"] else 2), became["said"]
    assert len(became["said"]) == len(of_spans) + len(of_views), became["said"]


def test_every_private_name_is_listed():
    """What these modules use of the SDK's private names is in the list, so that the test above takes it away."""
    theirs = set(re.findall(r"\b_[A-Za-z]\w*", "".join(
        path.read_text(encoding="utf-8")
        for path in Path(inspect.getfile(opentelemetry.sdk.trace)).parents[2].rglob("*.py")
        if "semconv" not in path.parts and "proto" not in path.parts
    )))  # fmt: skip
    used = set(_OF_VIEWS)
    for module in (sdk, lean, span, tracer, provider, current_span):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                used.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.add(node.value)
    private = {name for name in used & theirs if not name.startswith("__")}
    assert private <= {*sdk.PRIVATE_NAMES}, sorted(private - {*sdk.PRIVATE_NAMES})
