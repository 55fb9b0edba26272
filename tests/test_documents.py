"""Filters of document stores: names stay, values go, whatever the shape."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_perf import documents
from otel_perf.redaction import MAX_LENGTH, Masked, document, redact

SECRET = "Zq7plantedZq"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"email": "a@b.c", "age": {"$gt": 5}}, '{"email": ?, "age": {"$gt": ?}}'),
        ({"$or": [{"a": 1}, {"b.c": None}], "tags": ["x", "y"]}, '{"$or": [{"a": ?}, {"b.c": ?}], "tags": [?]}'),
        ([("age", ">", 5), ("city", "in", ["a", "b"])], '["age" > ?, "city" in ?]'),
        (("age", "==", 5), '"age" == ?'),
        ({"a@b.c": 1, 7: 2, "x1234": 3, "a b": 4, "k" * 65: 5}, "{?: ?, ?: ?, ?: ?, ?: ?, ?: ?}"),
        ({}, "{}"),
        ([], "[]"),
        ("text", "?"),
        (None, "?"),
        ({"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}, '{"a": {"b": {"c": {"d": {"e": ?}}}}}'),
    ],
)
def test_filters_stay_readable(value, shown):
    """Fields and operators are kept where they look like names; what is deep, or may be a value, is not."""
    assert document(value) == shown
    assert type(document(value)) is Masked


_VALUES = st.recursive(
    st.just(SECRET) | st.integers() | st.booleans() | st.none() | st.floats() | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(("a", "b.c", "$in", f"x {SECRET}", f"{SECRET}@b.c")), inner, max_size=4)
        | st.tuples(st.sampled_from(("a", f"{SECRET} x")), st.sampled_from(("==", SECRET)), inner)
    ),
    max_leaves=20,
)


@settings(max_examples=200)
@given(_VALUES)
def test_no_value_survives(value):
    """Neither of a mapping, nor of a list, nor of a condition; and doing it twice changes nothing."""
    shown = document(value)
    assert SECRET not in shown
    assert len(shown) <= MAX_LENGTH
    if shown[:1] in {"{", "["}:
        assert redact({"db.query.text": str(shown)}) == {"db.query.text": str(shown)}


@given(st.dictionaries(st.sampled_from(("a", "name")), st.sampled_from((SECRET, f"{SECRET}1", 1234567)), min_size=1))
def test_a_filter_that_is_not_masked_is_not_taken_for_one(value):
    """A filter as JSON has its values masked like any text."""
    text = json.dumps(value)
    assert not documents.is_masked(text)
    shown = redact({"db.query.text": text})["db.query.text"]
    assert SECRET not in shown
    assert "1234567" not in shown


def test_a_large_filter_is_cheap_and_bounded():
    """Of wide ones a few fields are read, of deep ones a few levels, also where one holds itself."""

    class Counted(dict[str, int]):
        asked = 0

        def items(self):
            for each in super().items():
                Counted.asked += 1
                yield each

    wide = Counted({f"f{'x' * (number % 50)}": 1 for number in range(50)})
    assert document(wide).endswith(", ...}")
    assert Counted.asked <= 21
    endless: dict[str, object] = {}
    endless["self"] = endless
    assert document(endless) == '{"self": ' * 5 + "?" + "}" * 5
    assert len(document({"a": [{f"{'y' * 60}{chr(97 + i)}": i for i in range(20)}] * 20})) <= MAX_LENGTH
