"""Drive the streak service through the whole pipeline and account for everything that should have arrived.

Everything is read back from where an operator would look: Prometheus for the counts, its exemplars for a trace id,
Jaeger for the trace, and the stand-in of Google Cloud Trace for both ways out.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collector import pipeline, readback, totals
from collector.cloudtrace import CloudTrace
from collector.report import Finding, Report, print_tables
from collector.waiting import settled
from examples.streak import traffic

__all__ = ["Sent", "account", "run", "stack_under_check"]

_PROFILES = ("otelcol.cloudtrace-otlp.yaml", "otelcol.cloudtrace-legacy.yaml")
_DURATION = "http_server_request_duration_seconds"
_KINDS = ("request", "cache", "query", "external")
# Everything short, so that what was sent is soon where it goes; nothing here changes what is sent.
_QUICK = {
    "OTEL_METRIC_EXPORT_INTERVAL": "1000",
    "OTEL_BSP_SCHEDULE_DELAY": "200",
    "OTELCOL_FLUSH_INTERVAL": "1s",
    "STREAK_DEMO": "1",
}

# How metrics come to Prometheus: what the report calls the way, and the series that came by it.
_WAYS = {
    "pushed": 'job="streak"',
    "scraped": 'job="app"',
    "via_collector": 'job="collector-scrape",exported_job="streak"',
}

_Requests = Counter[tuple[str, str, str]]  # method, route, status
# As fast as the service goes: the books are checked here, not its looks. The same seed sends the same requests.
_RATE = 1000.0
_SEED = 3
_TURNS = 5
_UNREAD_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Sent:
    """What the client sent: how often by method, route and status, and the traces that the answers named."""

    requests: _Requests
    trace_ids: frozenset[str]
    unanswered: int = 0

    @property
    def total(self) -> int:
        """How many requests were answered."""
        return self.requests.total()


def run(*, traces: int = 1000, as_json: bool = False) -> int:
    """Check the pipeline, print the report, and return the exit code."""
    with stack_under_check(say=_say) as (running, cloud):
        report = account(running, cloud, traces=traces, say=_say)
    if as_json:
        print(report.as_json())
    else:
        print_tables(report)
    return 0 if report.ok else 1


@contextmanager
def stack_under_check(say: pipeline.Say) -> Iterator[tuple[pipeline.Pipeline, CloudTrace]]:
    """Start all of it on free ports, with Cloud Trace's stand-in and both profiles."""
    with tempfile.TemporaryDirectory(prefix="otel_perf-check-") as folder, CloudTrace(Path(folder)) as cloud:
        started = pipeline.pipeline(
            pipeline.free_choice(),
            profiles=_PROFILES,
            env={**_QUICK, **cloud.env},
            targets=("app", "collector-scrape"),
            say=say,
        )
        with started as running:
            yield running, cloud


def account(running: pipeline.Pipeline, cloud: CloudTrace, *, traces: int, say: pipeline.Say) -> Report:
    """Send traffic and find out what became of it."""
    assert running.streak is not None
    began = time.time()
    say(f"traffic: {traces} requests")
    sent = _drive(running.streak.url, running.secret, traces)
    say(f"traffic: {sent.total} requests answered in {time.time() - began:.1f} s")
    found = f"{sent.total}, and {sent.unanswered} unread"
    answered = sent.total == traces and sent.unanswered <= traces * _UNREAD_SHARE
    findings = [Finding("requests answered", f"{traces}", found, answered)]
    findings.append(_all_routes(sent, totals.required_routes(running.streak.url)))
    findings += [_all_counted(running, sent, way, say) for way in _WAYS]
    findings.append(totals.of_own_metrics(running.prometheus.url, _WAYS))
    say("jaeger: looking for every trace")
    missing = settled(lambda: readback.missing_traces(running.jaeger.url, sent.trace_ids), lambda left: not left)
    unique = len(sent.trace_ids)
    # Each answer names its trace, so fewer traces than requests is a fault as well.
    complete = not missing and unique == traces
    findings.append(Finding("traces in Jaeger", f"{traces}", f"{unique - len(missing)}", complete))
    findings.append(totals.of_steps(running.jaeger.url))
    findings += _whole_trace(running, cloud, began)
    findings += _cloud_trace(cloud, sent)
    say("spans: comparing what was made with what is where")
    made, collected = totals.of_the_collector(running)
    findings += [*collected, *totals.of_spans(running, cloud, made, sent.trace_ids)]
    # Last, for it is a span that no service made.
    findings.append(totals.planted_secret(running, cloud))
    return Report(
        findings=tuple(findings),
        routes=tuple(_by_route(running, sent)),
        traces={"sent": unique, "missing": len(missing)},
        seconds=round(time.time() - began, 1),
    )


def _drive(url: str, secret: str, requests: int) -> Sent:
    """Send until so many requests were answered.

    A server closes the connection on which an exception went through, and what a client sends on it at that moment is
    never read. Such a request was not served, so another takes its place.
    """
    sent: _Requests = Counter()
    trace_ids: set[str] = set()
    unanswered = 0
    for turn in range(_TURNS):
        left = requests - sent.total()
        if not left:
            break
        counts = asyncio.run(traffic.drive(url, secret=secret, requests=left, rate=_RATE, seed=_SEED + turn))
        for route, answers in counts.routes.items():
            for (method, status), count in answers.items():
                sent[method, route, str(status)] += count
        trace_ids.update(counts.trace_ids)
        unanswered += counts.failed
    return Sent(sent, frozenset(trace_ids), unanswered)


