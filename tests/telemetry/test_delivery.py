"""What counts as delivered, what is sent once more and for how long, and what is said about it."""

from __future__ import annotations

import gzip
import threading
import time
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from otel_perf.telemetry import delivery
from otel_perf.telemetry.connection import Connection, Response
from otel_perf.telemetry.delivery import LOST, Answer, Delivery, packed, partial_success
from otel_perf.testing import FakeCollector, behaviour

REQUEST = packed(ExportTraceServiceRequest().SerializeToString() or b"", True)


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch):
    monkeypatch.setattr(delivery, "_said", {})


@pytest.fixture
def collector():
    with FakeCollector() as made:
        yield made


@pytest.fixture
def deliver(collector):
    made = []

    def make(address: str | None = None, timeout_s: float = 10) -> Delivery:
        address = address or f"{collector.url}/v1/traces"
        connection = Connection(address, {"content-type": "application/x-protobuf"})
        made.append(Delivery(connection, "spans", address, timeout_s))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def at_once(monkeypatch):
    """No waiting of our own choice between attempts."""
    monkeypatch.setattr(delivery, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(delivery, "_LONGEST_WAIT_S", 0.002)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("code", [429, 502, 503, 504])
def test_what_may_pass_is_sent_again(collector, deliver, code):
    """As long as the time allows."""
    collector.behaviour = behaviour.status(code).times(3)
    assert deliver().send(REQUEST) == Answer(True)
    assert len(collector.requests) == 4


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 500, 501])
def test_what_does_not_pass_is_not_sent_again(collector, deliver, code, caplog):
    """The answer is final, and the reason is said once."""
    collector.behaviour = behaviour.status(code)
    sending = deliver()
    assert [sending.send(REQUEST) for _ in range(3)] == [LOST] * 3
    assert len(collector.requests) == 3
    assert caplog.messages == [f"otel_perf: spans could not be sent to {collector.url}/v1/traces: it answered {code}"]


def test_a_redirect_is_not_followed(collector, deliver, caplog):
    """What we send and its headers are for the address that was configured."""
    with FakeCollector() as elsewhere:
        collector.behaviour = behaviour.redirect(f"{elsewhere.url}/v1/traces")
        assert deliver().send(REQUEST) == LOST
        assert elsewhere.requests == []
    assert "redirects are not followed" in caplog.text


@pytest.mark.parametrize("page", ["<html>please log in</html>", "OK", "{}", "null"])
def test_success_without_otlp_is_none(collector, deliver, page, caplog):
    """A login page that answers 200 has not taken anything."""
    collector.behaviour = behaviour.html(page)
    assert deliver().send(REQUEST) == LOST
    assert "what is not OTLP; is the address right?" in caplog.text


@pytest.mark.usefixtures("at_once")
def test_a_reset_connection_is_tried_again(collector, deliver):
    """Also when the request was read already."""
    collector.behaviour = behaviour.refuse().times(2)
    assert deliver().send(REQUEST) == Answer(True)


def test_retry_after_is_heeded(collector, deliver):
    """In seconds and as a date: the next attempt is not before it."""
    collector.behaviour = behaviour.status(503, retry_after=0.2).times(1)
    began = time.monotonic()
    assert deliver().send(REQUEST) == Answer(True)
    assert time.monotonic() - began >= 0.2
    collector.behaviour = behaviour.status(429, retry_after=datetime.now(timezone.utc) + timedelta(seconds=-5)).times(1)
    assert deliver().send(REQUEST) == Answer(True)


@pytest.mark.parametrize("wait", [60, datetime.now(timezone.utc) + timedelta(hours=1), "inf"])
def test_a_wait_beyond_the_time_is_not_begun(collector, deliver, wait):
    """Who says to come back in an hour gets one request, and no other before; who shuts down asks all the same."""
    collector.behaviour = behaviour.status(503, retry_after=wait)
    sending = deliver(timeout_s=5)
    assert sending.send(REQUEST) == LOST
    assert 59 < sending.held_s <= 300
    assert sending.send(REQUEST) == LOST
    assert len(collector.requests) == 1
    collector.behaviour = behaviour.ok()
    sending.stop(time.monotonic() + 10)
    assert sending.held_s == 0
    assert sending.send(REQUEST) == Answer(True)


