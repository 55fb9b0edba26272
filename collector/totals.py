"""The books of the check beside the requests: every span that was made, by each way, and a secret by none.

What the services say that they made is the one side; what each backend has, read back from it, is the other.
"""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from collector import pipeline, readback
from collector.cloudtrace import CloudTrace
from collector.report import Finding
from collector.waiting import settled
from otel_perf.settings import Settings

__all__ = [
    "CLOUD_WAYS",
    "PUSHED",
    "ROUTES_PATH",
    "of_own_metrics",
    "of_spans",
    "of_steps",
    "of_the_collector",
    "planted_secret",
    "required_routes",
]

CLOUD_WAYS = ("otlp", "legacy")
# Both services, by the first way: scraped series have other jobs.
PUSHED = 'job=~"streak|streak-push"'
_GRAPH = 'traces_service_graph_request_total{job!="collector-scrape"'
ROUTES_PATH = "/openapi.json"
# What the service does, by the names of its spans, and in which requests.
_STEPS = {
    "log_activity": {"POST /api/activities"},
    "update_weekly_consistency": {"POST /api/activities"},
    "get_user_activities": {"GET /api/activities", "GET /api/calendar", "GET /api/insights"},
    "run_daily_maintenance": {"POST /api/admin/maintenance"},
}
# What the service counts of its own, as Prometheus calls it; of what seldom happens there may be nothing yet.
_OWN_METRICS = (
    "streak_xp_total",
    "streak_freezes_total",
    "streak_maintenance_users_total",
    "streak_cache_forgotten_total",
    "streak_cache_degraded",
    "streak_kpi_numerator",
    "streak_kpi_denominator",
)
_METHODS = ("get", "put", "post", "delete", "patch")
# Servers of this machine are asked directly, whatever proxy the environment names.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def required_routes(url: str) -> set[tuple[str, str]]:
    """Return method and route of all that the service itself says it has, but for those that are not measured."""
    with _direct.open(f"{url}{ROUTES_PATH}", timeout=10) as answer:
        paths: dict[str, dict[str, Any]] = json.load(answer)["paths"]
    excluded = Settings().excluded_routes
    return {
        (method.upper(), path)
        for path, methods in paths.items()
        for method in methods
        if method in _METHODS and not any(fnmatchcase(path, pattern) for pattern in excluded)
    }


def of_steps(url: str) -> Finding:
    """Find each step of the service in Jaeger, as a span below the request that it is part of."""

    def lacking() -> list[str]:
        return [step for step, roots in _STEPS.items() if not _is_below(url, step, roots)]

    left = settled(lacking, lambda steps: not steps)
    found = f"{len(_STEPS) - len(left)}" + (f", without {', '.join(left)}" if left else "")
    return Finding("steps of the service in Jaeger", f"{len(_STEPS)}", found, not left)


def _is_below(url: str, step: str, roots: set[str]) -> bool:
    for spans in readback.traces_with(url, "streak", step):
        by_id = {span.span_id: span for span in spans}
        for span in spans:
            above: readback.Span | None = span if span.name == step else None
            while above is not None and above.name not in roots:
                above = by_id.get(above.parent_id or "")
            if above is not None:
                return True
    return False


def of_own_metrics(url: str, ways: Mapping[str, str]) -> Finding:
    """Find what the service counts of its own, under the same names and with the same values by each way."""

    def wrong() -> list[str]:
        totals = {
            name: {way: _total(url, f"{name}{{{labels}}}") for way, labels in ways.items()} for name in _OWN_METRICS
        }
        absent = {name for name in _OWN_METRICS if len(readback.query(url, f"count by (job) ({name})")) < len(ways)}
        return [f"{name}: {by_way}" for name, by_way in totals.items() if name in absent or len({*by_way.values()}) > 1]

    left = settled(wrong, lambda names: not names)
    found = f"{len(_OWN_METRICS) - len(left)}" + (f"; {'; '.join(left)}" if left else "")
    return Finding("own metrics of the service in Prometheus", f"{len(_OWN_METRICS)}", found, not left)


def of_the_collector(running: pipeline.Pipeline) -> tuple[int, list[Finding]]:
    """Return how many spans the services made, and compare that with what the Collector says of itself."""
    url = running.prometheus.url

    def spans() -> tuple[float, float]:
        return _total(url, f"otel_perf_spans_made_total{{{PUSHED}}}"), _total(url, "otelcol_receiver_accepted_spans")

    made, accepted = settled(spans, lambda both: both[0] == both[1] > 0)
    lost = _total(url, '{__name__=~"otelcol_exporter_(send|enqueue)_failed_.+|otelcol_receiver_(refused|failed)_.+"}')
    faults = _total(url, f'{{__name__=~"otel_perf_(dropped|internal_errors)_total",{PUSHED}}}')
    return int(made), [
        Finding("spans made, and accepted by the Collector", f"{made:g}", f"{accepted:g}", made == accepted > 0),
        Finding("refused, not queued or not sent by the Collector", "0", f"{lost:g}", lost == 0),
        Finding("dropped by the services, and faults of otel_perf in them", "0", f"{faults:g}", faults == 0),
    ]


