"""Spans of other libraries: secrets leave neither by our encoder nor by an exporter that gets copies."""

from __future__ import annotations

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, StatusCode

from otel_perf.conventions import SCOPE
from otel_perf.redaction import MASK, MAX_LENGTH
from otel_perf.telemetry import foreign
from otel_perf.telemetry.otlp import spans_request
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


SECRET = "Zq7plantedZq"
LEAKS = {
    "http.request.header.x_api_key": (SECRET,), "http.response.header.set_cookie": [SECRET],
    "http.request.header.Authorization": [f"Bearer {SECRET}"], "HTTP.Request.Header.X-API-Key": SECRET,
    "http.request.header.proxy_authorization": [SECRET], "http.request.header.x_goog_iap_session": [SECRET],
    "http.request.header.referer": [f"http://a/?token={SECRET}"], "http.response.header.location": [f"/a?b={SECRET}"],
    "rpc.grpc.request.metadata.authorization": [SECRET], "db.statement.parameters": f"('{SECRET}', 42)",
    "db.query.parameter.password": SECRET, "db.operation.parameter.0": [SECRET], "db.redis.args": f"SET k {SECRET}",
    "db.connection_string": f"postgresql+asyncpg://u:{SECRET}@h/db", "url.original": f"/a?token={SECRET}",
    "server.address": f"http://u:{SECRET}@x", "net.peer.name": f"u:{SECRET}@x", "url.full": f"http://a/?t={SECRET}".encode(),
    "http.referer": f"http://a/?token={SECRET}", "messaging.url": f"amqp://u:{SECRET}@h", "url.fragment": f"t={SECRET}",
    "url.path": f"/a?t={SECRET}", "anything": f"see http://u:{SECRET}@h/ and http://h/?a={SECRET} there",
    "with blanks": f"postgresql://u:a {SECRET}@h/db", "fragment": f"http://h/#access_token={SECRET}",
    "bytes": f"http://u:{SECRET}@h/".encode(), "nested": {"headers": {"authorization": SECRET, "x": f"a://{SECRET}@h"}},
    "jdbc": f"jdbc:postgresql://u:{SECRET}@h/db?password={SECRET}", "relative": f"/a/b?c={SECRET}",
    "proxied": f"http://h/http://u:{SECRET}@h/?", "long": f"{'x' * 2000} http://{SECRET * 500}@h/",
    "long url": f"http://{SECRET * 500}@h/", "client.secret": SECRET, "app.password": [SECRET.encode()],
}  # fmt: skip


@pytest.mark.parametrize("key", LEAKS)
def test_no_secret_of_another_library_leaves(key):
    """Headers by any spelling, parameters, addresses wherever they are; in lists, in bytes, in mappings."""
    assert SECRET.lower() not in repr(foreign.value(key, LEAKS[key])).lower()
    assert foreign.value(key, foreign.value(key, LEAKS[key])) == foreign.value(key, LEAKS[key])


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("http.request.header.user_agent", ["curl/8"]),
        ("http.request.header.referer", ["http://host/a"]),
        ("aws.s3.url", "s3://Bucket/Key"),
        ("server.address", "10.0.0.1"),
        ("db.connection_string", "redis://h:6379/0"),
        ("gen_ai.token.type", "input"),
        ("gen_ai.usage.input_tokens", 12),
        ("binary", b"\x00\xff?"),
        ("question", "what is 1/2?"),
        ("none", None),
        ("listed", [1, True, None, "a"]),
        ("mapped", {"a": {"b": 1.5}}),
    ],
)
def test_what_is_harmless_stays_as_it_is(key, shown):
    """Also what looks a little like something else."""
    assert foreign.value(key, shown) == shown


def test_a_number_is_as_much_a_secret():
    """Whatever kind the value of a parameter has; a connection string that is no address is hidden whole."""
    assert foreign.value("db.query.parameter.pin", 1234) == MASK
    assert foreign.value("db.statement.parameters", ("a", 42)) == [MASK, MASK]
    assert foreign.value("db.connection_string", "Server=h;Password=x") == MASK
    assert foreign.value("db.connection_string", "jdbc:sqlserver://h:1;user=sa;password=x") == "jdbc:sqlserver://h:1"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("GET http://a/?token=pw", f"GET http://a/?token={MASK}"),
        ("GET /a?token=pw", f"GET /a?token={MASK}"),
        ("amqp://u:pw@h send", "amqp://h send"),
        ("GET /users/{id}", "GET /users/{id}"),
        ("SELECT a FROM t WHERE b/2 = ?", "SELECT a FROM t WHERE b/2 = ?"),
    ],
)
def test_addresses_in_names(name, shown):
    """Names of spans and events lose user information and query values, by either way out; ours stay."""
    of = ReadableSpan(
        name, SpanContext(1, 1, False), None, Resource({}), {}, [Event(name, {}, 5)],
        start_time=1, end_time=2, instrumentation_scope=InstrumentationScope("theirs"),
    )  # fmt: skip
    (copy,) = foreign.readable([of])
    assert (copy.name, copy.events[0].name) == (shown, shown)
    encoded = ExportTraceServiceRequest.FromString(spans_request([of])).resource_spans[0].scope_spans[0].spans[0]
    assert (encoded.name, encoded.events[0].name) == (shown, shown)


@pytest.mark.parametrize("piece", ["://", "a", "a://b ", "/?", "@", "?", ".", "a:// @", "/a?b "])
def test_a_text_is_read_once(piece):
    """However many addresses a text seems to have, it is read up to a limit, and what comes out is bounded."""
    assert len(foreign.name(f"://{piece * 20_000}")) <= MAX_LENGTH


def test_a_name_is_bounded():
    """Some name a span after each command of a pipeline."""
    assert foreign.name(" ".join(["SET"] * 1000)) == ("SET " * 64)


def test_a_path_is_without_keys():
    """What other libraries say of a path is masked as ours is."""
    assert foreign.value("url.path", "/reset/eyJhbGciOiJIUzI1NiJ9abcDEF?x=1") == "/reset/{token}"
    assert foreign.value("url.path", "/users/42/files") == "/users/42/files"


def test_only_our_scope_is_ours():
    """A scope that only begins like ours is not."""
    assert foreign.is_own(InstrumentationScope(SCOPE))
    assert not foreign.is_own(InstrumentationScope(f"{SCOPE}_plugin"))
    assert not foreign.is_own(None)
