"""An application's own metrics: declared once, known to the page, the dashboards and the checks.

    broken = catalogue.counter("streak.broken", unit="{streak}", attributes=("reason",), about="Streaks that ended")
    broken.add(1, reason="missed")

Handles may be made before `configure()`; until then nothing is recorded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from otel_perf import conventions, guard
from otel_perf.conventions import InstrumentKind, Metric
from otel_perf.telemetry import runtime
from otel_perf.telemetry.meter import sampled
from otel_perf.telemetry.numbers import plain

__all__ = ["CounterHandle", "GaugeHandle", "HistogramHandle", "attach", "counter", "gauge", "histogram", "watch"]

Number = int | float
Observed = Number | Iterable[tuple[Number, Mapping[str, Any]]] | None

# What the specification allows as the name of an instrument.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-/]{0,254}")

_observed: list[tuple[Metric, Callable[[], Observed]]] = []


@dataclass(frozen=True, slots=True)
class _Handle:
    metric: Metric

    def _record(self, value: Number, labels: Mapping[str, Any]) -> None:
        in_force = runtime.current
        if in_force is None:
            return
        try:
            kind, value = self.metric.kind, plain(value)
            _check(self.metric, value, labels)
            series = in_force.at(self.metric, tuple(labels.get(key) for key in self.metric.attributes))
            series.record(sampled(value) if kind != "gauge" and in_force.exemplars else value)
        except Exception:
            guard.note(f"metric {self.metric.name}")


def _check(metric: Metric, value: Number, labels: Mapping[str, Any]) -> None:
    if math.isnan(value) or (math.isinf(value) and metric.kind != "gauge"):
        raise ValueError(f"metric {metric.name} takes no {value}")
    if value < 0 and metric.kind != "gauge":
        raise ValueError(f"metric {metric.name} takes no value below 0, such as {value}; declare a gauge for those")
    unknown = labels.keys() - metric.attributes
    if unknown:
        known = ", ".join(metric.attributes) or "none"
        raise ValueError(f"metric {metric.name} has no attributes {sorted(unknown)}; declared are: {known}")


class CounterHandle(_Handle):
    """A sum that only grows."""

    __slots__ = ()

    def add(self, amount: Number = 1, /, **labels: Any) -> None:
        """Adds an amount of 0 or more."""
        self._record(amount, labels)


class HistogramHandle(_Handle):
    """A distribution."""

    __slots__ = ()

    def record(self, value: Number, /, **labels: Any) -> None:
        """Records one value of 0 or more, in the metric's unit."""
        self._record(value, labels)


class GaugeHandle(_Handle):
    """A value of now."""

    __slots__ = ()

    def set(self, value: Number, /, **labels: Any) -> None:
        """Sets the value, in the metric's unit."""
        self._record(value, labels)


def _declare(
    name: str, kind: InstrumentKind, *, unit: str, attributes: Sequence[str], about: str, buckets: Sequence[float] = ()
) -> Metric:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"metric name {name!r}: begin with a letter, then letters, digits, `.`, `_`, `-` and `/`, 255 at most"
        )
    if isinstance(attributes, str):
        raise ValueError(f"attributes of {name!r} is the text {attributes!r}: write ({attributes!r},)")  # noqa: TRY004
    if list(buckets) != sorted(set(buckets)) or not all(math.isfinite(bound) for bound in buckets):
        raise ValueError(f"buckets of {name!r} must rise: {buckets!r}; sort them, without equal or infinite ones")
    if len(set(attributes)) != len(attributes) or "" in attributes or "le" in attributes:
        raise ValueError(f"attributes of {name!r} are {attributes!r}: name each once, none empty, none `le`")
    bounds = tuple(float(bound) for bound in buckets) or None
    return conventions.declare(Metric(name, unit, kind, about, tuple(attributes), bounds))


def counter(name: str, *, unit: str = "1", attributes: Sequence[str] = (), about: str = "") -> CounterHandle:
    """Declares a counter. `unit` is UCUM (`s`, `By`, `{streak}`), `attributes` are the labels that `add` takes."""
    return CounterHandle(_declare(name, "counter", unit=unit, attributes=attributes, about=about))


def histogram(
    name: str, *, unit: str = "s", attributes: Sequence[str] = (), about: str = "", buckets: Sequence[float] = ()
) -> HistogramHandle:
    """Declares a histogram; `buckets` are rising upper bounds in the metric's unit."""
    return HistogramHandle(_declare(name, "histogram", unit=unit, attributes=attributes, about=about, buckets=buckets))


def gauge(
    name: str, *, unit: str = "1", attributes: Sequence[str] = (), about: str = "",
    observe: Callable[[], Observed] | None = None,
) -> GaugeHandle:  # fmt: skip
    """Declares a gauge: set it, or give `observe`.

    `observe` is called at each collect; it answers a number, `(number, labels)` pairs, or None for nothing to say.
    """
    metric = _declare(name, "gauge", unit=unit, attributes=attributes, about=about)
    if observe is not None:
        watch(metric, observe)
    return GaugeHandle(metric)


def watch(metric: Metric, observe: Callable[[], Observed]) -> None:
    """Connects an observer to a metric, now and at each later `configure()`; it is for the life of the process."""
    _observed.append((metric, observe))
    if runtime.current is not None:
        _attach(runtime.current, metric, observe)


def _attach(to: runtime.Runtime, metric: Metric, observe: Callable[[], Observed]) -> None:
    def pairs() -> list[tuple[Number, Mapping[str, Any]]]:
        answer = observe()
        if answer is None:
            return []
        return list(answer) if isinstance(answer, Iterable) else [(answer, {})]

    to.instrument(metric).observers.append(pairs)


def attach(to: runtime.Runtime) -> None:
    """Connects all declared observers to a runtime that `configure()` made."""
    for metric, observe in _observed:
        _attach(to, metric, observe)
