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
from otel_perf.insight.live import Live, Windowed
from otel_perf.telemetry.aggregation import Cell, Exponential, LastValue, Sum, quantile
from otel_perf.telemetry.runtime import Runtime

__all__ = ["snapshot"]

Held = list[tuple[str, Mapping[str, Any], Cell]]
Observed = list[tuple[str, Mapping[str, Any], float]]
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
        self.total.merge(cell.total)
        self.recent.merge(recent)
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


def _grouped(held: Held, metric: c.Metric, keys: Iterable[str]) -> dict[Key, _Group]:
    groups: dict[Key, _Group] = {}
    names = tuple(keys)
    for name, attributes, cell in held:
        if name == metric.name and isinstance(cell, Windowed):
            groups.setdefault(tuple(attributes.get(key) for key in names), _Group()).add(cell, attributes)
    return groups


def _all(groups: Iterable[_Group]) -> _Group:
    summed = _Group()
    for each in groups:
        summed.total.merge(each.total)
        summed.recent.merge(each.recent)
        summed.errors += each.errors
        summed.recent_errors += each.recent_errors
        summed.rejected += each.rejected
    return summed


def _sums(held: Held, metric: c.Metric, key: str | None = None) -> dict[Any, float]:
    sums: dict[Any, float] = {}
    for name, attributes, cell in held:
        if name == metric.name and isinstance(cell, (Sum, LastValue)):
            value = cell.total if isinstance(cell, Sum) else cell.value
            label = attributes.get(key) if key else None
            sums[label] = sums.get(label, 0) + (value or 0)
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
    window_s = live.window_s
    observed = list(live.observed())
    with live.held() as held:
        document: dict[str, Any] = {
            "service": _service(runtime),
            "time_unix_s": round(time.time(), 3),
            "uptime_s": round(live.uptime_s, 3),
            "window_s": round(window_s, 3),
            "requests": _requests(held, window_s),
            "queries": _queries(held, window_s),
            "cache": _cache(held, window_s),
            "external": _external(held, window_s),
            "jobs": _jobs(held, window_s),
            "steps": _steps(held, window_s),
            "catalogue": _catalogue(held, observed),
        }
    document["pools"] = _pools(observed)
    document["export"] = _export(runtime)
    return document


def _service(runtime: Runtime) -> dict[str, Any]:
    attributes = runtime.resource.attributes
    keys = {
        "name": "service.name", "version": "service.version", "environment": "deployment.environment.name",
        "instance": "service.instance.id",
    }  # fmt: skip
    return {name: attributes.get(key) for name, key in keys.items()}


def _requests(held: Held, window_s: float) -> dict[str, Any]:
    groups = _grouped(held, c.REQUEST_DURATION, (c.HTTP_METHOD, c.HTTP_ROUTE))

    def rejected(_key: Key, group: _Group) -> dict[str, Any]:
        return {"rejected": group.rejected}

    total = _all(groups.values())
    return {
        **total.document(window_s),
        "rejected": total.rejected,
        "active": int(_sums(held, c.REQUESTS_ACTIVE).get(None, 0)),
        "routes": _rows(groups, ("method", "route"), window_s, rejected),
    }


def _queries(held: Held, window_s: float) -> dict[str, Any]:
    groups = _grouped(held, c.QUERY_DURATION, (c.DB_SYSTEM, c.DB_OPERATION, c.DB_COLLECTION))
    return {
        **_all(groups.values()).document(window_s),
        "slow": int(_sums(held, c.QUERY_SLOW).get(None, 0)),
        "operations": _rows(groups, ("system", "operation", "collection"), window_s, _nothing),
    }


