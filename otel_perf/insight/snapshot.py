"""The document behind `/api/performance`: what was measured, grouped as people ask for it.

Every group says how often (`count`, `rate_per_s`), how bad (`errors`) and how long (`p50_ms`, `p95_ms`, `p99_ms`),
since the start and, under `recent`, in the last minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from otel_perf import conventions as c
from otel_perf import jobs, strategy
from otel_perf.insight.live import Live, Reading
from otel_perf.telemetry.aggregation import Exponential, quantile
from otel_perf.telemetry.runtime import Runtime
from otel_perf.telemetry.windowed import Windowed, combine

__all__ = ["snapshot"]

Key = tuple[Any, ...]


@dataclass(slots=True)
class _Group:
    """Several series read as one."""

    total: Exponential = field(default_factory=Exponential)
    recent: Exponential = field(default_factory=Exponential)
    errors: int = 0
    recent_errors: int = 0
    rejected: int = 0

    def add(self, cell: Windowed, attributes: Mapping[str, Any]) -> None:
        recent = cell.recent()
        combine(self.total, cell.total)
        combine(self.recent, recent)
        if _failed(attributes):
            self.errors += cell.total.count
            self.recent_errors += recent.count
        elif _status(attributes) >= 400:
            self.rejected += cell.total.count

    def document(self, window_s: float) -> dict[str, Any]:
        return {
            "count": self.total.count,
            "errors": self.errors,
            **_percentiles(self.total),
            "recent": {
                "count": self.recent.count,
                "errors": self.recent_errors,
                "rate_per_s": round(self.recent.count / window_s, 3),
                **_percentiles(self.recent),
            },
        }


def _percentiles(values: Exponential) -> dict[str, float | None]:
    shares = {"p50_ms": 0.50, "p95_ms": 0.95, "p99_ms": 0.99}
    found = {name: quantile(values, share) for name, share in shares.items()}
    return {name: None if value is None else round(value * 1000, 3) for name, value in found.items()}


def _status(attributes: Mapping[str, Any]) -> int:
    status = attributes.get(c.HTTP_STATUS)
    return status if isinstance(status, int) else 0


def _failed(attributes: Mapping[str, Any]) -> bool:
    return c.ERROR_TYPE in attributes or _status(attributes) >= 500


def _grouped(read: Reading, metric: c.Metric, keys: Iterable[str]) -> dict[Key, _Group]:
    groups: dict[Key, _Group] = {}
    names = tuple(keys)
    for name, attributes, cell in read.windows:
        if name == metric.name:
            groups.setdefault(tuple(attributes.get(key) for key in names), _Group()).add(cell, attributes)
    return groups


def _all(groups: Iterable[_Group]) -> _Group:
    summed = _Group()
    for each in groups:
        combine(summed.total, each.total)
        combine(summed.recent, each.recent)
        summed.errors += each.errors
        summed.recent_errors += each.recent_errors
        summed.rejected += each.rejected
    return summed


def _sums(read: Reading, metric: c.Metric, key: str | None = None) -> dict[Any, float]:
    sums: dict[Any, float] = {}
    for name, attributes, value in read.numbers:
        if name == metric.name:
            label = attributes.get(key) if key else None
            sums[label] = sums.get(label, 0) + value
    return sums


def _rows(
    groups: dict[Key, _Group], names: tuple[str, ...], window_s: float, more: Callable[[Key, _Group], dict[str, Any]]
) -> list[dict[str, Any]]:
    rows = [
        {**dict(zip(names, key, strict=True)), **group.document(window_s), **more(key, group)}
        for key, group in groups.items()
    ]
    return sorted(rows, key=lambda row: (-row["count"], str(row)))


def _nothing(_key: Key, _group: _Group) -> dict[str, Any]:
    return {}


def snapshot(runtime: Runtime, live: Live) -> dict[str, Any]:
    """Everything that the page, the API and the terminal show, as plain JSON types."""
    read = live.read()
    return {
        "service": _service(runtime),
        "workers": {"living": read.living, "ended": read.ended},
        "time_unix_s": round(time.time(), 3),
        "uptime_s": round(read.uptime_s, 3),
        "window_s": round(read.window_s, 3),
        "requests": _requests(read),
        "queries": _queries(read),
        "cache": _cache(read),
        "external": _external(read),
        "jobs": _jobs(read),
        "steps": _steps(read),
        "catalogue": _catalogue(read),
        "pools": _pools(read),
        "export": _export(read, runtime),
    }


def _service(runtime: Runtime) -> dict[str, Any]:
    attributes = runtime.resource.attributes
    keys = {
        "name": "service.name", "version": "service.version", "environment": "deployment.environment.name",
        "instance": "service.instance.id",
    }  # fmt: skip
    return {name: attributes.get(key) for name, key in keys.items()}


def _requests(read: Reading) -> dict[str, Any]:
    groups = _grouped(read, c.REQUEST_DURATION, (c.HTTP_METHOD, c.HTTP_ROUTE))

    def rejected(_key: Key, group: _Group) -> dict[str, Any]:
        return {"rejected": group.rejected}

    total = _all(groups.values())
    return {
        **total.document(read.window_s),
        "rejected": total.rejected,
        "active": int(_sums(read, c.REQUESTS_ACTIVE).get(None, 0)),
        "routes": _rows(groups, ("method", "route"), read.window_s, rejected),
    }


def _queries(read: Reading) -> dict[str, Any]:
    groups = _grouped(read, c.QUERY_DURATION, (c.DB_SYSTEM, c.DB_OPERATION, c.DB_COLLECTION))
    return {
        **_all(groups.values()).document(read.window_s),
        "slow": int(_sums(read, c.QUERY_SLOW).get(None, 0)),
        "operations": _rows(groups, ("system", "operation", "collection"), read.window_s, _nothing),
    }


def _cache(read: Reading) -> dict[str, Any]:
    results = _grouped(read, c.CACHE_DURATION, (c.CACHE_STRATEGY, c.CACHE_RESULT))
    known = {each.name: each for each in strategy.declared()}
    groups: dict[Key, _Group] = {}
    for (name, _), group in results.items():
        groups[(name,)] = _all([groups.get((name,), _Group()), group])

    def told(key: Key, _group: _Group) -> dict[str, Any]:
        declared = known.get(key[0])
        expected = {"ttl_s": declared.ttl_s, "expected_hit_rate": declared.expected_hit_rate} if declared else {}
        return {**_hits(results, key[0]), **expected}

    operations = _rows(
        _grouped(read, c.CACHE_DURATION, (c.CACHE_SYSTEM, c.CACHE_OPERATION)),
        ("system", "operation"),
        read.window_s,
        _nothing,
    )
    return {
        **_all(groups.values()).document(read.window_s),
        **_hits(results),
        "strategies": _rows(groups, ("strategy",), read.window_s, told),
        "operations": operations,
    }


def _hits(results: dict[Key, _Group], only: object = ...) -> dict[str, Any]:
    counts = {"hit": 0, "miss": 0}
    for (name, result), group in results.items():
        if result in counts and only in (..., name):
            counts[result] += group.total.count
    reads = counts["hit"] + counts["miss"]
    rate = round(counts["hit"] / reads, 4) if reads else None
    return {"hits": counts["hit"], "misses": counts["miss"], "hit_rate": rate}


def _external(read: Reading) -> dict[str, Any]:
    groups = _grouped(read, c.EXTERNAL_DURATION, (c.PEER_SERVICE, c.EXTERNAL_OPERATION, c.EXTERNAL_CATEGORY))
    return {
        **_all(groups.values()).document(read.window_s),
        "services": _rows(groups, ("service", "operation", "category"), read.window_s, _nothing),
    }


def _jobs(read: Reading) -> dict[str, Any]:
    groups = _grouped(read, c.JOB_DURATION, (c.JOB_NAME,))
    every_s = {each.name: each.every_s for each in jobs.declared()}
    active, items = _sums(read, c.JOBS_ACTIVE, c.JOB_NAME), _sums(read, c.JOB_ITEM_COUNT, c.JOB_NAME)
    last = _sums(read, c.JOB_LAST_SUCCESS, c.JOB_NAME)

    def told(key: Key, _group: _Group) -> dict[str, Any]:
        return {
            "active": int(active.get(key[0], 0)),
            "items": int(items.get(key[0], 0)),
            "last_success_unix_s": last.get(key[0]),
            "every_s": every_s.get(key[0]),
        }

    # A job that runs for the first time, or was only declared, has no duration yet.
    for name in {*active, *every_s}:
        groups.setdefault((name,), _Group())
    return {**_all(groups.values()).document(read.window_s), "jobs": _rows(groups, ("job",), read.window_s, told)}


def _steps(read: Reading) -> dict[str, Any]:
    groups = _grouped(read, c.STEP_DURATION, (c.STEP_NAME, c.STEP_CATEGORY))
    items = _sums(read, c.STEP_ITEM_COUNT, c.STEP_NAME)

    def told(key: Key, _group: _Group) -> dict[str, Any]:
        return {"items": int(items.get(key[0], 0))}

    return {
        **_all(groups.values()).document(read.window_s),
        "steps": _rows(groups, ("step", "category"), read.window_s, told),
    }


def _catalogue(read: Reading) -> list[dict[str, Any]]:
    own = {metric.name: metric for metric in c.declared() if metric not in c.METRICS}

    def row(name: str, attributes: Mapping[str, Any], **told: Any) -> dict[str, Any]:
        metric = own[name]
        return {"metric": name, "unit": metric.unit, "about": metric.about, "attributes": dict(attributes), **told}

    return [
        *(row(name, labels, value=value) for name, labels, value in read.numbers if name in own),
        *(
            row(name, labels, count=cell.total.count, sum=cell.total.total)
            for name, labels, cell in read.windows
            if name in own
        ),
    ]


def _pools(read: Reading) -> list[dict[str, Any]]:
    pools: dict[str, dict[str, Any]] = {}
    for name, attributes, value in read.numbers:
        if name in {c.POOL_COUNT.name, c.POOL_MAX.name}:
            pool = str(attributes.get(c.DB_POOL_NAME))
            field_name = str(attributes.get(c.DB_POOL_STATE)) if name == c.POOL_COUNT.name else "max"
            pools.setdefault(pool, {"pool": pool})[field_name] = value
    return list(pools.values())


def _export(read: Reading, runtime: Runtime) -> dict[str, Any]:
    def told(metric: c.Metric) -> float | None:
        return _sums(read, metric).get(None)

    return {
        "sending": runtime.sender is not None or runtime.sends_metrics,
        "made": told(c.SPANS_MADE), "delivered": told(c.SPANS_DELIVERED),
        "queued": told(c.QUEUE_SIZE) or 0, "capacity": told(c.QUEUE_CAPACITY), **_lost(read, "traces"),
        "metrics": {
            "sending": runtime.sends_metrics, "interval_s": runtime.settings.metric_interval_s,
            **_lost(read, "metrics"),
        },
    }  # fmt: skip


def _lost(read: Reading, signal: str) -> dict[str, Any]:
    lost: dict[str, float] = {}
    for name, attributes, value in read.numbers:
        if name == c.DROPPED.name and attributes.get("signal") == signal and value:
            reason = str(attributes.get("reason"))
            lost[reason] = lost.get(reason, 0) + value
    return {"lost": sum(lost.values()), "lost_by_reason": lost}
