"""Who may read the page."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request

from otel_perf.web.access import Access


def request(client="127.0.0.1", host="127.0.0.1:8000", version="1.1", **headers):
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    if host is not None:
        raw.append((b"host", host.encode()))
    scope = {"type": "http", "http_version": version, "path": "/", "method": "GET"}
    return Request({**scope, "headers": raw, "client": (client, 1) if client else None})


def permits(access, *args, **kwargs):
    return asyncio.run(access.permits(request(*args, **kwargs)))


@pytest.mark.parametrize(
    ("client", "host"),
    [
        ("127.0.0.1", "127.0.0.1:8000"),
        ("127.0.0.1", "localhost"),
        ("127.8.9.1", "LOCALHOST:1"),
        ("::1", "[::1]:8000"),
        ("::ffff:127.0.0.1", "127.0.0.1:8000"),
    ],
)
def test_local_clients_are_let_in(client, host):
    """A loopback socket with a loopback Host header is local."""
    assert permits(Access(), client, host)


@pytest.mark.parametrize(
    ("client", "host"),
    [
        ("10.0.0.7", "127.0.0.1"),
        ("127.0.0.1", "evil.example"),
        ("127.0.0.1", "127.0.0.1.evil.example"),
        ("127.0.0.1", None),
        (None, "127.0.0.1"),
        ("not an address", "127.0.0.1"),
        ("::ffff:10.0.0.7", "127.0.0.1"),
    ],
)
def test_all_others_are_refused(client, host):
    """Another machine, a foreign Host header and an unknown client are not local."""
    assert not permits(Access(), client, host)


@pytest.mark.parametrize(
    "header",
    [
        "forwarded", "via", "x-real-ip", "true-client-ip", "x-client-ip", "x-original-forwarded-for",
        "x-envoy-external-address", "fly-client-ip", "fastly-client-ip", "x-forwarded-for", "x-forwarded-proto",
        "x-forwarded-client-cert", "cf-ray", "cf-connecting-ip",
    ],
)  # fmt: skip
def test_what_a_proxy_adds_makes_it_foreign(header):
    """A request with a header that proxies add is not local, whatever the header says."""
    assert not permits(Access(), **{header: "127.0.0.1"})


@pytest.mark.parametrize(("version", "let_in"), [("1.0", False), ("1.1", True), ("2", True)])
def test_the_http_version_of_nginx_makes_it_foreign(version, let_in):
    """HTTP/1.0 is what a proxy without further settings speaks, and is not local."""
    assert permits(Access(), version=version) is let_in


def test_loopback_can_be_closed():
    """Without the loopback exception a local client needs the token, too."""
    access = Access("s3cret-token", loopback=False)
    assert not permits(access)
    assert permits(access, authorization="Bearer s3cret-token")


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
