"""The parts wired together: `configure`, `flush`, `shutdown`. Everything that runs is started here and nowhere else."""

from __future__ import annotations

import logging
import uuid
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import sampling as stock_sampling

from otel_perf import catalogue, guard
from otel_perf import conventions as c
from otel_perf._version import __version__
from otel_perf.insight import live
from otel_perf.settings import Settings
from otel_perf.telemetry import exporter, logs, runtime, transport
from otel_perf.telemetry.meter import MeterProvider
from otel_perf.telemetry.mirror import Mirror
from otel_perf.telemetry.pipeline import Pipeline, Ticker
from otel_perf.telemetry.runtime import Runtime
from otel_perf.telemetry.series import Registry

__all__ = ["configure", "flush", "shutdown"]

_log = logging.getLogger("otel_perf")

# Libraries hold instruments of the global provider for ever, so there is one registry for the life of the process.
_registry = Registry()
_ours: list[object] = []


class _Relay(SpanProcessor):
    """Hands spans of any provider of ours, old ones included, to the sender that is in force."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing is done when a span starts."""

    def on_end(self, span: ReadableSpan) -> None:
        in_force = runtime.current
        if in_force is not None and in_force.sender is not None:
            in_force.sender.on_end(span)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        in_force = runtime.current
        return in_force is None or in_force.sender is None or in_force.sender.flush(timeout_millis / 1000)


def configure(service_name: str | None = None, **settings: Any) -> Settings:
    """Starts measuring and answers the settings in force. No argument is required.

    Called again it replaces what was configured before; counts start anew. Where the application has an OpenTelemetry
    provider already it is joined: spans go through that provider, metrics are passed on to it.

    Raises:
        SettingsError: for a setting that cannot be used; the message says what to do.
    """
    loaded = Settings.load(service_name=service_name, **settings)
    shutdown()
    _registry.clear_cursors()
    guard.strict = loaded.strict
    if loaded.disabled:
        return loaded
    _registry.reset()
    _registry.cardinality_limit = loaded.cardinality_limit
    resource = _resource(loaded)
    tracer_provider, sender = _tracer_provider(loaded, resource)
    meter_provider, metric_parts = _meter_provider(loaded, resource)
    parts = [Ticker("fold", 1.0, _registry.fold_all), *metric_parts, *([sender] if sender else [])]
    pipeline = Pipeline(parts, loaded.flush_timeout_s)
    made = Runtime(
        loaded, _registry, tracer_provider.get_tracer(c.SCOPE, __version__, c.SCHEMA_URL), pipeline,
        tracer_provider=tracer_provider, meter_provider=meter_provider, resource=resource, sender=sender,
    )  # fmt: skip
    pipeline.on_fork(lambda: _after_fork(made))
    _observe_ourselves(made)
    catalogue.attach(made)
    live.attach(made)
    runtime.install(made)
    logs.correlate(loaded.log_correlation)
    return loaded


def flush(timeout_s: float | None = None) -> bool:
    """Sends everything that waits, within the time (`flush_timeout_s` by default); True when nothing was lost."""
    in_force = runtime.current
    return in_force is None or in_force.pipeline.flush(timeout_s)


def shutdown(timeout_s: float | None = None) -> bool:
    """Flushes and stops measuring; normally not needed, since exit and the end of an instrumented app do it."""
    in_force = runtime.current
    if in_force is None:
        return True
    done = in_force.pipeline.shutdown(timeout_s)
    in_force.meter_provider.shutdown()
    runtime.install(None)
    logs.correlate(False)
    return done


def _resource(settings: Settings) -> Resource:
    named = {
        "service.name": settings.service_name,
        "service.version": settings.service_version,
        "deployment.environment.name": settings.environment,
    }
    own: dict[str, Any] = {**settings.resource_attributes, **{k: v for k, v in named.items() if v is not None}}
    own.setdefault("service.instance.id", str(uuid.uuid4()))
    if settings.service_name == "unknown_service" and "service.name" in settings.resource_attributes:
        own["service.name"] = settings.resource_attributes["service.name"]
    return Resource.create(own)


def _sampler(settings: Settings) -> stock_sampling.Sampler:
    ratio = stock_sampling.TraceIdRatioBased(settings.sample_ratio)
    roots: dict[str, stock_sampling.Sampler] = {
        "always_on": stock_sampling.ALWAYS_ON,
        "always_off": stock_sampling.ALWAYS_OFF,
        "traceidratio": ratio,
    }
    kind, _, root = settings.sampler.rpartition("parentbased_")
    return stock_sampling.ParentBased(roots[root]) if settings.sampler.startswith("parentbased_") else roots[root]


def _tracer_provider(settings: Settings, resource: Resource) -> tuple[trace.TracerProvider, Any]:
    present = trace.get_tracer_provider()
    if not isinstance(present, trace.ProxyTracerProvider) and present not in _ours:
        _log.info("otel_perf: joined the application's own %s", type(present).__name__)
        return present, None
    limits = SpanLimits(max_attribute_length=2048)
    made = TracerProvider(_sampler(settings), resource, shutdown_on_exit=False, span_limits=limits)
    made.add_span_processor(_Relay())
    _ours.append(made)
    if isinstance(present, trace.ProxyTracerProvider):
        trace.set_tracer_provider(made)
    endpoint = transport.traces_endpoint(settings)
    if not endpoint:
        return made, None
    exporter.quieten()
    make = transport.span_exporter(settings, endpoint)
    return made, exporter.SpanSender(make, settings.queue_size, settings.span_interval_s)


def _meter_provider(settings: Settings, resource: Resource) -> tuple[MeterProvider, list[Any]]:
    made = MeterProvider(_registry, resource, settings.exemplars)
    _ours.append(made)
    present = metrics.get_meter_provider()
    if present in _ours:
        pass
    elif type(present).__name__ == "_ProxyMeterProvider":  # it has no public name
        metrics.set_meter_provider(made)
    else:
        _log.info("otel_perf: metrics are passed on to the application's own %s", type(present).__name__)
        _registry.cursor(Mirror(present).cell)
        return made, []
    endpoint = transport.metrics_endpoint(settings)
    if not endpoint:
        return made, []
    exporter.quieten()
    sender = exporter.CountedMetrics(transport.metric_exporter(settings, endpoint))
    reader = PeriodicExportingMetricReader(sender, export_interval_millis=settings.metric_interval_s * 1000)
    made.add_metric_reader(reader)
    return made, [exporter.MetricReaderPart(reader, sender)]


def _observe_ourselves(to: Runtime) -> None:
    def errors() -> list[tuple[int, dict[str, str]]]:
        return [(guard.errors, {})]

    to.instrument(c.INTERNAL_ERRORS).observers.append(errors)
    sender = to.sender
    if sender is None:
        return
    observed: list[tuple[c.Metric, Any]] = [
        (c.SPANS_MADE, lambda: [(sender.made, {})]),
        (c.SPANS_DELIVERED, lambda: [(sender.delivered, {})]),
        (c.DROPPED, lambda: [(n, {"signal": "traces", "reason": why}) for why, n in list(sender.lost.items())]),
        (c.QUEUE_SIZE, lambda: [(sender.queued, {})]),
        (c.QUEUE_CAPACITY, lambda: [(sender.capacity, {})]),
    ]
    for metric, observe in observed:
        to.instrument(metric).observers.append(observe)


def _after_fork(of: Runtime) -> None:
    # The same objects start anew in place: libraries hold tracers and instruments of them.
    _registry.reset()
    own_id = Resource({"service.instance.id": str(uuid.uuid4())})
    of.resource = of.meter_provider.resource = of.resource.merge(own_id)
