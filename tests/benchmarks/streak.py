"""What the streak figures are measured by: the service under load, its maintenance, and what measuring it costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import psutil

from examples.streak import rules
from tests.benchmarks import streak_seed
from tests.benchmarks.processes import ScenarioError
from tests.benchmarks.streak_places import Places, Service

__all__ = ["PARTS", "QUICK", "USUAL", "Elsewhere", "Size", "Streak", "today"]

#: What can be measured by itself; each of them for each database.
PARTS = ("load", "share", "1000", "10000", "100000", "kill")
_RUN_S = 300.0
_WATCH_S = 0.02
_KILL_AFTER_BATCHES = 5
_WARM = 0.1
_SETTLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done of each part."""

    users: int = 100
    seconds: float = 6.0
    rounds: int = 3
    #: Pairs of stretches, with and without measuring, and how long each is.
    pairs: int = 4
    pair_s: float = 5.0
    #: Users of the maintenance whose memory is looked at, and of the one that is killed.
    many: int = 100_000
    killed: int = 4_000
    runs: int = 3

    @property
    def cold(self) -> int:
        """How many people there are whom nobody asked for lately: enough for each to be asked for once."""
        return 60 * self.users


USUAL = Size()
QUICK = Size(seconds=3.0, rounds=1, pairs=2, pair_s=3.0, many=20_000, killed=2_000, runs=1)


def today() -> Any:
    """The day that the service's processes are in."""
    return rules.day_of(datetime.now(timezone.utc))


