"""The only importer of private names of the OpenTelemetry SDK, each probed, each with a way without it."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakSet

from opentelemetry import context, metrics
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.metrics import MeterProvider
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk import resources
from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricExporter, MetricReader, MetricsData
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import INVALID_SPAN, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_perf.conventions import InstrumentKind
from otel_perf.telemetry.aggregation import Cell, Explicit, Exponential
from otel_perf.telemetry.series import Series, default_cell

__all__ = [
    "PRIVATE_NAMES",
    "SPAN_KEY",
    "SUPPRESS_KEY",
    "ApiGauge",
    "Preferences",
    "argument",
    "bind_reader",
    "exporter_preferences",
    "get_context",
    "heed_answers",
    "instance_id",
    "is_proxy",
    "is_usual_propagator",
    "look_again",
    "preferences",
    "processors",
    "renew_resource",
    "reset_context",
    "reset_provider",
    "set_context",
    "stop_retrying",
    "suppressed",
]

_log = logging.getLogger("otel_perf")

#: Every private name of OpenTelemetry that is used here or by what is built on this. A test takes each away in turn.
PRIVATE_NAMES = (
    "_Gauge", "_RUNTIME_CONTEXT", "_SUPPRESS_INSTRUMENTATION_KEY", "_active_span_processor", "_add_event", "_add_link",
    "_aggregation", "_aggregation_cardinality_limit", "_attribute_keys", "_attributes", "_boundaries", "_client",
    "_context", "_current_context", "_description", "_end_time", "_events", "_instrument_class_aggregation",
    "_instrument_class_temporality", "_instrument_name", "_instrument_type", "_instrument_unit",
    "_instrumentation_info", "_instrumentation_scope", "_kind", "_links", "_local_parent_not_sampled",
    "_local_parent_sampled", "_max_scale", "_max_size", "_meter_name", "_meter_schema_url", "_meter_version", "_name",
    "_on_ending", "_parent", "_preferred_aggregation", "_preferred_temporality", "_propagators", "_record_exception",
    "_remote_parent_not_sampled", "_remote_parent_sampled", "_resource", "_root", "_set_collect_callback",
    "_set_meter_provider", "_set_resource", "_set_status_on_exception", "_set_tracer_config", "_shutdown_event",
    "_shutdown_in_progress", "_span_limits", "_span_processors", "_start_time", "_status", "_stub", "_tracer",
    "_tracer_config", "_tracer_metrics", "_tracers", "_tracers_lock", "_update_resource",
)  # fmt: skip

#: The context key of the current span, asked of the API itself, which has a private name for it.
(SPAN_KEY,) = set_span_in_context(INVALID_SPAN, Context())

#: The context key by which exporters and others ask instrumentation to look away.
SUPPRESS_KEY: str = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")

#: The API's synchronous gauge, which has no public name yet.
ApiGauge: Any = getattr(metrics, "_Gauge", metrics.Instrument)

# By kind, and whether callbacks tell it. The synchronous gauge has no public name.
_KINDS: dict[tuple[InstrumentKind, bool], type] = {
    ("counter", False): Counter,
    ("counter", True): ObservableCounter,
    ("updowncounter", False): UpDownCounter,
    ("updowncounter", True): ObservableUpDownCounter,
    ("histogram", False): Histogram,
    ("gauge", False): ObservableGauge,
    ("gauge", True): ObservableGauge,
}


_given_processor: WeakSet[object] = WeakSet()


def suppressed() -> bool:
    """Whether the current context asks for no spans."""
    return bool(context.get_value(SUPPRESS_KEY))


def is_proxy(provider: MeterProvider) -> bool:
    """Whether this only stands for a meter provider that is to be set; the API has no public name for it."""
    return type(provider).__module__.startswith("opentelemetry.metrics.") and not isinstance(
        provider, metrics.NoOpMeterProvider
    )


def instance_id() -> str:
    """The id of this process: the one that the SDK gives it too, where it does."""
    detector: Any = getattr(resources, "ServiceInstanceIdResourceDetector", None)
    found: Any = detector().detect().attributes.get("service.instance.id") if detector is not None else None
    return str(found or uuid.uuid4())


def is_usual_propagator(propagator: object) -> bool:
    """Whether this is the default pair: W3C trace context and W3C baggage, in this order and nothing else."""
    parts: Any = getattr(propagator, "_propagators", None)
    return (
        type(propagator) is CompositePropagator
        and isinstance(parts, (list, tuple))
        and [type(each) for each in cast("list[object]", parts)]
        == [TraceContextTextMapPropagator, W3CBaggagePropagator]
    )


def renew_resource(provider: Any, resource: Resource) -> None:
    """Gives a stock provider of spans another resource in place, its tracers included: libraries hold those."""
    if hasattr(provider, "_tracers_lock"):
        provider._tracers_lock = threading.Lock()  # this runs in a forked child, where nobody would release it
    update: Any = getattr(provider, "_update_resource", None)
    if update is not None:
        update(resource)


def reset_provider(provider: Any, resource: Resource, processor: SpanProcessor) -> None:
    """Gives a stock provider of spans this resource and this processor only, in place: libraries hold its tracers."""
    if hasattr(provider, "_resource") and hasattr(provider, "_update_resource"):
        provider._resource = resource  # so that nothing of the old one is merged into it
        provider._update_resource(resource)
    processors: Any = getattr(provider, "_active_span_processor", None)
    if hasattr(processors, "_span_processors"):
        processors._span_processors = (processor,)
    elif provider not in _given_processor:  # then those that others added stay
        _given_processor.add(provider)
        provider.add_span_processor(processor)


def look_again(provider: Any) -> None:
    """Lets tracers find out anew what the processors of a stock provider do: one does something else from now on."""
    hub: Any = getattr(provider, "_active_span_processor", None)
    if hasattr(hub, "_span_processors"):
        hub._span_processors = (*hub._span_processors,)  # they go by its identity


def processors(provider: object) -> tuple[SpanProcessor, ...]:
    """What a stock provider of spans tells of each; nothing where it cannot be seen."""
    held: Any = getattr(getattr(provider, "_active_span_processor", None), "_span_processors", ())
    return tuple(held)


def argument(made: object, name: str, *usual: object) -> Any:
    """What a view or an aggregation was made with: it keeps its arguments under their names, made private.

    Raises:
        AttributeError: where this SDK keeps it otherwise, and no usual value is given.
    """
    return getattr(made, f"_{name}", *usual)


def stop_retrying(exporter: object) -> None:
    """Lets a stock OTLP exporter give up after one attempt, the wait before the next included."""
    # The HTTP exporter keeps the event in its client, the gRPC one in itself.
    stop: Any = getattr(getattr(exporter, "_client", None), "_shutdown_event", None)
    stop = stop or getattr(exporter, "_shutdown_in_progress", None)
    if isinstance(stop, threading.Event):
        stop.set()


class _Heeding:
    """A client of a stock gRPC exporter; somebody hears the answers."""

    def __init__(self, client: Any, heed: Callable[[Any], None]) -> None:
        self._export = client.Export
        self._heed = heed

    def Export(self, *args: Any, **more: Any) -> Any:  # noqa: N802 -- gRPC's name
        answer = self._export(*args, **more)
        self._heed(answer)
        return answer


def heed_answers(exporter: Any, heed: Callable[[Any], None]) -> None:
    """Tells what a stock gRPC exporter is answered, which it does not read itself; without its names, nothing."""
    make: Any = getattr(exporter, "_stub", None)
    client: Any = getattr(exporter, "_client", None)
    if callable(make) and hasattr(client, "Export"):

        def made(channel: Any) -> _Heeding:
            return _Heeding(make(channel), heed)

        exporter._client = _Heeding(client, heed)
        exporter._stub = made  # where a lost connection is made anew


def _context_calls() -> tuple[
    Callable[[], Context], Callable[[Context], Token[Context]], Callable[[Token[Context]], None]
]:
    """How the current context is read, set and put back: by its context variable, or by the API's slower functions.

    Unlike the API's `detach` the variable raises `ValueError` for a token of another task instead of logging.
    """
    in_use: Any = getattr(context, "_RUNTIME_CONTEXT", None)
    variable: Any = getattr(in_use, "_current_context", None)
    usual = type(in_use) is ContextVarsRuntimeContext
    if usual and isinstance(variable, ContextVar):
        found = cast("ContextVar[Context]", variable)
        return found.get, found.set, found.reset
    return context.get_current, context.attach, context.detach


get_context, set_context, reset_context = _context_calls()


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a stock reader wants: changes or totals, and an aggregation, by kind of instrument."""

    delta_kinds: frozenset[tuple[InstrumentKind, bool]]
    aggregations: dict[InstrumentKind, object]

    def delta(self, kind: InstrumentKind, observed: bool) -> bool:
        """Whether this kind, told by callbacks or not, is read as the change since the last point."""
        return (kind, observed) in self.delta_kinds

    def cell(self, series: Series) -> Cell | None:
        """The cell that this reader's aggregation asks for."""
        instrument = series.instrument
        wanted = self.aggregations.get(instrument.metric.kind)
        if isinstance(wanted, DropAggregation):
            return None
        if instrument.metric.kind == "histogram":
            if isinstance(wanted, ExponentialBucketHistogramAggregation):
                scale = argument(wanted, "max_scale", 20)
                return Exponential(scale, max_size=argument(wanted, "max_size", 160))
            if isinstance(wanted, ExplicitBucketHistogramAggregation) and instrument.metric.buckets is None:
                bounds = argument(wanted, "boundaries", None)
                if bounds:
                    return Explicit(tuple(bounds))
        return default_cell(series)


