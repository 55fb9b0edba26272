"""The check itself: it must find what is missing."""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from collector import check, readback, report, servers, totals, waiting
from examples.streak import traffic

_TAGS: dict[str, dict[str, Any]] = {
    "request": {"span.kind": "server"},
    "cache": {"span.kind": "client", "cache.operation.name": "get"},
    "query": {"span.kind": "client", "db.system.name": "postgresql"},
    "external": {"span.kind": "client", "external.operation": "send"},
    "other": {"span.kind": "internal"},
}


def _span(span_id: str, parent_id: str | None, kind: str, service: str = "streak") -> readback.Span:
    return readback.Span(span_id=span_id, parent_id=parent_id, service=service, name=kind, tags=_TAGS[kind])


_WHOLE = [
    _span("1", None, "request"),
    _span("2", "1", "other"),
    _span("3", "2", "cache"),
    _span("4", "2", "query"),
    _span("5", "2", "external"),
    _span("6", "5", "request", "push"),
]


def test_a_whole_trace_lacks_nothing() -> None:
    """Request, cache, query and external under one root, and the second service under that."""
    assert check._lacking(_WHOLE) == []
    assert [span.kind for span in _WHOLE] == ["request", "other", "cache", "query", "external", "request"]


@pytest.mark.parametrize(
    ("gone", "lack"),
    [("3", "cache"), ("4", "query"), ("6", "a request of the second service"), ("1", "one root request")],
)
def test_each_missing_span_is_named(gone: str, lack: str) -> None:
    """A trace without one of its parts tells which."""
    assert lack in check._lacking([span for span in _WHOLE if span.span_id != gone])


def test_without_the_external_span_the_services_are_not_joined() -> None:
    """When the span between the services is lost, the second service's request stands on its own."""
    lacking = check._lacking([span for span in _WHOLE if span.span_id != "5"])
    assert lacking == ["one root request"]


def test_an_empty_trace_lacks_its_root() -> None:
    """A trace that did not arrive is not whole."""
    assert check._lacking([]) == ["one root request"]


