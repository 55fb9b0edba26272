"""Spans of other libraries: secrets leave neither by our encoder nor by an exporter that gets copies."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, StatusCode

from otel_perf.conventions import SCOPE
from otel_perf.telemetry import foreign
from otel_perf.telemetry.provider import TracerProvider

STACK = """Traceback (most recent call last):
  File "/app/shop.py", line 12, in pay
    charge(card="4111 1111 1111 1111")
  File "/app/bank.py", line 3, in charge
    raise ValueError(card)
ValueError: 4111 1111 1111 1111
"""


def span(scope: str | None) -> ReadableSpan:
    return ReadableSpan(
        "GET", SpanContext(1, 1, False), None, Resource({"r": 1}), {"http.url": "http://u:pw@h/?a=pw", "n": 1},
        [Event("exception", {"exception.message": "password=pw", "exception.stacktrace": STACK}, 5), Event("e", {}, 6)],
        [Link(SpanContext(1, 2, False), {"http.url": "http://u:pw@h/"}), Link(SpanContext(1, 3, False))],
        status=Status(StatusCode.ERROR, "token=pw"), start_time=1, end_time=2,
        instrumentation_scope=scope and InstrumentationScope(scope),
    )  # fmt: skip


@pytest.mark.parametrize("scope", ["theirs", None])
def test_copies_of_foreign_spans_are_redacted(scope):
    """Attributes, events, links and the status; the rest is as it was."""
    original = span(scope)
    (copy,) = foreign.readable([original])
    assert copy.attributes == {"http.url": "http://h/?a=REDACTED", "n": 1}
    assert "pw" not in copy.to_json()
    assert "4111" not in copy.to_json()
    assert [event.timestamp for event in copy.events] == [5, 6]
    assert [link.context.span_id for link in copy.links] == [2, 3]
    assert (copy.name, copy.start_time, copy.end_time, copy.resource) == ("GET", 1, 2, original.resource)
    assert copy.status.status_code is StatusCode.ERROR


def test_our_own_spans_are_copied_as_they_are():
    """They were redacted where the value entered; late writes do not reach the copy, and losses stay counted."""
    limits = SpanLimits(max_span_attributes=2)
    tracer = TracerProvider(shutdown_on_exit=False, resource=Resource({}), span_limits=limits).get_tracer(SCOPE)
    original = tracer.start_span("s", attributes={"a": 1, "url.query": "a=pw", "b": 2})
    original.end()
    (copy,) = foreign.readable([original])
    original._attributes["late"] = 1
    assert copy.attributes == {"url.query": "a=pw", "b": 2}
    assert (copy.dropped_attributes, copy.dropped_events, copy.dropped_links) == (1, 0, 0)


def test_a_stack_is_places():
    """Source lines and the message are left out, as in the stacks that we make."""
    assert foreign.value("exception.stacktrace", STACK) == (
        'File "/app/shop.py", line 12, in pay\nFile "/app/bank.py", line 3, in charge'
    )


def test_only_our_scope_is_ours():
    """A scope that only begins like ours is not."""
    assert foreign.is_own(InstrumentationScope(SCOPE))
    assert not foreign.is_own(InstrumentationScope(f"{SCOPE}_plugin"))
    assert not foreign.is_own(None)
