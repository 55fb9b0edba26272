"""`make load`: Locust's users on the streak service, with a real database and a real cache, and targets to reach."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.streak.load_targets import BadTargetError, Verdict, judge, read_targets
from tests.benchmarks import streak_values as values
from tests.benchmarks.processes import ScenarioError, Started, cores
from tests.benchmarks.report import markdown_table
from tests.benchmarks.streak import Size, Streak
from tests.benchmarks.streak_places import Places
from tests.benchmarks.streak_report import load_table
from tests.benchmarks.streak_values import DATABASES, Told, UntoldError

__all__ = ["main"]

_ABOUT = """\
Starts the streak service (one worker, everything measured and exported), a database of each kind and Redis, puts
Locust's users on it, and tells each figure beside its target. All of it is on loopback and stops by itself.

The users read calendars, a fifth of them of people whom the cache does not know; then log an activity each second
beside the readers; with --hard, the readers come at the same moment, and without a pause. Latency counts from when a
request was due. When Locust itself could not keep up it says so, and the figure is not told."""

_EXAMPLES = """\
examples:
  make load                                                       both databases, about a minute
  make load ARGS="--database sqlite --seconds 30 --users 100"     one of them, longer
  make load ARGS="--users 50 --json"                              half the load; the last line is one JSON object
  make load ARGS="--targets mine.json"                            {"calendar_p95_ms": 200}: other targets
  make bench ARGS="--only streak_maintenance_10k_s"               the maintenance, and what measuring costs
  STREAK_SECRET=... locust -f examples/streak/load.py --host http://127.0.0.1:8000     by hand, with Locust's own page

100 users log 6,000 activities a minute. Exit code: 0 when all targets are met, 1 when one is missed or could not be
told, 2 for bad arguments, 130 when it was interrupted."""

_MAX_USERS = 400


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "make load", description=_ABOUT, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", choices=DATABASES, action="append", help="this one; may be given again")
    parser.add_argument("--seconds", type=_seconds, default=6.0, help="how long each stretch counts (default 6)")
    parser.add_argument("--rounds", type=int, default=2, help="stretches of each kind; the middle one is told (2)")
    parser.add_argument("--users", type=int, default=100, help="readers, and people who log (default 100 of each)")
    parser.add_argument("--hard", action="store_true", help="the harder shapes too; they have no target")
    parser.add_argument("--targets", type=Path, metavar="FILE", help="targets of one's own, as JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    return parser


def _seconds(value: str) -> float:
    number = float(value)
    if not (math.isfinite(number) and 0 < number <= 600):
        raise argparse.ArgumentTypeError("use more than 0 and at most 600 seconds")
    return number


def _told(told: Told, database: str) -> tuple[dict[str, float | None], str]:
    """The figures of one database, by the names of the targets; and why one is missing."""
    makers = {
        "calendar_p95_ms": values.p95_ms("calendar"), "log_p95_ms": values.p95_ms("log"), "errors": values.errors,
        "transaction_retry_share": values.retry_share, "transaction_failures": values.failures,
    }  # fmt: skip
    found: dict[str, float | None] = {}
    why = ""
    for name, make in makers.items():
        try:
            found[name] = make(told, database)
        except UntoldError as error:
            found[name], why = None, why or str(error)
    return found, why


def _run(asked: argparse.Namespace, targets: dict[str, float]) -> tuple[dict[str, list[Verdict]], Told]:
    began_s = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {what}", file=sys.stderr, flush=True)

    verdicts: dict[str, list[Verdict]] = {}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores()[1]})  # everything but the service is on the other core
    with Started() as started, Places(started.sink) as places:
        run = Streak(places, Size(users=asked.users, seconds=asked.seconds, rounds=asked.rounds), say)
        for database in asked.database or DATABASES:
            failed = ""
            try:
                run.load(database, ("calendar", "log", "burst", "closed") if asked.hard else ("calendar", "log"))
            except ScenarioError as error:
                failed = str(error)
            found, why = _told(run.told, database)
            verdicts[database] = judge(found, targets, failed or why)
    return verdicts, run.told


def _shown(verdicts: dict[str, list[Verdict]]) -> str:
    rows = []
    for database, each in verdicts.items():
        for verdict in each:
            value = "not told" if verdict.value is None else f"{verdict.value:.4g}"
            met = "yes" if verdict.met else f"**no** {verdict.why}".rstrip()
            rows.append((verdict.name, database, value, f"at most {verdict.target:g}", met))
    return markdown_table(("figure", "database", "value", "target", "met"), rows)


def _document(verdicts: dict[str, list[Verdict]], told: Told) -> dict[str, Any]:
    return {
        "figures": {
            database: {
                v.name: {"value": v.value, "target": v.target, "met": v.met, **({"why": v.why} if v.why else {})}
                for v in each
            }
            for database, each in verdicts.items()
        },
        "rounds": {f"{part} {database}": list(rounds) for (part, database), rounds in told.items()},
    }


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the load and tells whether all targets are met."""
    parser = _parser()
    asked = parser.parse_args(argv)
    if not 1 <= asked.users <= _MAX_USERS or not 1 <= asked.rounds <= 100:
        parser.error(f"use 1 to {_MAX_USERS} users and 1 to 100 rounds")
    try:
        targets = read_targets(asked.targets)
    except BadTargetError as problem:
        parser.error(str(problem))
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        verdicts, told = _run(asked, targets)
    except KeyboardInterrupt:
        print("interrupted; everything that was started has ended", file=sys.stderr)
        return 130
    if any(rounds for (part, _), rounds in told.items() if part != "transactions"):
        print(load_table(told, markdown_table) + "\n")
    print(_shown(verdicts))
    if asked.json:
        print(json.dumps(_document(verdicts, told)), flush=True)
    return 0 if all(verdict.met for each in verdicts.values() for verdict in each) else 1


if __name__ == "__main__":
    sys.exit(main())
