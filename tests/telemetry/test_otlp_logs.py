"""Log records as bytes: redacted on the way, bounded, and decodable whatever they say."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk.resources import Resource

from otel_perf.telemetry.otlp_logs import MAX_BODY, LogItem, body, logs_request
from otel_perf.testing.received import attributes


def item(text: Any = "text", **more: Any) -> LogItem:
    return LogItem(1, 2, 9, "INFO", text, tuple(more.items()), 0, 0, 0, 0, "app")


def decoded(*items: LogItem) -> list[Any]:
    request = ExportLogsServiceRequest.FromString(logs_request(items, Resource({})))
    return [each for of in request.resource_logs for scope in of.scope_logs for each in scope.log_records]


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ("user 12345 bought 'a hat' in 0.25 s", "user 12345 bought 'a hat' in 0.25 s"),
        ("password=geheim next", "password=REDACTED next"),
        ('{"api_key": "geheim", "n": 1}', '{"api_key": REDACTED, "n": 1}'),
        ("Authorization: Bearer geheim", "Authorization: Bearer REDACTED"),
        ("sent Bearer geheim to x", "sent Bearer REDACTED to x"),
        ("db_password: 'ge heim', then", "db_password: REDACTED, then"),
        ("GET https://me:geheim@host/a?token=geheim", "GET https://host/a?token=REDACTED"),
        ("/path?q=geheim done", "/path?q=REDACTED done"),
        ("session started, token bucket is full", "session started, token bucket is full"),
        ("a\x1b[31mb\x00", "a [31mb "),
    ],
)
def test_bodies_are_redacted(said, sent):
    """Secrets that are named as such and addresses lose their values; what was written to be read stays."""
    assert body(said) == sent
    assert body(sent) == sent
    assert "geheim" not in decoded(item(said))[0].body.string_value


def test_a_long_body():
    """A body of 1 MB is cut, a secret and an address far in it are found, and an odd one costs no time."""
    text = "word " * 2000 + "password=geheim https://me:geheim@host/x " + "word " * 200_000
    sent = body(text)
    assert len(sent) <= MAX_BODY
    assert "password=REDACTED" in sent
    assert "geheim" not in sent
    for odd in ("token" * 200_000, "a" * 1_000_000, "password" * 2000 + '="', "x://" * 10_000):
        assert len(body(odd)) <= MAX_BODY


def test_attributes_are_redacted():
    """What keys tell is masked as in spans of other libraries, within mappings too; 1 MB is cut."""
    told = attributes(
        decoded(item(token="geheim", url="http://a/?q=geheim", d={"password": 7, "n": 7}, big="x" * 1_000_000))[0]
    )
    assert told["token"] == "REDACTED"
    assert told["url"] == "http://a/?q=REDACTED"
    assert told["d"] == {"password": "REDACTED", "n": 7}
    assert len(told["big"]) <= 2048


def test_a_structured_body():
    """A mapping is sent as one, each value redacted by its key."""
    (record,) = decoded(item({"action": "login", "password": "geheim"}))
    told = {each.key: each.value.string_value for each in record.body.kvlist_value.values}
    assert told == {"action": "login", "password": "REDACTED"}


def test_what_cannot_be_encoded():
    """Half a surrogate pair and a number beyond 64 bits are sent as text, and cost nothing else."""
    first, second = decoded(item("a\ud800", n=1 << 70), item("b"))
    assert first.body.string_value.startswith("a")
    assert attributes(first)["n"] == str(1 << 70)
    assert second.body.string_value == "b"
