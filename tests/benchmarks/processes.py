"""Starts and ends the processes of a run, each known by its id: none outlives the run, whatever ends it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Child", "ScenarioError", "Started", "cores", "environ"]

_ROOT = Path(__file__).absolute().parents[2]
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


class ScenarioError(Exception):
    """A scenario could not run; the message says why."""


@functools.cache
def cores() -> tuple[int, int]:
    """The core of what is measured and that of everything else; the same where there is only one.

    Asked once: a run binds this process to the second of them, and would see no other afterwards.
    """
    if not hasattr(os, "sched_getaffinity"):
        return (0, 0)
    there = sorted(os.sched_getaffinity(0))
    return there[0], there[-1]


def environ(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Little is inherited: OTEL_, DD_ and SENTRY_ variables of the caller would change what is measured."""
    kept = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
    return {**kept, "PYTHONHASHSEED": "0", "NO_PROXY": "127.0.0.1", **(more or {})}


class Child:
    """The process of one scenario."""

    def __init__(self, name: str, sink: str, more: Mapping[str, str] | None = None) -> None:
        self.name = name
        # A pipe that nobody reads would fill up and stop it.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the process
        command = [sys.executable, "-m", "tests.benchmarks.child", name, sink, str(cores()[0])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
            cwd=_ROOT, env=environ(more),
        )  # fmt: skip
        self.failed: str | None = None

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            last = [each for each in self._said.read().splitlines() if each.strip()][-1:]
            raise ScenarioError(f"{self.name}: its process ended; it last said {last}")
        told = json.loads(line)
        if "error" in told:
            raise ScenarioError(f"{self.name}: {told['error']}")
        return told["value"]

    def ready(self) -> None:
        """Waits until it is set up.

        Raises:
            ScenarioError: when it could not be.
        """
        self._answer()

    def ask(self, do: str, **order: Any) -> Any:
        """Gives one order and waits for the answer.

        Raises:
            ScenarioError: when it could not do it.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends it: it leaves when its input closes, else it is killed."""
        _end(self._process)
        self._said.close()


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


class Started:
    """All processes of one run: the sink, and a child for each scenario when it is first asked for."""

    def __init__(self) -> None:
        self._sink: subprocess.Popen[str] | None = None
        self._children: dict[str, Child] = {}
        self._redis: Any = None

    def __enter__(self) -> Started:
        self._sink = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.sink", str(cores()[1])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT, env=environ(),
        )  # fmt: skip
        assert self._sink.stdout is not None
        self.sink = f"http://127.0.0.1:{int(self._sink.stdout.readline())}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_children()
        if self._redis is not None:
            self._redis.stop()
        if self._sink is not None:
            _end(self._sink)

    def redis_url(self) -> str:
        """The address of a real Redis of this run's own, started when it is first asked for.

        Raises:
            ScenarioError: when there is none on this machine.
        """
        if self._redis is None:
            from collector import servers, tools

            try:
                self._redis = servers.redis()
            except tools.MissingToolError as error:
                raise ScenarioError(str(error)) from None
        return str(self._redis.url)

    def child(self, name: str, more: Mapping[str, str] | None = None) -> Child:
        """The process of a scenario, started and set up; `more` are variables of its environment.

        Raises:
            ScenarioError: when it cannot be set up; also each time it is asked for again.
        """
        found = self._children.get(name)
        if found is None:
            found = self._children[name] = Child(name, self.sink, more)
            try:
                found.ready()
            except ScenarioError as error:
                found.failed = str(error)
        if found.failed:
            raise ScenarioError(found.failed)
        return found

    def server(self, name: str) -> tuple[Child, int]:
        """A process of its own that serves this scenario, and its port.

        Raises:
            ScenarioError: when it cannot be set up.
        """
        made = Child(name, self.sink)
        self._children[f"server of {name}"] = made
        made.ready()
        return made, int(made.ask("serve"))

    def close_children(self) -> None:
        """Ends the children, so that what runs next is not disturbed by their threads."""
        for each in self._children.values():
            each.close()
        self._children.clear()

    def exports(self) -> dict[str, dict[str, int]]:
        """What the sink got so far, by scenario."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.sink + "/counts", timeout=30) as answer:
            found: dict[str, dict[str, int]] = json.load(answer)
        return found
