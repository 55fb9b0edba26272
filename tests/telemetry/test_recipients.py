"""Which hosts get the trace context."""

from __future__ import annotations

import pytest

from otel_perf import SettingsError, configure
from otel_perf.telemetry.recipients import Recipients

PRIVATE = [
    "localhost", "redis", "my-service", "LOCALHOST", "localhost.", "127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1",
    "192.168.1.1", "169.254.1.1", "::1", "fe80::1", "fd00::1", "::ffff:10.0.0.1", "api.internal", "printer.local",
    "api.default.svc", "api.default.svc.cluster.local", "db.localhost",
]  # fmt: skip
PUBLIC = [
    "example.com", "api.stripe.com", "8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "134744072", "0x8080808",
    "internal.example.com", "svc.example.com", "172.32.0.1", "127.0.0.1.example.com", "", "x" * 300,
    "1.2",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_private_hosts(host: str) -> None:
    """Names without a dot, loopback, private and link-local addresses, and names that no public server has."""
    assert Recipients(["private"]).allows(host)
    assert not Recipients([]).allows(host)


@pytest.mark.parametrize("host", PUBLIC)
def test_public_hosts(host: str) -> None:
    """Everybody else is a stranger, also an address in another spelling."""
    assert not Recipients(["private"]).allows(host)
    assert Recipients(["*"]).allows(host)


@pytest.mark.parametrize(
    ("pattern", "host", "allowed"),
    [
        ("api.example.com", "api.example.com", True),
        ("api.example.com", "API.example.com.", True),
        ("api.example.com", "apiXexample.com", False),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "example.com.evil.test", False),
        ("api-*", "api-7", True),
        ("10.0.0.0/8", "10.255.0.1", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.0.0.0/8", "::ffff:10.0.0.1", True),
        ("10.0.0.0/8", "10.0.0.1.example.com", False),
        ("fd00::/8", "fd12::1", True),
        ("[::1]", "::1", True),
        ("8.8.8.8", "8.8.8.8", True),
        ("none", "localhost", False),
        ("none", "none", False),
    ],
)
def test_patterns(pattern: str, host: str, allowed: bool) -> None:
    """A pattern is a host, with `*` for any text, an address or a network; `none` is nobody."""
    assert Recipients([pattern]).allows(host) is allowed


@pytest.mark.parametrize(
    "pattern",
    ["https://example.com", "example.com:443", "example.com/path", "a b", "10.0.0.0/99", "*a*b*c*d*.e", "ex..com"],
)
def test_bad_patterns(pattern: str) -> None:
    """What no host can fit is refused by `configure()`, with what to write."""
    with pytest.raises(SettingsError, match=r"propagate_to=.* cannot be used: expected"):
        configure(propagate_to=[pattern])


def test_decisions_are_bounded() -> None:
    """100,000 hosts, one of a megabyte among them, take a bounded room; a long name is no work."""
    recipients = Recipients(["*a*a*a.test"])
    for n in range(100_000):
        assert not recipients.allows(f"h{n}.example.com")
    assert not recipients.allows("a" * 1_000_000)
    assert not recipients.allows("a" * 253)
    assert len(recipients._known) <= 1024
