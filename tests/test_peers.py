"""The catalogue of services that an app calls."""

from __future__ import annotations

from typing import Any

import pytest

from otel_perf import known_peers, measure, peers


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declarations of a test are gone after it."""
    monkeypatch.setattr(peers, "_own", {})
    monkeypatch.setattr(peers, "_own_hosts", peers._Hosts())


def _called(host: str, method: str = "GET", path: str = "/") -> tuple[str, str | None, str, str | None] | None:
    """Service, category, operation and template of a call."""
    for prefix, found in peers.find(host):
        if not prefix or path == prefix or path.startswith(f"{prefix}/"):
            return (found.service, found.category, *found.call(method, path))
    return None


@pytest.mark.parametrize(
    ("host", "method", "path", "expected"),
    [
        ("api.stripe.com", "POST", "/v1/charges", ("stripe", "payments", "create_charge", "/v1/charges")),
        ("API.Stripe.COM.", "GET", "/v1/customers/cus_1",
         ("stripe", "payments", "get_customer", "/v1/customers/{id}")),
        ("files.stripe.com", "POST", "/v1/files", ("stripe", "payments", "POST", None)),
        ("api.beehiiv.com", "POST", "/v2/publications/pub_1/subscriptions",
         ("beehiiv", "newsletter", "create_subscription", "/v2/publications/{publication}/subscriptions")),
        ("api.cloudflare.com", "POST", "/client/v4/zones/z/purge_cache",
         ("cloudflare", "cdn", "purge_cache", "/client/v4/zones/{zone}/purge_cache")),
        ("api.openai.com", "POST", "/v1/chat/completions", ("openai", "ai", "chat", "/v1/chat/completions")),
        ("api.anthropic.com", "POST", "/v1/messages", ("anthropic", "ai", "create_message", "/v1/messages")),
        ("generativelanguage.googleapis.com", "POST", "/v1beta/models/gemini-pro:generateContent",
         ("gemini", "ai", "generate_content", "/v1beta/models/{model}:generateContent")),
        ("api.twilio.com", "POST", "/2010-04-01/Accounts/AC1/Messages.json",
         ("twilio", "messaging", "send_message", "/2010-04-01/Accounts/{account}/Messages.json")),
        ("fcm.googleapis.com", "POST", "/v1/projects/p/messages:send",
         ("fcm", "notifications", "send", "/v1/projects/{project}/messages:send")),
        ("www.googleapis.com", "GET", "/drive/v3/files", ("google_drive", "storage", "GET", None)),
        ("www.googleapis.com", "GET", "/drivers", ("google", "cloud", "GET", None)),
        ("bucket.s3.eu-west-1.amazonaws.com", "GET", "/a/b", ("s3", "storage", "GET", None)),
        ("sqs.eu-west-1.amazonaws.com", "POST", "/", ("sqs", "queue", "POST", None)),
        ("kms.eu-west-1.amazonaws.com", "POST", "/", ("aws", "cloud", "POST", None)),
        ("slack.com", "GET", "/api/users.list", ("slack", "messaging", "api", "/api/{method}")),
    ],
)  # fmt: skip
def test_well_known_services(host: str, method: str, path: str, expected: Any) -> None:
    """Each is told by host and path, the longest pattern first; what is in no list is called by its method."""
    assert _called(host, method, path) == expected


@pytest.mark.parametrize("host", ["stripe.com.evil.example", "notstripe.com", "10.0.0.1", "localhost", "", "x" * 5000])
def test_strangers(host: str) -> None:
    """A host that only looks like one of them is none of them."""
    assert _called(host) is None


def test_all_well_known_services_can_be_read() -> None:
    """The list passes what declarations must pass, and each service is there once."""
    for service, hosts, category, operations in known_peers.PEERS:
        assert measure.peer(service, *hosts, category=category, operations=operations).service == service
    assert len(peers.declared()) == len(known_peers.PEERS)


def test_ones_own_come_first() -> None:
    """Own declarations win over the well-known ones, and a new one replaces the old one of its name."""
    before = peers.generation
    measure.peer("billing", "*.stripe.com", category="mine", operations={"GET /a/{b}": "ab", "GET /a/special": "s"})
    assert _called("api.stripe.com", "GET", "/a/1") == ("billing", "mine", "ab", "/a/{b}")
    assert _called("api.stripe.com", "GET", "/a/special") == ("billing", "mine", "s", "/a/special")
    measure.peer("billing", "pay.example.com", "*.pay.internal", "push-*", "[::1]")
    assert _called("api.stripe.com") == ("stripe", "payments", "GET", None)
    for host in ("pay.example.com", "eu.pay.internal", "push-7", "::1"):
        assert _called(host) == ("billing", None, "GET", None)
    assert peers.generation == before + 2
    assert [each.service for each in peers.declared()] == ["billing"]


def test_the_longest_host_is_meant() -> None:
    """Of own declarations the exact host is taken first, then the longest pattern, whatever came first."""
    measure.peer("all", "*.example.com")
    measure.peer("eu", "*.eu.example.com")
    measure.peer("one", "a.eu.example.com")
    measure.peer("part", "a.eu.example.com/part")
    assert [_called(host)[0] for host in ("b.example.com", "b.eu.example.com", "a.eu.example.com")] == [  # type: ignore[index]
        "all", "eu", "one",
    ]  # fmt: skip
    assert _called("a.eu.example.com", path="/part/x") == ("part", None, "GET", None)


@pytest.mark.parametrize(
    ("host", "operations", "message"),
    [
        ("https://push.example.com", None, r"host .* of 'push' cannot be one: write it as in api\.example\.com"),
        ("push.example.com:443", None, "without scheme and port"),
        ("", None, "cannot be one"),
        ("*", None, "would fit too much"),
        ("*.com", None, "would fit too much"),
        ("a*b*c*d*e.example.com", None, "no more than 3 stars"),
        ("p.example.com", {"SEND /a": "a"}, "has the method 'SEND': begin with one such as GET"),
        ("p.example.com", {"GET a": "a"}, "has the path 'a': write it as in GET /v1/customers"),
        ("p.example.com", {"GET /a/{b}{c}": "a"}, r"has '\{b\}\{c\}' in its path"),
        ("p.example.com", {"GET /a/*/b": "a"}, r"\* only as the last part"),
        ("p.example.com", {"GET /a?b": "a"}, "no query"),
        ("p.example.com", {"GET /a": ""}, "is called ''"),
        ("p.example.com", {"GET /a": "x\n"}, "give it a short plain name"),
    ],
)
def test_bad_patterns(host: str, operations: dict[str, str] | None, message: str) -> None:
    """What cannot be understood is refused where it is declared, and changes nothing."""
    with pytest.raises(ValueError, match=message):
        measure.peer("push", host, operations=operations)
    assert peers.declared() == ()


def test_bad_names() -> None:
    """A service needs a plain name and a host, a category a plain name."""
    for arguments, message in [
        ((("",), {}), "service '' cannot be a name"),
        ((("push",), {}), "service 'push' has no host"),
        ((("push", "p.example.com"), {"category": "\x1b"}), "category .* cannot be a name"),
    ]:
        with pytest.raises(ValueError, match=message):
            measure.peer(*arguments[0], **arguments[1])  # type: ignore[arg-type]


def test_what_is_kept_is_bounded() -> None:
    """100,000 paths of one service, and one of a megabyte, take a bounded room."""
    ((_, found), *_) = peers.find("api.stripe.com")
    for n in range(100_000):
        assert found.call("GET", f"/v1/customers/{n}").operation == "get_customer"
    found.call("GET", "/v1/" + "x/" * 500_000)
    assert len(found._known) <= 1024
    assert max(len(path) for _, path in found._known) <= 256


@pytest.mark.parametrize("host", ["10.0.0.0/8", "10.0.0.1/24", "fd00::/8"])
def test_a_network_is_no_host(host: str) -> None:
    """It is refused, with what to write instead of it."""
    with pytest.raises(ValueError, match="is a network: write its addresses"):
        peers.declare("x", host)
