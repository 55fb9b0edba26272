"""OpenTelemetry providers that stand for whichever runtime is in force.

Other instrumentations take their providers once and keep them, but `configure()` may come later or come again. Before
it and after `shutdown()` everything made here does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.util.types import Attributes

from otel_perf.telemetry import runtime

__all__ = ["METERS", "TRACERS"]


class _Tracer(trace.Tracer):
    def __init__(self, *scope: Any) -> None:
        self._scope = scope
        self._of: runtime.Runtime | None = None
        self._tracer: trace.Tracer = trace.NoOpTracer()

    def _now(self) -> trace.Tracer:
        in_force = runtime.current
        if in_force is not self._of:
            made = trace.NoOpTracer() if in_force is None else in_force.tracer_provider.get_tracer(*self._scope)
            self._of, self._tracer = in_force, made
        return self._tracer

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._now().start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return cast("AbstractContextManager[trace.Span]", self._now().start_as_current_span(*args, **kwargs))


class _Tracers(trace.TracerProvider):
    def get_tracer(
        self, instrumenting_module_name: str, instrumenting_library_version: str | None = None,
        schema_url: str | None = None, attributes: Attributes = None,
    ) -> trace.Tracer:  # fmt: skip
        return _Tracer(instrumenting_module_name, instrumenting_library_version, schema_url, attributes)


class _Late:
    """An instrument that is made of the runtime in force when it is used."""

    def __init__(self, make: Callable[[runtime.Runtime], Any]) -> None:
        self._make = make
        self._of: runtime.Runtime | None = None
        self._instrument: Any = None

    def now(self) -> Any:
        in_force = runtime.current
        if in_force is not self._of:
            made = None if in_force is None else self._make(in_force)
            self._of, self._instrument = in_force, made
        return self._instrument


class _Counter(_Late, metrics.Counter):
    def add(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        if (made := self.now()) is not None:
            made.add(amount, attributes, context)


class _UpDownCounter(_Late, metrics.UpDownCounter):
    def add(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        if (made := self.now()) is not None:
            made.add(amount, attributes, context)


class _Histogram(_Late, metrics.Histogram):
    def record(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        if (made := self.now()) is not None:
            made.record(amount, attributes, context)


class _Meter(metrics.NoOpMeter):
    """Makes the instruments that server instrumentations use; others do nothing."""

    def __init__(self, *scope: Any) -> None:
        super().__init__(str(scope[0]))
        self._scope = scope

    def _meter(self, of: runtime.Runtime) -> metrics.Meter:
        return of.meter_provider.get_meter(*self._scope)

    def create_counter(self, name: str, unit: str = "", description: str = "") -> metrics.Counter:
        return _Counter(lambda of: self._meter(of).create_counter(name, unit, description))

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> metrics.UpDownCounter:
        return _UpDownCounter(lambda of: self._meter(of).create_up_down_counter(name, unit, description))

    def create_histogram(
        self, name: str, unit: str = "", description: str = "", *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> metrics.Histogram:  # fmt: skip
        bounds = explicit_bucket_boundaries_advisory
        return _Histogram(
            lambda of: self._meter(of).create_histogram(
                name, unit, description, explicit_bucket_boundaries_advisory=bounds
            )
        )


class _Meters(metrics.MeterProvider):
    def get_meter(
        self, name: str, version: str | None = None, schema_url: str | None = None, attributes: Attributes = None
    ) -> metrics.Meter:
        return _Meter(name, version, schema_url, attributes)


TRACERS: trace.TracerProvider = _Tracers()
METERS: metrics.MeterProvider = _Meters()
