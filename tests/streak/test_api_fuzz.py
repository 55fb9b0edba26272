"""Whatever is sent, the service answers, and never with a failure of its own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.streak.conftest import Service, Start

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)
_activity = st.fixed_dictionaries(
    {"category": st.sampled_from(["learn", "move", "create", "connect"]) | _json},
    optional={
        "minutes": st.integers(-10, 2_000) | _json,
        "note": st.text(max_size=300) | _json,
        "client_key": st.text(max_size=70) | st.from_regex(r"[!-~]{1,64}", fullmatch=True) | _json,
    },
)
_value = st.text(max_size=40) | st.integers().map(str) | st.from_regex(r"[0-9a-f]{32}", fullmatch=True)
_header = st.binary(max_size=80).map(lambda sent: bytes(byte for byte in sent if byte not in b"\r\n\x00"))

_fuzzed = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _run(start: Start, *calls: tuple[str, str, dict[str, Any]]) -> None:
    async def ask(service: Service) -> None:
        for method, path, sent in calls:
            headers = {**service.as_user("ada", admin=True), **sent.pop("headers", {})}
            answer = await service.http.request(method, path, headers=headers, **sent)
            assert answer.status_code < 500, (path, sent, answer.text)
            if answer.status_code >= 400:
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["status"] == answer.status_code

    async def run() -> None:
        async with start(requests_per_minute=0) as service:
            await ask(service)

    asyncio.run(run())


@given(bodies=st.lists(_activity | _json, min_size=1, max_size=20))
@_fuzzed
def test_any_body_is_answered(start: Start, bodies: list[Any]) -> None:
    """Any JSON is an activity or is refused."""
    _run(
        start,
        *(
            ("POST", "/api/activities", {"content": json.dumps(body), "headers": {"Content-Type": "application/json"}})
            for body in bodies
        ),
    )


@given(bodies=st.lists(st.binary(max_size=200), min_size=1, max_size=20), kind=st.sampled_from(["json", "x", ""]))
@_fuzzed
def test_any_bytes_are_answered(start: Start, bodies: list[bytes], kind: str) -> None:
    """Any bytes of any type are refused."""
    headers = {"Content-Type": f"application/{kind}"}
    _run(start, *(("POST", "/api/activities", {"content": body, "headers": dict(headers)}) for body in bodies))


@given(values=st.lists(_value, min_size=1, max_size=10))
@_fuzzed
def test_any_query_is_answered(start: Start, values: list[str]) -> None:
    """Any values of the parameters are taken or refused."""
    calls: list[tuple[str, str, dict[str, Any]]] = []
    for value in values:
        everything = dict.fromkeys(("limit", "cursor", "category", "days", "dry_run"), value)
        paths = ("activities", "calendar", "leaderboard", "admin/maintenance", "profile")
        calls += [("GET", f"/api/{path}", {"params": {**everything}}) for path in paths]
        calls.append(("GET", "/api/activities", {"params": {"cursor": value}}))
        calls.append(("GET", "/api/admin/maintenance", {"params": {"cursor": value}}))
    _run(start, *calls)


@given(values=st.lists(_header, min_size=1, max_size=20))
@_fuzzed
def test_any_header_is_answered(start: Start, values: list[bytes]) -> None:
    """Any bytes in the headers that the service reads are taken or refused."""
    _run(
        start,
        *(
            ("POST", "/api/activities", {"json": {"category": "learn"}, "headers": {name: value}})
            for value in values
            for name in ("Idempotency-Key", "Authorization", "Accept-Encoding", "traceparent", "Content-Type")
        ),
    )


@pytest.mark.parametrize("path", ["//", "/api", "/api//profile", "/api/../profile", "/api/profile/", "/api/%2e%2e/"])
def test_odd_paths_are_answered(start: Start, path: str) -> None:
    """A path that is no route's is refused, and opens none."""
    _run(start, ("GET", path, {}), ("POST", path, {}))
