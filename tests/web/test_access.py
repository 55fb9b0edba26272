"""Who may read the page."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request

from otel_perf.web.access import Access


def request(client="127.0.0.1", host="127.0.0.1:8000", **headers):
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    if host is not None:
        raw.append((b"host", host.encode()))
    scope = {"type": "http", "headers": raw, "client": (client, 1) if client else None, "path": "/", "method": "GET"}
    return Request(scope)


def permits(access, *args, **kwargs):
    return asyncio.run(access.permits(request(*args, **kwargs)))


@pytest.mark.parametrize(
    ("client", "host"),
    [
        ("127.0.0.1", "127.0.0.1:8000"),
        ("127.0.0.1", "localhost"),
        ("127.8.9.1", "LOCALHOST:1"),
        ("::1", "[::1]:8000"),
    ],
)
def test_local_clients_are_let_in(client, host):
    """A loopback socket with a loopback Host header is local."""
    assert permits(Access(), client, host)


@pytest.mark.parametrize(
    ("client", "host", "headers"),
    [
        ("10.0.0.7", "127.0.0.1", {}),
        ("127.0.0.1", "evil.example", {}),
        ("127.0.0.1", "127.0.0.1.evil.example", {}),
        ("127.0.0.1", None, {}),
        (None, "127.0.0.1", {}),
        ("not an address", "127.0.0.1", {}),
        ("127.0.0.1", "127.0.0.1", {"x_forwarded_for": "127.0.0.1"}),
        ("127.0.0.1", "127.0.0.1", {"forwarded": "for=127.0.0.1"}),
        ("127.0.0.1", "127.0.0.1", {"via": "1.1 proxy"}),
        ("127.0.0.1", "127.0.0.1", {"x_real_ip": "1.2.3.4"}),
    ],
)
def test_all_others_are_refused(client, host, headers):
    """Another machine, a proxied request, a foreign Host header and an unknown client are not local."""
    assert not permits(Access(), client, host, **headers)


@pytest.mark.parametrize(
    ("header", "let_in"),
    [
        ("Bearer s3cret-token", True),
        ("bearer s3cret-token", True),
        ("Bearer wrong", False),
        ("Basic s3cret-token", False),
        ("s3cret-token", False),
        ("Bearer ", False),
    ],
)
def test_the_token_lets_others_in(header, let_in):
    """The right bearer token, and nothing else, opens it to another machine."""
    assert permits(Access("s3cret-token"), "10.0.0.7", authorization=header) is let_in


def test_no_token_configured_means_no_token_fits():
    """Without a token, an empty bearer is no key."""
    assert not permits(Access(None), "10.0.0.7", authorization="Bearer ")
    assert not permits(Access(""), "10.0.0.7", authorization="Bearer ")


def test_a_check_of_the_apps_own():
    """A sync or async function of the request decides where the rest refuses."""

    async def later(seen):
        return seen.headers.get("x-user") == "admin"

    assert permits(Access(allow=lambda seen: "x-user" in seen.headers), "10.0.0.7", x_user="eve")
    assert permits(Access(allow=later), "10.0.0.7", x_user="admin")
    assert not permits(Access(allow=later), "10.0.0.7", x_user="eve")
