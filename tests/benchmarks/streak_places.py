"""What the streak figures run on: databases, Redis, and the service as a process with a core of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil

from collector import servers, tools
from tests.benchmarks import streak_seed
from tests.benchmarks.processes import ScenarioError, cores, environ

__all__ = ["Places", "Process", "Service"]

_ROOT = Path(__file__).absolute().parents[2]
_START_S = 30.0
_STOP_S = 20.0


class Places:
    """Databases and Redis, each started when it is first asked for; everything ends with the block."""

    def __init__(self, sink: str) -> None:
        self.secret = secrets.token_urlsafe(32)
        self._sink = sink
        self._stack = ExitStack()
        self._redis: Any = None
        self._postgresql: Any = None
        self._made = 0

    def __enter__(self) -> Places:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="streak-load-")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _started(self, start: Any) -> Any:
        try:
            return self._stack.enter_context(start())
        except tools.MissingToolError as error:
            raise ScenarioError(str(error)) from None

    def redis_url(self) -> str:
        """The address of a real Redis, with a number of its own for each service: what one cached another has not."""
        if self._redis is None:
            self._redis = self._started(servers.redis)
        return f"{self._redis.url.rpartition('/')[0]}/{self._made % 16}"

    def database(self, kind: str) -> str:
        """The address of an empty database.

        Raises:
            ScenarioError: when this machine has no such database.
        """
        self._made += 1
        if kind == "sqlite":
            return f"sqlite+aiosqlite:///{self._folder}/streak-{self._made}.db"
        if self._postgresql is None:
            self._postgresql = self._started(servers.postgresql)
        name = f"streak_{self._made}"
        streak_seed.query(self._postgresql.url, f"CREATE DATABASE {name}")
        return f"{self._postgresql.url.rpartition('/')[0]}/{name}"

    def copy(self, url: str) -> str:
        """The address of a database that has all that this one has; nobody may be connected to it."""
        self._made += 1
        if url.startswith("sqlite"):
            fresh = f"{self._folder}/streak-{self._made}.db"
            shutil.copyfile(url.partition("///")[2], fresh)
            return f"sqlite+aiosqlite:///{fresh}"
        name = f"streak_{self._made}"
        streak_seed.query(self._postgresql.url, f"CREATE DATABASE {name} TEMPLATE {url.rpartition('/')[2]}")
        return f"{url.rpartition('/')[0]}/{name}"

    def variables(self, url: str, name: str = "streak") -> dict[str, str]:
        """The environment of a service, or of its maintenance, on this database: all on, and exporting to the sink."""
        return environ({
            "DATABASE_URL": url, "REDIS_URL": self.redis_url(), "STREAK_SECRET": self.secret,
            # The limit is kept for each user, but none reaches it.
            "STREAK_REQUESTS_PER_MINUTE": "1000000",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"{self._sink}/{name}", "PYTHONUNBUFFERED": "1",
        })  # fmt: skip

    def service(self, url: str, *, bare: bool = False) -> Service:
        """A running service; it ends with the block, unless it is closed before."""
        module = "tests.benchmarks.streak_bare" if bare else "examples.streak"
        return self._stack.enter_context(Service(module, self.variables(url)))

    def run(self, module: str, arguments: Sequence[str], url: str) -> Process:
        """A process of the service's own commands on this database, on the measured core."""
        return self._stack.enter_context(Process([module, *arguments], self.variables(url, "maintenance")))

    def generate(
        self, service: Service, shape: str, *, users: int, seconds: float, cold_from: int = 0, cold_users: int = 50,
        warm_up_s: float = 3.0,
    ) -> dict[str, Any]:  # fmt: skip
        """Puts load on a service from the other core, and returns what its generator told.

        Raises:
            ScenarioError: when the generator broke off.
        """
        command = [
            sys.executable, "-m", "examples.streak.load_run", "--url", service.url, "--shape", shape, "--users",
            str(users), "--seconds", str(seconds), "--cold-users", str(cold_users), "--cold-from",
            str(cold_from), "--warm-up", str(warm_up_s),
        ]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=_ROOT, timeout=seconds + 120,
            env=environ({"STREAK_SECRET": self.secret}),
        )  # fmt: skip
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            raise ScenarioError(f"load {shape}: the generator ended with {done.returncode}: {said}")
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told


class Process:
    """One process on the measured core."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        self._out: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the process
        self._err: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the process
        self.began_s = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command], stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err, text=True,
            cwd=_ROOT, env=dict(variables),
        )  # fmt: skip
        self.pid = self._process.pid
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.pid, {cores()[0]})  # the threads to come inherit it
        self.seen = psutil.Process(self.pid)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ended(self) -> int | None:
        """The exit code, when it has one."""
        return self._process.poll()

    def said(self) -> str:
        """What it wrote to standard output so far."""
        return self._read(self._out)

    def complained(self) -> str:
        """The last lines of what it wrote to standard error."""
        return "\n".join(self._read(self._err).splitlines()[-5:])

    @staticmethod
    def _read(file: IO[str]) -> str:
        return os.pread(file.fileno(), 10_000_000, 0).decode(errors="replace")

    def cpu_s(self) -> float:
        """The CPU time it used so far, all threads."""
        told = self.seen.cpu_times()
        return float(told.user + told.system)

    def kill(self) -> None:
        """Ends it as the kernel would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Ends it in order, if it has not ended."""
        if self.ended is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._out.close()
        self._err.close()


class Service(Process):
    """A streak service that answers."""

    def __init__(self, module: str, variables: Mapping[str, str]) -> None:
        super().__init__([module, "--port", "0"], variables)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + _START_S
        self.url = ""
        while not self._answers():
            if self.ended is not None or time.monotonic() > deadline:
                why = self.complained()
                self.close()
                raise ScenarioError(f"the streak service did not start: {why}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        found = [line for line in self.said().splitlines() if line.startswith("streak: http")]
        if not found:
            return False
        self.url = found[0].partition(": ")[2].strip()
        try:
            self.get("/api/health")
        except OSError:
            return False
        return True

    def get(self, path: str) -> str:
        """What a path answers, as text."""
        with self._opener.open(self.url + path, timeout=10) as answer:
            told: str = answer.read().decode()
            return told

    def performance(self) -> dict[str, Any]:
        """What otel_perf tells of it."""
        told: dict[str, Any] = json.loads(self.get("/api/performance"))
        return told

    def counted(self, metric: str) -> float:
        """The sum of a counter's series on /metrics; one that has none yet is 0."""
        lines = (line for line in self.get("/metrics").splitlines() if not line.startswith("#"))
        mine = (line for line in lines if line.partition("{")[0].partition(" ")[0] == metric)
        return sum(float(line.partition("#")[0].split()[-1]) for line in mine)
