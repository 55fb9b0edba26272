"""What every test gets: a strict guard, nothing left current, and captured telemetry on request."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_perf
from otel_perf import guard
from otel_perf.telemetry import operation, runtime

pytest_plugins = ["tests.servers"]


def pytest_configure() -> None:
    """Signals that whoever started us ignores (nohup, a background job) are ignored by what we start, unless undone."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No span, operation or thread of ours survives a test, and no fault of ours is swallowed in one."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_PERF_STRICT", "true")
    monkeypatch.setattr(guard, "strict", True)
    monkeypatch.setattr(guard, "errors", 0)
    yield
    otel_perf.shutdown()
    assert operation.current() is None, "an operation was left current"
    assert trace.get_current_span(otel_context.get_current()) is trace.INVALID_SPAN, "a span was left current"
    assert not _threads(), f"threads were left running: {_threads()}"


def _threads() -> list[str]:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = [each.name for each in threading.enumerate() if each.name.startswith("otel_perf")]
        if not left:
            break
        time.sleep(0.01)
    return left


class Telemetry:
    """A configured otel_perf whose spans and metrics are kept in memory."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self.restart()

    def restart(self, **settings: Any) -> None:
        """Configures anew, with other settings."""
        otel_perf.configure(**{"service_name": "test", **self._settings, **settings})
        in_force = runtime.current
        assert in_force is not None
        self.runtime = in_force
        self._exporter = InMemorySpanExporter()
        in_force.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))  # type: ignore[attr-defined]
        self._reader = InMemoryMetricReader()
        in_force.meter_provider.add_metric_reader(self._reader)

    @property
    def spans(self) -> list[ReadableSpan]:
        """All spans that ended, in the order of their end."""
        return list(self._exporter.get_finished_spans())

    def span(self, name: str) -> ReadableSpan:
        """The one span of this name."""
        found = [each for each in self.spans if each.name == name]
        assert len(found) == 1, f"{len(found)} spans named {name!r} among {[each.name for each in self.spans]}"
        return found[0]

    def metrics(self) -> dict[str, list[Any]]:
        """Metric name -> points, of all scopes."""
        data = self._reader.get_metrics_data()
        metrics: dict[str, list[Any]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    metrics.setdefault(metric.name, []).extend(metric.data.data_points)
        return metrics

    def points(self, name: str, **attributes: Any) -> list[Any]:
        """The points of a metric whose attributes include these; write `.` in a key as `__`."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return [p for p in self.metrics().get(name, []) if wanted.items() <= dict(p.attributes).items()]


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    yield Telemetry()
    otel_perf.shutdown()
