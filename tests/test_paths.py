"""Paths without what changes from call to call."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_perf import paths


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("", ""),
        ("/users/42", "/users/{id}"),
        ("/users/42/", "/users/{id}/"),
        ("/v1/customers/cus_9s6XKzkNRiz8i3/sources", "/v1/customers/{token}/sources"),
        ("/v2beta1/items", "/v2beta1/items"),
        ("/2010-04-01/Accounts/AC123456789/Messages.json", "/2010-04-01/Accounts/{token}/Messages.json"),
        ("/files/3f2504e0-4f89-11d3-9a0c-0305e82c3301", "/files/{uuid}"),
        ("/files/3F2504E04F8911D39A0C0305E82C3301", "/files/{uuid}"),
        ("/hash/deadbeef01", "/hash/{token}"),
        ("/mail/ann@example.com", "/mail/{token}"),
        ("/mail/ann%40example.com", "/mail/{token}"),
        ("/name/J%C3%BCrgen", "/name/{token}"),
        ("/name/anna%20maria", "/name/{token}"),
        ("/models/gpt:generateContent", "/models/gpt:generateContent"),
        ("/seats/42a", "/seats/{id}"),
        ("/healthz.json", "/healthz.json"),
        ("/\u0663\u0664", "/{id}"),
        ("/" + "x" * 100, "/{token}"),
    ],
)
def test_a_template(path: str, expected: str) -> None:
    """Words and versions stay, numbers, UUIDs, keys and whatever is no plain word do not."""
    assert paths.template(path) == expected


def test_tokens_only() -> None:
    """Keys are masked, all else stays as it is; of long paths a bounded part is read."""
    assert paths.without_tokens("/users/42/deadbeef01/é") == "/users/42/{token}/{token}"
    assert paths.without_tokens("/users/deadbeef01", 20) == "/users/deadbeef01"
    assert paths.without_tokens("/" + "deadbeef01" * 3 + "/x", 20) == "/{token}/x"
    assert len(paths.without_tokens("/a" * 500_000)) < 2048


@given(st.text(max_size=300))
@settings(max_examples=100)
def test_any_text(path: str) -> None:
    """Whatever the path is, the template is short plain ASCII, and the same each time."""
    found = paths.template(path)
    assert found.isascii()
    assert found.isprintable()
    assert paths.template(path) == found


def test_it_is_bounded() -> None:
    """A long path, one of many parts and 100,000 paths take a bounded room."""
    assert len(paths.template("/" + "1/" * 500_000)) < 200
    assert len(paths.template("/word" * 500_000)) <= 2048
    for n in range(100_000):
        paths.template(f"/a/{n}")
    assert len(paths._templates) <= 1024
