"""The lean span: a span of the OpenTelemetry SDK to everyone, at a fraction of its cost.

It keeps a handful of slots and one plain dict; it has no lock and no bounded container, and an ended span is handed to
the processors as it is. What is rare (events, links, a status, counts of what was dropped) has its default on the class
and is put into the instance when it is set. Limits, order and rules are the SDK's; a differential suite compares them.
The private names of its slots are the SDK's too: there are libraries that read them.
"""

# Values are of any type.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from time import time_ns
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk import trace as stock
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, EventBase, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationInfo, InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode

from otel_perf.telemetry.containers import Known, LiveAttributes, bounded_attributes, bounded_list, put_each

if TYPE_CHECKING:
    from otel_perf.telemetry.tracer import LeanTracer

__all__ = ["LeanSpan", "UnsampledSpan", "log"]

# The SDK's own loggers, so that filters which people have set for them go on working.
log = logging.getLogger("opentelemetry.sdk.trace")
_attributes_log = logging.getLogger("opentelemetry.attributes")

_UNSET = Status(StatusCode.UNSET)
_PLAIN = frozenset((str, int, bool, float))

# Guards what is rare, of all spans. Re-entrant: while it is held, garbage collection may run code of this same thread.
_rare = threading.RLock()


def _after_fork() -> None:
    global _rare
    _rare = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class LeanSpan(stock.Span):
    """A recording span; `LeanTracer` makes them."""

    # `_live` is taken away when the span ends: of two threads that end it, one succeeds.
    __slots__ = (
        "_attributes", "_context", "_end_time", "_kind", "_live", "_name", "_parent", "_resource", "_start_time",
        "_tracer",
    )  # fmt: skip

    if TYPE_CHECKING:
        _attributes: dict[str, Any]
        _context: SpanContext
        _end_time: int | None
        _kind: SpanKind
        _live: bool
        _name: str
        _parent: SpanContext | None
        _resource: Resource
        _start_time: int
        _tracer: LeanTracer

    # Defaults of what is rarely set; setting one makes an attribute of the instance.
    _events: Sequence[Event] = ()
    _links: Sequence[Link] = ()
    _status: Status = _UNSET
    _dropped_attributes: int = 0
    _dropped_events: int = 0
    _dropped_links: int = 0
    _record_exception: bool = True
    _set_status_on_exception: bool = True

    # What readers ask for --------------------------------------------------------------------------------------------

    @property
    def attributes(self) -> Mapping[str, Any]:
        # A late write in another thread must not meet an exporter that iterates: it gets them as they are now.
        if self._end_time is None:
            return MappingProxyType(LiveAttributes(self._own()))
        return MappingProxyType(self._attributes.copy())

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        return self._tracer.scope

    _instrumentation_scope = instrumentation_scope

    @property
    def _instrumentation_info(self) -> InstrumentationInfo:  # type: ignore[override]  # as above
        return self._tracer.instrumentation_info

    @property
    def dropped_attributes(self) -> int:
        return self._dropped_attributes

    @property
    def dropped_events(self) -> int:
        return self._dropped_events

    @property
    def dropped_links(self) -> int:
        return self._dropped_links

    def get_span_context(self) -> SpanContext:
        return self._context

    def is_recording(self) -> bool:
        return self._end_time is None

    def to_json(self, indent: int | None = 4) -> str:
        return str(self._readable_span().to_json(indent))

    def _readable_span(self) -> ReadableSpan:
        """A copy in the SDK's own classes that no later write reaches."""
        attributes = BoundedAttributes(attributes=self._attributes.copy(), immutable=True)
        attributes.dropped = self._dropped_attributes
        events = bounded_list(self._events, self._dropped_events)
        links = bounded_list(self._links, self._dropped_links)
        return ReadableSpan(
            self._name, self._context, self._parent, self._resource, attributes, events, links, self._kind,
            self._instrumentation_info, self._status, self._start_time, self._end_time, self.instrumentation_scope,
        )  # fmt: skip

    def __copy__(self) -> ReadableSpan:
        return self._readable_span()

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadableSpan:
        return copy.deepcopy(self._readable_span(), memo)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    # What people write -----------------------------------------------------------------------------------------------

    def set_attribute(self, key: str, value: Any) -> None:
        if self._end_time is not None:
            log.warning("Setting attribute on ended span.")
            return
        kind = type(value)
        tracer, attributes = self._tracer, self._attributes
        if attributes.__class__ is Known:
            attributes = self._own()
        if (
            (kind is int or kind is bool or kind is float or (kind is str and len(value) <= tracer.longest_attribute))
            and type(key) is str and key and key not in attributes and len(attributes) < tracer.most_attributes
        ):  # fmt: skip
            attributes[key] = value
        else:
            self.put({key: value})

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        if self._end_time is not None:
            log.warning("Setting attribute on ended span.")
            return
        self.put(attributes, whole=True)

    def put(self, attributes: Mapping[Any, Any], *, whole: bool = False) -> None:
        """Puts attributes of any kind in; `whole` as the SDK does for several at once, who is kinder to odd keys."""
        most, longest = self._tracer.most_attributes, self._tracer.longest_attribute
        if most == 0:
            self._count_dropped(len(attributes))
            return
        for key, value in attributes.items():
            kind = type(value)
            if type(key) is not str or not key or kind not in _PLAIN or (kind is str and len(value) > longest):
                attributes = self._clean(attributes, whole)
                break
        own = self._own()
        for key, value in attributes.items():
            if key in own:
                own.pop(key, None)
            own[key] = value
            if len(own) > most:
                self._trim_attributes(most)

    def _own(self) -> dict[str, Any]:
        """The attributes to write to, which are no other span's."""
        if self._attributes.__class__ is Known:
            with _rare:  # of two who write at once the second must not make another copy
                if self._attributes.__class__ is Known:
                    self._attributes = self._attributes.copy()
        return self._attributes

    @property
    def longest_attribute(self) -> int:
        """How long a text may be."""
        return self._tracer.longest_attribute

    def settle(self, name: str, attributes: Mapping[str, Any]) -> None:
        """Gives the name that is known in the end, and attributes that are clean, not long, and not there yet.

        For our own hot paths, where each of the usual methods would be a call or two more.
        """
        if self._end_time is None:
            self._name = name
            own = self._own()
            own.update(attributes)
            if len(own) > self._tracer.most_attributes:
                self._trim_attributes(self._tracer.most_attributes)

    def _clean(self, attributes: Mapping[Any, Any], whole: bool) -> Mapping[str, Any]:
        longest = self._tracer.limits.max_span_attribute_length
        if whole:
            bounded = bounded_attributes(None, attributes, longest)
        else:
            bounded = BoundedAttributes(immutable=False, max_value_len=longest)
            put_each(bounded, attributes)
        if bounded.dropped:
            self._count_dropped(bounded.dropped)
        return bounded.copy()

    def _count_dropped(self, count: int) -> None:
        with _rare:
            self._dropped_attributes += count

    def _trim_attributes(self, most: int) -> None:
        own = self._attributes
        with _rare:
            while len(own) > most:
                if most:
                    _attributes_log.warning(
                        "Attributes dict is full. Dropping the oldest key-value pair from attributes to make space for "
                        "the new key-value pair."
                    )
                own.pop(next(iter(own.copy())), None)
                self._dropped_attributes += 1

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        limits = self._tracer.limits
        bounded = bounded_attributes(limits.max_event_attributes, attributes, limits.max_attribute_length)
        self._add_event(Event(name, bounded, timestamp))

    def _add_event(self, event: EventBase) -> None:
        if self._end_time is not None:
            log.warning("Tried calling %s on an ended span.", "_add_event")
        else:
            self._keep("_events", event, self._tracer.limits.max_events)

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        if not _worth(context, attributes):
            return
        self._add_link(Link(context, self._link_attributes(attributes)))

    def _link_attributes(self, attributes: Mapping[str, Any] | None) -> BoundedAttributes:
        limits = self._tracer.limits
        return bounded_attributes(limits.max_link_attributes, attributes, limits.max_attribute_length)

    def _add_link(self, link: Link) -> None:
        if self._end_time is not None:
            log.warning("Tried calling %s on an ended span.", "_add_link")
        else:
            self._keep("_links", link, self._tracer.limits.max_links)

    def _keep(self, where: str, item: object, most: int | None) -> None:
        own: dict[str, Any] = vars(self)
        with _rare:
            kept = own.setdefault(where, [])
            kept.append(item)
            if most is not None and len(kept) > most:
                del kept[0]
                own[f"_dropped{where}"] = own.get(f"_dropped{where}", 0) + 1

    def start_links(self, links: Sequence[Link]) -> None:
        """Takes the links that a span starts with."""
        for link in links:
            if link and _worth(link.context, link.attributes):
                bounded = self._link_attributes(link.attributes)
                link._attributes = bounded  # pyright: ignore[reportPrivateUsage]  # in place, as the SDK does
                self._add_link(link)

    def update_name(self, name: str) -> None:
        if self._end_time is not None:
            log.warning("Tried calling %s on an ended span.", "update_name")
            return
        self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        if self._end_time is not None:
            log.warning("Tried calling %s on an ended span.", "set_status")
            return
        code = status.status_code if isinstance(status, Status) else status
        # Ok is final, and nothing goes back to unset.
        if self._status.status_code is StatusCode.OK or code is StatusCode.UNSET:
            return
        if isinstance(status, Status):
            if description is not None:
                log.warning("Description %s ignored. Use either `Status` or `(StatusCode, Description)`", description)
            self._status = status
        elif isinstance(status, StatusCode):  # pyright: ignore[reportUnnecessaryIsInstance]  # others are ignored
            self._status = Status(status, description)

    def start(self, start_time: int | None = None, parent_context: Context | None = None) -> None:  # noqa: ARG002  # started it is
        log.warning("Calling start() on a started span.")

    def end(self, end_time: int | None = None) -> None:
        try:
            del self._live  # atomic: of two threads that end a span, one does
        except AttributeError:
            # The tracer's `finish` is this too, and takes one that is not recorded.
            if type(self) is LeanSpan:
                log.warning("Calling end() on an ended span.")
            return
        self._end_time = time_ns() if end_time is None else end_time
        tracer = self._tracer
        if tracer.hub._span_processors is not tracer.processors:
            tracer.learn_processors()
        if tracer.endings:
            for ending in tracer.endings:
                ending(self)
        for processor in tracer.ends:
            processor.on_end(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        if error is not None and self._end_time is None:
            if self._record_exception:
                self.record_exception(error, escaped=True)
            if self._set_status_on_exception:
                self.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self.end()


class UnsampledSpan(NonRecordingSpan):
    """A span that is not recorded: its context is all there is."""

    __slots__ = ("_context",)


def _worth(context: SpanContext | None, attributes: object) -> bool:
    """Whether a link says anything."""
    return bool(context and (context.is_valid or attributes or context.trace_state))
