"""What `configure()` made, as one variable: handles made before it find it on first use."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import sampling
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf._version import __version__
from otel_perf.conventions import SCHEMA_URL, SCOPE, Metric
from otel_perf.settings import Settings
from otel_perf.telemetry.exporter import SpanSender
from otel_perf.telemetry.late import Late
from otel_perf.telemetry.meter import MeterProvider
from otel_perf.telemetry.pipeline import Pipeline
from otel_perf.telemetry.prometheus import Exposition
from otel_perf.telemetry.repeated_queries import RepeatedQueries
from otel_perf.telemetry.series import Instrument, Registry, Series
from otel_perf.telemetry.slow_queries import SlowQueries
from otel_perf.telemetry.tracer import entry
from otel_perf.telemetry.workers import Exchange

__all__ = ["Runtime", "current", "install"]

_SCOPE = InstrumentationScope(SCOPE, __version__, SCHEMA_URL)


class Runtime:
    """The settings, registry, tracer and lifecycle that are in force."""

    __slots__ = (
        "_instruments", "critical_query_s", "entry", "exchange", "exemplars", "exposition", "late", "meter_provider",
        "pipeline", "registry", "repeated_queries", "repeated_query_count", "resource", "sampler", "sender",
        "sends_metrics", "settings", "slow_queries", "slow_query_s", "tracer", "tracer_provider",
    )  # fmt: skip

    def __init__(
        self, settings: Settings, registry: Registry, tracer: trace.Tracer, pipeline: Pipeline, *,
        tracer_provider: trace.TracerProvider, meter_provider: MeterProvider, resource: Resource,
        sender: SpanSender | None = None, sampler: sampling.Sampler = sampling.DEFAULT_ON,
        late: Late | None = None, exchange: Exchange | None = None, sends_metrics: bool = False,
        slow_queries: SlowQueries | None = None,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.registry = registry
        self.tracer = tracer
        #: The short way to spans of the tracer.
        self.entry = entry(tracer)
        self.pipeline = pipeline
        self.sender = sender
        #: Whether metrics are sent by us, and their losses counted.
        self.sends_metrics = sends_metrics
        self.sampler = sampler
        self.late = late
        self.tracer_provider = tracer_provider
        self.meter_provider = meter_provider
        self.resource = resource
        # Made at once, so that /metrics counts from the start like every other reader.
        self.exchange = exchange or Exchange(registry)
        self.exposition = Exposition(self.exchange.metrics)
        # Read once here: the settings are never used on a hot path.
        self.exemplars = settings.exemplars
        # A critical query is a slow one, whichever setting is the lower.
        self.slow_query_s = min(settings.slow_query_s, settings.critical_query_s)
        self.critical_query_s = settings.critical_query_s
        self.repeated_query_count = settings.repeated_query_count
        self.slow_queries = slow_queries or SlowQueries()
        self.repeated_queries = RepeatedQueries()
        pipeline.on_fork(self.repeated_queries.clear)
        self._instruments: dict[str, Instrument] = {}

    def instrument(self, metric: Metric) -> Instrument:
        """The instrument of a declared metric in otel_perf's own scope."""
        found = self._instruments.get(metric.name)
        if found is None:
            found = self._instruments[metric.name] = self.registry.instrument(metric, _SCOPE)
        return found

    def at(self, metric: Metric, values: tuple[Any, ...]) -> Series:
        """The series of a metric by its label values, in the metric's own label order."""
        instrument = self._instruments.get(metric.name) or self.instrument(metric)
        return instrument.by_values.get(values) or instrument.at(values)


current: Runtime | None = None


def install(runtime: Runtime | None) -> None:
    """Puts a runtime in force, or takes it away with None."""
    global current
    current = runtime
