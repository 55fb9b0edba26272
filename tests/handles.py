"""What the tests of the handle share: what is current, and how often something was measured."""

from __future__ import annotations

from opentelemetry import trace

from otel_perf import conventions as c
from otel_perf.telemetry import operation

BOOM = ValueError("boom")


def current_name() -> str | None:
    current = operation.current()
    assert (current is None) == (trace.get_current_span() is trace.INVALID_SPAN)
    return current.name if current is not None else None


def outcome(telemetry, name: str = "work") -> tuple[int, str | None]:
    """How often it was measured, and the one `error.type`."""
    spans = [span for span in telemetry.spans if span.name == name]
    points = telemetry.points(c.STEP_DURATION.name, operation__name=name)
    assert sum(point.count for point in points) == len(spans)
    [error] = {span.attributes.get(c.ERROR_TYPE) for span in spans}
    return len(spans), error
