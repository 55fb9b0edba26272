"""Spans of other libraries, redacted before they leave: ours are redacted where a value enters, theirs are not.

The encoder of `otlp` asks `value` once for each pair that it has not seen; whatever else sends spans gets read-only
copies from `readable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Status

from otel_perf import redaction
from otel_perf.conventions import EXCEPTION_STACKTRACE, SCOPE

__all__ = ["description", "is_own", "readable", "value"]


def is_own(scope: InstrumentationScope | None) -> bool:
    """Whether spans of this scope were redacted when they were made."""
    return scope is not None and scope.name == SCOPE


def value(key: str, given: Any) -> Any:
    """The value of an attribute as it may leave."""
    if key == EXCEPTION_STACKTRACE and isinstance(given, str):
        return _places(given)
    return redaction.redact({key: given})[key]


def _places(stack: str) -> str:
    """A stack as places: its source lines hold literals, and its last line the message."""
    places = [redaction.text(line.strip()) for line in stack.splitlines() if line.lstrip().startswith('File "')]
    return "\n".join(places)[-redaction.MAX_LENGTH :]


@lru_cache(maxsize=256)
def description(text: str) -> str:
    """The description of a status as it may leave."""
    return redaction.message(text)


class _Readable(ReadableSpan):
    """What a span was at its end, with the dropped counts of the span that it was made of."""

    def __init__(self, of: ReadableSpan, clean: bool) -> None:
        super().__init__(
            of.name, of.get_span_context(), of.parent, of.resource, _attributes(of.attributes, clean),
            [_event(each, clean) for each in of.events],
            [_link(each, clean) for each in of.links],
            of.kind, None, _status(of.status, clean), of.start_time, of.end_time, of.instrumentation_scope,
        )  # fmt: skip
        self._of = of

    @property
    def dropped_attributes(self) -> int:
        return self._of.dropped_attributes

    @property
    def dropped_events(self) -> int:
        return self._of.dropped_events

    @property
    def dropped_links(self) -> int:
        return self._of.dropped_links


def readable(spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
    """Copies that nobody writes to any more, those of other libraries redacted."""
    return [_Readable(span, not is_own(span.instrumentation_scope)) for span in spans]


def _attributes(attributes: Mapping[str, Any] | None, clean: bool) -> dict[str, Any]:
    items = list((attributes or {}).items())  # one call: late writers may still be at it
    return {key: value(key, each) for key, each in items} if clean else dict(items)


def _event(event: Event, clean: bool) -> Event:
    if not clean or not event.attributes:
        return event
    return Event(event.name, _attributes(event.attributes, clean), event.timestamp)


def _link(link: Link, clean: bool) -> Link:
    return Link(link.context, _attributes(link.attributes, clean)) if clean and link.attributes else link


def _status(status: Status, clean: bool) -> Status:
    if clean and status.description:
        return Status(status.status_code, description(status.description))
    return status
