"""Drives one shape of load for a while and tells what came of it, and whether the driver itself kept up.

    STREAK_SECRET=... python -m examples.streak.load_run --url http://127.0.0.1:8000 --shape calendar --seconds 10

It is a process of its own because Locust makes its sockets and locks gevent's. `make load` starts the service, its
databases and this; here the service must run already.
"""

from __future__ import annotations

# Before everything else: Locust replaces parts of the standard library.
from examples.streak import load  # isort: skip

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from locust.env import Environment

from examples.streak.load_targets import BadTargetError, p, require_loopback

__all__ = ["main"]

_LAST_ANSWERS_S = 15.0
#: Beyond these the driver measures itself.
_MAX_BUSY = 0.9
_MAX_LATE_MS = 25.0
_MIN_PACE = 0.98


@dataclass(frozen=True, slots=True)
class _Health:
    """How the driver fared."""

    busy: float
    """The share of a core that it used."""
    late_p95_ms: float
    """How much later than due requests were sent that nothing but the driver held up."""
    pace: float | None
    """Requests sent against requests due, where there is a schedule."""

    def complaint(self, shape: str) -> str:
        """Return why the figures are not to be trusted; empty when they are."""
        if self.busy > _MAX_BUSY:
            return f"Locust was the bottleneck: it used {self.busy:.0%} of its core"
        # All at the same moment cannot be sent at the same moment: that is part of what the shape is.
        if self.late_p95_ms > _MAX_LATE_MS and shape != "burst":
            return f"Locust sent requests {self.late_p95_ms:.0f} ms late (p95): its core was taken"
        if self.pace is not None and self.pace < _MIN_PACE:
            return f"Locust kept {self.pace:.1%} of the pace"
        return ""


def _drive(url: str, shape: str, users: int, seconds: float, warm_up_s: float) -> tuple[_Health, float]:
    record = load.record
    kinds = load.SHAPES[shape]
    environment = Environment(user_classes=list(kinds), host=url)
    runner = environment.create_local_runner()
    for kind in kinds:
        kind.host = url
        runner.spawn_users({kind.__name__: users})
    time.sleep(warm_up_s)
    gc.collect()
    # A full collection of Locust's own garbage would hold up whatever comes due meanwhile.
    gc.freeze()
    used_s, record.since = time.process_time(), time.perf_counter()
    record.until = record.since + seconds
    time.sleep(seconds)
    busy = (time.process_time() - used_s) / (time.perf_counter() - record.since)
    # Whoever still waits for an answer is waited for: the slowest ones count too.
    deadline = time.monotonic() + _LAST_ANSWERS_S
    while runner.user_count and time.monotonic() < deadline:
        time.sleep(0.05)
    left = runner.user_count
    runner.quit()
    if left:
        raise RuntimeError(f"{left} users were still waiting {_LAST_ANSWERS_S:.0f} s after the end")
    late = sorted(record.late)
    done = len(record.from_due.get("log", ()))
    pace = done / (users * seconds) if shape == "log" else None
    return _Health(busy, 1000 * p(0.95, late) if late else 0.0, pace), seconds


def _told(values: Sequence[float]) -> dict[str, float]:
    ranked = sorted(1000 * value for value in values)
    shown = {f"p{share}_ms": p(share / 100, ranked) for share in (50, 95, 99)}
    return {name: round(value, 2) for name, value in {**shown, "max_ms": ranked[-1]}.items()}


def _document(shape: str, users: int, seconds: float, health: _Health) -> dict[str, Any]:
    record = load.record
    names: dict[str, Any] = {}
    for name, from_due in record.from_due.items():
        names[name] = {
            "count": len(from_due),
            "per_s": round(len(from_due) / seconds, 1),
            "errors": record.failed[name],
            **_told(from_due),
            "from_sent": _told(record.from_sent[name]),
        }
    why = health.complaint(shape) or ("" if names else "nothing was due: give it more seconds")
    return {
        "shape": shape,
        "users": users,
        "seconds": seconds,
        "requests": names,
        "sent": dict(record.sent),
        "failures": dict(record.texts),
        "cold_next": record.cold_next,
        "generator": {"busy": round(health.busy, 3), "late_p95_ms": round(health.late_p95_ms, 2), "pace": health.pace},
        "trusted": not why,
        "why": why,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.streak.load_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", required=True, help="where the service is, on loopback")
    parser.add_argument("--shape", choices=sorted(load.SHAPES), default="calendar")
    parser.add_argument("--users", type=int, default=100, help="users of each kind (default 100)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long it counts, after a warm-up (default 10)")
    parser.add_argument("--warm-up", type=float, default=3.0, help="how long it does not count before (default 3)")
    parser.add_argument("--cold-users", type=int, default=10_000, help="how many cold users the service has")
    parser.add_argument("--cold-from", type=int, default=0, help="the first of them that nobody asked for yet")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Drive, print one JSON object, and return 0 when it ran, 2 for bad arguments."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not os.environ.get("STREAK_SECRET"):
        parser.error("STREAK_SECRET is not set: give it what the service was started with")
    if not 1 <= options.users <= 1_000 or not 0 < options.seconds <= 3_600:
        parser.error("use 1 to 1000 users and more than 0 to 3600 seconds")
    try:
        url = require_loopback(options.url)
    except BadTargetError as problem:
        parser.error(str(problem))
    load.record.cold_users, load.record.cold_next = options.cold_users, options.cold_from
    health, seconds = _drive(url, options.shape, options.users, options.seconds, options.warm_up)
    print(json.dumps(_document(options.shape, options.users, seconds, health)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
