"""The parts wired together: `configure`, `flush`, `shutdown`. Everything that runs is started here and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor
from opentelemetry.sdk.trace import sampling as stock_sampling

from otel_perf import catalogue, guard, sources
from otel_perf import conventions as c
from otel_perf._version import __version__
from otel_perf.insight import live
from otel_perf.settings import Settings
from otel_perf.telemetry import (
    group,
    late,
    log_export,
    logs,
    loops,
    platform,
    process,
    provider,
    route_classes,
    runtime,
    sampling,
    sdk,
    transport,
)
from otel_perf.telemetry.exporter import Sender, SpanSender
from otel_perf.telemetry.log_export import LogSender
from otel_perf.telemetry.meter import MeterProvider, Readers
from otel_perf.telemetry.metric_sender import MetricSender
from otel_perf.telemetry.mirror import Mirror
from otel_perf.telemetry.pipeline import Joined, Part, Pipeline, Ticker
from otel_perf.telemetry.provider import TracerProvider
from otel_perf.telemetry.recipients import Recipients
from otel_perf.telemetry.runtime import Runtime
from otel_perf.telemetry.series import Observe, Registry
from otel_perf.telemetry.slow_queries import SlowQueries
from otel_perf.telemetry.slow_query_log import SlowQueryLog
from otel_perf.telemetry.tracer import SwitchedSampler
from otel_perf.telemetry.workers import Exchange

__all__ = ["configure", "flush", "shutdown"]

_FOLD_EVERY_S = 1.0

_log = logging.getLogger("otel_perf")

# Libraries hold instruments of the global provider for ever, so there is one registry for the life of the process.
_registry = Registry()
_ours: list[object] = []


class _Relay(SpanProcessor):
    """Hands spans to whoever is in force; it stands in the provider once and for all."""

    def hand_to(self, part: SpanSender | late.Late | None) -> None:
        """From now on spans go there. Put in place of the method: to pass them on would be a call for each span."""
        self.on_end = self._drop if part is None else part.on_end  # type: ignore[method-assign]  # see above

    def on_end(self, span: ReadableSpan) -> None:
        """Nobody wants them yet."""

    def _drop(self, span: ReadableSpan) -> None:
        """Nobody wants them any more."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        in_force = runtime.current
        return in_force is None or in_force.sender is None or in_force.sender.flush(timeout_millis / 1000)


_relay = _Relay()
# Its target is the sampler in force, so that tracers which libraries hold follow each `configure`.
_sampler = SwitchedSampler(stock_sampling.ALWAYS_OFF)
# Libraries hold tracers as well: there is one provider of ours, made when it is first wanted.
_provider: TracerProvider | None = None


