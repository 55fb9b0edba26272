"""What a request's path is told by the settings: which callers are believed, which paths are left out."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import baggage

from otel_perf import instrument, measure
from otel_perf.integrations import plan
from tests.asking import ask, scope

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def app_that_tells(told: list[Any]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        told.append(baggage.get_baggage("tier"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return instrument(app)


def asked(telemetry: Any, trust: str, **headers: str) -> tuple[Any, Any]:
    """The span of one request with a caller's trace and baggage, and the baggage that the app saw."""
    telemetry.restart(trust_context=trust)
    told: list[Any] = []
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    ask(app_that_tells(told), "/", headers={"traceparent": PARENT, "baggage": "tier=gold", **sent})
    return telemetry.span("GET"), told[0]


@pytest.mark.parametrize(
    ("trust", "headers", "believed"),
    [
        ("always", {}, True),
        ("always", {"sec_fetch_site": "cross-site"}, True),
        ("never", {}, False),
        ("never", {"sec_fetch_site": "same-origin"}, False),
        ("same-origin", {}, False),
        ("same-origin", {"sec_fetch_site": "same-origin"}, True),
        ("same-origin", {"sec_fetch_site": "same-site"}, False),
        ("same-origin", {"sec_fetch_site": "cross-site", "origin": "http://streak.test:8080"}, False),
        ("same-origin", {"origin": "http://streak.test:8080"}, True),
        ("same-origin", {"origin": "https://streak.test:8080"}, False),
        ("same-origin", {"origin": "http://evil.test"}, False),
    ],
)
def test_who_is_believed(telemetry, trust, headers, believed):
    """A caller that is believed is the parent and its baggage goes on; of any other only a link stays."""
    span, tier = asked(telemetry, trust, **headers)
    trace_id = int(PARENT[3:35], 16)
    if believed:
        assert (span.parent.trace_id, span.links, tier) == (trace_id, (), "gold")
    else:
        assert (span.parent, tier) == (None, None)
        assert [link.context.trace_id for link in span.links] == [trace_id]
        assert span.context.trace_id != trace_id


def test_an_unsampled_caller_who_is_not_believed_decides_nothing(telemetry):
    """The caller's flag counts only where the caller is believed."""
    telemetry.restart(trust_context="never")
    ask(app_that_tells([]), "/", headers={"traceparent": PARENT[:-1] + "0"})
    assert telemetry.span("GET").context.trace_flags.sampled


def test_what_is_around_the_app_goes_on(telemetry):
    """An app that runs within a span of this process is its child where no caller is believed."""
    telemetry.restart(trust_context="never")
    with measure("around"):
        ask(app_that_tells([]), "/", headers={"traceparent": PARENT})
    assert telemetry.span("GET").parent.span_id == telemetry.span("around").context.span_id


def test_the_plan_follows_the_configuration(telemetry):
    """Each configuration has its own plan, and the same one serves every request of it."""
    first = plan.current()
    assert plan.current() is first
    telemetry.restart(excluded_routes="/down,/in/*")
    assert plan.current() is not first
    assert [plan.excluded(scope(path)) for path in ("/down", "/in/a", "/in", "/up")] == [True, True, False, False]
