"""The wire format of OTLP: protobuf fields, attribute values, and the pairs of attributes, which are encoded once.

Source of the field numbers: opentelemetry-proto, `common/v1/common.proto`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, cast

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

__all__ = ["DOUBLE", "FIXED64", "Attributes", "resource_field", "scope_field", "sized", "text", "varint"]

DOUBLE = Struct("<d").pack
FIXED64 = Struct("<Q").pack
_CACHED = 4096
_CACHED_PER_KEY = 256  # a key with more values than that will not repeat them soon enough
_CACHED_BYTES = 128
_UINT64 = 0xFFFF_FFFF_FFFF_FFFF

# Wire format ----------------------------------------------------------------------------------------------------------

# The varints of one byte.
_SMALL = tuple(bytes([number]) for number in range(0x80))


@lru_cache(maxsize=_CACHED)
def varint(value: int) -> bytes:
    """A whole number, seven bits a byte."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def sized(tag: bytes, body: bytes) -> bytes:
    """A field with its length before it."""
    return tag + varint(len(body)) + body


def _utf8(value: str) -> bytes:
    try:
        return value.encode("utf-8", "replace")  # half a surrogate pair cannot be encoded and must not cost the batch
    except AttributeError:  # nor must a name or a version that is no text
        return str(value).encode("utf-8", "replace")


def text(tag: bytes, value: str | None) -> bytes:
    """A text field; empty text is left out."""
    return sized(tag, _utf8(value)) if value else b""


# Values ---------------------------------------------------------------------------------------------------------------


def _any(value: Any) -> bytes:
    """The fields of an AnyValue."""
    kind = value.__class__
    if kind is str:
        return sized(b"\x0a", _utf8(value))
    if kind is bool:
        return b"\x10\x01" if value else b"\x10\x00"
    if kind is int:
        return _whole(value)
    if kind is float:
        return b"\x21" + DOUBLE(value)
    return _any_other(value)


def _whole(value: int) -> bytes:
    if -(1 << 63) <= value < 1 << 63:
        return b"\x18" + varint(value & _UINT64)
    return _any(str(value) if value.bit_length() < 1024 else f"a whole number of {value.bit_length()} bits")


def _any_other(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, str):  # subclasses, such as enumerations, whose `str()` is another text
        return sized(b"\x0a", _utf8(value))
    for kind in (int, float):
        if isinstance(value, kind):
            return _any(kind(value))
    if isinstance(value, (bytes, bytearray)):
        return sized(b"\x3a", bytes(value))
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, Any]", value).items()
        return sized(b"\x32", b"".join([sized(b"\x0a", _key_value(str(key), each)) for key, each in pairs]))
    if isinstance(value, Sequence):
        return sized(b"\x2a", b"".join([sized(b"\x0a", _any(each)) for each in value]))  # pyright: ignore[reportUnknownVariableType]  # any values
    return _any(str(value))


@lru_cache(maxsize=_CACHED)
def _key(key: str) -> bytes:
    return text(b"\x0a", key)


def _key_value(key: str, value: Any) -> bytes:
    return _key(key) + sized(b"\x12", _any(value))


class Attributes:
    """Encodes the pairs of attributes under one field tag, and remembers what it has seen."""

    __slots__ = ("_clean", "_seen", "_strings", "_tag", "_wholes")

    def __init__(self, tag: bytes, clean: Callable[[str, Any], Any] | None = None) -> None:
        self._tag = tag
        self._clean = clean
        # By class of the value, because True == 1 == 1.0. The keys are the pairs as a dictionary gives them out.
        self._strings: dict[tuple[str, Any], bytes] = {}
        self._wholes: dict[tuple[str, Any], bytes] = {}
        self._seen: dict[str, int] = {}

    def __call__(self, items: Iterable[tuple[str, Any]]) -> list[bytes]:
        """The encoded pairs, in their order."""
        known, pair = self._strings.get, self._pair
        try:
            # Every key is text, so only a pair of two texts can be equal to a remembered one.
            return [known(item) or pair(item) for item in items]
        except TypeError:  # a value that cannot be hashed
            return [pair(item) for item in items]

    def field(self, attributes: Mapping[str, Any] | None) -> bytes:
        """All pairs of a mapping, joined."""
        return b"".join(self(list(attributes.items()))) if attributes else b""

    def _pair(self, item: tuple[str, Any]) -> bytes:
        key, value = item
        kind = value.__class__
        if kind is str:
            kept = self._strings
        elif kind is int:
            kept = self._wholes
        else:
            return self._encoded(key, value)
        found = kept.get(item)
        if found is None:
            found = self._encoded(key, value)
            if len(found) < _CACHED_BYTES:
                self._keep(kept, item, found)
        return found

    def _encoded(self, key: str, value: Any) -> bytes:
        if self._clean is not None:
            value = self._clean(key, value)
        if value.__class__ is str:
            body, name = _utf8(value), _key(key)
            size, named = len(body), len(name)
            if size + named < 122:  # every length is one byte
                return b"".join(
                    (self._tag, _SMALL[size + named + 4], name, b"\x12", _SMALL[size + 2], b"\x0a", _SMALL[size], body)
                )
        return sized(self._tag, _key_value(key, value))

    def _keep(self, kept: dict[tuple[str, Any], bytes], item: tuple[str, Any], found: bytes) -> None:
        key = item[0]
        seen = self._seen.get(key, 0)
        if seen < _CACHED_PER_KEY:
            if len(self._strings) + len(self._wholes) >= _CACHED or len(self._seen) >= _CACHED:
                self._strings.clear()
                self._wholes.clear()
                self._seen.clear()
                seen = 0
            self._seen[key] = seen + 1
            kept[item] = found


_resource_attributes = Attributes(b"\x0a")
_scope_attributes = Attributes(b"\x1a")


def resource_field(resource: Resource) -> bytes:
    """The resource of a ResourceSpans or ResourceMetrics."""
    return sized(b"\x0a", _resource_attributes.field(resource.attributes))


def scope_field(scope: InstrumentationScope | None) -> bytes:
    """The scope of a ScopeSpans or ScopeMetrics."""
    if scope is None:
        return b"\x0a\x00"
    named = text(b"\x0a", scope.name) + text(b"\x12", scope.version)
    return sized(b"\x0a", named + _scope_attributes.field(scope.attributes))
