"""Background jobs: which there are, how often each should run, and which of their runs this process has seen.

A run is an overlap where another of the same job was in flight here when it began. Runs that were due and did not
begin are counted when somebody collects; no thread waits for them.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

from otel_perf import conventions as c
from otel_perf.schedule import Cron, Schedule, parse
from otel_perf.telemetry import runtime

__all__ = ["LONGEST_NAME", "Job", "Seen", "declare", "declared", "enter", "leave", "miss", "missed"]

# Names made up at run time must not fill the memory. A metric has 2000 series, and `_OTHER` must be among them.
_MAX_JOBS = 1990
_MAX_RUNNING = 1000
LONGEST_NAME = 256


@dataclass(frozen=True, slots=True)
class Job:
    """A job by name; `every_s` is the longest expected time between two starts, or None where it is not known."""

    name: str
    every_s: float | None = None
    cron: str | None = None
    timezone: str | None = None


class Seen:
    """What this process has seen of one job."""

    __slots__ = ("here", "missed", "running", "schedule", "since_s")

    def __init__(self) -> None:
        self.schedule: Schedule | None = None
        #: Up to where runs that are due were looked at, by the clock of the schedule.
        self.since_s = 0.0
        self.missed = 0
        #: One entry for each run in flight, the oldest first.
        self.running: list[object] = []
        #: Whether this process itself began a run, without being told to by somebody outside.
        self.here = False

    def expect(self, schedule: Schedule | None) -> None:
        """Counts from now on what this schedule wants."""
        self.schedule = schedule
        self.since_s = schedule.now_s() if schedule is not None else 0.0

    def settle(self, *, counts: bool) -> None:
        """Counts what was due by now and did not begin; a job that is still running is not missed."""
        schedule = self.schedule
        if schedule is None or self.running:
            return
        until_s = schedule.now_s() - schedule.grace_s
        if counts:
            count, self.since_s = schedule.passed(self.since_s, until_s)
            self.missed += count
        else:
            self.since_s = max(self.since_s, until_s)


_jobs: dict[str, Job] = {}
_seen: dict[str, Seen] = {}
# Re-entrant: the garbage collector may end a generator, and with it a run, while this thread holds it.
_lock = threading.RLock()


def declare(name: str, every: str | float | None = None, timezone: str | None = None) -> Job:
    """Declares a job. `every` is a duration (seconds, or text such as `30s`, `15m`, `1d`) or a cron line.

    A cron line is read in `timezone` (`Europe/Berlin`), or in UTC without one.

    Raises:
        ValueError: when `every` is neither, or the time zone is unknown.
        ImportError: for a cron line where what reads it is not installed.
    """
    job = _jobs.get(name)
    if job is not None and every is None:
        return job
    schedule = None if every is None else parse(name, every, timezone)
    if schedule is None:
        made = Job(name)
    elif isinstance(schedule, Cron):
        made = Job(name, schedule.every_s, schedule.line, timezone)
    else:
        made = Job(name, schedule.every_s)
    with _lock:
        if name not in _jobs and len(_jobs) >= _MAX_JOBS:
            return made
        _jobs[name] = made
        seen = _found(name[:LONGEST_NAME])
        if seen is not None and seen.schedule != schedule:
            seen.expect(schedule)
    return made


def declared() -> tuple[Job, ...]:
    """All jobs, in the order of their declaration."""
    return tuple(_jobs.values())


def missed() -> list[tuple[int, dict[str, Any]]]:
    """How many runs of each job were due and did not begin; for the metric, at each collect.

    Where the host has several workers, one of them sees only its own runs: it counts a job only once it has begun a
    run that nobody outside (a request, a queue) had it begin.
    """
    several = _several()
    answer: list[tuple[int, dict[str, Any]]] = []
    with _lock:
        for name, seen in list(_seen.items()):
            counts = seen.schedule is not None and name in _jobs and (seen.here or not several)
            if seen.schedule is not None:
                seen.settle(counts=counts)
            if counts or seen.missed:
                answer.append((seen.missed, {c.JOB_NAME: name}))
    return answer


def miss(name: str) -> None:
    """Counts a run that a scheduler says was missed; where `every` is declared, that tells already."""
    with _lock:
        seen = _found(name[:LONGEST_NAME])
        if seen is not None and seen.schedule is None:
            seen.missed += 1


def _several() -> bool:
    in_force = runtime.current
    return in_force is not None and in_force.exchange.has_others


def enter(name: str, entry: object, *, outside: bool) -> tuple[Seen, bool] | None:
    """Notes that a run begins, and says whether it overlaps another; None where there are too many jobs."""
    several = _several()
    with _lock:
        seen = _found(name)
        if seen is None:
            return None
        seen.settle(counts=seen.here or not several)
        seen.here = seen.here or not outside
        if seen.schedule is not None:
            seen.since_s = seen.schedule.begun_s(seen.schedule.now_s())
        if len(seen.running) < _MAX_RUNNING:
            seen.running.append(entry)
        return seen, seen.running[0] is not entry


def _found(name: str) -> Seen | None:
    seen = _seen.get(name)
    if seen is None and len(_seen) < _MAX_JOBS:
        seen = _seen[name] = Seen()
    return seen


def leave(seen: Seen, entry: object) -> None:
    """Notes that a run has ended."""
    with _lock:
        if entry in seen.running:
            seen.running.remove(entry)
        if seen.schedule is not None and not seen.running:
            seen.since_s = seen.schedule.ended_s(seen.since_s, seen.schedule.now_s())


def _after_fork() -> None:
    """A forked child has begun nothing yet; what its parent has in flight is not its own."""
    global _lock
    _lock = threading.RLock()
    for seen in _seen.values():
        seen.running = []
        seen.here, seen.missed = False, 0
        seen.expect(seen.schedule)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
