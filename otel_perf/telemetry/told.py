"""The form in which one worker tells its figures to the others: JSON, row by row, so that rows can be kept as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import ExponentialHistogramDataPoint, HistogramDataPoint, NumberDataPoint
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf.conventions import InstrumentKind, Metric
from otel_perf.telemetry import labels
from otel_perf.telemetry.aggregation import Exponential, Point
from otel_perf.telemetry.numbers import plain
from otel_perf.telemetry.windowed import packed, unpacked

__all__ = [
    "MALFORMED", "Scope", "attributes_of", "decoded", "document", "encode", "exact", "exponential",
    "exponential_point", "metric_of", "point_of", "row",
]  # fmt: skip

#: What reading a file of another shape, or of another meaning, may raise.
MALFORMED = (
    ArithmeticError, AttributeError, IndexError, KeyError, MemoryError, RecursionError, TypeError, ValueError,
)  # fmt: skip

_VERSION = 2
_EXACT: frozenset[type] = frozenset({str, bool, int, float, type(None)})
_KINDS = frozenset(get_args(InstrumentKind))

encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Scope:
    """Who made an instrument; all of it tells one scope from another."""

    name: str
    version: str = ""
    schema_url: str = ""
    attributes: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, scope: InstrumentationScope) -> Scope:
        """The scope of an instrument."""
        more = tuple(sorted(labels.clean(scope.attributes or {}).items()))
        return cls(scope.name or "", scope.version or "", scope.schema_url or "", more)

    @classmethod
    def load(cls, told: Sequence[Any]) -> Scope:
        """What `dump` told.

        Raises:
            TypeError, ValueError: for anything else.
        """
        name, version, schema_url, more = told
        _texts(name, version, schema_url, *(key for key, _ in more))
        return cls(name, version, schema_url, tuple((key, _frozen(value)) for key, value in more))

    def dump(self) -> list[Any]:
        """Plain JSON types."""
        return [self.name, self.version, self.schema_url, self.attributes]


def document(**content: str) -> bytes:
    """The file of a worker, of parts that are JSON already."""
    parts = [f'"version":{_VERSION}', *(f'"{name}":{written}' for name, written in content.items())]
    return f"{{{','.join(parts)}}}".encode()


def decoded(told: bytes) -> dict[str, Any]:
    """What a file says.

    Raises:
        one of MALFORMED: for what is no such file.
    """
    read: Any = json.loads(told)
    if read["version"] != _VERSION:
        raise ValueError(f"it is of version {read['version']}")
    return cast("dict[str, Any]", read)


def exact(point: Point) -> Point:
    """The point with labels of the types that come back from a file: an `IntEnum` comes back as an int."""
    attributes: Mapping[str, Any] = point.attributes or {}
    if _EXACT.issuperset(map(type, attributes.values())):
        return point
    return replace(point, attributes=attributes_of(json.loads(json.dumps(attributes))))


def attributes_of(told: Mapping[str, Any]) -> dict[str, Any]:
    """Labels, as they were told."""
    return {key: _frozen(value) for key, value in told.items()}


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(each) for each in cast("list[object]", value))
    if isinstance(value, dict):
        raise TypeError("a label is no object")
    return value


def _texts(*told: Any) -> None:
    if not all(isinstance(each, str) for each in told):
        raise TypeError(f"expected text: {told!r}")


def metric_of(name: Any, unit: Any, kind: Any, about: Any) -> Metric:
    """A metric, as it was told.

    Raises:
        TypeError, ValueError: for what is none.
    """
    _texts(name, unit, about)
    if kind not in _KINDS:
        raise ValueError(f"there is no kind {kind!r}")
    return Metric(name, unit, kind, about)


def row(point: Point) -> tuple[Any, list[Any]]:
    """The bounds of a point, which rows share, and its row.

    Raises:
        TypeError, ValueError: for what was recorded past the API and is no number.
    """
    bounds, rest = _row(point)
    examples = [[plain(each.value), each.time_unix_nano, each.span_id, each.trace_id] for each in point.exemplars]
    return bounds, [dict(point.attributes or {}), point.start_time_unix_nano, point.time_unix_nano, examples, *rest]


def _row(point: Point) -> tuple[Any, list[Any]]:
    if isinstance(point, NumberDataPoint):
        return None, [plain(point.value)]
    if isinstance(point, HistogramDataPoint):
        return tuple(point.explicit_bounds), [point.count, point.sum, point.min, point.max, list(point.bucket_counts)]
    return "exponential", packed(exponential(point))


def point_of(attributes: dict[str, Any], kind: InstrumentKind, bounds: Any, told: Sequence[Any]) -> Point:
    """The point of a row, without its first field.

    Raises:
        one of MALFORMED: for what is none.
    """
    start_ns, now_ns, exemplars, *rest = told
    start_ns, now_ns = int(start_ns), int(now_ns)
    examples = [_exemplar(*each) for each in exemplars]
    if (bounds is not None) != (kind == "histogram"):
        raise ValueError(f"a {kind} has other points")
    if bounds is None:
        (value,) = rest
        return NumberDataPoint(attributes, start_ns, now_ns, plain(value), examples)
    if bounds == "exponential":
        return exponential_point(unpacked(rest), attributes, start_ns, now_ns, examples)
    count, total, smallest, largest, counts = rest
    if len(counts) != len(bounds) + 1:
        raise ValueError("a histogram has one bucket more than bounds")
    return HistogramDataPoint(
        attributes, start_ns, now_ns, int(count), plain(total), tuple(map(int, counts)), tuple(map(float, bounds)),
        plain(smallest), plain(largest), examples,
    )  # fmt: skip


def _exemplar(value: Any, time_ns: Any, span_id: Any, trace_id: Any) -> Exemplar:
    return Exemplar({}, plain(value), int(time_ns), span_id and int(span_id), trace_id and int(trace_id))


def exponential(point: ExponentialHistogramDataPoint) -> Exponential:
    """The histogram of a point, to add to."""
    low, counts = point.positive.offset, point.positive.bucket_counts
    buckets = {low + step: count for step, count in enumerate(counts) if count}
    return unpacked([
        point.scale, point.zero_count, point.count, point.sum, point.min, point.max, list(buckets),
        list(buckets.values()),
    ])  # fmt: skip


def exponential_point(
    histogram: Exponential, attributes: Any, start_ns: int, now_ns: int, exemplars: Iterable[Exemplar]
) -> Point:
    """The point of a histogram.

    Raises:
        ValueError: for one without a value.
    """
    made = histogram.point(attributes, start_ns, now_ns)
    if made is None:
        raise ValueError("an exponential histogram without a value")
    return replace(made, exemplars=list(exemplars))
