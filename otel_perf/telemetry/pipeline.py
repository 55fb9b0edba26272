"""The lifecycle of everything that runs or waits: flush and shutdown within one deadline, a new start after fork."""

from __future__ import annotations

import atexit
import multiprocessing.process
import multiprocessing.util
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from otel_perf import guard
from otel_perf.telemetry.signals import Drains, EndSignals

__all__ = ["Joined", "Part", "Pipeline", "Ticker"]

_LEAST_S = 0.1


class Part(Protocol):
    """Something with a thread, a queue or a connection."""

    def after_fork(self) -> None:
        """Starts anew in a forked child: no inherited lock, queue, thread or connection."""

    def flush(self, timeout_s: float) -> bool:
        """Hands on what waits; True only when nothing of it was left or lost."""
        ...

    def shutdown(self, timeout_s: float) -> bool:
        """Flushes and stops for good."""
        ...


class Ticker:
    """Calls a function at a steady interval from a daemon thread, and once more when it is flushed or stopped."""

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
            self._once()

    def _once(self) -> bool:
        try:
            self._call()
        except Exception:
            guard.note(self._name)
            return False
        return True

    def after_fork(self) -> None:
        """Starts a thread of the child's own, unless it was told to stop before the fork."""
        if not self._stop.is_set():
            self._stop = threading.Event()
            self._thread = self._start()

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002  # it cannot be cut short; the pipeline does not wait
        """Calls now."""
        return self._once()

    def shutdown(self, timeout_s: float) -> bool:
        """Stops, and calls a last time."""
        self._stop.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self._once()


class Joined:
    """A provider of the application's own: flushed with us, never stopped by us."""

    def __init__(self, provider: object, ticker: Ticker | None = None) -> None:
        self._provider = provider
        self._ticker = ticker

    def after_fork(self) -> None:
        """The provider looks after itself."""
        if self._ticker is not None:
            self._ticker.after_fork()

    def flush(self, timeout_s: float) -> bool:
        """Passes on what waits, and flushes the provider where it can be flushed."""
        passed = self._ticker is None or self._ticker.flush(timeout_s)
        flush: Any = getattr(self._provider, "force_flush", None)
        # The SDK's own answers nothing in some versions, which is no failure.
        return (flush is None or flush(int(timeout_s * 1000)) is not False) and passed

    def shutdown(self, timeout_s: float) -> bool:
        """Passes on what waits; the application stops its provider itself."""
        done = self.flush(timeout_s)
        return (self._ticker is None or self._ticker.shutdown(timeout_s)) and done


class _Asked:
    """One thing that all parts are asked for side by side; who waits may be interrupted, and another wait on."""

    def __init__(self, parts: Sequence[Part], call: Callable[[Part, float], bool]) -> None:
        self._call = call
        self._count = len(parts)
        self._waiting = deque(parts)
        self._results: list[bool] = []
        self._threads: list[threading.Thread] = []
        self._deadline = 0.0
        self._all_answered = threading.Event()
        if not parts:
            self._all_answered.set()

    def wait(self, limit_s: float) -> bool:
        """Asks those that were not asked yet, and waits for all; True when each said yes within the time."""
        self._deadline = time.monotonic() + limit_s
        for _ in range(len(self._waiting)):
            # Daemon threads: a part that is held up by a dead peer must not hold up the process.
            thread = threading.Thread(target=self._ask, name="otel_perf-flush", daemon=True)
            self._threads.append(thread)
            if not _started(thread):
                self._ask()  # one after the other is better than not at all
        # Not by joining the threads: some versions of Python take a thread for ended whose join was interrupted.
        if not self._all_answered.wait(max(0.0, self._deadline - time.monotonic())):
            return False
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, self._deadline - time.monotonic()))
        return all(self._results)

    def _ask(self) -> None:
        try:
            part = self._waiting.popleft()
        except IndexError:  # an interrupted wait had a thread started for it already
            return
        done = False
        try:
            done = self._call(part, max(0.0, self._deadline - time.monotonic()))
        except Exception:
            guard.note(f"stopping {type(part).__name__}")
        finally:
            self._results.append(done)
            if len(self._results) == self._count:
                self._all_answered.set()


