"""Requests handed to an ASGI app by hand: no server, no client, nothing but the app and what measures it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.scenarios import Ready

__all__ = ["CONTEXT", "KINDS", "PLAIN", "Kind", "checked", "cpu_per_request_us", "request"]

App = Callable[[Any, Any, Any], Awaitable[None]]

#: What a browser or a client library usually sends; no trace context.
PLAIN: tuple[tuple[bytes, bytes], ...] = (
    (b"host", b"shop.example.com"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    (b"accept", b"application/json"),
    (b"accept-language", b"en-GB,en;q=0.5"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"connection", b"keep-alive"),
    (b"cookie", b"session=4f1d2b6c9a"),
    (b"cache-control", b"no-cache"),
)
#: The same behind another service that is traced.
CONTEXT: tuple[tuple[bytes, bytes], ...] = (
    *PLAIN,
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"tracestate", b"congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
    (b"baggage", b"tenant=acme,region=eu-west"),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a request carries."""

    headers: tuple[tuple[bytes, bytes], ...]
    query: bytes = b""


KINDS = {"plain": Kind(PLAIN), "query": Kind(PLAIN, b"page=2&sort=name"), "context": Kind(CONTEXT)}


#: Spans are flushed this often, so that no scenario drops any (a queue holds 2,048) and all pay for their export.
_FLUSH_AT = 250


def _scope(kind: Kind) -> dict[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": "/items/42", "raw_path": b"/items/42", "query_string": kind.query, "root_path": "",
        "headers": list(kind.headers), "client": ("127.0.0.1", 50_000), "server": ("127.0.0.1", 8000), "state": {},
    }  # fmt: skip


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(_: Any) -> None:
    return None


async def request(app: App, kind: Kind) -> None:
    """One request."""
    await app(_scope(kind), _receive, _send)


async def checked(app: App, kind: Kind) -> None:
    """One request that must be answered as it should."""
    sent: list[Any] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    await app(_scope(kind), _receive, keep)
    assert sent[0]["status"] == 200, sent
    assert b"".join(each.get("body", b"") for each in sent[1:]) == b'{"ok":true}', sent


async def cpu_per_request_us(app: App, ready: Ready, kind: Kind, requests: int) -> float:
    """CPU time of the whole process for one request, all of its threads and the export of what it made included."""
    for _ in range(_FLUSH_AT):
        await app(_scope(kind), _receive, _send)
    ready.flush()
    started_ns = time.process_time_ns()
    for number in range(1, requests + 1):
        await app(_scope(kind), _receive, _send)
        if number % _FLUSH_AT == 0:
            ready.flush_spans()
    ready.flush()
    return (time.process_time_ns() - started_ns) / requests / 1000