def of_spans(running: pipeline.Pipeline, cloud: CloudTrace, made: int, sent: frozenset[str]) -> Iterator[Finding]:
    """Compare the spans that were made with those in Jaeger, in Cloud Trace by both ways, and in the span metrics."""
    for way in CLOUD_WAYS:
        # `way` is bound at once: the check runs inside this turn of the loop.
        count = settled(lambda: cloud.received.span_count(way), lambda found: found == made)  # noqa: B023
        yield Finding(f"spans in Cloud Trace, {way}", f"{made}", f"{count}", count == made > 0)
    # Beside what the client sent there are traces of the services' start: any backend that has one names it.
    known = sent | cloud.received.trace_ids("otlp") | cloud.received.trace_ids("legacy")
    url = running.jaeger.url
    count = settled(lambda: sum(readback.span_counts(url, known).values()), lambda found: found == made)
    yield Finding("spans in Jaeger", f"{made}", f"{count}", count == made > 0)
    prometheus = running.prometheus.url
    calls = f"traces_span_metrics_calls_total{{{PUSHED}}}"
    measured = settled(lambda: _total(prometheus, calls), lambda found: found == made)
    yield Finding("spans in the span metrics", f"{made}", f"{measured:g}", measured == made > 0)
    yield from _graph(prometheus)
    yield _identity(prometheus)


def _graph(url: str) -> Iterator[Finding]:
    def edge() -> float:
        return _total(url, f'{_GRAPH},client="streak",server="streak-push"}}')

    calls = 'http_server_request_duration_seconds_count{job="streak-push",http_route="/api/push"}'
    expected = _total(url, calls)
    found = settled(edge, lambda count: count == expected)
    yield Finding("calls from streak to streak-push in the service graph", f"{expected:g}", f"{found:g}",
                  found == expected > 0)  # fmt: skip
    unknown, every = _total(url, f'{_GRAPH},server="unknown"}}'), _total(url, f"{_GRAPH}}}")
    yield Finding("calls in the service graph whose server is unknown", "0", f"{unknown:g} of {every:g}",
                  unknown == 0 < every)  # fmt: skip


def _identity(url: str) -> Finding:
    told = readback.query(url, f"target_info{{{PUSHED}}}")
    wanted = ("service_version", "deployment_environment_name")
    lacking = sorted({f"{labels['job']}: {name}" for labels, _ in told for name in wanted if not labels.get(name)})
    jobs = {labels["job"] for labels, _ in told}
    found = f"{len(jobs)} services" + (f", without {', '.join(lacking)}" if lacking else "")
    return Finding("version and environment of each service", "2 services", found, len(jobs) == 2 and not lacking)


def planted_secret(running: pipeline.Pipeline, cloud: CloudTrace) -> Finding:
    """Send a span with secrets straight to the Collector, as a library without otel_perf would, and look for them."""
    trace_id, word = secrets.token_hex(16), secrets.token_hex(12)
    _send(running.otelcol.otlp_http_url, trace_id, {"user.password": word, "note": f"sent Bearer {word} along"})

    def arrived() -> dict[str, str]:
        spans = {"Jaeger": [span.tags for span in readback.trace(running.jaeger.url, trace_id)]}
        by_way = cloud.received.trace(trace_id)
        spans |= {f"Cloud Trace, {way}": [span["attributes"] for span in by_way[way]] for way in CLOUD_WAYS}
        return {where: json.dumps(found) for where, found in spans.items() if found}

    shown = settled(arrived, lambda found: len(found) == 1 + len(CLOUD_WAYS))
    leaked = [where for where, text in shown.items() if word in text]
    found = f"arrived at {len(shown)}" + (f"; readable in {'; '.join(leaked)}" if leaked else ", readable in none")
    return Finding("a planted secret", "arrived at 3, readable in none", found, len(shown) == 3 and not leaked)


def _send(url: str, trace_id: str, attributes: dict[str, str]) -> None:
    now = time.time_ns()
    span = {
        "traceId": trace_id,
        "spanId": secrets.token_hex(8),
        "name": "planted by the check",
        "kind": 1,
        "startTimeUnixNano": str(now - 1_000_000),
        "endTimeUnixNano": str(now),
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()],
    }
    service = {"attributes": [{"key": "service.name", "value": {"stringValue": "planted"}}]}
    body = json.dumps({"resourceSpans": [{"resource": service, "scopeSpans": [{"spans": [span]}]}]}).encode()
    request = urllib.request.Request(f"{url}/v1/traces", body, {"Content-Type": "application/json"})
    with _direct.open(request, timeout=10):
        pass


def _total(url: str, expression: str) -> float:
    return sum(value for _, value in readback.query(url, expression))