def test_a_loop_of_parents_ends() -> None:
    """Broken parents do not hang the check."""
    assert check._lacking([_span("1", "2", "other"), _span("2", "1", "other")]) == ["one root request"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there at once is not waited for."""
    monkeypatch.setattr(waiting, "_DEADLINE_S", 0.0)


def _sent() -> check.Sent:
    return check.Sent(Counter({("GET", "/a", "200"): 3, ("GET", "/a", "404"): 1}), frozenset({"t"}))


def _series(status: str, value: float) -> tuple[dict[str, str], float]:
    return {"http_request_method": "GET", "http_route": "/a", "http_response_status_code": status}, value


def test_requests_that_were_not_read_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a closing connection swallowed is sent anew, and counted apart."""
    asked: list[int] = []

    async def drive(_url: str, *, requests: int, **_options: object) -> traffic.Counts:
        asked.append(requests)
        failed = 1 if len(asked) == 1 else 0
        answered = {("GET", 200): requests - failed}
        return traffic.Counts(routes={"/a": answered}, trace_ids=[f"t{len(asked)}"], failed=failed)

    monkeypatch.setattr(traffic, "drive", drive)
    sent = check._drive("http://127.0.0.1:1", "secret", 10)
    assert asked == [10, 1]
    assert sent == check.Sent(Counter({("GET", "/a", "200"): 10}), frozenset({"t1", "t2"}), unanswered=1)


@pytest.mark.parametrize(
    ("series", "ok"),
    [
        ([_series("200", 3), _series("404", 1)], True),
        ([_series("200", 2), _series("404", 1)], False),
        ([_series("200", 3)], False),
        ([_series("200", 3), _series("404", 1), _series("500", 1)], False),
        ([_series("200", 4)], False),
        ([], False),
    ],
    ids=["all", "one less", "one status gone", "one too many", "wrong status", "nothing"],
)
def test_counts_must_be_equal_by_route_and_status(
    impatient: None, monkeypatch: pytest.MonkeyPatch, series: list[tuple[dict[str, str], float]], ok: bool
) -> None:
    """Neither less nor more nor other than what was sent is accepted."""
    monkeypatch.setattr(readback, "query", lambda _url, _expression: series)
    running: Any = SimpleNamespace(prometheus=SimpleNamespace(url=""))
    finding = check._all_counted(running, _sent(), "pushed", lambda _text: None)
    assert finding.ok is ok
    assert ok or "sent" in finding.found


def test_a_trace_that_did_not_reach_cloud_trace_is_found(impatient: None) -> None:
    """Each way is judged on its own."""
    arrived = {"otlp": {"t"}, "legacy": set[str]()}
    cloud: Any = SimpleNamespace(received=SimpleNamespace(trace_ids=arrived.__getitem__))
    assert [finding.ok for finding in check._cloud_trace(cloud, _sent())] == [True, False]


@pytest.mark.parametrize("asked", [("GET", "/a"), ("POST", "/a")])
def test_a_route_that_was_never_asked_is_named(asked: tuple[str, str]) -> None:
    """A route of the service that the traffic leaves out cannot be told from one that works, so it is a finding."""
    finding = check._all_routes(_sent(), {("GET", "/a"), asked})
    assert finding.ok is (asked == ("GET", "/a"))
    assert finding.ok or "POST /a" in finding.found
    assert not check._all_routes(_sent(), set()).ok


class _Cloud:
    """What the stand-in of Cloud Trace would tell."""

    def __init__(self, *, otlp: int = 5, legacy: int = 5, shown: str = "****") -> None:
        self._counts = {"otlp": otlp, "legacy": legacy}
        self._shown = shown
        self.received = self

    def span_count(self, way: str) -> int:
        return self._counts[way]

    def trace_ids(self, _way: str) -> set[str]:
        return {"t", "start"}

    def trace(self, _trace_id: str) -> dict[str, list[dict[str, Any]]]:
        return {way: [{"attributes": {"note": self._shown}}] for way in totals.CLOUD_WAYS}


def _answer(**changed: float) -> Any:
    """Answer as a Prometheus would after five spans, two of them calls, but for what is changed."""
    told = {"made": 5.0, "accepted": 5.0, "lost": 0.0, "faults": 0.0, "calls": 5.0, "edge": 2.0, "unknown": 0.0}
    told |= changed
    by_part = {
        "otel_perf_spans_made": "made", "receiver_accepted": "accepted", "enqueue": "lost", "internal_errors": "faults",
        "span_metrics": "calls", 'server="unknown"': "unknown", 'client="streak"': "edge",
    }  # fmt: skip

    def query(_url: str, expression: str) -> list[tuple[dict[str, str], float]]:
        if "target_info" in expression:
            jobs = ("streak", "streak-push")[: int(told.get("services", 2))]
            version = {"service_version": "1", "deployment_environment_name": "demo"} if "version" not in told else {}
            return [({"job": job, **version}, 1.0) for job in jobs]
        name = next((name for part, name in by_part.items() if part in expression), None)
        return [({}, told[name] if name else 2.0)]

    return query


_RUNNING: Any = SimpleNamespace(
    prometheus=SimpleNamespace(url=""), jaeger=SimpleNamespace(url=""), otelcol=SimpleNamespace(otlp_http_url="")
)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({}, None),
        ({"accepted": 4}, "spans made, and accepted by the Collector"),
        ({"made": 0, "accepted": 0}, "spans made, and accepted by the Collector"),
        ({"lost": 1}, "refused, not queued or not sent by the Collector"),
        ({"faults": 1}, "dropped by the services, and faults of otel_perf in them"),
    ],
)
def test_the_collector_must_have_taken_what_was_made(
    impatient: None, monkeypatch: pytest.MonkeyPatch, changed: dict[str, float], fault: str | None
) -> None:
    """A span that was not accepted, and one that was refused or dropped, are findings of their own."""
    monkeypatch.setattr(readback, "query", _answer(**changed))
    _made, findings = totals.of_the_collector(_RUNNING)
    assert [finding.name for finding in findings if not finding.ok] == ([fault] if fault else [])


@pytest.mark.parametrize(
    ("changed", "cloud", "fault"),
    [
        ({}, {}, None),
        ({}, {"otlp": 4}, "spans in Cloud Trace, otlp"),
        ({}, {"legacy": 6}, "spans in Cloud Trace, legacy"),
        ({"jaeger": 4}, {}, "spans in Jaeger"),
        ({"calls": 0}, {}, "spans in the span metrics"),
        ({"edge": 0}, {}, "calls from streak to streak-push in the service graph"),
        ({"unknown": 1}, {}, "calls in the service graph whose server is unknown"),
        ({"services": 1}, {}, "version and environment of each service"),
        ({"version": 0}, {}, "version and environment of each service"),
    ],
)
def test_every_backend_must_have_every_span(
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, float],
    cloud: dict[str, int],
    fault: str | None,
) -> None:
    """One span less, or one too many, in one place is told by that place's name."""
    monkeypatch.setattr(readback, "query", _answer(**changed))
    start = int(changed.get("jaeger", 5)) - 3
    monkeypatch.setattr(readback, "span_counts", lambda _url, ids: {"t": 3, "start": start} if len(ids) == 2 else {})
    told: Any = _Cloud(otlp=cloud.get("otlp", 5), legacy=cloud.get("legacy", 5))
    findings = list(totals.of_spans(_RUNNING, told, 5, frozenset({"t"})))
    assert [finding.name for finding in findings if not finding.ok] == ([fault] if fault else [])