def test_a_patient_payload_waits_as_long_as_it_is_asked_to(collector, deliver):
    """Beyond the time of an export; it is not lost, and those behind it wait as well."""
    collector.behaviour = behaviour.status(503, retry_after=0.6).times(1)
    sending = deliver(timeout_s=0.3)
    assert sending.send(REQUEST, patient=True) == Answer(True)
    assert len(collector.requests) == 2
    sending._not_before = time.monotonic() + 0.4
    assert sending.send(REQUEST) == LOST
    assert len(collector.requests) == 2
    assert sending.send(REQUEST, patient=True) == Answer(True)


def test_patience_has_an_end(collector, deliver, monkeypatch):
    """A payload for which a server asks for time again and again is lost."""
    monkeypatch.setattr(delivery, "_LONGEST_HOLD_S", 0.5)
    collector.behaviour = behaviour.status(503, retry_after=0.3)
    assert deliver(timeout_s=0.2).send(REQUEST, patient=True) == LOST
    assert 1 <= len(collector.requests) <= 3


@pytest.mark.parametrize("wait", [0, -5, datetime.now(timezone.utc) - timedelta(hours=1)])
def test_no_answer_makes_us_faster(collector, deliver, wait):
    """Who asks for no wait, or for one that is over, is asked again after ours."""
    collector.behaviour = behaviour.status(503, retry_after=wait)
    assert deliver(timeout_s=0.4).send(REQUEST) == LOST
    assert len(collector.requests) <= 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, 0.0), ("", 0.0), ("soon", 0.0), ("nan", 0.0), ("-3", 0.0), ("1.5", 1.5), ("inf", 300.0), ("301", 300.0),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("Wed, 21 Oct 2015 07:28:00", 0.0), ("Wed, 21 Oct 2015", 0.0),
     ("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", 0.0), ("Fri, 31 Dec 9999 23:59:59 -2359", 300.0)],
)  # fmt: skip
def test_forms_of_retry_after(value, expected):
    """What cannot be read counts as not said."""
    assert delivery._retry_after(value) == expected


def test_waits_grow_and_differ():
    """Twice as long each time up to a limit, and not the same for all processes."""
    for before in range(12):
        longest = min(5.0, 0.5 * 2**before)
        waits = {delivery._backoff(before) for _ in range(20)}
        assert len(waits) > 1
        assert all(longest / 2 <= wait <= longest for wait in waits)


@pytest.mark.parametrize("act", [behaviour.hang(), behaviour.drip(0.02)])
def test_the_time_of_an_export_holds(collector, deliver, act):
    """Whatever the server does."""
    collector.behaviour = act
    assert deliver(timeout_s=0.2).send(REQUEST) == LOST
    assert deliver(timeout_s=60).send(REQUEST, within_s=0.2) == LOST


def test_stopping_ends_a_wait(collector, deliver):
    """One more attempt is made at once; after that each payload gets one."""
    collector.behaviour = behaviour.status(503, retry_after=50)
    sending, answers = deliver(timeout_s=100), []
    thread = threading.Thread(target=lambda: answers.append(sending.send(REQUEST)))
    thread.start()
    collector.wait_for(requests=1)
    collector.behaviour = behaviour.ok()
    sending.stop(time.monotonic() + 10)
    thread.join(10)
    assert answers == [Answer(True)]
    collector.behaviour = behaviour.status(503)
    assert sending.send(REQUEST) == LOST
    assert len(collector.requests) == 3


def test_nothing_is_sent_after_the_end(collector, deliver):
    """An end that is past leaves no time for an attempt."""
    sending = deliver()
    sending.stop(time.monotonic() - 1)
    assert sending.send(REQUEST) == LOST
    assert collector.requests == []


def test_giving_up_ends_a_hanging_request(collector, deliver):
    """At once."""
    collector.behaviour = behaviour.hang()
    sending, answers = deliver(timeout_s=100), []
    thread = threading.Thread(target=lambda: answers.append(sending.send(REQUEST)))
    thread.start()
    collector.wait_for(requests=1)
    sending.abort()
    thread.join(10)
    assert answers == [LOST]


