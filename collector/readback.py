"""Read back what arrived in Prometheus and Jaeger, by their own APIs."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

__all__ = ["Span", "exemplar_trace_ids", "missing_traces", "query", "span_counts", "trace", "traces_with"]

_TIMEOUT_S = 10.0
_AT_ONCE = 8
# Servers of this machine are asked directly, whatever proxy the environment names.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A span as Jaeger tells it."""

    span_id: str
    parent_id: str | None
    service: str
    name: str
    tags: dict[str, Any]

    @property
    def kind(self) -> str:
        """What the span measures: request, cache, query, external or other."""
        if self.tags.get("span.kind") == "server":
            return "request"
        if "cache.operation.name" in self.tags:
            return "cache"
        if "db.system.name" in self.tags:
            return "query"
        if "external.operation" in self.tags or self.tags.get("span.kind") == "client":
            return "external"
        return "other"


def query(prometheus_url: str, expression: str) -> list[tuple[dict[str, str], float]]:
    """Return the labels and the value of each series that the expression yields now."""
    answer = _get(f"{prometheus_url}/api/v1/query", query=expression)
    return [(series["metric"], float(series["value"][1])) for series in answer["data"]["result"]]


def exemplar_trace_ids(prometheus_url: str, selector: str, start_s: float, end_s: float) -> list[tuple[str, str]]:
    """Return route and trace id of each exemplar of the selected series."""
    answer = _get(
        f"{prometheus_url}/api/v1/query_exemplars", query=selector, start=f"{start_s:.3f}", end=f"{end_s:.3f}"
    )
    return [
        (series["seriesLabels"].get("http_route", ""), exemplar["labels"]["trace_id"])
        for series in answer["data"]
        for exemplar in series["exemplars"]
        if "trace_id" in exemplar["labels"]
    ]


def trace(jaeger_url: str, trace_id: str) -> list[Span]:
    """Return the spans of a trace; none when Jaeger does not have it."""
    try:
        answer = _get(f"{jaeger_url}/api/traces/{trace_id}")
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            if error.code == 404:
                return []
            raise
    return _spans(answer)


def traces_with(jaeger_url: str, service: str, name: str) -> list[list[Span]]:
    """Return some of the traces that have a span of this name."""
    answer = _get(f"{jaeger_url}/api/traces", service=service, operation=name, limit="5")
    return [_spans({"data": [found]}) for found in answer["data"]]


def _spans(answer: Any) -> list[Span]:
    return [
        Span(
            span_id=span["spanID"],
            parent_id=next((ref["spanID"] for ref in span["references"] if ref["refType"] == "CHILD_OF"), None),
            service=found["processes"][span["processID"]]["serviceName"],
            name=span["operationName"],
            tags={tag["key"]: tag["value"] for tag in span["tags"]},
        )
        for found in answer["data"]
        for span in found["spans"]
    ]


def missing_traces(jaeger_url: str, trace_ids: Iterable[str]) -> list[str]:
    """Return those of the trace ids that Jaeger does not have."""
    return [trace_id for trace_id, count in span_counts(jaeger_url, trace_ids).items() if not count]


def span_counts(jaeger_url: str, trace_ids: Iterable[str]) -> dict[str, int]:
    """Return how many spans Jaeger has of each trace; one that it was sent twice counts once."""
    asked = list(trace_ids)
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        found = pool.map(lambda trace_id: len({span.span_id for span in trace(jaeger_url, trace_id)}), asked)
        return dict(zip(asked, found, strict=True))


def _get(url: str, **parameters: str) -> Any:
    asked = f"{url}?{urllib.parse.urlencode(parameters)}" if parameters else url
    with _direct.open(asked, timeout=_TIMEOUT_S) as answer:
        return json.load(answer)