def configure(service_name: str | None = None, *, views: Sequence[View] = (), **settings: Any) -> Settings:
    """Starts measuring and answers the settings in force. No argument is required.

    Called again it replaces what was configured before, span processors that were added to its provider included;
    counts start anew. Where the application has an OpenTelemetry provider already it is joined: spans go through that
    provider, whose resource is ours then but for what is set here, and metrics are passed on to it.

    Args:
        service_name: the name of the service on every span and metric.
        views: OpenTelemetry views, for what other readers than the page get of metrics.
        settings: any other setting by its name; docs/settings.md has them all.

    Raises:
        SettingsError: for a setting that cannot be used; the message says what to do.
    """
    loaded = Settings.load(service_name=service_name, **settings)
    transport.check(loaded)
    sampling.check(loaded)
    route_classes.check(loaded)
    Recipients(loaded.propagate_to)
    slow_log = SlowQueryLog(loaded.slow_query_log) if loaded.slow_query_log and not loaded.disabled else None
    shutdown()
    _registry.reset()
    guard.strict = loaded.strict
    if loaded.disabled:
        return loaded
    _registry.cardinality_limit = loaded.cardinality_limit
    joined = _joined()
    resource = _resource(loaded, joined)
    tracer_provider, span_part = _tracer_provider(loaded, resource, joined)
    meter_provider, metric_part = _meter_provider(loaded, resource, views)
    log_part = log_export.log_sender(loaded, transport.log_way(loaded, lambda: meter_provider.resource))
    parts: list[Part] = [part for part in (metric_part, span_part, log_part) if part is not None]
    exchange = Exchange(_registry, group.find(loaded), viewed=bool(views))
    slow = SlowQueries(slow_log)
    if log_part is not None:
        log_part.first = slow.flush  # it logs what waits there
    pipeline = Pipeline([*parts, Readers(meter_provider), exchange, slow], loaded.flush_timeout_s)
    sender = span_part if isinstance(span_part, SpanSender) else None
    held = None if sender is None else late.late(loaded, sender.put)
    made = Runtime(
        loaded, _registry, provider.over(tracer_provider, c.SCOPE, __version__, c.SCHEMA_URL), pipeline,
        tracer_provider=tracer_provider, meter_provider=meter_provider, resource=resource,
        sender=sender, sampler=sampling.sampler(loaded, record=held is not None), late=held,
        exchange=exchange, sends_metrics=isinstance(metric_part, MetricSender), slow_queries=slow,
    )  # fmt: skip
    pipeline.on_fork(lambda: _after_fork(made))
    pipeline.on_end(_loss_line(made.sender))
    pipeline.on_end(_loss_line(log_part))
    if loaded.handle_signals:
        pipeline.handle_signals()
    _observe_ourselves(made, metric_part, log_part)
    if loaded.runtime_metrics:
        process.observe(made)
        loops.observe(made)
    catalogue.attach(made)
    live.attach(made)
    runtime.install(made)
    _relay.hand_to(held or sender)
    sdk.look_again(_provider)
    _sampler.target = made.sampler
    logs.correlate(loaded.log_correlation)
    log_export.hand_to(log_part)
    loops.resume()
    loops.wanted = loaded.runtime_metrics
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
    runtime.install(None)
    _sampler.target = stock_sampling.ALWAYS_OFF
    _relay.hand_to(None)
    logs.correlate(False)
    log_export.hand_to(None)
    loops.stop()
    return done


def _resource(settings: Settings, joined: trace.TracerProvider | None) -> Resource:
    unnamed = settings.service_name == "unknown_service"
    named = {
        "service.name": None if unnamed else settings.service_name,
        "service.version": settings.service_version,
        "deployment.environment.name": settings.environment,
    }
    own: dict[str, Any] = {**settings.resource_attributes, **{k: v for k, v in named.items() if v is not None}}
    found = platform.attributes(sources.standard)
    theirs = getattr(joined, "resource", None)
    if isinstance(theirs, Resource):
        if "service.instance.id" not in theirs.attributes:
            own.setdefault("service.instance.id", sdk.instance_id())
        return Resource(found).merge(theirs).merge(Resource(own))
    own.setdefault("service.name", found.get("service.name") or settings.service_name)
    own.setdefault("service.instance.id", sdk.instance_id())
    return Resource(found).merge(Resource.create(own))


def _joined() -> trace.TracerProvider | None:
    present = trace.get_tracer_provider()
    return None if isinstance(present, trace.ProxyTracerProvider) or present in _ours else present


def _tracer_provider(
    settings: Settings, resource: Resource, joined: trace.TracerProvider | None
) -> tuple[trace.TracerProvider, Part | None]:
    endpoint = transport.traces_endpoint(settings)
    if joined is not None:
        _log.info("otel_perf: joined the application's own %s", type(joined).__name__)
        if settings.sample_rules or late.Keep.of(settings) is not None:
            _log.warning("otel_perf: that provider has its own sampler: sample_rules and keep_* do nothing there")
        if endpoint:
            _log.warning(
                "otel_perf: spans go to the application's own %s and not to %s: give that provider an exporter, "
                "or call configure() before it is set",
                type(joined).__name__,
                endpoint,
            )
        return joined, Joined(joined)
    made = _own_provider(resource)
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(made)
    if not endpoint:
        return made, None
    make = transport.span_way(settings, endpoint)
    return made, SpanSender(make, settings.queue_size, settings.span_interval_s, settings.queue_size_bytes)


def _own_provider(resource: Resource) -> TracerProvider:
    global _provider
    if _provider is None:
        own = not sources.standard("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT")
        limits = SpanLimits(max_attribute_length=2048) if own else SpanLimits()
        _provider = TracerProvider(_sampler, resource, shutdown_on_exit=False, span_limits=limits)
        _ours.append(_provider)
    sdk.reset_provider(_provider, resource, _relay)
    return _provider


