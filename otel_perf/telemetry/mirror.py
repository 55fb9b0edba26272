"""Passing our metrics on, once, to a `MeterProvider` that the application had before us.

It works on folded batches, so the foreign instruments' cost is not on the hot path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_perf.telemetry.aggregation import Cell, Point, Value
from otel_perf.telemetry.series import Instrument, Series

__all__ = ["Mirror"]


class Mirror:
    """Makes cells that record into another provider; use its `cell` for a cursor."""

    def __init__(self, provider: metrics.MeterProvider) -> None:
        self._provider = provider
        self._instruments: dict[Instrument, Any] = {}
        self._observed: set[Instrument] = set()

    def cell(self, series: Series) -> Cell | None:
        """A cell that hands the values of this series on."""
        instrument = series.instrument
        foreign = self._instruments.get(instrument)
        if foreign is None:
            foreign = self._instruments[instrument] = self._make(instrument)
        return _Forward(foreign, series.attributes)

    def observe(self, instruments: Iterable[Instrument]) -> None:
        """Hands on what callbacks tell, by callbacks of the other provider; call it again for later instruments."""
        for instrument in instruments:
            if instrument.observers and instrument not in self._observed:
                self._observed.add(instrument)
                self._make_observed(instrument)

    def _meter(self, instrument: Instrument) -> metrics.Meter:
        scope = instrument.scope
        return self._provider.get_meter(scope.name, scope.version, scope.schema_url)

    def _make(self, instrument: Instrument) -> Any:
        metric, meter = instrument.metric, self._meter(instrument)
        if metric.kind == "histogram":
            bounds = None if metric.buckets is None else list(metric.buckets)
            return meter.create_histogram(
                metric.name, metric.unit, metric.about, explicit_bucket_boundaries_advisory=bounds
            ).record
        if metric.kind == "counter":
            return meter.create_counter(metric.name, metric.unit, metric.about).add
        if metric.kind == "updowncounter":
            return meter.create_up_down_counter(metric.name, metric.unit, metric.about).add
        return meter.create_gauge(metric.name, metric.unit, metric.about).set

    def _make_observed(self, instrument: Instrument) -> None:
        def told(_: CallbackOptions) -> list[Observation]:
            return [Observation(value, attributes) for value, attributes in instrument.observed()]

        metric, meter = instrument.metric, self._meter(instrument)
        make = {
            "counter": meter.create_observable_counter,
            "updowncounter": meter.create_observable_up_down_counter,
        }.get(metric.kind, meter.create_observable_gauge)
        make(metric.name, [told], metric.unit, metric.about)


class _Forward:
    """A cell that keeps nothing: every value goes on with the trace that it was recorded in."""

    __slots__ = ("_attributes", "_put")

    def __init__(self, put: Any, attributes: Mapping[str, Any]) -> None:
        self._put = put
        self._attributes = attributes

    def feed(self, batch: Sequence[Value]) -> None:
        for value in batch:
            if isinstance(value, tuple):
                span_context = SpanContext(value[1], value[2], is_remote=False, trace_flags=TraceFlags(1))
                context = trace.set_span_in_context(NonRecordingSpan(span_context))
                self._put(value[0], self._attributes, context)
            else:
                self._put(value, self._attributes)

    def point(self, attributes: Mapping[str, Any], start_ns: int, now_ns: int) -> Point | None:  # noqa: ARG002
        """Nothing is kept, so there is no point."""
        return None

    def reset(self) -> None:
        """There is nothing to reset."""
