"""Log records as OTLP protobuf bytes, written directly, and redacted on the way: the thread that encodes does it.

The result decodes to what the stock encoder would have sent of the same record.
Source of the field numbers: opentelemetry-proto, `logs/v1/logs.proto`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf import redaction
from otel_perf.telemetry import foreign
from otel_perf.telemetry.wire import FIXED64, Attributes, resource_field, scope_field, sized, text, varint

__all__ = ["MAX_BODY", "LogItem", "body", "logs_request"]

MAX_BODY = 16_384
_FLAGS = Struct("<BI").pack

# A word that speaks of a secret and what is given for it: `password=...`, `"api_key": "..."`, `Bearer ...`.
_SECRET = re.compile(
    r"(?P<key>(?<![\w-])[\w-]{0,64}?(?:pass(?:word|wd|phrase)?|secret|token|api[_-]?key|authorization|cookie|credential)"
    r"""[\w-]{0,64}["']?\s{0,8}[=:]\s{0,8}(?:(?:bearer|basic|digest)\s{1,8})?|(?<!\w)bearer\s{1,8})"""
    r"""(?:"(?:[^"\\]|\\.)*(?:"|\Z)|'(?:[^'\\]|\\.)*(?:'|\Z)|[^\s"',;&)}\]]+)""",
    re.IGNORECASE | re.DOTALL,
)
_SPEAKS_OF_SECRETS = re.compile(r"pass|secret|token|key|authorization|cookie|credential|bearer", re.IGNORECASE)


class LogItem(NamedTuple):
    """A log record as it waits: plain values that nobody writes to."""

    time_ns: int
    observed_ns: int
    #: OpenTelemetry's: 9 is information, 17 an error; 0 says nothing.
    severity: int
    severity_text: str
    body: Any
    attributes: tuple[tuple[str, Any], ...]
    dropped: int
    trace_id: int
    span_id: int
    flags: int
    #: The name of the logger.
    scope: str


_attributes = Attributes(b"\x32", foreign.value)
_body = Attributes(b"\x0a", foreign.value)


def body(value: str) -> str:
    """A text as it may leave: no secret that is named as such, no user or query values in an address.

    Other than in the text of an error, numbers and quoted words stay: somebody wrote them to be read.
    """
    value = foreign.without_secrets(value[: MAX_BODY * 2]) if len(value) <= redaction.MAX_LENGTH else _long(value)
    if _SPEAKS_OF_SECRETS.search(value):
        value = _SECRET.sub(_masked, value)
    return redaction.text(value, MAX_BODY)


def _long(value: str) -> str:
    """A text of more than one attribute's length, in pieces that end between words."""
    pieces: list[str] = []
    value = value[:MAX_BODY]
    while value:
        cut = len(value)
        if cut > redaction.MAX_LENGTH:
            blank = max(value.rfind(" ", 1, redaction.MAX_LENGTH), value.rfind("\n", 1, redaction.MAX_LENGTH))
            cut = blank if blank > 0 else redaction.MAX_LENGTH
        pieces.append(foreign.without_secrets(value[:cut]))
        value = value[cut:]
    return "".join(pieces)


def _masked(found: re.Match[str]) -> str:
    return f"{found['key']}{redaction.MASK}"


@lru_cache(maxsize=256)
def _severity(number: int, named: str) -> bytes:
    return (b"\x10" + varint(number) if number else b"") + text(b"\x1a", named)


@lru_cache(maxsize=1024)
def _scope(name: str) -> bytes:
    return scope_field(InstrumentationScope(name))


def logs_request(items: Sequence[LogItem], resource: Resource) -> bytes:
    """An ExportLogsServiceRequest of these records, by logger in the order of their appearance."""
    grouped: dict[str, list[bytes]] = {}
    for item in items:
        grouped.setdefault(item.scope, []).append(sized(b"\x12", _record(item)))
    scopes = [sized(b"\x12", _scope(name) + b"".join(records)) for name, records in grouped.items()]
    schema = text(b"\x1a", resource.schema_url)
    return sized(b"\x0a", resource_field(resource) + b"".join(scopes) + schema)


def _record(item: LogItem) -> bytes:
    return b"".join([
        b"\x09" + FIXED64(item.time_ns) if item.time_ns else b"",
        _severity(item.severity, item.severity_text),
        _any_body(item.body),
        *_attributes(item.attributes),
        b"\x38" + varint(item.dropped) if item.dropped else b"",
        _FLAGS(0x45, item.flags) if item.flags else b"",
        b"\x4a\x10" + item.trace_id.to_bytes(16, "big") if item.trace_id else b"",
        b"\x52\x08" + item.span_id.to_bytes(8, "big") if item.span_id else b"",
        b"\x59" + FIXED64(item.observed_ns) if item.observed_ns else b"",
    ])  # fmt: skip


def _any_body(value: Any) -> bytes:
    if isinstance(value, str):
        return sized(b"\x2a", sized(b"\x0a", body(value).encode("utf-8", "replace")))
    # A mapping: its pairs are encoded like attributes, so that each value is redacted by its key.
    return sized(b"\x2a", sized(b"\x32", _body.field(value)))
