"""The span of an operation: how it comes by one, what that starts with, and what it is told in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode

from otel_perf import redaction
from otel_perf.telemetry import sdk
from otel_perf.telemetry.containers import Known
from otel_perf.telemetry.numbers import plain
from otel_perf.telemetry.span import LeanSpan, UnsampledSpan

if TYPE_CHECKING:
    from otel_perf.telemetry.operation import Operation
    from otel_perf.telemetry.runtime import Runtime

__all__ = ["Known", "describe", "known", "open_span"]

_SPAN_KEY = sdk.SPAN_KEY
_ERROR = Status(StatusCode.ERROR)


def known(keys: Sequence[str], labels: list[Any], attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The attributes that a span starts with, redacted."""
    found: dict[str, Any] = {}
    for key, value in zip(keys, labels, strict=True):
        if value is not None:
            found[key] = value  # noqa: PERF403  # a comprehension is a call, before Python 3.12
    if attributes:
        found.update(attributes)
    return redaction.redact(found)


def open_span(
    operation: Operation, in_force: Runtime, parent: SpanContext | None, context: Context,
    attributes: Known | Callable[[], dict[str, Any]], *, links: Sequence[Link] = (),
) -> None:  # fmt: skip
    """Gives an operation its span; the attributes are redacted, and asked for only where somebody sees them."""
    kind = operation.kind.span_kind
    if links:
        span = in_force.tracer.start_span(
            operation.name,
            context,
            kind,
            attributes if isinstance(attributes, Known) else attributes(),
            links,
            record_exception=False,
            set_status_on_exception=False,
        )
    else:
        span = in_force.entry.begin(operation.name, kind, parent, attributes, context)
    operation.span = span
    if type(span) is LeanSpan:
        operation.recorded = span._context  # pyright: ignore[reportPrivateUsage]  # its own method is one call more
        operation.told = operation.labels.copy()
    elif type(span) is not UnsampledSpan and span.is_recording():
        operation.recorded = span.get_span_context()
        operation.told = operation.labels.copy()
    operation.context = Context({**context, _SPAN_KEY: span})


def describe(operation: Operation, span: Span) -> None:
    """Says what became known after the start."""
    if operation.error_type is not None:
        span.set_status(_ERROR)
    keys, told = operation.kind.duration.attributes, operation.told
    attributes: dict[str, Any] = {}
    for index, value in enumerate(operation.labels):
        if value is not None and value is not told[index]:
            attributes[keys[index]] = value
    if operation.items is not None and operation.kind.items is not None:
        attributes[operation.kind.items.name] = plain(operation.items)
    if attributes:
        span.set_attributes(redaction.redact(attributes))