class Pipeline:
    """All parts, flushed and shut down side by side under one deadline."""

    def __init__(self, parts: Sequence[Part], timeout_s: float) -> None:
        self._parts = list(parts)
        self._timeout_s = timeout_s
        self._closed = False
        self._stopping: _Asked | None = None
        self._stopper = 0  # the thread that is at it
        self._done = False
        self._ended = threading.Event()
        self._flushed = (0.0, 0.0)  # when the last flush ended, and how long it took
        self._signals: EndSignals | None = None
        self._draining = [part for part in self._parts if isinstance(part, Drains)]
        self._before_fork: list[Callable[[], None]] = []
        self._ends: list[Callable[[], None]] = []
        _live.add(self)
        atexit.register(self.at_exit)
        # Children of `multiprocessing` that were forked leave without `atexit`: those of this process, and this one.
        multiprocessing.util.register_after_fork(self, _finish_with_the_child)
        if multiprocessing.process.parent_process() is not None:
            _finish_with_the_child(self)

    def on_fork(self, call: Callable[[], None]) -> None:
        """Calls this first in a forked child, before any part starts anew."""
        self._before_fork.append(call)

    def on_end(self, call: Callable[[], None]) -> None:
        """Calls this after the shutdown, in the thread that asked for it: the parts' own may be held up.

        Where the process ends, it is called again at the very end.
        """
        self._ends.append(call)

    def handle_signals(self) -> None:
        """Notices SIGTERM and SIGHUP from now on, until the shutdown."""
        made = EndSignals(self.drain, lambda: self._closed or self.flush(), self.shutdown)
        if made.install():
            self._signals = made

    def renew_signals(self) -> None:
        """Notices them again in a forked child whose server took them from us meanwhile."""
        if self._signals is not None:
            self._signals.renew()

    def drain(self) -> None:
        """Lets the parts hand on soon what they get; it takes no lock, since a signal handler calls it."""
        for part in self._draining:
            part.drain()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Hands on everything that waits, within the time; True only when nothing was left or lost."""
        began = time.monotonic()
        asked = _Asked(self._parts, lambda part, left_s: part.flush(left_s))
        done = asked.wait(self._timeout_s if timeout_s is None else timeout_s)
        ended = time.monotonic()
        self._flushed = (ended, ended - began)
        return done

    def shutdown(self, timeout_s: float | None = None) -> bool:
        """Flushes and stops everything, within the time; a second call waits for the first.

        Where that was interrupted (Ctrl+C) the second one goes on with it, and answers for both.
        """
        limit_s = self._time_left_s() if timeout_s is None else timeout_s
        if self._stopper == threading.get_ident():
            return self._done  # a handler of the application's may interrupt the very thread that shuts down
        if self._stopper or self._ended.is_set():
            return self._ended.wait(limit_s) and self._done
        self._stopper = threading.get_ident()
        try:
            self._closed = True
            if self._stopping is None:
                self._stopping = _Asked(self._parts, lambda part, left_s: part.shutdown(left_s))
            self._done = self._stopping.wait(limit_s)
            self._end()
        finally:
            self._stopper = 0
        return self._done

    def _end(self) -> None:
        _live.discard(self)  # not before: a fork meanwhile inherits the locks that the parts hold
        for call in self._ends:
            _guarded(call, "the end of the shutdown")
        if self._signals is not None:
            self._signals.undo()
        atexit.unregister(self.at_exit)
        self._ended.set()

    def at_exit(self) -> None:
        """Shuts down for the last time, so that what happens at the end happens although it is interrupted."""
        _exited.append(self)
        try:
            self.shutdown()
        finally:
            if not self._ended.is_set():
                self._end()  # interrupted, and nobody comes after us

    def say_the_last(self) -> None:
        """Calls what was given to `on_end` again."""
        for call in self._ends:
            _guarded(call, "the end of the process")

    def _time_left_s(self) -> float:
        # The end of an app flushes and the end of the process shuts down: a dead peer may not cost the time twice.
        ended, took_s = self._flushed
        owed_s = took_s - (time.monotonic() - ended)
        return self._timeout_s if owed_s <= 0 else max(_LEAST_S, self._timeout_s - owed_s)

    def after_fork(self) -> None:
        """Starts every part anew in a forked child."""
        self._ended = threading.Event()
        self._flushed = (0.0, 0.0)
        self._stopper = 0
        if self._closed:
            self._ended.set()  # the thread that was about to do it is not here
        if self._signals is not None:
            _guarded(self._signals.after_fork, "noticing signals after a fork")
        for call in (*self._before_fork, *(part.after_fork for part in self._parts)):
            _guarded(call, "starting anew after a fork")


def _guarded(call: Callable[[], None], where: str) -> None:
    try:
        call()
    except Exception:
        guard.note(where)


def _started(thread: threading.Thread) -> bool:
    try:
        thread.start()
    except RuntimeError:  # no thread can be started any more while the interpreter goes down
        return False
    return True


def _finish_with_the_child(pipeline: Pipeline) -> None:
    multiprocessing.util.Finalize(None, pipeline.at_exit, exitpriority=0)


_exited: list[Pipeline] = []


def _at_the_very_end() -> None:
    for pipeline in _exited:
        pipeline.say_the_last()


# Registered on import, so that it comes after the exit functions of the application, whose spans may be lost.
atexit.register(_at_the_very_end)

_live: weakref.WeakSet[Pipeline] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for pipeline in list(_live):
        pipeline.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)
