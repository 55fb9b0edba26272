"""The OpenTelemetry metrics API over our registry: instruments of other libraries land in the same series as ours."""

from __future__ import annotations

# Before any provider is made: the SDK's handler for forks uses it, and would wait for its lock in the child if its own
# handler, which frees that lock, were registered later.
import concurrent.futures.thread  # noqa: F401  # pyright: ignore[reportUnusedImport]  # for its effect
import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk import metrics as sdk_metrics
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as MetricPoints
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf import guard
from otel_perf.conventions import InstrumentKind, Metric, buckets_for
from otel_perf.telemetry import naming, recorders, sdk
from otel_perf.telemetry.batch import Number
from otel_perf.telemetry.recorders import sampled
from otel_perf.telemetry.series import Collected, Cursor, Instrument, Observe, Registry
from otel_perf.telemetry.views import Views

__all__ = ["Meter", "MeterProvider", "Readers", "metrics_data", "sampled"]

_log = logging.getLogger("otel_perf")

Attributes = Mapping[str, Any] | None
_Callback = Callable[[CallbackOptions], Iterable[Observation]] | Generator[Iterable[Observation], Any, None]
Callbacks = Sequence[_Callback]


def _told(observations: Iterable[Observation]) -> Iterable[tuple[Number, Mapping[str, Any]]]:
    # One after the other: what was told before a fault counts.
    for each in observations:
        yield each.value, each.attributes if isinstance(each.attributes, Mapping) else {}


def _observer(callback: _Callback) -> Observe:
    if not isinstance(callback, Generator):
        return lambda: _told(callback(CallbackOptions()))
    telling = cast("Generator[Iterable[Observation], CallbackOptions, None]", callback)
    next(telling)

    def told() -> Iterable[tuple[Number, Mapping[str, Any]]]:
        try:
            observations = telling.send(CallbackOptions())
        except StopIteration:  # it has nothing more to tell
            return ()
        return _told(observations)

    return told


def _advised(name: str, bounds: Sequence[float] | None) -> tuple[float, ...] | None:
    if bounds is None:
        return None
    try:
        advised = tuple(float(bound) for bound in bounds)
    except (TypeError, ValueError):
        advised = (math.nan,)
    if all(map(math.isfinite, advised)) and all(low < high for low, high in pairwise(advised)):
        return advised
    _log.warning("otel_perf: the bounds advised for %s are not rising numbers; the usual ones are used", name)
    return None