@pytest.mark.parametrize(
    ("in_jaeger", "in_cloud", "ok"),
    [("****", "****", True), ("c0ffee", "****", False), ("****", "c0ffee", False), (None, "****", False)],
    ids=["masked", "readable in Jaeger", "readable in Cloud Trace", "not arrived"],
)
def test_a_secret_must_arrive_masked(
    impatient: None, monkeypatch: pytest.MonkeyPatch, in_jaeger: str | None, in_cloud: str, ok: bool
) -> None:
    """The planted secret is a finding where it can be read, and where its span did not arrive at all."""
    spans = [] if in_jaeger is None else [readback.Span(span_id="1", parent_id=None, service="planted", name="planted",
                                                       tags={"note": in_jaeger})]  # fmt: skip
    monkeypatch.setattr(readback, "trace", lambda _url, _trace_id: spans)
    monkeypatch.setattr(totals, "_send", lambda _url, _trace_id, _attributes: None)
    monkeypatch.setattr(secrets, "token_hex", lambda _length: "c0ffee")
    told: Any = _Cloud(shown=in_cloud)
    assert totals.planted_secret(_RUNNING, told).ok is ok


def test_one_bad_finding_fails_the_report() -> None:
    """The verdict is that of all findings, in both forms of the report."""
    good = report.Finding("a", "1", "1", ok=True)
    bad = report.Finding("b", "1", "0", ok=False)
    for findings, ok in (((good,), True), ((good, bad), False)):
        made = report.Report(findings=findings, routes=(), traces={"sent": 1, "missing": 0}, seconds=0.0)
        assert made.ok is ok
        assert json.loads(made.as_json())["ok"] is ok


def test_jaeger_tells_missing_traces_from_others(jaeger_server: servers.Jaeger) -> None:
    """Of two trace ids the one that Jaeger was never sent is missing."""
    there, missing = secrets.token_hex(16), secrets.token_hex(16)
    now = time.time_ns()
    span = {
        "traceId": there, "spanId": secrets.token_hex(8), "name": "GET /x", "kind": 2,
        "startTimeUnixNano": str(now - 1000), "endTimeUnixNano": str(now),
    }  # fmt: skip
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()
    sending = urllib.request.Request(
        f"{jaeger_server.otlp_http_url}/v1/traces", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(sending, timeout=10):
        pass
    give_up_at = time.monotonic() + 30
    while not (spans := readback.trace(jaeger_server.url, there)) and time.monotonic() < give_up_at:
        time.sleep(0.1)
    assert [(found.name, found.kind, found.parent_id) for found in spans] == [("GET /x", "request", None)]
    assert readback.missing_traces(jaeger_server.url, [there, missing]) == [missing]


def test_exemplars_come_through_the_collector(
    otelcol_binary: Path, prometheus_server: servers.Prometheus, tmp_path: Path
) -> None:
    """An exemplar of an OTLP histogram is in Prometheus, with its trace id, after remote write."""
    trace_id, now = secrets.token_hex(16), time.time_ns()
    exemplar = {"timeUnixNano": str(now), "asDouble": 0.02, "traceId": trace_id, "spanId": secrets.token_hex(8)}
    point = {
        "startTimeUnixNano": str(now - 10**9), "timeUnixNano": str(now), "count": "1", "sum": 0.02,
        "bucketCounts": ["0", "1"], "explicitBounds": [0.01], "exemplars": [exemplar],
        "attributes": [{"key": "http.route", "value": {"stringValue": "/x"}}],
    }  # fmt: skip
    histogram = {"dataPoints": [point], "aggregationTemporality": 2}
    metric = {"name": "http.server.request.duration", "unit": "s", "histogram": histogram}
    service = {"attributes": [{"key": "service.name", "value": {"stringValue": "exemplary"}}]}
    body = json.dumps({"resourceMetrics": [{"resource": service, "scopeMetrics": [{"metrics": [metric]}]}]}).encode()
    selector = 'http_server_request_duration_seconds_bucket{job="exemplary"}'
    with servers.otelcol(env={"PROMETHEUS_REMOTE_WRITE_URL": prometheus_server.remote_write_url}) as otelcol:
        sending = urllib.request.Request(
            f"{otelcol.otlp_http_url}/v1/metrics", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(sending, timeout=10):
            pass
        give_up_at = time.monotonic() + 30
        found: list[tuple[str, str]] = []
        while not found and time.monotonic() < give_up_at:
            found = readback.exemplar_trace_ids(prometheus_server.url, selector, now / 1e9 - 60, now / 1e9 + 60)
            time.sleep(0.1)
    assert found == [("/x", trace_id)]
