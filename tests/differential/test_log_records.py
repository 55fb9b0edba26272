"""The same log records in our encoder and in the stock one: byte for byte the same request."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from otel_perf.telemetry.otlp_logs import LogItem, logs_request

# Letters alone: what looks like an address or a secret is redacted by ours, on purpose.
_words = st.text("abcdefghij äöü😀", max_size=20)
_keys = st.sampled_from(["user", "items", "code.line.number", "a", "ß"])
_values = st.recursive(
    _words | st.integers(-(1 << 63), (1 << 63) - 1) | st.booleans() | st.floats(allow_nan=False),
    lambda of: st.lists(of, max_size=3) | st.dictionaries(_keys, of, max_size=3),
    max_leaves=4,
)
_items = st.builds(
    LogItem,
    time_ns=st.integers(0, 1 << 62), observed_ns=st.integers(0, 1 << 62), severity=st.integers(0, 24),
    severity_text=st.sampled_from(["", "WARN", "INFO", "NOTICE"]), body=_words,
    attributes=st.dictionaries(_keys, _values, max_size=4).map(lambda found: tuple(found.items())),
    dropped=st.just(0), trace_id=st.sampled_from([0, 1, 5 << 100]), span_id=st.sampled_from([0, 7, (1 << 64) - 1]),
    flags=st.integers(0, 1), scope=st.sampled_from(["app", "app.db", "root"]),
)  # fmt: skip


def _stock(items: list[LogItem], resource: Resource) -> bytes:
    made: list[Any] = []
    for item in items:
        context = SpanContext(item.trace_id, item.span_id, False, TraceFlags(item.flags))
        record = LogRecord(
            timestamp=item.time_ns, observed_timestamp=item.observed_ns,
            context=set_span_in_context(NonRecordingSpan(context)), severity_text=item.severity_text,
            severity_number=SeverityNumber(item.severity), body=item.body, attributes=dict(item.attributes),
        )  # fmt: skip
        record.trace_id, record.span_id, record.trace_flags = item.trace_id, item.span_id, TraceFlags(item.flags)
        record.observed_timestamp = item.observed_ns
        made.append(ReadableLogRecord(record, resource, InstrumentationScope(item.scope)))
    return encode_logs(made).SerializeToString()


@settings(max_examples=60, deadline=None)
@given(st.lists(_items, min_size=1, max_size=6), st.sampled_from(["", "https://opentelemetry.io/schemas/1.44.0"]))
def test_byte_for_byte(items: list[LogItem], schema: str) -> None:
    """Times, severity, body, attributes of each kind, ids, flags, scopes and the resource are as they are there."""
    resource = Resource({"service.name": "shop", "n": 1}, schema)
    assert logs_request(items, resource) == _stock(items, resource)