def _cache(held: Held, window_s: float) -> dict[str, Any]:
    results = _grouped(held, c.CACHE_DURATION, (c.CACHE_STRATEGY, c.CACHE_RESULT))
    known = {each.name: each for each in strategy.declared()}
    groups: dict[Key, _Group] = {}
    for (name, _), group in results.items():
        groups[(name,)] = _all([groups.get((name,), _Group()), group])

    def told(key: Key, _group: _Group) -> dict[str, Any]:
        declared = known.get(key[0])
        expected = {"ttl_s": declared.ttl_s, "expected_hit_rate": declared.expected_hit_rate} if declared else {}
        return {**_hits(results, key[0]), **expected}

    operations = _rows(
        _grouped(held, c.CACHE_DURATION, (c.CACHE_SYSTEM, c.CACHE_OPERATION)),
        ("system", "operation"),
        window_s,
        _nothing,
    )
    return {
        **_all(groups.values()).document(window_s),
        **_hits(results),
        "strategies": _rows(groups, ("strategy",), window_s, told),
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


def _external(held: Held, window_s: float) -> dict[str, Any]:
    groups = _grouped(held, c.EXTERNAL_DURATION, (c.PEER_SERVICE, c.EXTERNAL_OPERATION, c.EXTERNAL_CATEGORY))
    return {
        **_all(groups.values()).document(window_s),
        "services": _rows(groups, ("service", "operation", "category"), window_s, _nothing),
    }


def _jobs(held: Held, window_s: float) -> dict[str, Any]:
    groups = _grouped(held, c.JOB_DURATION, (c.JOB_NAME,))
    every_s = {each.name: each.every_s for each in jobs.declared()}
    active, items = _sums(held, c.JOBS_ACTIVE, c.JOB_NAME), _sums(held, c.JOB_ITEM_COUNT, c.JOB_NAME)
    last = _sums(held, c.JOB_LAST_SUCCESS, c.JOB_NAME)

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
    return {**_all(groups.values()).document(window_s), "jobs": _rows(groups, ("job",), window_s, told)}


def _steps(held: Held, window_s: float) -> dict[str, Any]:
    groups = _grouped(held, c.STEP_DURATION, (c.STEP_NAME, c.STEP_CATEGORY))
    items = _sums(held, c.STEP_ITEM_COUNT, c.STEP_NAME)

    def told(key: Key, _group: _Group) -> dict[str, Any]:
        return {"items": int(items.get(key[0], 0))}

    return {**_all(groups.values()).document(window_s), "steps": _rows(groups, ("step", "category"), window_s, told)}


def _catalogue(held: Held, observed: Observed) -> list[dict[str, Any]]:
    own = {metric.name: metric for metric in c.declared() if metric not in c.METRICS}
    rows: list[dict[str, Any]] = [
        {"metric": name, "unit": own[name].unit, "about": own[name].about, "attributes": dict(labels), "value": value}
        for name, labels, value in observed
        if name in own
    ]
    for name, attributes, cell in held:
        metric = own.get(name)
        if metric is None:
            continue
        row: dict[str, Any] = {
            "metric": name,
            "unit": metric.unit,
            "about": metric.about,
            "attributes": dict(attributes),
        }
        if isinstance(cell, Windowed):
            row.update(count=cell.total.count, sum=cell.total.total)
        elif isinstance(cell, (Sum, LastValue)):
            row["value"] = cell.total if isinstance(cell, Sum) else cell.value
        rows.append(row)
    return rows


def _pools(observed: Observed) -> list[dict[str, Any]]:
    pools: dict[str, dict[str, Any]] = {}
    for name, attributes, value in observed:
        if name in {c.POOL_COUNT.name, c.POOL_MAX.name}:
            pool = str(attributes.get(c.DB_POOL_NAME))
            field_name = str(attributes.get(c.DB_POOL_STATE)) if name == c.POOL_COUNT.name else "max"
            pools.setdefault(pool, {"pool": pool})[field_name] = value
    return list(pools.values())


def _export(runtime: Runtime) -> dict[str, Any]:
    sender = runtime.sender
    if sender is None:
        return {
            "sending": False, "made": None, "delivered": None, "queued": 0, "capacity": None,
            "lost": 0, "lost_by_reason": {},
        }  # fmt: skip
    lost = dict(sender.lost)
    return {
        "sending": True, "made": sender.made, "delivered": sender.delivered, "queued": sender.queued,
        "capacity": sender.capacity, "lost": sum(lost.values()), "lost_by_reason": lost,
    }  # fmt: skip
