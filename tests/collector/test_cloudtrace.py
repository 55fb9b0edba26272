"""Both ways to Google Cloud Trace, through the real Collector into the stand-in of the real services."""

from __future__ import annotations

import base64
import json
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from collector import servers
from collector.cloudtrace import PROJECT, CloudTrace

_PROFILES = ("otelcol.yaml", "otelcol.cloudtrace-otlp.yaml", "otelcol.cloudtrace-legacy.yaml")
_DEADLINE_S = 30.0


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[CloudTrace]:
    """A fresh stand-in."""
    with CloudTrace(tmp_path / "cloud") as started:
        yield started


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _assertion(cloud: CloudTrace, key: Any = None, **claims: Any) -> str:
    account = json.loads(cloud.credentials_file.read_text(encoding="utf-8"))
    key = key or serialization.load_pem_private_key(account["private_key"].encode(), None)
    said = {"iss": account["client_email"], "aud": account["token_uri"], "exp": int(time.time()) + 60, **claims}
    signed = f"{_part({'alg': 'RS256', 'typ': 'JWT'})}.{_part(said)}"
    signature = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _ask_token(cloud: CloudTrace, assertion: str) -> dict[str, Any]:
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion}
    with urllib.request.urlopen(f"{cloud.url}/token", urllib.parse.urlencode(form).encode(), timeout=10) as answer:
        loaded: dict[str, Any] = json.load(answer)
        return loaded


def test_a_signed_assertion_gives_a_token(cloud: CloudTrace) -> None:
    """The account's own key opens the token endpoint."""
    assert _ask_token(cloud, _assertion(cloud))["token_type"] == "Bearer"


