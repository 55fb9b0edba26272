"""Spans of other libraries, redacted before they leave: ours are redacted where a value enters, theirs are not.

The thread that encodes does it. The encoder of `otlp` asks `value` once for each pair that it has not seen; whatever
else sends spans gets read-only copies from `readable`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Status

from otel_perf import paths, redaction
from otel_perf.conventions import EXCEPTION_STACKTRACE, SCOPE, SERVER_ADDRESS, URL_PATH
from otel_perf.redaction import MAX_LENGTH, TABLE, hidden, text, url

__all__ = ["Copied", "description", "is_own", "name", "readable", "value", "without_secrets"]

# An address in a text: of any scheme, its password with blanks even, or of this server and with a query. What it begins
# with begins no word before it, so a text is read once.
_ADDRESS = re.compile(r"(?<![\w+.-])[\w+.-]*://(?:[^/?#]*@)?\S*|(?<!\S)/[^\s?]*\?\S+")
_SECRET = re.compile(
    r"(?:^|[._-])(?:authorization|cookie|password|passwd|secret|token|api[_-]?key)$"
    r"|^db\.\w+\.(?:args|parameters?)\b"
)
_LONGEST_NAME = 256
_LONGEST_PART = 20  # of a path, before it is looked at
_SECRET_HEADER = re.compile(r"auth(?!ority)|token|cookie|secret|passw|key|session|credential|signature|csrf|xsrf")


def is_own(scope: InstrumentationScope | None) -> bool:
    """Whether spans of this scope were redacted when they were made."""
    return scope is not None and scope.name == SCOPE


def value(key: str, given: Any) -> Any:
    """The value of an attribute as it may leave."""
    if key == EXCEPTION_STACKTRACE and isinstance(given, str):
        return _places(given)
    return _clean(_redactor(key), given)


def name(given: str) -> str:
    """The name of a span or an event as it may leave: some put each command of a pipeline there."""
    return text(without_secrets(given), _LONGEST_NAME) if isinstance(given, str) else given  # pyright: ignore[reportUnnecessaryIsInstance]  # whatever they named it


def without_secrets(given: str) -> str:
    """A text whose addresses have neither user information nor query values."""
    if "://" in given or ("?" in given and "/" in given):
        # Twice the limit, so that no address that is left over was cut before its @.
        return text(_ADDRESS.sub(_address, given[: 2 * MAX_LENGTH]))
    return given


def _address(found: re.Match[str]) -> str:
    whole = found[0]
    suspicious = "@" in whole or "?" in whole or "#" in whole or len(whole) > MAX_LENGTH
    return url(whole) if suspicious else whole


def _host(given: str) -> str:
    return without_secrets(given).rpartition("@")[2]


def _path(given: str) -> str:
    return paths.without_tokens(given.split("?", 1)[0], _LONGEST_PART)


# Beyond what is done for ours, which we write ourselves.
_MORE: dict[str, Callable[[str], str]] = {
    SERVER_ADDRESS: _host,
    "net.peer.name": _host,
    "net.host.name": _host,
    URL_PATH: _path,
}


@lru_cache(maxsize=1024)
def _redactor(key: str) -> Callable[[str], str]:
    plain = key.lower()
    _, is_header, header = plain.partition(".header.")
    known = TABLE.get(plain) or _MORE.get(plain)
    if known is not None:
        return known
    return hidden if _SECRET.search(plain) or (is_header and _SECRET_HEADER.search(header)) else without_secrets


def _clean(redactor: Callable[[str], str], given: Any) -> Any:
    if isinstance(given, str):
        return text(redactor(given))
    if isinstance(given, (list, tuple)):
        return [_clean(redactor, each) for each in cast("Sequence[Any]", given)]
    if isinstance(given, Mapping):
        pairs = cast("Mapping[object, Any]", given).items()
        by_key = redactor is without_secrets
        return {key: _clean(_redactor(str(key)) if by_key else redactor, each) for key, each in pairs}
    if redactor is hidden and given is not None:
        return redaction.MASK  # a number is as much a secret
    if isinstance(given, (bytes, bytearray)) and (redactor is not without_secrets or b"://" in given):
        return text(redactor(given.decode("utf-8", "replace"))).encode()
    return given


def _places(stack: str) -> str:
    """A stack as places: its source lines hold literals, and its last line the message."""
    places = [text(line.strip()) for line in stack.splitlines() if line.lstrip().startswith('File "')]
    return "\n".join(places)[-MAX_LENGTH:]


@lru_cache(maxsize=256)
def description(given: str) -> str:
    """The description of a status as it may leave."""
    return redaction.message(given)


class Copied(ReadableSpan):
    """What a span was at its end, with the dropped counts of the span that it was made of."""

    def __init__(  # noqa: PLR0917  # as many as a span has of what may be another's
        self, of: ReadableSpan, named: str, attributes: Mapping[str, Any], events: Sequence[Event],
        links: Sequence[Link], status: Status,
    ) -> None:  # fmt: skip
        super().__init__(
            named, of.get_span_context(), of.parent, of.resource, attributes, events, links, of.kind, None, status,
            of.start_time, of.end_time, of.instrumentation_scope,
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


def _copied(of: ReadableSpan, clean: bool) -> Copied:
    return Copied(
        of, name(of.name) if clean else of.name, _attributes(of.attributes, clean),
        [_event(each, clean) for each in of.events], [_link(each, clean) for each in of.links],
        _status(of.status, clean),
    )  # fmt: skip


def readable(spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
    """Copies that nobody writes to any more, those of other libraries redacted."""
    return [_copied(span, not is_own(span.instrumentation_scope)) for span in spans]


def _attributes(attributes: Mapping[str, Any] | None, clean: bool) -> dict[str, Any]:
    items = list((attributes or {}).items())  # one call: late writers may still be at it
    return {key: value(key, each) for key, each in items} if clean else dict(items)


def _event(event: Event, clean: bool) -> Event:
    return Event(name(event.name), _attributes(event.attributes, clean), event.timestamp) if clean else event


def _link(link: Link, clean: bool) -> Link:
    return Link(link.context, _attributes(link.attributes, clean)) if clean and link.attributes else link


def _status(status: Status, clean: bool) -> Status:
    if clean and status.description:
        return Status(status.status_code, description(status.description))
    return status
