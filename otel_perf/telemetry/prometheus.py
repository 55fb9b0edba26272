"""`/metrics`: the registry in Prometheus' text format and in OpenMetrics, which carries exemplars.

Names follow OpenTelemetry's "Prometheus and OpenMetrics compatibility": dots become underscores, units are appended,
counters end in `_total`, each series carries its scope, and the resource is `target_info`. Series of several scopes
share a family without sharing labels, so nothing is mislabelled. Series that Prometheus cannot tell apart are added
up. What is counted in exponential buckets is written with the bounds of those that hold something.
"""

from __future__ import annotations

import json
import math
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import ExponentialHistogramDataPoint, HistogramDataPoint, NumberDataPoint
from opentelemetry.sdk.resources import Resource

from otel_perf import guard
from otel_perf.telemetry.aggregation import Point
from otel_perf.telemetry.numbers import plain
from otel_perf.telemetry.summing import Figures, Tally, put
from otel_perf.telemetry.told import Scope

__all__ = ["OPENMETRICS", "TEXT", "Exposition", "family_name", "wants_openmetrics"]

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


def wants_openmetrics(accept: str) -> bool:
    """Whether this `Accept` header asks for OpenMetrics at least as much as for the older text format."""
    openmetrics, text = 0.0, 0.0
    for offer in accept.lower().split(","):
        kind, *parameters = [part.strip() for part in offer.split(";")]
        told = dict(part.replace(" ", "").split("=", 1) for part in parameters if "=" in part)
        if kind == "application/openmetrics-text" and told.get("version", "1.0.0") in {"0.0.1", "1.0.0"}:
            openmetrics = max(openmetrics, _weight(told.get("q")))
        elif kind == "text/plain":
            text = max(text, _weight(told.get("q")))
    return openmetrics > 0 and openmetrics >= text


def _weight(told: str | None) -> float:
    try:
        return 1.0 if told is None else float(told)
    except ValueError:
        return 0.0


@dataclass(slots=True)
class _Family:
    name: str
    kind: str
    about: str
    sample: str
    #: Its points, by their labels as they are written.
    points: dict[str, Point] = field(default_factory=dict[str, Point])


# What the samples of a family are called beside the family: no other family may have such a name.
_SUFFIXES = {
    "counter": ("", "_total", "_created"), "histogram": ("", "_bucket", "_count", "_sum", "_created"),
    "gauge": ("",), "info": ("", "_info"),
}  # fmt: skip
_NOTHING: Mapping[str, str] = {}
# A histogram's samples have a label of their own.
_OF_BUCKETS = {"le": "exported_le"}
# Attributes of one process, which would change with the worker that answers.
_OF_ONE_PROCESS = ("service.instance.id", "process.")


class Exposition:
    """The figures of all workers, written out for Prometheus."""

    def __init__(self, read: Callable[[], Tally]) -> None:
        self._read = read

    def render(self, resource: Resource, *, openmetrics: bool = False) -> str:
        """All metrics up to now, in OpenMetrics or in the older text format."""
        tally = self._read()
        page = _Page(openmetrics)
        several = tally.living + tally.ended > 1
        page.target({k: v for k, v in resource.attributes.items() if not (several and k.startswith(_OF_ONE_PROCESS))})
        # In an order of their own: where two do not go together the same one has to stay, whichever worker is asked.
        for each in sorted(tally.of_reader("metrics"), key=_order):
            try:
                page.add(each)
            except Exception:  # one metric that cannot be written costs itself and not the scrape
                guard.note(f"writing metric {each.metric.name}")
        lines = page.lines()
        return "\n".join([*lines, "# EOF", ""] if openmetrics else [*lines, ""])


def _order(figures: Figures) -> tuple[str, ...]:
    metric, scope = figures.metric, figures.scope
    return (metric.name, scope.name, scope.version, scope.schema_url, metric.kind, metric.unit, repr(scope.attributes))


