"""For tests of an instrumented application: what it recorded, and a collector that behaves as badly as you like.

`capture()` keeps spans and metrics in memory and sends nothing. `FakeCollector` is a real OTLP endpoint on loopback;
it needs the extra `testing`.
"""

from __future__ import annotations

from otel_perf.testing import behaviour
from otel_perf.testing.behaviour import Behaviour
from otel_perf.testing.capture import Captured, capture
from otel_perf.testing.collector import FakeCollector
from otel_perf.testing.received import ReceivedMetric, ReceivedRequest, ReceivedSpan, attributes

__all__ = [
    "Behaviour",
    "Captured",
    "FakeCollector",
    "ReceivedMetric",
    "ReceivedRequest",
    "ReceivedSpan",
    "attributes",
    "behaviour",
    "capture",
]