def preferences(reader: MetricReader) -> Preferences:
    """What a reader wants; where its private tables are gone, totals and the usual aggregations."""
    return _preferences(
        _table(reader, "_instrument_class_temporality"), _table(reader, "_instrument_class_aggregation")
    )


def exporter_preferences(exporter: MetricExporter) -> Preferences:
    """What a stock exporter asks its reader for."""
    return _preferences(_table(exporter, "_preferred_temporality"), _table(exporter, "_preferred_aggregation"))


def _preferences(temporality: dict[type, object], aggregation: dict[type, object]) -> Preferences:
    delta = [key for key, wanted in _KINDS.items() if _lookup(temporality, wanted) is AggregationTemporality.DELTA]
    aggregations: dict[InstrumentKind, object] = {
        kind: _lookup(aggregation, wanted) for (kind, observed), wanted in _KINDS.items() if not observed
    }
    return Preferences(frozenset(delta), aggregations)


def _table(holder: object, name: str) -> dict[type, object]:
    return cast("dict[type, object]", getattr(holder, name, None) or {})


def _lookup(table: dict[type, object], wanted: type) -> object:
    # The SDK keys these tables by private subclasses of the public instrument classes.
    return next((value for key, value in table.items() if issubclass(key, wanted)), None)


def bind_reader(reader: MetricReader, collect: Callable[..., MetricsData | None], provider: MeterProvider) -> bool:
    """Connects a stock reader to a collect function; says so and answers False where the SDK has no such way."""
    connect: Any = getattr(reader, "_set_collect_callback", None)
    if connect is None:
        _log.warning(
            "otel_perf: this opentelemetry-sdk has no way to connect %s to another registry; it will see no metrics",
            type(reader).__name__,
        )
        return False
    tell = getattr(reader, "_set_meter_provider", None)
    if tell is not None:
        tell(provider)
    connect(collect)
    return True