class Meter(metrics.Meter):
    """Makes instruments of one scope. Bounds of the catalogue win over advisory ones of the same metric."""

    def __init__(self, provider: MeterProvider, scope: InstrumentationScope) -> None:
        super().__init__(scope.name, scope.version, scope.schema_url)
        self._registry = provider.registry
        self._exemplars = provider.exemplars
        self._scope = scope

    def _instrument(
        self, name: str, unit: str, about: str, kind: InstrumentKind, bounds: Sequence[float] | None = None
    ) -> Instrument:
        unit = "" if unit is None else unit  # pyright: ignore[reportUnnecessaryComparison]  # callers have no checker
        naming.check(name, unit)
        buckets = buckets_for(name) or _advised(name, bounds)
        return self._registry.instrument(Metric(name, unit, kind, naming.about(about), (), buckets), self._scope)

    def create_counter(self, name: str, unit: str = "", description: str = "") -> recorders.Counter:
        return recorders.Counter(self._instrument(name, unit, description, "counter"), self._exemplars)

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> recorders.UpDownCounter:
        return recorders.UpDownCounter(self._instrument(name, unit, description, "updowncounter"), self._exemplars)

    def create_histogram(
        self, name: str, unit: str = "", description: str = "", *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> recorders.Histogram:  # fmt: skip
        bounds = explicit_bucket_boundaries_advisory
        return recorders.Histogram(self._instrument(name, unit, description, "histogram", bounds), self._exemplars)

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> recorders.Gauge:
        return recorders.Gauge(self._instrument(name, unit, description, "gauge"), self._exemplars)

    def _observed(
        self, name: str, unit: str, about: str, kind: InstrumentKind, callbacks: Callbacks | None
    ) -> Instrument:
        instrument = self._instrument(name, unit, about, kind)
        instrument.observers.extend(_observer(callback) for callback in callbacks or ())
        return instrument

    def create_observable_counter(
        self, name: str, callbacks: Callbacks | None = None, unit: str = "", description: str = ""
    ) -> recorders.ObservableCounter:
        return recorders.ObservableCounter(self._observed(name, unit, description, "counter", callbacks), False)

    def create_observable_up_down_counter(
        self, name: str, callbacks: Callbacks | None = None, unit: str = "", description: str = ""
    ) -> recorders.ObservableUpDownCounter:
        return recorders.ObservableUpDownCounter(
            self._observed(name, unit, description, "updowncounter", callbacks), False
        )

    def create_observable_gauge(
        self, name: str, callbacks: Callbacks | None = None, unit: str = "", description: str = ""
    ) -> recorders.ObservableGauge:
        return recorders.ObservableGauge(self._observed(name, unit, description, "gauge", callbacks), False)


class MeterProvider(sdk_metrics.MeterProvider):
    """A `MeterProvider` of the SDK to everyone, whose instruments record into our registry.

    Stock readers (periodic, in-memory, Prometheus) connect to it as they do to the SDK's, also later on. Views are for
    all readers of the registry but the raw ones, such as the page.
    """

    def __init__(
        self, registry: Registry, resource: Resource, exemplars: bool = True, views: Sequence[View] = ()
    ) -> None:
        super().__init__(resource=resource, shutdown_on_exit=False)
        self.registry = registry
        self.resource = resource
        self.exemplars = exemplars
        self.views = tuple(views)
        if views:
            registry.view(Views(registry, views))
        self._bound: dict[MetricReader, Cursor] = {}
        self._bound_lock = threading.Lock()

    def get_meter(
        self, name: str, version: str | None = None, schema_url: str | None = None, attributes: Attributes = None
    ) -> metrics.Meter:
        if not name:
            _log.warning("otel_perf: a meter needs a name; what is recorded by one without is left out, as by the SDK")
            return metrics.NoOpMeter(name, version, schema_url)
        return Meter(self, naming.scope(name, version, schema_url, attributes))

    def add_metric_reader(self, metric_reader: MetricReader) -> None:
        """Connects a stock reader; it sees what is recorded from now on."""
        wants = sdk.preferences(metric_reader)
        cursor = self.registry.cursor(wants.cell, wants.delta)

        def collect(*_: object, **__: object) -> MetricsData | None:
            return metrics_data(cursor.collect(), self.resource)

        with self._bound_lock:
            if metric_reader in self._bound:
                self.registry.remove(cursor)
                raise ValueError(f"{type(metric_reader).__name__} is connected already; add each reader once")
            self._bound[metric_reader] = cursor
        sdk.bind_reader(metric_reader, collect, metrics.NoOpMeterProvider())

    def remove_metric_reader(self, metric_reader: MetricReader, timeout_millis: float = 30_000) -> None:
        """Shuts a reader down and forgets it."""
        with self._bound_lock:
            cursor = self._bound.pop(metric_reader, None)
        if cursor is not None:
            try:
                stop: Callable[..., None] = cast("Any", metric_reader).shutdown
                stop(timeout_millis=timeout_millis)
            finally:
                self.registry.remove(cursor)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Collects and sends from every reader within the time; True when all of them said so."""
        return self._flush(list(self._bound), timeout_millis)

    def flush_senders(self, timeout_millis: float) -> bool:
        """`force_flush` of those readers that send; of the others somebody reads when he likes."""
        senders: list[MetricReader] = [r for r in list(self._bound) if isinstance(r, PeriodicExportingMetricReader)]
        return self._flush(senders, timeout_millis)

    def _flush(self, readers: list[MetricReader], timeout_millis: float) -> bool:
        deadline = time.monotonic() + timeout_millis / 1000
        done = True
        for reader in readers:
            left_ms = (deadline - time.monotonic()) * 1000
            done = left_ms > 0 and _flush_reader(reader, left_ms) and done
        return done

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        """Shuts all readers down within the time."""
        deadline = time.monotonic() + timeout_millis / 1000
        for reader in list(self._bound):
            _stop_reader(self, reader, max(0.0, deadline - time.monotonic()) * 1000)

    def after_fork(self) -> None:
        """Gives the lock anew in a forked child."""
        self._bound_lock = threading.Lock()


def _flush_reader(reader: MetricReader, timeout_millis: float) -> bool:
    try:
        return reader.force_flush(timeout_millis=timeout_millis)
    except Exception:  # readers are the application's
        guard.note(f"flushing {type(reader).__name__}")
        return False


def _stop_reader(provider: MeterProvider, reader: MetricReader, timeout_millis: float) -> None:
    try:
        provider.remove_metric_reader(reader, timeout_millis)
    except Exception:
        guard.note(f"stopping {type(reader).__name__}")


class Readers:
    """The stock readers of a provider as a part of the pipeline."""

    def __init__(self, provider: MeterProvider) -> None:
        self._provider = provider

    def after_fork(self) -> None:
        """Stock readers start their own threads anew."""
        self._provider.after_fork()

    def flush(self, timeout_s: float) -> bool:
        """Sends from every reader that sends."""
        return self._provider.flush_senders(timeout_s * 1000)

    def shutdown(self, timeout_s: float) -> bool:
        """Shuts every reader down; a stock one does not say what became of its last points."""
        self._provider.shutdown(timeout_s * 1000)
        return True


def metrics_data(collected: Sequence[Collected], resource: Resource) -> MetricsData | None:
    """Collected points in the SDK's own form, scope by scope; None when there are none."""
    scopes: dict[InstrumentationScope, list[MetricPoints]] = {}
    for each in collected:
        metric = each.instrument.metric
        points = MetricPoints(metric.name, metric.about, metric.unit, _data(each))
        scopes.setdefault(each.instrument.scope, []).append(points)
    if not scopes:
        return None
    grouped = [ScopeMetrics(scope, listed, scope.schema_url or "") for scope, listed in scopes.items()]
    return MetricsData([ResourceMetrics(resource, grouped, resource.schema_url)])


def _data(each: Collected) -> Any:
    temporality = AggregationTemporality.DELTA if each.delta else AggregationTemporality.CUMULATIVE
    points: Any = each.points
    if isinstance(points[0], HistogramDataPoint):
        return Histogram(points, temporality)
    if isinstance(points[0], ExponentialHistogramDataPoint):
        return ExponentialHistogram(points, temporality)
    if each.instrument.metric.kind == "gauge":
        return Gauge(points)
    return Sum(points, temporality, each.instrument.monotonic)
