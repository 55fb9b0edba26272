"""What `/api/health` says, in words: whether requests, database, cache and the telemetry itself are well."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

__all__ = ["Losses", "health"]

_LEAST_SAMPLES = 5
_BAD_SHARE = 0.5
_FULL_SHARE = 0.8
_LOSING_S = 60.0
_GROUPS = {"requests": "requests", "database": "queries", "cache": "cache"}


class Losses:
    """Whether spans or metrics are being lost now: the document knows only how many were, since the start."""

    __slots__ = ("_clock", "_metrics", "_spans")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spans = _Rise()
        self._metrics = _Rise()

    def lately(self, document: Mapping[str, Any]) -> bool:
        """Whether a count rose between two looks, the second of them within the last minute.

        Metrics are tried at their interval only: a loss counts until well after the next one.
        """
        now_s, export = self._clock(), document["export"]
        spans_s = self._spans.ago_s(export["lost"], now_s)
        metrics_s = self._metrics.ago_s(export["metrics"]["lost"], now_s)
        return spans_s < _LOSING_S or metrics_s < _LOSING_S + (export["metrics"].get("interval_s") or 0.0)


@dataclass(slots=True)
class _Rise:
    """A count, and when it last rose."""

    count: float = 0
    rose_s: float = -math.inf

    def ago_s(self, count: float, now_s: float) -> float:
        if count > self.count:
            self.rose_s = now_s
        self.count = count
        return now_s - self.rose_s


def health(document: Mapping[str, Any] | None, *, losing: bool = False) -> dict[str, Any]:
    """The judgement on a snapshot, None where nothing is configured.

    Args:
        document: what `snapshot` in `otel_perf.insight.snapshot` says.
        losing: spans or metrics are being lost.
    """
    if document is None:
        services = {**dict.fromkeys(_GROUPS, "unknown"), "telemetry": "not_configured"}
        return _document(services, datetime.now(timezone.utc).timestamp())
    services = {name: _group(document[group]["recent"]) for name, group in _GROUPS.items()}
    services["telemetry"] = _telemetry(document["export"], losing)
    return _document(services, document["time_unix_s"])


def _document(services: dict[str, str], time_unix_s: float) -> dict[str, Any]:
    well = all(word not in {"degraded", "not_configured"} for word in services.values())
    return {
        "status": "healthy" if well else "degraded",
        "services": services,
        "timestamp": datetime.fromtimestamp(time_unix_s, timezone.utc).isoformat(timespec="milliseconds"),
    }


def _group(recent: Mapping[str, Any]) -> str:
    count: int = recent["count"]
    if count < _LEAST_SAMPLES:
        return "unknown"
    return "degraded" if recent["errors"] >= _BAD_SHARE * count else "healthy"


def _telemetry(export: Mapping[str, Any], losing: bool) -> str:
    if not export["sending"]:
        return "not_sending"
    return "degraded" if losing or export["queued"] > _FULL_SHARE * (export["capacity"] or 0) else "healthy"
