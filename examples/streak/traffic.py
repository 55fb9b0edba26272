"""Drives realistic traffic through a streak service on this machine, and counts exactly what it sent.

    STREAK_SECRET=... python -m examples.streak.traffic --base-url http://127.0.0.1:8000 --seconds 30

Several users, some of whom come all the time and some once, so that cache keys are hot and cold; all routes, the slow
and the failing one of the demonstration among them; requests that are refused; and maintenance runs.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from .mix import Call, Mix
from .settings import BadSettingError, Settings

__all__ = ["MAX_TRACE_IDS", "Counts", "NotLoopbackError", "drive"]

MAX_TRACE_IDS = 5_000
_DEFAULT_SECONDS = 30.0
_TIMEOUT_S = 10.0
_LOCAL_NAMES = ("localhost",)
_TRACE_ID_DIGITS = 32

Progress = Callable[["Counts"], None]


class NotLoopbackError(ValueError):
    """The address is not one of this machine: traffic is made for a service of one's own, and nobody else's."""


@dataclass(slots=True)
class Counts:
    """What was sent and what came back."""

    routes: dict[str, dict[tuple[str, int], int]] = field(default_factory=dict)
    """By route template, then by method and status. What no route takes is under the empty template."""
    trace_ids: list[str] = field(default_factory=list)
    """Of the first answers that named their trace, at most `MAX_TRACE_IDS`."""
    failed: int = 0
    """Requests without an answer. The service may have seen them or not."""

    @property
    def requests(self) -> int:
        """Return how many requests were answered."""
        return sum(count for statuses in self.routes.values() for count in statuses.values())

    @property
    def errors(self) -> int:
        """Return how many of the answers were failures of the service (5xx)."""
        return sum(
            count
            for statuses in self.routes.values()
            for (_, status), count in statuses.items()
            if status >= httpx.codes.INTERNAL_SERVER_ERROR
        )

    def add(self, template: str, answer: httpx.Response) -> None:
        """Count an answer."""
        key = (answer.request.method, answer.status_code)
        statuses = self.routes.setdefault(template, {})
        statuses[key] = statuses.get(key, 0) + 1
        trace_id = answer.headers.get("traceresponse", "")[3 : 3 + _TRACE_ID_DIGITS]
        if len(trace_id) == _TRACE_ID_DIGITS and len(self.trace_ids) < MAX_TRACE_IDS:
            self.trace_ids.append(trace_id)


async def drive(
    base_url: str,
    *,
    secret: str,
    seconds: float | None = None,
    requests: int | None = None,
    concurrency: int = 8,
    rate: float = 60.0,
    seed: int | None = None,
    on_progress: Progress | None = None,
) -> Counts:
    """Send requests at a steady pace until their number is reached or the time is up, and return what was counted.

    `secret` is what the service signs its tokens with. `rate` is requests per second at most: a service that is slower
    than that gets no more than `concurrency` at once. Without any bound it ends after 30 seconds. `on_progress` is
    called after each answer with the counts so far, the same object that is returned.
    """
    _require_loopback(base_url)
    if concurrency < 1 or rate <= 0:
        raise ValueError("concurrency and rate must be positive")
    if seconds is None and requests is None:
        seconds = _DEFAULT_SECONDS
    counts = Counts()
    mix = Mix(secret, random.Random(seed))
    # As many connections as workers, each used again and again: ports don't run out.
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=_TIMEOUT_S, trust_env=False) as client:
        pace = _Pace(rate, seconds, requests)
        workers = [_work(client, mix, pace, counts, on_progress) for _ in range(concurrency)]
        await asyncio.gather(*workers)
    return counts


async def _work(client: httpx.AsyncClient, mix: Mix, pace: _Pace, counts: Counts, on_progress: Progress | None) -> None:
    while await pace.next():
        call = mix.next()
        try:
            answer = await client.request(
                call.method, call.path, params=call.params, headers=call.headers, content=call.content
            )
        except httpx.HTTPError:
            counts.failed += 1
        else:
            mix.learn(call, answer)
            counts.add(_template(call, answer), answer)
        if on_progress is not None:
            on_progress(counts)


def _template(call: Call, answer: httpx.Response) -> str:
    # The routes of the demonstration never answer 404: a service that does has them switched off.
    missing = call.optional and answer.status_code == httpx.codes.NOT_FOUND
    return "" if missing else call.template


class _Pace:
    """Hands out the moments at which requests start, to all workers together."""

    def __init__(self, rate: float, seconds: float | None, requests: int | None) -> None:
        self._interval_s = 1.0 / rate
        self._left = requests
        self._start_s = time.monotonic()
        self._end_s = None if seconds is None else self._start_s + seconds
        self._next_s = self._start_s

    async def next(self) -> bool:
        """Wait for the next moment; False when there is none any more."""
        if self._left is not None and self._left <= 0:
            return False
        # Moments that no worker was free for are not made up for: that would be a burst.
        moment_s = max(self._next_s, time.monotonic())
        if self._end_s is not None and moment_s >= self._end_s:
            return False
        self._next_s = moment_s + self._interval_s
        if self._left is not None:
            self._left -= 1
        await asyncio.sleep(max(0.0, moment_s - time.monotonic()))
        return True


def _require_loopback(base_url: str) -> None:
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    try:
        local = host in _LOCAL_NAMES or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if parts.scheme != "http" or not local:
        raise NotLoopbackError(f"{base_url!r} is not on this machine: traffic goes to http://127.0.0.1:<port> only")


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.streak.traffic",
        description="Send traffic to a streak service on this machine. STREAK_SECRET must be that of the service.",
    )
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, help=f"stop after this long (default: {_DEFAULT_SECONDS:g})")
    parser.add_argument("--requests", type=int, help="stop after so many")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--rate", type=float, default=60.0, help="requests per second at most (default: 60)")
    parser.add_argument("--seed", type=int, help="the same number sends the same requests")
    options = parser.parse_args(argv)
    try:
        if not os.environ.get("STREAK_SECRET", "").strip():
            raise BadSettingError("STREAK_SECRET is not set: give it what the service was started with")
        secret = Settings.from_environment(os.environ).secret
        counts = asyncio.run(
            drive(
                options.base_url,
                secret=secret,
                seconds=options.seconds,
                requests=options.requests,
                concurrency=options.concurrency,
                rate=options.rate,
                seed=options.seed,
            )
        )
    except ValueError as problem:
        print(f"traffic: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    _show(counts)
    return 0 if counts.requests else 1


def _show(counts: Counts) -> None:
    for template, statuses in sorted(counts.routes.items()):
        for (method, status), count in sorted(statuses.items()):
            print(f"{count:6}  {status}  {method:4}  {template or '(no route)'}")
    print(f"{counts.requests} answered, {counts.errors} of them with 5xx; {counts.failed} without an answer")


if __name__ == "__main__":
    sys.exit(_main())