@pytest.mark.usefixtures("at_once")
def test_one_line_a_minute(collector, deliver, caplog, monkeypatch):
    """For a server that is not there, whatever the signal; secrets of the address are not in it."""
    collector.behaviour = behaviour.refuse()
    for name in ("traces", "metrics", "traces"):
        assert deliver(f"{collector.url}/v1/{name}?key=geheim", timeout_s=0.01).send(REQUEST) == LOST
    assert len(caplog.messages) == 1
    assert "geheim" not in caplog.text
    monkeypatch.setattr(delivery, "_said", {key: said - 61 for key, said in delivery._said.items()})
    assert deliver(timeout_s=0.01).send(REQUEST) == LOST
    assert len(caplog.messages) == 2


def test_partial_success_is_told(collector, deliver, caplog):
    """How many were rejected, and the reason without secrets, once a minute."""
    collector.behaviour = behaviour.partial(2, "password=geheim is too long")
    sending = deliver()
    assert [sending.send(REQUEST) for _ in range(2)] == [Answer(True, 2)] * 2
    assert len(caplog.messages) == 1
    assert "rejected 2 of the spans" in caplog.text
    assert "geheim" not in caplog.text


# The answer ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, (1 << 63) - 1), st.text(max_size=20))
def test_partial_success_is_what_protobuf_says(rejected, message):
    """For spans and for metrics, whose messages have the same fields."""
    part = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    answer = ExportTraceServiceResponse(partial_success=part).SerializeToString()
    assert partial_success(answer) == (rejected, message)
    metrics = ExportMetricsServiceResponse()
    metrics.partial_success.rejected_data_points = rejected
    assert partial_success(metrics.SerializeToString()) == (rejected, "")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=12))
def test_what_is_read_is_what_protobuf_reads(body):
    """Bytes that are no message are refused, and never anything else happens."""
    try:
        rejected, _ = partial_success(body)
    except ValueError:
        return
    assert 0 <= rejected < 1 << 63


def test_unknown_fields_are_passed_over():
    """A later version may say more; a negative count is none."""
    known = ExportTraceServiceResponse(partial_success=ExportTracePartialSuccess(rejected_spans=-1)).SerializeToString()
    more = b"\x10\x07" + b"\x1a\x01x" + b"\x21" + bytes(8) + b"\x2d" + bytes(4)
    assert partial_success(more + known + more) == (0, "")


@pytest.mark.parametrize("body", [b"\x0a", b"\x0a\x05x", b"\x08", b"\x08\x01", b"\x21\x00", b"\x00\x00", b"\xff" * 11])
def test_broken_messages_are_refused(body):
    """Cut off, of a wrong kind, without a field number."""
    with pytest.raises(ValueError, match=r"."):
        partial_success(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (0, "")),
        (b"{}", (0, "")),
        (b'{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "no"}}', (3, "no")),
        (b'{"partialSuccess": {"rejectedDataPoints": 2}}', (2, "")),
        (b"[]", None),
        (b'"ok"', None),
        (b"{", None),
        (b'{"partialSuccess": [1]}', None),
        (b'{"partialSuccess": null}', (0, "")),
        (b'{"error": "please log in"}', None),
        (b'{"partialSuccess": {}, "error": "please log in"}', None),
        (b'{"partialSuccess": {"rejectedSpans": 1e999}}', None),
        (b'{"partialSuccess": {"rejectedSpans": NaN}}', None),
        (b"[" * 60_000, None),
        (b"null", None),
        (b'""', None),
    ],
)
def test_answers_in_json(body, expected):
    """There are servers that answer in JSON whatever they are sent."""
    response = Response(200, {"content-type": "application/json; charset=utf-8"}, body)
    if expected is None:
        with pytest.raises(ValueError, match=r"."):
            delivery._read(response)
    else:
        assert delivery._read(response) == expected


def test_only_what_is_worth_it_is_compressed():
    """Short bodies go as they are, long ones in gzip's form."""
    assert packed(b"x" * 511, True) == (b"x" * 511, False)
    assert packed(b"x" * 5000, False) == (b"x" * 5000, False)
    payload = packed(b"x" * 5000, True)
    assert payload.gzip
    assert gzip.decompress(payload.body) == b"x" * 5000
    assert payload.size_bytes == len(payload.body) < 100
