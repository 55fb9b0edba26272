"""One run: each scenario in its own process, and rounds through all of them, so that noise falls on all alike."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from tests.benchmarks import instructions, serving
from tests.benchmarks.figures import FIGURES, Results
from tests.benchmarks.libraries import LIBRARIES, REDIS, name_of
from tests.benchmarks.micro import MEMORY, MICRO
from tests.benchmarks.processes import Child, ScenarioError, Started, cores, environ
from tests.benchmarks.scenarios import SCENARIOS
from tests.benchmarks.streak import PARTS, QUICK, USUAL, Size, Streak
from tests.benchmarks.streak_places import Places
from tests.benchmarks.streak_values import DATABASES
from tests.benchmarks.subjects import SUBJECTS

__all__ = ["VARIANTS", "Plan", "plan", "run"]

#: What is counted of a request: what it carries, and the number of routes.
VARIANTS = {"5 routes": ("plain", 5), "200 routes": ("plain", 200), "query": ("query", 5), "context": ("context", 5)}

_RETRIED_AFTER_S = 0.2
_STRETCHES = 4  # of a round of calls through a library


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run measures, and how long."""

    calls: tuple[str, ...] = ()
    cpu: tuple[str, ...] = ()
    micro: tuple[str, ...] = ()
    load: tuple[str, ...] = ()
    #: What has no figure of its own: calls of other things than requests, requests with trace context.
    rest: bool = False
    memory: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    #: Parts of the streak service's figures, each for each database.
    streak: tuple[str, ...] = ()
    streak_size: Size = USUAL
    instructions: bool = False
    rounds: int = 5
    requests: int = 1500
    turns: int = 8192
    load_s: float = 0.75


def plan(only: Iterable[str], *, quick: bool, instructions: bool = False) -> Plan:
    """What these figures need; all of them, everything there is."""
    wanted = [FIGURES[name] for name in only]
    sizes = {"rounds": 3, "requests": 500, "turns": 4096, "load_s": 0.4, "streak_size": QUICK} if quick else {}
    if len(wanted) == len(FIGURES):
        names = tuple(SCENARIOS)
        return Plan(
            names, names, tuple(MICRO), names, True, tuple(MEMORY), tuple(LIBRARIES), PARTS,
            instructions=instructions, **sizes,  # type: ignore[arg-type]
        )  # fmt: skip
    of = {kind: tuple(dict.fromkeys(n for f in wanted if f.kind == kind for n in f.of)) for kind in _KINDS}
    return Plan(**of, instructions=instructions, **sizes)  # type: ignore[arg-type]


_KINDS = ("calls", "cpu", "micro", "load", "libraries", "streak")