class Elsewhere:
    """How much of the machine others used since: tests of a neighbour disturb what is measured here."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._before = self._busy_s() - self._own_s()

    def share(self) -> float:
        """The share of all cores."""
        used = self._busy_s() - self._own_s() - self._before
        return max(0.0, used / ((time.monotonic() - self._began_s) * (psutil.cpu_count() or 1)))

    @staticmethod
    def _busy_s() -> float:
        told = psutil.cpu_times()
        return float(told.user + told.system + getattr(told, "nice", 0.0) + getattr(told, "softirq", 0.0))

    @staticmethod
    def _own_s() -> float:
        found = 0.0
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            try:
                told = process.cpu_times()
            except psutil.Error:
                continue
            found += told.user + told.system + told.children_user + told.children_system
        return found


@dataclass(slots=True)
class Streak:
    """One run of the streak figures."""

    places: Places
    size: Size
    say: Callable[[str], None]
    #: Part and database -> what each round told.
    told: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    _cold: int = 0
    _templates: dict[str, str] = field(default_factory=dict)

    def measure(self, part: str, database: str) -> None:
        """Measures one part.

        Raises:
            ScenarioError: when it cannot be; the message says why.
        """
        if part == "load":
            self.load(database, ("calendar", "log", "burst", "closed"))
        elif part == "share":
            self._share(database)
        elif part == "kill":
            self._kill(database)
        elif part.isdecimal():
            self._maintenance(part, database)
        else:
            self.load(database, (part,))

    def _add(self, part: str, database: str, found: dict[str, Any]) -> None:
        self.told.setdefault((part, database), []).append(found)

    # Load ----------------------------------------------------------------------------------------------------------

    def _seeded(self, database: str) -> str:
        """A database with everybody whom the load asks for; they are made once, and copied."""
        if database not in self._templates:
            self._templates[database] = url = self.places.database(database)
            streak_seed.seed(url, *streak_seed.readers(today(), hot=2 * self.size.users, cold=self.size.cold))
        return self.places.copy(self._templates[database])

    def load(self, database: str, shapes: tuple[str, ...]) -> None:
        """Puts these shapes of load on a service of this database, round by round."""
        self.say(f"streak on {database}: {', '.join(shapes)}")
        service = self.places.service(self._seeded(database))
        try:
            for turn in range(self.size.rounds):
                for shape in shapes:
                    self._add(shape, database, self._stretch(service, shape, self.size.seconds))
                    if turn + 1 == self.size.rounds:
                        self.say(f"streak on {database}: {shape} was put on it {turn + 1} times")
            counts = {name: service.counted(f"streak_transaction_{name}_total") for name in ("retries", "failures")}
            done = sum(each["sent"].get("log", 0) for shape in shapes for each in self.told[shape, database])
            self._add("transactions", database, {**counts, "transactions": done})
        finally:
            service.close()

    def _stretch(self, service: Service, shape: str, seconds: float) -> dict[str, Any]:
        others, cpu_s = Elsewhere(), service.cpu_s()
        found = self.places.generate(
            service, shape, users=self.size.users, seconds=seconds, cold_from=self._cold, cold_users=self.size.cold
        )
        self._cold = found["cold_next"]
        requests = sum(found["sent"].values())
        return {
            **found, "elsewhere": round(others.share(), 3),
            "cpu_us": (service.cpu_s() - cpu_s) / max(1, requests) * 1e6,
        }  # fmt: skip

    # Instrumentation -----------------------------------------------------------------------------------------------

    def _share(self, database: str) -> None:
        """The same load on the service as it is and on one without otel_perf, by turns, on the same core."""
        arms = {bare: self.places.service(self._seeded(database), bare=bare) for bare in (False, True)}
        try:
            for turn in range(-1, self.size.pairs):
                self.say(f"streak on {database}: with and without measuring, {max(0, turn + 1)} of {self.size.pairs}")
                # The first pair warms both up; then each begins as often as the other.
                seconds = self.size.pair_s if turn >= 0 else 1.0
                order = (False, True) if turn % 2 == 0 else (True, False)
                found = {bare: self._stretch(arms[bare], "log", seconds) for bare in order}
                if turn >= 0:
                    self._add("share", database, {"on": found[False], "off": found[True]})
        finally:
            for service in arms.values():
                service.close()

    # Maintenance ---------------------------------------------------------------------------------------------------

    def _maintenance(self, part: str, database: str) -> None:
        count = min(int(part), self.size.many)
        for _ in range(self.size.runs if count <= 10_000 else 1):
            self.say(f"streak on {database}: maintenance of {count} users")
            url = self.places.database(database)
            streak_seed.seed(url, streak_seed.settled_users(count, today()))
            self._add(part, database, self._maintained(url, count))

    def _maintained(self, url: str, count: int, *command: str) -> dict[str, Any]:
        others = Elsewhere()
        process = self.places.run("examples.streak.maintain", [*command, "--json"], url)
        memory: list[tuple[float, int]] = []
        while process.ended is None:
            if time.monotonic() - process.began_s > _RUN_S:
                raise ScenarioError(f"the maintenance of {count} users did not end within {_RUN_S:.0f} s")
            try:
                rss = process.seen.memory_info().rss
            except psutil.Error:
                rss = 0
            if rss:  # none any more is of a process that has just ended
                memory.append((time.monotonic(), rss))
            time.sleep(_WATCH_S)
        wall_s = time.monotonic() - process.began_s
        said, why = process.said(), process.complained()
        code = process.ended
        process.close()
        if code or not said:
            raise ScenarioError(f"the maintenance of {count} users ended with {code}: {why}")
        told = json.loads(said)
        seconds = told["seconds"]
        begun = process.began_s + wall_s - seconds
        late = [rss for at, rss in memory if at >= begun + (1 - _WARM) * seconds] or [memory[-1][1]]
        early = [rss for at, rss in memory if at <= begun + _WARM * seconds] or [memory[0][1]]
        processed = told["tally"]["processed"]
        if processed != count:
            raise ScenarioError(f"the maintenance accounted for {processed} of {count} users")
        return {
            "users": count, "wall_s": wall_s, "seconds": seconds, "elsewhere": round(others.share(), 3),
            "grown_mb": (max(late) - early[-1]) / 2**20, "peak_mb": max(rss for _, rss in memory) / 2**20,
        }  # fmt: skip

    def _kill(self, database: str) -> None:
        """Ends a run half-way as the kernel would, resumes it, and looks at every user."""
        count = self.size.killed
        self.say(f"streak on {database}: maintenance of {count} users, killed and resumed")
        url = self.places.database(database)
        streak_seed.seed(url, streak_seed.settled_users(count, today()))
        process = self.places.run("examples.streak.maintain", ["--json"], url)
        while process.ended is None and _batches(url) < _KILL_AFTER_BATCHES:
            time.sleep(0.002)
        if process.ended is not None:
            why = process.complained()
            raise ScenarioError(f"the maintenance ended before it was killed: {why}")
        process.kill()
        process.close()
        half = _processed(url)
        if not 0 < half < count:
            raise ScenarioError(f"the maintenance was killed after {half} of {count} users: not half-way")
        self._maintained(url, count, "--resume")
        self._add("kill", database, {"users": count, "at_kill": half, "exact": _exact(url, count)})


def _batches(url: str) -> int:
    return int(streak_seed.query(url, "SELECT count(*) FROM streak_batches")[0][0])


def _processed(url: str) -> int:
    return int(streak_seed.query(url, "SELECT coalesce(sum(processed), 0) FROM streak_batches")[0][0])


def _exact(url: str, count: int) -> float:
    """The share of users who are as the rules, applied once, leave them; 0 when more or fewer were accounted for."""
    rows = streak_seed.query(url, "SELECT id, streak, freezes, freezes_used, lost_streak FROM streak_users")
    right = streak_seed.expected(count, today())
    if _processed(url) != count or len(rows) != count:
        return 0.0
    return sum(right[name] == tuple(rest) for name, *rest in rows) / count