def _meter_provider(settings: Settings, resource: Resource, views: Sequence[View]) -> tuple[MeterProvider, Part]:
    made = MeterProvider(_registry, resource, settings.exemplars, views)
    present = metrics.get_meter_provider()
    if not sdk.is_proxy(present) and present not in _ours:
        _log.info("otel_perf: metrics are passed on to the application's own %s", type(present).__name__)
        mirror = Mirror(present)
        _registry.cursor(mirror.cell, raw=True)
        return made, Joined(present, Ticker("fold", _FOLD_EVERY_S, lambda: _pass_on(mirror)))
    _ours.append(made)
    if sdk.is_proxy(present):
        metrics.set_meter_provider(made)
    endpoint = transport.metrics_endpoint(settings)
    if not endpoint:
        return made, Ticker("fold", _FOLD_EVERY_S, _registry.fold_all)
    make = transport.metric_way(settings, endpoint)
    return made, MetricSender(make, _registry, lambda: made.resource, settings.metric_interval_s)


def _pass_on(mirror: Mirror) -> None:
    _registry.fold_all()
    mirror.observe(_registry.instruments())


def _observe_ourselves(to: Runtime, metric_part: Part, log_part: LogSender | None) -> None:
    sender = to.sender
    plain: dict[str, str] = {}

    def dropped() -> list[tuple[int, dict[str, str]]]:
        lost = [(n, {"signal": "traces", "reason": why}) for why, n in list(sender.lost.items())] if sender else []
        if to.late is not None:
            lost += [(n, {"signal": "traces", "reason": why}) for why, n in list(to.late.lost.items())]
        if log_part is not None:
            lost += [(n, {"signal": "logs", "reason": why}) for why, n in list(log_part.lost.items())]
        if isinstance(metric_part, MetricSender):
            lost += [(n, {"signal": "metrics", "reason": why}) for why, n in list(metric_part.lost.items())]
        return lost + [(n, {"signal": "slow_queries", "reason": why}) for why, n in list(to.slow_queries.lost.items())]

    observed: list[tuple[c.Metric, Observe]] = [
        (c.INTERNAL_ERRORS, lambda: [(guard.errors, plain)]),
        (c.DROPPED, dropped),
    ]
    if sender is not None:
        observed += [
            (c.SPANS_MADE, lambda: [(sender.made, plain)]),
            (c.SPANS_DELIVERED, lambda: [(sender.delivered, plain)]),
            (c.QUEUE_SIZE, lambda: [(sender.queued, plain)]),
            (c.QUEUE_CAPACITY, lambda: [(sender.capacity, plain)]),
        ]
    held = to.late
    if held is not None:
        observed += [
            (c.LATE_HELD, lambda: [(held.held, plain)]),
            (c.LATE_KEPT, lambda: [(count, {c.KEPT_BY: why}) for why, count in list(held.kept.items())]),
        ]
    for metric, observe in observed:
        to.instrument(metric).observers.append(observe)


def _loss_line(of: Sender[Any] | None) -> Callable[[], None]:
    """A function that says what was lost, and again only where there is more of it: spans still end after the end."""
    said = 0

    def say() -> None:
        nonlocal said
        if of is None:
            return
        tally = of.tally()
        if tally.lost + tally.queued <= said:
            return
        reasons = [f"{count} {reason}" for reason, count in of.lost.items()]
        reasons += [f"{tally.queued} unanswered"] if tally.queued else []
        _log.warning(
            "otel_perf: %d %s could not be delivered: %s", tally.lost + tally.queued, of.what, ", ".join(reasons)
        )
        said = tally.lost + tally.queued

    return say


def _after_fork(of: Runtime) -> None:
    # The same objects start anew in place: libraries hold tracers and instruments of them.
    _registry.after_fork()
    if of.late is not None:
        of.late.after_fork()
    own_id = Resource({"service.instance.id": sdk.instance_id()})
    of.resource = of.meter_provider.resource = of.resource.merge(own_id)
    if of.tracer_provider in _ours:
        sdk.renew_resource(of.tracer_provider, own_id)
