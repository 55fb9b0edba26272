"""The wire format: what protobuf reads back is what was put in, and what is remembered stays bounded."""

from __future__ import annotations

import enum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf.telemetry import wire
from otel_perf.telemetry.wire import Attributes, resource_field, scope_field, varint


def read(pairs: list[bytes]) -> list[KeyValue]:
    """Attributes under the tag of a resource, decoded."""
    return list(ResourceMessage.FromString(b"".join(pairs)).attributes)


def one(value: object) -> AnyValue:
    return read(Attributes(b"\x0a")([("k", value)]))[0].value


@settings(max_examples=100, deadline=None)
@given(st.integers(0, (1 << 64) - 1))
def test_a_varint_is_read_back(value):
    """Seven bits a byte, the lowest first."""
    read_back = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(varint(value)))
    assert read_back == value
    assert [byte >= 0x80 for byte in varint(value)] == [True] * (len(varint(value)) - 1) + [False]


class Colour(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Odd:
    def __str__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", AnyValue(string_value="")),
        ("é" * 300, AnyValue(string_value="é" * 300)),
        ("a\ud800b", AnyValue(string_value="a?b")),
        (True, AnyValue(bool_value=True)),
        (False, AnyValue(bool_value=False)),
        (0, AnyValue(int_value=0)),
        (-(1 << 63), AnyValue(int_value=-(1 << 63))),
        (1 << 63, AnyValue(string_value=str(1 << 63))),
        pytest.param(1 << 100_000, AnyValue(string_value="a whole number of 100001 bits"), id="huge"),
        (1.5, AnyValue(double_value=1.5)),
        (float("inf"), AnyValue(double_value=float("inf"))),
        (None, AnyValue()),
        (b"\x00\xff", AnyValue(bytes_value=b"\x00\xff")),
        (Colour.RED, AnyValue(string_value="red")),
        (Level.HIGH, AnyValue(int_value=3)),
        (Odd(), AnyValue(string_value="odd")),
    ],
)
def test_every_kind_of_value(value, expected):
    """Each becomes what the stock encoder makes of it; what that one leaves out is sent as text."""
    assert one(value) == expected


def test_not_a_number_is_sent_as_such():
    """NaN is a double like others."""
    assert one(float("nan")).WhichOneof("value") == "double_value"


def test_nested_values():
    """Lists and mappings of each other, empty ones too."""
    value = one(({"a": [1, "b", None]}, [], {}))
    first, empty_list, empty_mapping = value.array_value.values
    pair = first.kvlist_value.values[0]
    assert pair.key == "a"
    assert [each.WhichOneof("value") for each in pair.value.array_value.values] == ["int_value", "string_value", None]
    assert empty_list.WhichOneof("value") == "array_value"
    assert empty_mapping.WhichOneof("value") == "kvlist_value"


def test_what_is_equal_is_not_the_same():
    """True, 1 and 1.0 are equal as keys of a dictionary; each goes out as what it is, however often."""
    encode = Attributes(b"\x0a")
    items = [("k", True), ("k", 1), ("k", 1.0), ("k", "1")]
    for _ in range(2):
        for order in (items, items[::-1]):
            found = [pair.value.WhichOneof("value") for pair in read(encode(order))]
            wanted = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}
            assert found == [wanted[type(value)] for _, value in order]


def test_values_that_cannot_be_hashed():
    """A list among others costs the memory, not the attributes."""
    encode = Attributes(b"\x0a")
    pairs = read(encode([("a", "x"), ("b", [1, 2]), ("c", 3)]))
    assert [pair.key for pair in pairs] == ["a", "b", "c"]
    assert [each.int_value for each in pairs[1].value.array_value.values] == [1, 2]


def test_what_is_remembered_is_bounded():
    """In pairs, in pairs of one key, and in the size of each; what follows is encoded all the same."""
    encode = Attributes(b"\x0a")
    for number in range(3 * wire._CACHED_PER_KEY):
        encode([("unique", f"value {number}"), ("usual", "same")])
    assert len(encode._strings) == wire._CACHED_PER_KEY + 1
    encode([("long", "x" * 1000)])
    assert not [key for key, _ in encode._strings if key == "long"]
    for number in range(2 * wire._CACHED):
        assert read(encode([(f"key {number}", number)]))[0].value.int_value == number
        assert len(encode._strings) + len(encode._wholes) <= wire._CACHED
        assert len(encode._seen) <= wire._CACHED


def test_values_are_cleaned_once():
    """What cleans a value is asked for each pair that is new, and sees the value as it was."""
    asked = []

    def clean(key: str, value: object) -> object:
        asked.append((key, value))
        return f"clean {value}"

    encode = Attributes(b"\x0a", clean)
    for _ in range(3):
        assert [pair.value.string_value for pair in read(encode([("a", "x"), ("b", 1)]))] == ["clean x", "clean 1"]
    assert asked == [("a", "x"), ("b", 1)]


def test_names_that_are_no_text_are_written_as_text():
    """A version that is a number must not cost the batch."""
    odd = InstrumentationScope("n", 5, None, {"a": "b"})  # type: ignore[arg-type]
    assert scope_field(odd) == scope_field(InstrumentationScope("n", "5", None, {"a": "b"}))
    assert wire.text(b"\x0a", 7) == wire.text(b"\x0a", "7")  # type: ignore[arg-type]
    assert wire.text(b"\x0a", None) == b""


def test_scope_and_resource_may_be_empty():
    """A missing scope is an empty one."""
    assert scope_field(None) == b"\x0a\x00"
    assert scope_field(InstrumentationScope("n", "1", None, {"a": "b"})).startswith(b"\x0a")
    assert resource_field(Resource({})) == b"\x0a\x00"
