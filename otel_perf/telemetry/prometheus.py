"""`/metrics`: the registry in Prometheus' text format and in OpenMetrics, which carries exemplars.

Names follow OpenTelemetry's "Prometheus and OpenMetrics compatibility": dots become underscores, units are appended,
counters end in `_total`, each series carries its scope's name, and the resource is `target_info`. Series of several
scopes share a family without sharing labels, so nothing is mislabelled.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import HistogramDataPoint, NumberDataPoint
from opentelemetry.sdk.resources import Resource

from otel_perf import guard
from otel_perf.telemetry.numbers import plain
from otel_perf.telemetry.series import Collected, Cursor, Registry

__all__ = ["OPENMETRICS", "TEXT", "Exposition", "family_name"]

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_UNITS = {
    "s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "min": "minutes", "h": "hours",
    "d": "days", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes", "KBy": "kilobytes",
    "MBy": "megabytes", "GBy": "gigabytes", "m": "meters", "V": "volts", "A": "amperes", "J": "joules", "W": "watts",
    "g": "grams", "Cel": "celsius", "Hz": "hertz", "%": "percent",
}  # fmt: skip
_BAD_NAME = re.compile(r"[^a-zA-Z0-9:_]+")
_BAD_LABEL = re.compile(r"[^a-zA-Z0-9_]")


def family_name(name: str, unit: str, kind: str) -> str:
    """The Prometheus family of an OpenTelemetry metric, without `_total`."""
    family = _BAD_NAME.sub("_", name)
    if family[:1].isdigit():
        family = f"_{family}"
    suffix = _UNITS.get(unit, "" if unit.startswith("{") or unit in {"", "1"} else _BAD_NAME.sub("_", unit).strip("_"))
    if unit == "1" and kind == "gauge":
        suffix = "ratio"
    if kind == "counter":
        family = family.removesuffix("_total")
    if suffix and not family.endswith(f"_{suffix}"):
        family = f"{family}_{suffix}"
    return family


@dataclass(slots=True)
class _Family:
    name: str
    kind: str
    about: str
    lines: list[str] = field(default_factory=list[str])
    seen: set[str] = field(default_factory=set[str])


class Exposition:
    """One cumulative reader of the registry that writes itself out."""

    def __init__(self, registry: Registry) -> None:
        self._cursor: Cursor = registry.cursor()

    def render(self, resource: Resource, *, openmetrics: bool = False) -> str:
        """All metrics up to now, in OpenMetrics or in the older text format."""
        families: dict[str, _Family] = {}
        for each in self._cursor.collect():
            try:
                _add(families, each, openmetrics)
            except Exception:  # one metric that cannot be written costs itself and not the scrape
                guard.note(f"writing metric {each.instrument.metric.name}")
        info = _labels(resource.attributes)
        if openmetrics:
            target = _Family("target", "info", "Target metadata", [f"target_info{info} 1"])
        else:
            target = _Family("target_info", "gauge", "Target metadata", [f"target_info{info} 1"])
        lines = [line for family in (target, *families.values()) for line in _written(family)]
        return "\n".join([*lines, "# EOF", ""] if openmetrics else [*lines, ""])


def _written(family: _Family) -> Iterator[str]:
    yield f"# HELP {family.name} {_escape(family.about, quotes=False)}"
    yield f"# TYPE {family.name} {family.kind}"
    yield from family.lines


def _add(families: dict[str, _Family], collected: Collected, openmetrics: bool) -> None:
    instrument = collected.instrument
    metric = instrument.metric
    kind = {"updowncounter": "gauge"}.get(metric.kind, metric.kind)
    base = family_name(metric.name, metric.unit, kind)
    sample = f"{base}_total" if kind == "counter" else base
    name = base if openmetrics else sample
    family = families.setdefault(name, _Family(name, kind, metric.about))
    if family.kind != kind:  # another scope gave this name another meaning: one family cannot hold both
        return
    scope = {"otel_scope_name": instrument.scope.name}
    for point in collected.points:
        labels = {**(point.attributes or {}), **scope}
        written = _labels(labels)
        if written in family.seen:  # names or labels that differ only in what Prometheus cannot write
            continue
        family.seen.add(written)
        if isinstance(point, HistogramDataPoint):
            family.lines.extend(_histogram(base, point, labels, openmetrics))
        elif isinstance(point, NumberDataPoint):
            tail = _exemplar(point.exemplars, openmetrics and kind == "counter")
            family.lines.append(f"{sample}{written} {_number(point.value)}{tail}")


def _histogram(name: str, point: HistogramDataPoint, labels: dict[str, Any], openmetrics: bool) -> Iterator[str]:
    if "le" in labels:  # it is the bucket's own label here
        labels["exported_le"] = labels.pop("le")
    bounds = [*point.explicit_bounds, math.inf]
    by_bucket: dict[int, Exemplar] = {}
    for exemplar in point.exemplars:
        by_bucket[next(i for i, bound in enumerate(bounds) if exemplar.value <= bound)] = exemplar
    total = 0
    for index, (bound, count) in enumerate(zip(bounds, point.bucket_counts, strict=True)):
        total += count
        tail = _exemplar([by_bucket[index]] if index in by_bucket else [], openmetrics)
        yield f"{name}_bucket{_labels({**labels, 'le': _number(float(bound))})} {total}{tail}"
    whole = _labels(labels)
    yield f"{name}_count{whole} {point.count}"
    yield f"{name}_sum{whole} {_number(point.sum)}"


def _exemplar(exemplars: Iterable[Exemplar], wanted: bool) -> str:
    if not wanted:
        return ""
    for each in exemplars:
        if each.trace_id and each.span_id:
            ids = f'{{trace_id="{each.trace_id:032x}",span_id="{each.span_id:016x}"}}'
            return f" # {ids} {_number(each.value)} {each.time_unix_nano / 1e9:.3f}"
    return ""


def _labels(attributes: Mapping[str, Any]) -> str:
    # Keys that fall together when cleaned are joined, as the compatibility page asks for.
    merged: dict[str, list[str]] = {}
    for key in sorted(attributes):
        name = _BAD_LABEL.sub("_", key)
        name = f"_{name}" if name[:1].isdigit() else name
        merged.setdefault(name, []).append(_value(attributes[key]))
    body = ",".join(f'{name}="{_escape(";".join(values))}"' for name, values in merged.items())
    return f"{{{body}}}" if body else ""


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, (list, tuple)) else str(value)


def _escape(value: str, *, quotes: bool = True) -> str:
    value = value.replace("\\", "\\\\").replace("\n", "\\n")
    return value.replace('"', '\\"') if quotes else value


def _number(value: float) -> str:
    value = plain(value)
    if isinstance(value, int):
        return str(value)
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