class _Run:
    """The run of one plan."""

    def __init__(self, plan: Plan, started: Started) -> None:
        self._plan = plan
        self._started = started
        self._began_s = time.monotonic()
        self._sent: dict[str, int] = {}
        self.results = Results()

    def say(self, what: str) -> None:
        """Tells how far the run is."""
        print(f"{time.monotonic() - self._began_s:6.1f} s  {what}", file=sys.stderr, flush=True)

    def _try(self, name: str, do: Callable[[], None], failed_as: str | None = None) -> None:
        key = failed_as or name
        if key in self.results.failed:
            return
        try:
            do()
        except (ScenarioError, ConnectionError) as error:
            self.results.failed[key] = str(error)
            self.say(f"left out: {error}")

    def _child(self, name: str) -> Child:
        return self._started.child(name)

    def calls(self) -> None:
        """Counts the calls of requests, and of the other subjects."""
        for name in self._plan.calls:
            self.say(f"Python calls: {name}")
            self._try(name, partial(self._calls, name))
        for subject in SUBJECTS if self._plan.rest else ():
            for name in ("bare", "ours"):
                self._try(subject, partial(self._subject, subject, name))

    def _calls(self, name: str) -> None:
        for variant, (kind, routes) in VARIANTS.items():
            self.results.calls[name, variant] = self._child(name).ask("calls", kind=kind, routes=routes)

    def _subject(self, subject: str, name: str) -> None:
        measured = name == "ours"
        counted = self._child(name).ask("subject", name=subject, measured=measured)
        self.results.subjects[subject, measured] = counted

    def cpu(self) -> None:
        """CPU of requests, round by round."""
        for turn in range(self._plan.rounds):
            # No figure stands on requests with trace context, so fewer rounds do for them.
            for kind in ("plain", "context") if self._plan.rest and turn % 2 == 0 else ("plain",):
                self.say(f"CPU per request ({kind}), round {turn + 1} of {self._plan.rounds}")
                for name in self._plan.cpu:
                    self._try(name, partial(self._cpu, name, kind))

    def _cpu(self, name: str, kind: str) -> None:
        value = self._child(name).ask("cpu", kind=kind, requests=self._plan.requests)
        self.results.cpu.setdefault((name, kind), []).append(value)

    def exports(self) -> None:
        """How many spans of one request of each scenario arrive at the sink, so that nobody is quick by losing them."""
        requests = 250
        for name in self._plan.cpu:
            self._try(name, partial(self._delivered, name, requests))

    def _delivered(self, name: str, requests: int) -> None:
        if SCENARIOS[name].spans is None:
            return
        before = self._started.exports().get(name, {}).get("spans", 0)
        self._child(name).ask("cpu", kind="plain", requests=requests)
        time.sleep(_RETRIED_AFTER_S)
        after = self._started.exports().get(name, {}).get("spans", 0)
        # The warm-up before a round, and the one request that checks the answer, are spans as well.
        self.results.delivered[name] = (after - before) / (requests + 250 + 1)

    def libraries(self) -> None:
        """CPU of calls through libraries, round by round."""
        for turn in range(self._plan.rounds if self._plan.libraries else 0):
            self.say(f"CPU per call of a library, round {turn + 1} of {self._plan.rounds}")
            for library in self._plan.libraries:
                # Short stretches and more of them, as under load: a call over a socket varies more than what is added.
                for _ in range(_STRETCHES):
                    for arm in LIBRARIES[library][1]:
                        self._try(name_of(library, arm), partial(self._library, library, arm))

    def _library(self, library: str, arm: str) -> None:
        where = {"BENCH_HTTP": self._started.sink}
        if library in REDIS:
            where["BENCH_REDIS"] = self._started.redis_url()
        child = self._started.child(name_of(library, arm), where)
        value = child.ask("cpu", times=max(250, self._plan.requests // _STRETCHES))
        self.results.libraries.setdefault((library, arm), []).append(value)

    def micro(self) -> None:
        """Single things, round by round, and what they take of memory."""
        for turn in range(self._plan.rounds):
            if self._plan.micro:
                self.say(f"spans, records, encoding: round {turn + 1} of {self._plan.rounds}")
            for name in self._plan.micro:
                self._try(name, partial(self._micro, name))
        for name in self._plan.memory:
            self._try(name, partial(self._memory, name))

    def _memory(self, name: str) -> None:
        self.results.memory[name] = self._child(name).ask("memory")

    def _micro(self, name: str) -> None:
        value = self._child(name).ask("cpu", times=self._plan.turns)
        self.results.micro.setdefault(name, []).append(value)

    def instructions(self) -> None:
        """Instructions of a request, where the machine has something that counts them."""
        command = instructions.how()
        if command is None:
            self.results.failed["instructions"] = "instructions: neither perf nor valgrind counts them here"
            return
        for name in instructions.NAMES:
            self.say(f"instructions by {command[0]}: {name}")
            try:
                counted = instructions.per_request(name, self._started.sink, environ(), command)
            except (ValueError, subprocess.TimeoutExpired) as error:
                self.results.failed[f"instructions of {name}"] = str(error)
            else:
                self.results.instructions[name] = counted

    def load(self) -> None:
        """Requests in a second at a real server."""
        servers: dict[str, tuple[Child, int]] = {}

        def start(name: str) -> None:
            servers[name] = self._started.server(name)

        def measure(name: str) -> None:
            child, port = servers[name]
            self.results.load.setdefault(name, []).append(
                serving.load(port, self._plan.load_s, partial(child.ask, "cpu_s"))
            )

        for name in self._plan.load:
            self.say(f"uvicorn: {name}")
            self._try(name, partial(start, name), f"server of {name}")
        # Short stretches and more of them: what disturbs the machine for a while disturbs neighbours alike.
        rounds = 2 * self._plan.rounds if servers else 0
        for turn in range(rounds):
            self.say(f"uvicorn under load, round {turn + 1} of {rounds}")
            for name in servers:
                self._try(name, partial(measure, name), f"server of {name}")

    def streak(self) -> None:
        """The streak service under load, its maintenance, and what measuring costs it."""
        if not self._plan.streak:
            return
        with Places(self._started.sink) as places:
            measured = Streak(places, self._plan.streak_size, self.say)
            self.results.streak = measured.told
            for part in self._plan.streak:
                for database in DATABASES:
                    self._try(f"streak {part} {database}", partial(measured.measure, part, database))


def run(plan: Plan) -> Results:
    """Measures what the plan says. Its processes end with it."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with Started() as started:
        if before is not None:
            os.sched_setaffinity(0, {cores()[1]})
        try:
            this = _Run(plan, started)
            for part in (this.calls, this.cpu, this.exports):
                part()
            started.close_children()
            this.libraries()
            started.close_children()
            this.micro()
            started.close_children()
            this.load()
            started.close_children()
            this.streak()
            if before is not None:
                os.sched_setaffinity(0, before)
            if plan.instructions:
                this.instructions()
        finally:
            if before is not None:
                os.sched_setaffinity(0, before)
    this.say("done")
    return this.results