@pytest.mark.parametrize(
    "assertion",
    [
        lambda cloud: _assertion(cloud, key=rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        lambda cloud: _assertion(cloud, aud="https://elsewhere/token"),
        lambda cloud: _assertion(cloud, iss="somebody-else"),
        lambda cloud: _assertion(cloud, exp=int(time.time()) - 60),
        lambda _cloud: "no.assertion.at-all",
        lambda _cloud: "",
    ],
    ids=["another key", "another audience", "another issuer", "expired", "garbage", "none"],
)
def test_any_other_assertion_is_refused(cloud: CloudTrace, assertion: Callable[[CloudTrace], str]) -> None:
    """The stand-in checks what Google checks, so a wrong credential cannot pass a test."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        _ask_token(cloud, assertion(cloud))
    with refused.value:  # it holds the connection
        assert refused.value.code == 400


def test_a_call_without_a_token_is_refused(cloud: CloudTrace) -> None:
    """The OTLP service takes nothing from those who did not ask for a token, and counts them."""
    trusted = grpc.ssl_channel_credentials(cloud.ca_file.read_bytes())
    with grpc.secure_channel(cloud.secure_endpoint, trusted) as channel, pytest.raises(grpc.RpcError) as refused:
        TraceServiceStub(channel).Export(otlp.ExportTraceServiceRequest())  # type: ignore[no-untyped-call]
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert cloud.received.refused == 1


def _span(trace_id: str, **attributes: str) -> dict[str, Any]:
    now = time.time_ns()
    return {
        "traceId": trace_id,
        "spanId": secrets.token_hex(8),
        "name": "GET /api/calendar",
        "kind": 2,
        "startTimeUnixNano": str(now - 10_000_000),
        "endTimeUnixNano": str(now),
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()],
    }


def _send(otlp_http_url: str, *spans: dict[str, Any]) -> None:
    service = {"attributes": [{"key": "service.name", "value": {"stringValue": "streak"}}]}
    body = {"resourceSpans": [{"resource": service, "scopeSpans": [{"spans": list(spans)}]}]}
    request = urllib.request.Request(
        f"{otlp_http_url}/v1/traces", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def _arrived(cloud: CloudTrace, trace_id: str) -> dict[str, list[dict[str, Any]]]:
    """Return the spans of the trace by way, once both ways have some or time is up."""
    give_up_at = time.monotonic() + _DEADLINE_S
    while not all((spans := cloud.received.trace(trace_id)).values()) and time.monotonic() < give_up_at:
        time.sleep(0.1)
    return spans


@pytest.fixture
def collector(otelcol_binary: Path, cloud: CloudTrace) -> Iterator[servers.Otelcol]:
    """The real Collector with both profiles, sending to the stand-in."""
    configs = [servers.CONFIG / name for name in _PROFILES]
    with servers.otelcol(configs=configs, env=cloud.env) as started:
        yield started


def test_a_span_goes_both_ways(collector: servers.Otelcol, cloud: CloudTrace) -> None:
    """One span reaches the project by OTLP, over TLS and with a token, and by the older exporter."""
    trace_id = secrets.token_hex(16)
    _send(collector.otlp_http_url, _span(trace_id))
    arrived = _arrived(cloud, trace_id)
    for way in ("otlp", "legacy"):
        [span] = arrived[way]
        assert (span["name"], span["service"], span["project"]) == ("GET /api/calendar", "streak", PROJECT), way
    assert cloud.received.refused == 0


def test_what_arrived_can_be_asked_for(collector: servers.Otelcol, cloud: CloudTrace) -> None:
    """The JSON endpoint tells trace ids by way, and the spans of one trace."""
    trace_id = secrets.token_hex(16)
    _send(collector.otlp_http_url, _span(trace_id))
    arrived = _arrived(cloud, trace_id)
    with urllib.request.urlopen(f"{cloud.url}/traces", timeout=10) as answer:
        assert json.load(answer) == {"otlp": [trace_id], "legacy": [trace_id]}
    with urllib.request.urlopen(f"{cloud.url}/traces/{trace_id}", timeout=10) as answer:
        assert json.load(answer) == arrived


_SECRETS = {
    "http.request.header.authorization": "Basic YWRhOmxvdmVsYWNl",
    "http.request.header.x_api_key": "lovelace",
    "http.request.header.Proxy_Authorization": "Basic YWRhOmxvdmVsYWNl",
    "http.response.header.set_cookie": "lovelace",
    "db.query.parameter.name": "lovelace",
    "db.statement.parameters": "('lovelace',)",
    "db.connection.password": "lovelace",
    "url.full": "http://ada:lovelace@127.0.0.1/x?token=lovelace&days=3",
    "note": "sent Bearer lovelace.abc to it",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJsb3ZlbGFjZSJ9.c2lnbmF0dXJl",
    "card": "4111 1111 1111 1111",
}
_HARMLESS = {
    "db.query.text": "SELECT id FROM users WHERE name = ?",
    "url.path": "/api/activities/4111111111111111111",
    "gen_ai.usage.input_tokens": "12",
    "http.route": "/api/tokens/{id}",
}


def test_the_second_net_catches_secrets(collector: servers.Otelcol, cloud: CloudTrace) -> None:
    """Secrets that a library let through are masked before they leave, and harmless values stay as they are."""
    trace_id = secrets.token_hex(16)
    _send(collector.otlp_http_url, _span(trace_id, **_SECRETS, **_HARMLESS))
    [span] = _arrived(cloud, trace_id)["otlp"]
    told = json.dumps({key: span["attributes"][key] for key in _SECRETS})
    for secret in ("lovelace", "YWRhOmxvdmVsYWNl", "c2lnbmF0dXJl", "4111"):
        assert secret not in told
    assert "days=3" in told
    assert {key: span["attributes"][key] for key in _HARMLESS} == _HARMLESS


def test_a_restart_loses_nothing_that_waited(otelcol_binary: Path, cloud: CloudTrace, tmp_path: Path) -> None:
    """What could not be sent before a stop is on disk and is sent after the next start."""
    away = {**cloud.env, "CLOUDTRACE_OTLP_ENDPOINT": "127.0.0.1:1", "CLOUDTRACE_LEGACY_ENDPOINT": "127.0.0.1:1"}
    queue = {"OTELCOL_QUEUE_DIRECTORY": str(tmp_path / "queue")}
    configs = [servers.CONFIG / name for name in _PROFILES[:2]]
    trace_id = secrets.token_hex(16)
    with servers.otelcol(configs=configs, env={**away, **queue}) as first:
        _send(first.otlp_http_url, _span(trace_id))
    assert not cloud.received.trace_ids("otlp")
    with servers.otelcol(configs=configs, env={**cloud.env, **queue}):
        give_up_at = time.monotonic() + _DEADLINE_S
        while not cloud.received.trace_ids("otlp") and time.monotonic() < give_up_at:
            time.sleep(0.1)
    assert cloud.received.trace_ids("otlp") == {trace_id}
