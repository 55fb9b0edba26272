"""Spans and metrics kept in memory, for tests: `with capture() as telemetry: ...`."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, fields
from typing import Any, TypeVar
from weakref import WeakSet

from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_perf.api import configure, shutdown
from otel_perf.settings import Settings
from otel_perf.telemetry import runtime, sdk
from otel_perf.telemetry.runtime import Runtime

__all__ = ["Captured", "capture"]

T = TypeVar("T")

# Whatever the environment of the test run says: nothing leaves the process, and nothing is shared with others.
_QUIET: dict[str, Any] = {
    "service_name": "test", "disabled": False, "sampler": "parentbased_always_on", "handle_signals": False,
    "workers_dir": "none",
}  # fmt: skip
_UNSENT: dict[str, Any] = {"traces_exporter": "none", "metrics_exporter": "none"}


# Whoever records now or did so: one whose place another took goes on when that one ends.
_captured: WeakSet[Captured] = WeakSet()


class Captured:
    """What a configured otel_perf recorded; `capture` makes it."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._last: list[Metric] | None = None
        self._start()
        _captured.add(self)

    def _start(self, **settings: Any) -> None:
        wanted = {**_QUIET, **self._settings, **settings}
        configure(**(wanted if any(name.endswith("endpoint") for name in wanted) else {**_UNSENT, **wanted}))
        in_force = runtime.current
        if in_force is None:
            raise RuntimeError("capture() needs otel_perf switched on; leave `disabled` out")
        self.runtime: Runtime = in_force
        self._exporter = InMemorySpanExporter()
        add: Any = getattr(in_force.tracer_provider, "add_span_processor", None)
        if add is None:
            raise RuntimeError(
                f"the application set a {type(in_force.tracer_provider).__name__} as OpenTelemetry's tracer provider, "
                "whose spans cannot be seen; set none in tests"
            )
        add(SimpleSpanProcessor(self._exporter))
        self._read_anew()

    def _read_anew(self) -> None:
        self._reader = InMemoryMetricReader()
        self.runtime.meter_provider.add_metric_reader(self._reader)

    def _go_on(self, in_force: Runtime) -> None:
        self.runtime = in_force
        self._read_anew()

    def _stop(self) -> None:
        if self._last is None:
            self._last = self._metrics()
            self._exporter.shutdown()  # a provider of the application's own lives on, and so do its processors
        if runtime.current is self.runtime:
            shutdown()

    @property
    def spans(self) -> list[ReadableSpan]:
        """All spans that ended, in the order of their end."""
        return list(self._exporter.get_finished_spans())

    def span(self, name: str) -> ReadableSpan:
        """The one span of this name."""
        spans = self.spans
        return _only([each for each in spans if each.name == name], f"spans named {name!r}", [s.name for s in spans])

    def metrics(self) -> dict[str, list[Any]]:
        """Metric name -> points, of all scopes; counts are totals since the start or the last `clear`."""
        found: dict[str, list[Any]] = {}
        for metric in self._metrics():
            found.setdefault(metric.name, []).extend(metric.data.data_points)
        return found

    def metric(self, name: str) -> Metric:
        """The one metric of this name, with its unit and description."""
        metrics = self._metrics()
        return _only([m for m in metrics if m.name == name], f"metrics named {name!r}", [m.name for m in metrics])

    def points(self, name: str, **attributes: Any) -> list[Any]:
        """The points of a metric whose attributes include these; write `.` in a key as `__`."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return [p for p in self.metrics().get(name, []) if wanted.items() <= dict(p.attributes).items()]

    def point(self, name: str, **attributes: Any) -> Any:
        """The one point of a metric with these attributes among its own."""
        seen = [dict(each.attributes) for each in self.points(name)] or sorted(self.metrics())
        return _only(self.points(name, **attributes), f"points of {name!r} with {attributes}", seen)

    def clear(self) -> None:
        """Forgets what was recorded so far; counts start at zero."""
        self._exporter.clear()
        self.runtime.meter_provider.remove_metric_reader(self._reader)
        self._read_anew()

    def _metrics(self) -> list[Metric]:
        if self._last is not None:
            return self._last
        data = self._reader.get_metrics_data()
        resources: Any = data.resource_metrics if data else ()
        return [metric for resource in resources for scope in resource.scope_metrics for metric in scope.metrics]


def _only(found: list[T], wanted: str, seen: list[Any]) -> T:
    if len(found) != 1:
        raise AssertionError(f"{len(found)} {wanted} among {seen}")
    return found[0]


@contextlib.contextmanager
def capture(**settings: Any) -> Generator[Captured]:
    """Configures otel_perf so that all it records is kept in memory and nothing is sent, for the length of the block.

    Args:
        settings: as for `configure`; an endpoint among them is sent to as well.

    At the end otel_perf is shut down. Where it was configured before, it is configured again: settings, views and span
    processors are back, and an outer capture goes on. Counts start anew, and added metric readers stay shut down.
    """
    before = _Before.now()
    try:
        captured = Captured(**settings)
        try:
            yield captured
        finally:
            captured._stop()  # pyright: ignore[reportPrivateUsage]  # the two are one thing
    finally:
        if before is not None and runtime.current is not before.runtime:
            before.restore()


@dataclass(frozen=True, slots=True)
class _Before:
    """What was in force."""

    runtime: Runtime
    processors: tuple[SpanProcessor, ...]

    @classmethod
    def now(cls) -> _Before | None:
        found = runtime.current
        return None if found is None else cls(found, sdk.processors(found.tracer_provider))

    def restore(self) -> None:
        configure(**_given(self.runtime.settings), views=self.runtime.meter_provider.views)
        in_force = runtime.current
        if in_force is None:
            return
        provider: Any = in_force.tracer_provider
        present = sdk.processors(provider)
        for each in self.processors:
            if each not in present:  # a provider of the application's own still has them
                provider.add_span_processor(each)
        for captured in list(_captured):
            if captured.runtime is self.runtime:
                captured._go_on(in_force)  # pyright: ignore[reportPrivateUsage]  # as above


def _given(settings: Settings) -> dict[str, Any]:
    return {each.name: value for each in fields(settings) if (value := getattr(settings, each.name)) is not None}
