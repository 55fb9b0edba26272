"""The traffic driver sends what it says, to this machine only, and counts it exactly."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

from examples.streak import traffic
from examples.streak.traffic import NotLoopbackError, drive
from tests.streak.conftest import SECRET

TRACE = "0af7651916cd43dd8448eb211c80319c"


class _Peer(BaseHTTPRequestHandler):
    """A service that writes down what it was asked, and has no demonstration."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece, or the kernel waits for the rest
    asked: Counter[tuple[str, str, int]]
    silent_on: str

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        path = urlsplit(self.path).path
        if path == self.silent_on:
            self.close_connection = True
            return
        status = 404 if path in ("/api/flaky", "/api/report", "/api/demo/token", "/api/nowhere") else 200
        self.asked[self.command, path, status] += 1
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.send_header("traceresponse", f"00-{TRACE}-b7ad6b7169203331-01")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = _answer  # noqa: N815 - the names are the base's

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base's
        """Say nothing."""


@contextmanager
def _peer(silent_on: str = "") -> Iterator[tuple[str, Counter[tuple[str, str, int]]]]:
    asked: Counter[tuple[str, str, int]] = Counter()
    handler = type("Peer", (_Peer,), {"asked": asked, "silent_on": silent_on})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def _by_path(counts: traffic.Counts) -> Counter[tuple[str, int]]:
    return Counter(
        {
            (method, status): sum(s.get((method, status), 0) for s in counts.routes.values())
            for method in ("GET", "POST")
            for status in (200, 404)
        }
    )


def test_counts_are_exact() -> None:
    """The driver counts what its peer was asked, by route, method and status."""
    with _peer() as (url, asked):
        counts = asyncio.run(drive(url, secret=SECRET, requests=400, rate=1e6, seed=7))
    assert counts.requests == 400 == asked.total()
    assert counts.failed == 0
    plain = {(method, path, status): n for (method, path, status), n in asked.items() if "activities/" not in path}
    for (method, path, status), n in plain.items():
        template = "" if status == 404 else path
        if template:
            assert counts.routes[template][method, status] == n
    assert sum(counts.routes[""].values()) == sum(n for (_, _, status), n in asked.items() if status == 404)
    single = sum(n for (_, path, _), n in asked.items() if path.startswith("/api/activities/"))
    assert sum(counts.routes["/api/activities/{activity_id}"].values()) == single


def test_same_seed_sends_the_same() -> None:
    """A seed decides what is sent."""
    sent = []
    for _ in range(2):
        with _peer() as (url, asked):
            asyncio.run(drive(url, secret=SECRET, requests=150, rate=1e6, seed=3, concurrency=1))
        sent.append(asked)
    assert sent[0] == sent[1]


def test_mix_has_all_routes() -> None:
    """The mix has every route of the service, wrong requests, and a maintenance run."""
    with _peer() as (url, _):
        counts = asyncio.run(drive(url, secret=SECRET, requests=600, rate=1e6, seed=1))
    assert set(counts.routes) == {
        "",
        "/api/activities",
        "/api/activities/{activity_id}",
        "/api/admin/kpis",
        "/api/admin/maintenance",
        "/api/admin/maintenance/resume",
        "/api/calendar",
        "/api/consistency",
        "/api/freeze",
        "/api/insights",
        "/api/leaderboard",
        "/api/profile",
        "/api/recovery",
    }


def test_no_answer_is_counted_apart() -> None:
    """A request without an answer is in `failed` and in no route."""
    with _peer(silent_on="/api/leaderboard") as (url, asked):
        counts = asyncio.run(drive(url, secret=SECRET, requests=200, rate=1e6, seed=1))
    assert "/api/leaderboard" not in counts.routes
    assert counts.failed > 0
    assert counts.requests + counts.failed == 200
    assert counts.requests == asked.total()


def test_trace_ids_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace ids come from `traceresponse`, and no more of them are kept than the bound."""
    monkeypatch.setattr(traffic, "MAX_TRACE_IDS", 10)
    with _peer() as (url, _):
        counts = asyncio.run(drive(url, secret=SECRET, requests=30, rate=1e6))
    assert counts.trace_ids == [TRACE] * 10


def test_progress_is_told_after_each() -> None:
    """`on_progress` sees the counts grow to what is returned."""
    seen: list[int] = []
    with _peer() as (url, _):
        counts = asyncio.run(
            drive(url, secret=SECRET, requests=20, rate=1e6, on_progress=lambda c: seen.append(c.requests))
        )
    assert sorted(seen) == list(range(1, counts.requests + 1))


def test_time_is_a_bound() -> None:
    """With a bound of time it ends by itself, at the pace it was given."""
    with _peer() as (url, _):
        counts = asyncio.run(drive(url, secret=SECRET, seconds=0.3, rate=50))
    assert 1 <= counts.requests <= 15


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "http://10.0.0.1:8000",
        "http://0.0.0.0:8000",
        "http://127.0.0.1.example.com",
        "http://127.0.0.1@example.com",
        "https://127.0.0.1",
        "ftp://127.0.0.1",
        "127.0.0.1:8000",
        "",
    ],
)
def test_only_this_machine(url: str) -> None:
    """An address that is not on this machine is refused before anything is sent."""
    with pytest.raises(NotLoopbackError, match="not on this machine"):
        asyncio.run(drive(url, secret=SECRET, requests=1))


@pytest.mark.parametrize("bad", [{"rate": 0}, {"rate": -1}, {"concurrency": 0}])
def test_bad_pace_is_refused(bad: dict[str, Any]) -> None:
    """A pace that would never send is refused."""
    with pytest.raises(ValueError, match="positive"):
        asyncio.run(drive("http://127.0.0.1:1", secret=SECRET, requests=1, **bad))


def test_nobody_there_is_no_crash() -> None:
    """Without a service every request is a failure, and the driver ends."""
    with _peer() as (url, _):
        pass
    counts = asyncio.run(drive(url, secret=SECRET, requests=5, rate=1e6))
    assert (counts.requests, counts.failed) == (0, 5)
