"""Views that an application passes: stock `View` objects, read once and applied to our instruments.

Honoured are the criteria of the instrument, and name, description, attribute keys, aggregation and cardinality limit
of the stream. A factory of exemplar reservoirs and `record_min_max=False` are not: exemplars are the newest of each
bucket, and minimum and maximum are always there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from opentelemetry.sdk import metrics as stock
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    LastValueAggregation,
    SumAggregation,
    View,
)

from otel_perf.conventions import InstrumentKind
from otel_perf.telemetry import recorders, sdk
from otel_perf.telemetry.aggregation import Cell, Explicit, Exponential
from otel_perf.telemetry.instrument import OVERFLOW, Instrument
from otel_perf.telemetry.series import Registry, Series, default_cell

__all__ = ["Views"]

_log = logging.getLogger("otel_perf")

# What a view may name as the type of an instrument, the API's classes included: by kind, and whether callbacks tell it.
_TYPES: dict[tuple[InstrumentKind, bool], tuple[type, ...]] = {
    ("counter", False): (stock.Counter, recorders.Counter),
    ("counter", True): (stock.ObservableCounter, recorders.ObservableCounter),
    ("updowncounter", False): (stock.UpDownCounter, recorders.UpDownCounter),
    ("updowncounter", True): (stock.ObservableUpDownCounter, recorders.ObservableUpDownCounter),
    ("histogram", False): (stock.Histogram, recorders.Histogram),
    ("gauge", False): (recorders.Gauge,),
    ("gauge", True): (stock.ObservableGauge, recorders.ObservableGauge),
}


@dataclass(frozen=True, slots=True)
class _View:
    """A stock view, by the names of its arguments."""

    instrument_type: type | None
    instrument_name: str | None
    instrument_unit: str | None
    meter_name: str | None
    meter_version: str | None
    meter_schema_url: str | None
    name: str | None
    description: str | None
    attribute_keys: set[str] | None
    aggregation: object
    aggregation_cardinality_limit: int | None


class Views:
    """What a list of views makes of an instrument; call it with the instrument and whether callbacks tell it."""

    def __init__(self, registry: Registry, views: Sequence[View]) -> None:
        self._registry = registry
        self._views = [read for view in views if (read := _read(view)) is not None]

    def __call__(self, instrument: Instrument, observed: bool) -> Sequence[Instrument] | None:
        matching = [
            view for view in self._views if _matches(view, instrument, observed) and _fits(view, instrument, observed)
        ]
        if not matching:
            return None
        seen = [view for view in matching if not isinstance(view.aggregation, DropAggregation)]
        return [self._stream(view, instrument) for view in seen]

    def _stream(self, view: _View, of: Instrument) -> Instrument:
        metric = replace(
            of.metric,
            name=view.name or of.metric.name,
            about=view.description or of.metric.about,
            kind=_kind(view.aggregation, of.metric.kind),
        )
        made = Instrument(self._registry, metric, of.scope)
        made.source_kind = of.source_kind
        made.limit = view.aggregation_cardinality_limit
        if view.attribute_keys is not None:
            made.keys = frozenset({*view.attribute_keys, OVERFLOW})
        if _kind(view.aggregation, None) is not None:
            made.make_cell = lambda series: _cell(view.aggregation, series)
        return made


def _read(view: View) -> _View | None:
    try:
        return _View(**{field.name: sdk.argument(view, field.name) for field in fields(_View)})
    except AttributeError as error:
        _log.warning("otel_perf: this opentelemetry-sdk keeps views otherwise (%s): a view is not applied", error)
        return None


def _kind(aggregation: object, usual: Any) -> Any:
    """The kind of metric that an aggregation makes of one of the usual kind; that kind where it says nothing."""
    if isinstance(aggregation, (ExplicitBucketHistogramAggregation, ExponentialBucketHistogramAggregation)):
        return "histogram"
    if isinstance(aggregation, LastValueAggregation):
        return "gauge"
    if isinstance(aggregation, SumAggregation):
        return "counter" if usual == "counter" else "updowncounter"  # the sum of what is no counter may fall
    return usual


def _cell(aggregation: object, series: Series) -> Cell | None:
    if isinstance(aggregation, ExponentialBucketHistogramAggregation):
        scale = sdk.argument(aggregation, "max_scale", 20)
        return Exponential(scale, max_size=sdk.argument(aggregation, "max_size", 160))
    if isinstance(aggregation, ExplicitBucketHistogramAggregation):
        bounds = sdk.argument(aggregation, "boundaries", None)
        if bounds is not None:
            return Explicit(tuple(bounds))
    return default_cell(series)


def _matches(view: _View, instrument: Instrument, observed: bool) -> bool:
    metric, scope = instrument.metric, instrument.scope
    if view.instrument_type is not None and not _is_a(view.instrument_type, metric.kind, observed):
        return False
    if view.instrument_name is not None and not fnmatchcase(metric.name.lower(), view.instrument_name.lower()):
        return False
    if view.instrument_unit is not None and not fnmatchcase(metric.unit, view.instrument_unit):
        return False
    wanted = (view.meter_name, view.meter_version, view.meter_schema_url)
    given = (scope.name, scope.version, scope.schema_url)
    return all(want is None or want == has for want, has in zip(wanted, given, strict=True))


def _is_a(wanted: type, kind: InstrumentKind, observed: bool) -> bool:
    # The SDK's synchronous gauge has no public name.
    name = wanted.__name__.removeprefix("_")
    return any(issubclass(each, wanted) or each.__name__ == name for each in _TYPES.get((kind, observed), ()))


def _fits(view: _View, instrument: Instrument, observed: bool) -> bool:
    if observed and _kind(view.aggregation, None) == "histogram":
        _log.warning(
            "otel_perf: the view of %s is not applied: what callbacks tell makes no histogram", instrument.metric.name
        )
        return False
    return True
