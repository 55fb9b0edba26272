"""Processes of their own, each with the environment that a test gives it, all gone at the end of the block."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Running", "Together", "started"]

ROOT = Path(__file__).parents[2]


class Together:
    """Cases of one test that take their time, run several at once for those that pytest was asked for."""

    def __init__(self, request: pytest.FixtureRequest, name: str, run: Callable[[str], Any]) -> None:
        wanted = [
            item.callspec.params[name]
            for item in request.session.items
            if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
            if name in item.callspec.params
        ]
        with futures.ThreadPoolExecutor(4) as pool:
            self._runs = {case: pool.submit(run, case) for case in wanted}

    def __getitem__(self, case: str) -> Any:
        return self._runs[case].result()


class Running:
    """A process and what it wrote."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.lines: list[str] = []
        self._written = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self._add(line.rstrip())
        self._add(None)

    def _add(self, line: str | None) -> None:
        with self._written:
            self.lines += [] if line is None else [line]
            self.ended = line is None
            self._written.notify_all()

    def wait_for(self, pattern: str, timeout_s: float = 30, *, times: int = 1) -> str:
        """The first group of the line in which the pattern is found; of several `times`, of the last."""

        def found() -> re.Match[str] | None:
            matches = filter(None, (re.search(pattern, line) for line in self.lines))
            return next(itertools.islice(matches, times - 1, None), None)

        with self._written:
            self._written.wait_for(lambda: found() or self.ended, timeout_s)
            match = found()
        assert match, f"no {pattern!r} in: {self.text}"
        return match[1] if match.groups() else match[0]

    def exit_code(self, timeout_s: float = 30) -> int:
        """How it ended; negative for a signal."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    @property
    def text(self) -> str:
        """All that it wrote."""
        return "\n".join(self.lines)

    ended = False


@contextlib.contextmanager
def started(*command: str, cwd: Path, script: str | None = None, **environment: str) -> Iterator[Running]:
    """Runs a module of Python's with arguments, or a script, in a session of its own."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "COV_"))}
    told = [sys.executable, *(command if script is None else ("-c", textwrap.dedent(script), *command))]
    process = subprocess.Popen(
        told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd,
        start_new_session=True,
        env={**env, "OTEL_PERF_STRICT": "true", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    running = Running(process)
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # its group: workers too
        process.wait()
        process.stdin.close()
        running._reader.join()