class _Page:
    """The families of one answer, by the name that their samples begin with."""

    def __init__(self, openmetrics: bool) -> None:
        self._families: dict[str, _Family] = {}
        self._openmetrics = openmetrics
        self._taken: set[str] = set()
        self._target: list[str] = []

    def target(self, attributes: Mapping[str, Any]) -> None:
        """The resource."""
        name, kind = ("target", "info") if self._openmetrics else ("target_info", "gauge")
        self._taken.update(f"target{suffix}" for suffix in _SUFFIXES["info"])
        self._target = [*_heading(name, kind, "Target metadata"), f"target_info{_labels(attributes)} 1"]

    def lines(self) -> list[str]:
        """All that was put in."""
        written = list(self._target)
        for family in self._families.values():
            written += _heading(family.name, family.kind, _escape(family.about, quotes=self._openmetrics))
            for labels, point in family.points.items():
                try:
                    written += list(_samples(family.sample, labels, point, self._openmetrics))
                except Exception:  # recorded past the API
                    guard.note(f"writing metric {family.name}")
        return written

    def _family(self, base: str, kind: str, about: str) -> _Family | None:
        """The family; None where another metric has its name, or that of one of its samples, for something else."""
        known = self._families.get(base)
        if known is not None and known.kind == kind:
            return known
        names = {f"{base}{suffix}" for suffix in _SUFFIXES[kind]}
        if known is not None or names & self._taken:
            return None
        self._taken |= names
        sample = f"{base}_total" if kind == "counter" else base
        made = self._families[base] = _Family(base if self._openmetrics else sample, kind, about, sample)
        return made

    def add(self, figures: Figures) -> None:
        """One metric of one scope."""
        metric = figures.metric
        kind = "gauge" if metric.kind == "updowncounter" else metric.kind
        family = self._family(family_name(metric.name, metric.unit, kind), kind, metric.about)
        if family is None:
            return
        scope, renamed = _scope_labels(figures.scope), _OF_BUCKETS if kind == "histogram" else _NOTHING
        for point in figures.points.values():
            # Names or labels may differ only in what Prometheus cannot write: added up they never go down.
            put(family.points, _labels({**(point.attributes or {}), **scope}, renamed), point, figures)


def _heading(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]


def _scope_labels(scope: Scope) -> dict[str, Any]:
    own = {"name": scope.name, "version": scope.version, "schema_url": scope.schema_url}
    told = {name: value for name, value in own.items() if value or name == "name"}
    return {f"otel_scope_{name}": value for name, value in (*scope.attributes, *told.items()) if name}


def _samples(name: str, written: str, point: Any, openmetrics: bool) -> Iterator[str]:
    if isinstance(point, NumberDataPoint):
        tail = _exemplar(point.exemplars, openmetrics and name.endswith("_total"))
        yield f"{name}{written} {_number(point.value)}{tail}"
        return
    bounds, counts = _buckets(point)
    by_bucket: dict[int, Exemplar] = {}
    if openmetrics:
        by_bucket = {bisect_left(bounds, exemplar.value): exemplar for exemplar in point.exemplars}
    begin, total = f"{name}_bucket{written[:-1]},le=", 0
    for index, (bound, count) in enumerate(zip((*bounds, math.inf), counts, strict=True)):
        total += count
        tail = _exemplar([by_bucket[index]], wanted=True) if index in by_bucket else ""
        yield f'{begin}"{_number(float(bound))}"}} {total}{tail}'
    yield f"{name}_count{written} {point.count}"
    yield f"{name}_sum{written} {_number(point.sum)}"


def _buckets(point: HistogramDataPoint | ExponentialHistogramDataPoint) -> tuple[Sequence[float], Sequence[int]]:
    """Upper bounds and counts, the one above all bounds included."""
    if isinstance(point, HistogramDataPoint):
        return point.explicit_bounds, point.bucket_counts
    # Neither text format knows native histograms: the buckets that hold something become classic ones.
    factor = math.ldexp(1.0, -point.scale)
    filled = [(i, n) for i, n in enumerate(point.positive.bucket_counts, point.positive.offset) if n]
    zeros = point.count - sum(count for _, count in filled)
    bounds = [0.0, *(_power((index + 1) * factor) for index, _ in filled)]
    return bounds, [zeros, *(count for _, count in filled), 0]


def _power(exponent: float) -> float:
    return 2.0**exponent if exponent < 1024 else sys.float_info.max


def _exemplar(exemplars: Iterable[Exemplar], wanted: bool) -> str:
    if not wanted:
        return ""
    for each in exemplars:
        if each.trace_id and each.span_id:
            ids = f'{{trace_id="{each.trace_id:032x}",span_id="{each.span_id:016x}"}}'
            return f" # {ids} {_number(each.value)} {each.time_unix_nano / 1e9:.3f}"
    return ""


def _labels(attributes: Mapping[str, Any], renamed: Mapping[str, str] = _NOTHING) -> str:
    # Keys that fall together when cleaned are joined, as the compatibility page asks for.
    merged: dict[str, list[str]] = {}
    for key in sorted(attributes):
        if key:  # Prometheus knows no label without a name
            name = _label(key)
            merged.setdefault(renamed.get(name, name), []).append(_value(attributes[key]))
    body = ",".join(f'{name}="{_escape(";".join(values))}"' for name, values in merged.items())
    return f"{{{body}}}" if body else ""


def _label(key: str) -> str:
    name = _BAD_LABEL.sub("_", key)
    if name.startswith("__"):  # reserved: one `__name__` would cost the whole scrape
        return f"attr{name}"
    return f"_{name}" if name[0].isdigit() else name


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
