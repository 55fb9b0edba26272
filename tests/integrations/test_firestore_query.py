"""What a Firestore query looks like without its values."""

from __future__ import annotations

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.firestore import Client
from google.cloud.firestore_v1.base_query import And, FieldFilter, Or
from google.cloud.firestore_v1.base_vector_query import DistanceMeasure
from google.cloud.firestore_v1.vector import Vector
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_perf.integrations.firestore_query import collection, shape

SECRET = "user@example.com"
_db = Client(project="shapes", credentials=AnonymousCredentials())
trips = _db.collection("trips")


def where(*filters):
    query = trips
    for each in filters:
        query = query.where(filter=each)
    return shape(query._query() if query is trips else query)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (("users",), "users"),
        (("users", SECRET, "trips"), "users/{id}/trips"),
        (("a", "1", "b", "2", "c"), "a/{id}/b/{id}/c"),
        (("",), None),
    ],
)
def test_a_collection(path, shown):
    """The ids of the documents on the way are left out."""
    assert collection(path) == shown


@pytest.mark.parametrize(
    ("operator", "shown"),
    [("==", "="), ("!=", "!="), ("<", "<"), (">=", ">="), ("in", "IN"), ("not-in", "NOT_IN"),
     ("array_contains", "ARRAY_CONTAINS"), ("array_contains_any", "ARRAY_CONTAINS_ANY")],
)  # fmt: skip
def test_an_operator(operator, shown):
    """Each operator is shown, its value is not."""
    value = [SECRET] if operator in ("in", "not-in", "array_contains_any") else SECRET
    assert where(FieldFilter("owner", operator, value)) == f"FROM trips WHERE owner {shown} ?"


def test_what_has_no_value():
    """A test for nothing or no number is shown in words."""
    assert where(FieldFilter("a", "==", None), FieldFilter("b", "!=", float("nan"))) == (
        "FROM trips WHERE a IS NULL AND b IS NOT NAN"
    )


def test_filters_within_filters():
    """They keep their brackets; what is too deep or too much is cut."""
    inner = And([FieldFilter("a", "==", 1), Or([FieldFilter("b", "<", 2), FieldFilter("c", ">", 3)])])
    assert where(inner) == "FROM trips WHERE (a = ? AND (b < ? OR c > ?))"
    deep = FieldFilter("a", "==", 1)
    for _ in range(20):
        deep = And([deep, FieldFilter("b", "==", 1)])
    assert "(...)" in where(deep)
    assert where(Or([FieldFilter("a", "==", SECRET)] * 1000)).count("?") == 30
    assert where(*[FieldFilter("a", "==", 1)] * 100).count("?") == 30


def test_the_rest_of_a_query():
    """Orders, cursors, offset and limit; a search for neighbours."""
    query = trips.order_by("points", direction="DESCENDING").order_by("n").start_at({"points": 5, "n": SECRET})
    assert shape(query.offset(3).limit(7)) == "FROM trips ORDER BY points DESC, n ASC START ? OFFSET ? LIMIT ?"
    nearest = trips.find_nearest("v", Vector([1.0, 2.0]), 3, DistanceMeasure.EUCLIDEAN)
    assert shape(nearest._nested_query, nearest=nearest) == "FROM trips NEAREST ?"


@pytest.mark.parametrize(
    ("field", "shown"),
    [("points", "points"), ("owner.name", "owner.name"), (f"members.`{SECRET}`", "members.?.?"),
     ("members.aB3dE5fG7hI9jK1lM3nO5pQ7", "members.?"), ("__name__", "__name__")],
)  # fmt: skip
def test_keys_of_maps_can_be_data(field, shown):
    """What does not look like the name of a field is masked."""
    assert where(FieldFilter(field, "==", 1)) == f"FROM trips WHERE {shown} = ?"


def test_a_megabyte():
    """A value is not read at all, and of a name that long nothing is shown."""
    assert where(FieldFilter("a", "==", "x" * 1_000_000)) == "FROM trips WHERE a = ?"
    assert where(FieldFilter("x" * 1_000_000, "==", 1)) == "FROM trips WHERE ? = ?"


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=40), st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.binary()))
def test_no_value_is_shown(name, value):
    """Whatever the value is, the text is that of any other value."""
    field = f"f{abs(hash(name))}"
    assert where(FieldFilter(field, ">", value)) == where(FieldFilter(field, ">", 0))