def _all_routes(sent: Sent, required: set[tuple[str, str]]) -> Finding:
    """Every route that the service has was asked: what nobody sends cannot be found missing."""
    asked = {(method, route) for method, route, _ in sent.requests}
    unasked = sorted(required - asked)
    found = f"{len(required) - len(unasked)}"
    if unasked:
        found += f"; never sent: {', '.join(' '.join(key) for key in unasked)}"
    return Finding("routes of the service that were asked", f"{len(required)}", found, not unasked and bool(required))


def _counted(running: pipeline.Pipeline, way: str) -> _Requests:
    labels = "http_request_method, http_route, http_response_status_code"
    # But for the one request by which the check itself asks what routes there are.
    selector = f'{_WAYS[way]},http_route!="{totals.ROUTES_PATH}"'
    series = readback.query(running.prometheus.url, f"sum by ({labels}) ({_DURATION}_count{{{selector}}})")
    counted: _Requests = Counter()
    for found, value in series:
        method, route, status = (found.get(label, "") for label in labels.split(", "))
        counted[method, route, status] += int(value)
    return counted


def _all_counted(running: pipeline.Pipeline, sent: Sent, way: str, say: pipeline.Say) -> Finding:
    say(f"prometheus: waiting for every request, {way}")
    expected = sent.requests
    counted = settled(lambda: _counted(running, way), lambda found: found == expected)
    wrong = sorted(key for key in expected.keys() | counted.keys() if expected[key] != counted[key])
    found = f"{sum(counted.values())}"
    if wrong:
        found += "; " + ", ".join(f"{' '.join(key)}: {expected[key]} sent, {counted[key]} found" for key in wrong[:5])
    return Finding(f"requests in Prometheus, {way}", f"{sent.total}", found, not wrong)


def _by_route(running: pipeline.Pipeline, sent: Sent) -> Iterator[dict[str, Any]]:
    ways = {way: _counted(running, way) for way in _WAYS}
    for method, route in sorted({key[:2] for key in sent.requests}):

        def total(of: Mapping[tuple[str, str, str], int], key: tuple[str, str] = (method, route)) -> int:
            return sum(count for found, count in of.items() if found[:2] == key)

        yield {
            "method": method,
            "route": route,
            "sent": total(sent.requests),
            **{way: total(counted) for way, counted in ways.items()},
        }


def _whole_trace(running: pipeline.Pipeline, cloud: CloudTrace, began: float) -> list[Finding]:
    """Follow an exemplar of Prometheus into Jaeger and to Cloud Trace."""
    selector = f"{_DURATION}_bucket{{{_WAYS['pushed']}}}"

    def candidates() -> list[tuple[str, str]]:
        return readback.exemplar_trace_ids(running.prometheus.url, selector, began, time.time())

    exemplars = settled(candidates, bool)
    opened = {trace_id: readback.trace(running.jaeger.url, trace_id) for _, trace_id in exemplars}
    whole = next((trace_id for trace_id, spans in opened.items() if not _lacking(spans)), None)
    count = sum(1 for spans in opened.values() if spans)
    findings = [
        Finding("exemplars that open in Jaeger", f"{len(opened)}, not none", f"{count}", 0 < count == len(opened))
    ]
    # Where none is whole, tell what the best of them lacks.
    best = whole or min(opened, key=lambda trace_id: len(_lacking(opened[trace_id])), default="")
    lacks = _lacking(opened.get(best, []))
    found = f"{best}: {len(opened.get(best, []))} spans" + (f", without {', '.join(lacks)}" if lacks else "")
    findings.append(Finding("an exemplar's trace", "request, cache, query, external; two services", found, not lacks))
    arrived = settled(lambda: cloud.received.trace(best), lambda spans: all(spans.values()))
    findings += [
        Finding(f"the same trace in Cloud Trace, {way}", "its spans", f"{len(spans)} spans", bool(spans))
        for way, spans in arrived.items()
    ]
    return findings


def _lacking(spans: list[readback.Span]) -> list[str]:
    """Return what a trace lacks to be whole: kinds under its first request, the second service."""
    by_id = {span.span_id: span for span in spans}
    roots = [span for span in spans if span.kind == "request" and span.parent_id not in by_id]
    if len(roots) != 1:
        return ["one root request"]
    under = {span.kind for span in spans if _ancestor(span, by_id) is roots[0] and span.service == roots[0].service}
    lacking = [kind for kind in _KINDS if kind not in under]
    remote = [span for span in spans if span.kind == "request" and span.service != roots[0].service]
    if not any(_ancestor(span, by_id) is roots[0] for span in remote):
        lacking.append("a request of the second service")
    return lacking


def _ancestor(span: readback.Span, by_id: Mapping[str, readback.Span]) -> readback.Span:
    """Return the span at the top of a span's own branch."""
    seen = {span.span_id}
    while span.parent_id is not None and span.parent_id in by_id and span.parent_id not in seen:
        seen.add(span.parent_id)
        span = by_id[span.parent_id]
    return span


def _cloud_trace(cloud: CloudTrace, sent: Sent) -> Iterator[Finding]:
    wanted = sent.trace_ids
    for way in totals.CLOUD_WAYS:
        # `way` is bound at once: the check runs inside this turn of the loop.
        arrived = settled(lambda: wanted & cloud.received.trace_ids(way), lambda found: found == wanted)  # noqa: B023
        yield Finding(f"traces in Cloud Trace, {way}", f"{len(wanted)}", f"{len(arrived)}", arrived == wanted)


def _say(text: str) -> None:
    print(f"[check] {text}", file=sys.stderr, flush=True)
