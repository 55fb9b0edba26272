"""Reading the values of settings."""

from __future__ import annotations

import pytest

from otel_perf import values


@pytest.mark.parametrize("given", [True, "true", " TRUE ", "1", "yes", "on", 1])
def test_flags_that_are_on(given):
    """The words that people use for true."""
    assert values.flag(given) is True


@pytest.mark.parametrize("given", [False, "false", "0", "no", "Off", 0])
def test_flags_that_are_off(given):
    """The words that people use for false."""
    assert values.flag(given) is False


@pytest.mark.parametrize(
    ("read", "given", "expected"),
    [
        (values.flag, "maybe", "expected true or false"),
        (values.number(1, 2), "x", "expected a number from 1 to 2"),
        (values.number(1, 2), "3", "expected a number from 1 to 2"),
        (values.number(1, 2), "nan", "expected a number from 1 to 2"),
        (values.number(1, 2), True, "expected a number from 1 to 2"),
        (values.whole(1, 2), "1.5", "expected a whole number from 1 to 2"),
        (values.whole(1, 2), 3, "expected a whole number from 1 to 2"),
        (values.choice("a", "b"), "c", "expected one of a, b"),
        (values.address, "localhost", "expected an absolute address such as http://localhost:4318"),
        (values.address, "localhost:4318/base", "expected an absolute address"),
        (values.address, "localhost:99999", "Port out of range"),
        (values.address, "http://host/#x", "what comes after a # is never sent to a server; remove it"),
        (values.address, "ftp://host", "expected an absolute address"),
        (values.address, "http://host:port", "Port could not be cast"),
        (values.address, "http://me:pw@host", "put the secret into `headers`"),
        (values.words, 5, "expected a list, or text parted by commas"),
        (values.words, ["a", 5], "expected text"),
        (values.text, 5, "expected text"),
        (values.pairs, "a", "expected key=value pairs"),
        (values.pairs, "=a", "expected key=value pairs"),
    ],
)
def test_what_cannot_be_used_says_what_was_expected(read, given, expected):
    """Each reader raises with a remedy, never with the words of a converter."""
    with pytest.raises((ValueError, TypeError), match=expected.replace(".", r"\.")):
        read(given)


@pytest.mark.parametrize(
    ("read", "given", "result"),
    [
        (values.number(0, 10), "2.5", 2.5),
        (values.whole(0, 10), 7, 7),
        (values.choice("grpc", "http/protobuf"), " GRPC ", "grpc"),
        (values.address, "http://host:4318/", "http://host:4318"),
        (values.address, "https://[::1]:4318/base", "https://[::1]:4318/base"),
        (values.address, "localhost:4317", "localhost:4317"),
        (values.address, "[::1]:4317/", "[::1]:4317"),
        (values.words, " a, ,b ", ("a", "b")),
        (values.words, ["a", " b"], ("a", "b")),
        (values.pairs, "a=1, b%20c=x%3Dy,", {"a": "1", "b c": "x=y"}),
        (values.pairs, {"a": 1}, {"a": "1"}),
        (values.text, "as it is", "as it is"),
    ],
)
def test_what_can_be_used(read, given, result):
    """Text from variables and typed values from arguments and TOML come out the same."""
    assert read(given) == result
