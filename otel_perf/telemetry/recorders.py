"""The instruments of the OpenTelemetry metrics API over our registry, and the bound ones that only we have.

A bound instrument has its attributes already: `histogram.bind({"route": "/"}).record(0.2)` is little more than one
append. The specification has no such call yet; instruments of other providers have no `bind`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TypeAlias

from opentelemetry import metrics
from opentelemetry.context import Context

from otel_perf import guard
from otel_perf.telemetry import sdk
from otel_perf.telemetry.batch import Number, Value
from otel_perf.telemetry.instrument import FOLD_AT, Instrument
from otel_perf.telemetry.numbers import plain

__all__ = [
    "BoundCounter",
    "BoundGauge",
    "BoundHistogram",
    "Counter",
    "Gauge",
    "Histogram",
    "ObservableCounter",
    "ObservableGauge",
    "ObservableUpDownCounter",
    "UpDownCounter",
    "sampled",
]

Attributes: TypeAlias = "Mapping[str, Any] | None"

_LOWEST = -sys.float_info.max
_INF = math.inf
_get_context, _SPAN_KEY = sdk.get_context, sdk.SPAN_KEY
_time_ns = time.time_ns


def sampled(value: Number, context: Context | None = None) -> Value:
    """The value with the trace it belongs to, when that trace is recorded; else the bare value."""
    span: Any = (context or _get_context()).get(_SPAN_KEY)
    if span is None:
        return value
    # A span context is a tuple; its properties would each be a call.
    trace_id, span_id, _, flags, _, valid = span.get_span_context()
    return (value, trace_id, span_id, _time_ns()) if flags & 1 and valid else value


class _Bound:
    """One series of one instrument."""

    __slots__ = ("_exemplars", "_lowest", "_series")

    def __init__(self, instrument: Instrument, attributes: Attributes, lowest: float, exemplars: bool) -> None:
        self._series = instrument.bind(attributes or {})
        self._lowest = lowest
        self._exemplars = exemplars

    def _put(self, amount: Number) -> None:
        # Written out, since each call here is counted; `_Recorder._put` says the same in fewer lines.
        try:
            if amount.__class__ is not float:
                amount = plain(amount)
            if self._lowest <= amount < _INF or self._lowest == -_INF:
                value: Value = amount
                if self._exemplars:
                    span: Any = _get_context().get(_SPAN_KEY)
                    if span is not None:
                        trace_id, span_id, _, flags, _, valid = span.get_span_context()
                        if flags & 1 and valid:
                            value = (amount, trace_id, span_id, _time_ns())
                series = self._series
                pending = series.pending
                pending.append(value)
                if len(pending) >= FOLD_AT:
                    series.instrument.registry.fold(series)
        except Exception:
            guard.note(f"metric {self._series.instrument.metric.name}")


class BoundCounter(_Bound):
    """A counter or an up-down counter with its attributes."""

    __slots__ = ()
    add = _Bound._put


class BoundHistogram(_Bound):
    """A histogram with its attributes."""

    __slots__ = ()
    record = _Bound._put


class BoundGauge(_Bound):
    """A gauge with its attributes."""

    __slots__ = ()
    set = _Bound._put


class _Recorder:
    """What all instruments share: a way to their series."""

    _lowest = 0.0

    def __init__(self, instrument: Instrument, exemplars: bool) -> None:
        self.instrument = instrument
        self._exemplars = exemplars

    # `self` is what the API's classes declare as the owner of `add`, `record` and `set`, and always one of these.
    def _put(self: Any, amount: Number, attributes: Attributes = None, context: Context | None = None) -> None:
        try:
            if amount.__class__ is not float:
                amount = plain(amount)
            # Sums and distributions would never recover from what is not a number, or without bounds; a gauge does.
            if self._lowest <= amount < _INF or self._lowest == -_INF:
                value = sampled(amount, context) if self._exemplars else amount
                self.instrument.of(attributes or {}).record(value)
        except Exception:
            guard.note(f"metric {self.instrument.metric.name}")


class Counter(_Recorder, metrics.Counter):
    """A counter; negative amounts are left out."""

    add = _Recorder._put

    def bind(self, attributes: Attributes = None) -> BoundCounter:
        """The counter of one attribute set."""
        return BoundCounter(self.instrument, attributes, self._lowest, self._exemplars)


class UpDownCounter(_Recorder, metrics.UpDownCounter):
    """A counter that goes down too."""

    _lowest = _LOWEST
    add = _Recorder._put

    def bind(self, attributes: Attributes = None) -> BoundCounter:
        """The counter of one attribute set."""
        return BoundCounter(self.instrument, attributes, self._lowest, self._exemplars)


class Histogram(_Recorder, metrics.Histogram):
    """A distribution; negative values are left out."""

    record = _Recorder._put

    def bind(self, attributes: Attributes = None) -> BoundHistogram:
        """The distribution of one attribute set."""
        return BoundHistogram(self.instrument, attributes, self._lowest, self._exemplars)


class Gauge(_Recorder, sdk.ApiGauge):  # type: ignore[misc]  # found at run time: the name is private
    """A value of now."""

    _lowest = -_INF
    set = _Recorder._put

    def bind(self, attributes: Attributes = None) -> BoundGauge:
        """The gauge of one attribute set."""
        return BoundGauge(self.instrument, attributes, self._lowest, self._exemplars)


class ObservableCounter(_Recorder, metrics.ObservableCounter):
    """A counter that callbacks tell."""


class ObservableUpDownCounter(_Recorder, metrics.ObservableUpDownCounter):
    """An up-down counter that callbacks tell."""


class ObservableGauge(_Recorder, metrics.ObservableGauge):
    """A value that callbacks tell."""
