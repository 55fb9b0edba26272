"""The form in which figures are told."""

from __future__ import annotations

import json

import pytest
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf.telemetry import told
from otel_perf.telemetry.told import Scope


def test_a_scope_comes_back_as_it_was():
    """Name, version, schema and attributes, lists among them, tell scopes apart before and after a file."""
    one = Scope.of(InstrumentationScope("lib", "1", "https://schema", {"b": ["x", "y"], "a": 1}))
    assert Scope.load(json.loads(told.encode(one.dump()))) == one
    assert hash(one) == hash(Scope.load(json.loads(told.encode(one.dump()))))
    assert one != Scope.of(InstrumentationScope("lib", "1", "https://schema", {"b": ["x", "y"], "a": 2}))
    assert Scope.of(InstrumentationScope("lib")) == Scope("lib")


@pytest.mark.parametrize("read", [[], ["m", "", ""], ["m", None, "", []], ["m", "", "", [[1, 2]]], ["m", "", "", 1]])
def test_what_is_no_scope_is_refused(read):
    """Of another shape or with other types it raises what readers expect."""
    with pytest.raises(told.MALFORMED):
        Scope.load(read)


def test_a_document_is_read_back():
    """Its parts are JSON already; one of another version is refused."""
    assert told.decoded(told.document(a="[1]", b="2"))["a"] == [1]
    with pytest.raises(ValueError, match="version 1"):
        told.decoded(b'{"version":1}')


def test_only_kinds_that_exist():
    """A metric has text for a name and one of four kinds."""
    assert told.metric_of("m", "s", "gauge", "about").kind == "gauge"
    for name, kind in ((1, "gauge"), ("m", "summary")):
        with pytest.raises(told.MALFORMED):
            told.metric_of(name, "s", kind, "about")
