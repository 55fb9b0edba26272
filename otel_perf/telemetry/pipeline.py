"""The lifecycle of everything that runs or waits: flush and shutdown within one deadline, a new start after fork."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from otel_perf import guard

__all__ = ["Part", "Pipeline", "Ticker"]


class Part(Protocol):
    """Something with a thread, a queue or a connection."""

    def after_fork(self) -> None:
        """Starts anew in a forked child: no inherited lock, queue, thread or connection."""

    def flush(self, timeout_s: float) -> bool:
        """Hands on what waits; True only when nothing of it was left or lost."""

    def shutdown(self, timeout_s: float) -> bool:
        """Flushes and stops for good."""


class Ticker:
    """Calls a function at a steady interval from a daemon thread."""

    def __init__(self, name: str, interval_s: float, call: Callable[[], object]) -> None:
        self._name = name
        self._interval_s = interval_s
        self._call = call
        self._stop = threading.Event()
        self._thread = self._start()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=(self._stop,), name=f"otel_perf-{self._name}", daemon=True)
        thread.start()
        return thread

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self._interval_s):
            try:
                self._call()
            except Exception:
                guard.note(self._name)

    def after_fork(self) -> None:
        self._stop = threading.Event()
        self._thread = self._start()

    def flush(self, timeout_s: float) -> bool:
        return True

    def shutdown(self, timeout_s: float) -> bool:
        self._stop.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


class Pipeline:
    """All parts, flushed and shut down side by side under one deadline."""

    def __init__(self, parts: Sequence[Part], timeout_s: float) -> None:
        self._parts = list(parts)
        self._timeout_s = timeout_s
        self._closed = False
        self._before_fork: list[Callable[[], None]] = []
        _live.add(self)
        atexit.register(self.shutdown)

    def on_fork(self, call: Callable[[], None]) -> None:
        """Calls this first in a forked child, before any part starts anew."""
        self._before_fork.append(call)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Hands on everything that waits, within the time; True only when nothing was left or lost."""
        return self._all(lambda part, left_s: part.flush(left_s), timeout_s)

    def shutdown(self, timeout_s: float | None = None) -> bool:
        """Flushes and stops everything, within the time; the second call does nothing."""
        if self._closed:
            return True
        self._closed = True
        atexit.unregister(self.shutdown)
        _live.discard(self)
        return self._all(lambda part, left_s: part.shutdown(left_s), timeout_s)

    def _all(self, call: Callable[[Part, float], bool], timeout_s: float | None) -> bool:
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        results: list[bool] = []

        def run(part: Part) -> None:
            try:
                results.append(call(part, max(0.0, deadline - time.monotonic())))
            except Exception:
                results.append(False)
                guard.note(f"stopping {type(part).__name__}")

        # Daemon threads: a part that is held up by a dead peer must not hold up the process.
        threads = [threading.Thread(target=run, args=(part,), daemon=True) for part in self._parts]
        for thread in threads:
            try:
                thread.start()
            except RuntimeError:  # no thread can be started any more while the interpreter goes down
                return False
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return len(results) == len(self._parts) and all(results)

    def after_fork(self) -> None:
        """Starts every part anew in a forked child."""
        for call in self._before_fork:
            call()
        for part in self._parts:
            try:
                part.after_fork()
            except Exception:
                guard.note(f"restarting {type(part).__name__} after fork")


_live: weakref.WeakSet[Pipeline] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for pipeline in list(_live):
        pipeline.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)
