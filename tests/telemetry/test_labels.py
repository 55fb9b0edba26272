"""Labels are made clean once and told apart by a hashable key."""

from __future__ import annotations

from decimal import Decimal
from enum import Enum

from otel_perf.telemetry import labels


class Colour(str, Enum):
    RED = "red"


def test_every_exporter_can_write_a_clean_label():
    """Enumerations give their value, foreign objects their text, lists become tuples, half surrogates go."""
    clean = labels.clean(
        {
            "a": Colour.RED,
            "b": Decimal("1.5"),
            "c": ["x", 1],
            "d": "\ud800",
            "e": None,
            "f": True,
            "g": 2.5,
            "h": "x" * 9999,
        }
    )
    assert clean == {"a": "red", "b": "1.5", "c": ("x", 1), "d": "?", "e": None, "f": True, "g": 2.5, "h": "x" * 2048}
    assert type(clean["a"]) is str


class Bare:
    """Says nothing of itself but its address."""


def test_names_and_values_that_say_nothing_are_none():
    """As in the SDK: each object would make a series of its own; other names become text."""
    assert labels.clean({"": 1, None: 1, 7: "x", Bare(): 1, "a": Bare(), "b": [Bare()]}) == {  # type: ignore[dict-item]
        "7": "x", "a": None, "b": (None,),
    }  # fmt: skip


def test_mappings_and_bytes_are_text():
    """A label is one value to Prometheus and to the files of workers."""
    assert labels.clean({"a": {"b": 1}, "b": b"x"}) == {"a": "{'b': 1}", "b": "b'x'"}


def test_line_ends_stay():
    """Exporters escape what their format cannot hold; cleaning is not their work."""
    assert labels.clean({"a": "x\ny"}) == {"a": "x\ny"}


def test_lists_have_a_key():
    """What cannot be hashed is told apart by its clean form, whatever the order of the labels."""
    assert labels.key({"a": [1, 2], "b": "x"}) == labels.key({"b": "x", "a": (1, 2)})
    assert labels.key({"a": [1, 2]}) != labels.key({"a": [2, 1]})


def test_types_tell_labels_apart():
    """1, 1.0 and True have keys of their own, within lists too; plain is what needs no look inside."""
    assert len({labels.key({"a": value}) for value in (1, 1.0, True, "1", None)}) == 5
    assert len({labels.key({"a": [value]}) for value in (1, 1.0, True, (1,))}) == 4
    assert labels.key({"a": Colour.RED}) == labels.key({"a": "red"})
    assert labels.is_plain([1, 1.0, True, "x", None])
    assert not labels.is_plain([("x",)])
    assert not labels.is_plain([Colour.RED])


def test_the_widest_label():
    """The label with most different values, or none."""
    assert labels.widest({"a": "x", "b": index} for index in range(5)) == "b"
    assert labels.widest([]) == ""
