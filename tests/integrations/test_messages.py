"""What a task queue's message carries: the sender's trace and the time, and nonsense is nothing."""

from __future__ import annotations

import time

import pytest

from otel_perf import measure
from otel_perf.integrations import messages


def test_there_and_back(telemetry):
    """The receiver finds the sender's span and when it was sent; what an older message carried is replaced."""
    headers = {"traceparent": "old", "tracestate": "old", "task": "kept"}
    with measure("sender"):
        messages.stamp(headers)
    assert headers["task"] == "kept"
    assert "tracestate" not in headers
    [link] = messages.links(headers)
    assert link.context.span_id == telemetry.span("sender").context.span_id
    assert 0 <= time.time() - messages.sent_s(headers) < 60


def test_without_a_trace(telemetry):
    """Where nothing is current there is only the time."""
    headers = {"traceparent": "old"}
    messages.stamp(headers)
    assert messages.links(headers) == []
    assert messages.sent_s(headers) is not None
    assert messages.sent_s({}) is None


@pytest.mark.parametrize("value", ["", "x" * 1_000_000, b"\xff", None, 5, [], {}, "nan", "00-0-0-00"])
def test_nonsense(value):
    """It raises nothing and means nothing."""
    assert messages.links({"traceparent": value, "tracestate": value}) == []
    assert messages.sent_s({"otel_perf_sent": value}) in {None, 5.0}
