"""How late event loops run what is due, and how busy the thread pools are that their coroutines hand work to.

A timer asks itself again on each loop that is known: `configure()` and `instrument(app)` find the running one,
`instrument(loop)` takes any. The timer keeps no loop alive, and none of what was current when it was set.
"""

from __future__ import annotations

import asyncio
import os
import sys
import weakref
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from contextvars import Context
from typing import Any

from otel_perf import conventions as c
from otel_perf import guard
from otel_perf.telemetry import runtime
from otel_perf.telemetry.runtime import Runtime

__all__ = ["keep", "observe", "resume", "stop", "wanted", "watch_running"]

_EVERY_S = 0.25

#: Whether a loop may be running that is not known yet; asked with each request, before anything is called.
wanted = True

# The loop alone keeps its watch alive, by its timer.
_watches: MutableMapping[AbstractEventLoop, weakref.ref[_Watch]] = weakref.WeakKeyDictionary()
# Those that somebody asked for, and how often: they are watched under each configuration.
_asked: MutableMapping[AbstractEventLoop, int] = weakref.WeakKeyDictionary()


class _Watch:
    __slots__ = ("__weakref__", "_context", "_due_s", "_handle", "_loop", "_on", "limiter")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        # An empty one: the timer would keep the request alive in which it was set.
        self._context = Context()
        self._handle: TimerHandle | None = None
        self._due_s = 0.0
        self._on = True
        self.limiter: Any = None

    def begin(self) -> None:
        """Sets the timer; in the thread of the loop."""
        loop = self._loop()
        if loop is not None and self._on:
            self._due_s = loop.time() + _EVERY_S
            self._handle = loop.call_at(self._due_s, self._look, context=self._context)

    def _look(self) -> None:
        loop, in_force = self._loop(), runtime.current
        if loop is None or in_force is None or not self._on:
            return
        try:
            in_force.at(c.LOOP_LAG, ()).record(max(0.0, loop.time() - self._due_s))
            if self.limiter is None and "anyio" in sys.modules:
                self.limiter = _limiter()
        except Exception:
            guard.note("watching an event loop")
        self.begin()

    def end(self) -> None:
        """Cancels the timer, from whatever thread."""
        self._on = False
        loop, handle = self._loop(), self._handle
        if loop is None or handle is None:
            return
        if loop is _running():
            handle.cancel()
        else:
            with suppress(RuntimeError):  # closed, and its timers with it
                loop.call_soon_threadsafe(handle.cancel)


def _running() -> AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # none in this thread, or trio's
        return None


def _limiter() -> Any:
    """The limit of anyio's threads on the running loop."""
    sniffio: Any = sys.modules.get("sniffio")
    if sniffio is not None:  # where it is there it is asked, and it knows tasks alone; this context is ours
        sniffio.current_async_library_cvar.set("asyncio")
    from anyio.to_thread import current_default_thread_limiter

    return current_default_thread_limiter()


def keep(loop: AbstractEventLoop) -> Callable[[], None]:
    """Watches a loop, running or not, under this configuration and each that follows, until the answer is called."""
    _asked[loop] = _asked.get(loop, 0) + 1
    _watch(loop)

    def release() -> None:
        global wanted
        left = _asked.pop(loop, 1) - 1
        if left > 0:
            _asked[loop] = left
        else:
            _forget(loop)
            wanted = True  # an app that runs on it has not asked for it, and finds it again

    return release


def resume() -> None:
    """Watches the loops that were asked for, and the one of this thread; for a new configuration."""
    for loop in list(_asked):
        _watch(loop)
    watch_running()


def _watch(loop: AbstractEventLoop) -> None:
    known, in_force = _watches.get(loop), runtime.current
    if in_force is None or not in_force.settings.runtime_metrics or loop.is_closed():
        return
    if known is not None and known() is not None:
        return
    made = _Watch(loop)
    if loop is _running():
        made.begin()
    else:
        try:
            loop.call_soon_threadsafe(made.begin, context=made._context)  # pyright: ignore[reportPrivateUsage]  # of this module
        except RuntimeError:  # it was closed meanwhile
            return
    _watches[loop] = weakref.ref(made)


def _forget(loop: AbstractEventLoop) -> None:
    known = _watches.pop(loop, None)
    found = None if known is None else known()
    if found is not None:
        found.end()


def watch_running() -> None:
    """Watches the loop of this thread, if one is running and the settings want it."""
    global wanted
    wanted = False
    loop = _running()
    if loop is None:
        return
    try:
        _watch(loop)
    except Exception:
        guard.note("watching an event loop")


def stop() -> None:
    """Ends all watches; loops that run on are found again by their next request, or by `resume`."""
    global wanted
    wanted = True
    for loop in list(_watches):
        _forget(loop)


def _after_fork_in_child() -> None:
    """The loops of the parent do not run here."""
    global wanted
    wanted = True
    _watches.clear()
    _asked.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)


# Thread pools --------------------------------------------------------------------------------------------------------


def _pools() -> Iterator[tuple[str, int, int, int]]:
    """Of each pool: its name, the threads that it may have, those at work, and what waits for one."""
    for loop, known in list(_watches.items()):
        found = known()
        if found is None or loop.is_closed():
            continue
        # Nobody tells these figures but private names of the standard library; a loop may keep them elsewhere.
        pool: Any = getattr(loop, "_default_executor", None)
        with suppress(AttributeError, TypeError):
            used = len(pool._threads) - pool._idle_semaphore._value
            yield "asyncio", int(pool._max_workers), max(0, used), pool._work_queue.qsize()
        limiter = found.limiter
        if limiter is not None:
            with suppress(RuntimeError):  # its borrowers changed meanwhile
                waiting = limiter.statistics().tasks_waiting
                yield "anyio", _whole(limiter.total_tokens), limiter.borrowed_tokens, waiting


def _whole(tokens: float) -> int:
    return int(min(tokens, 1 << 31))  # it may be infinite


def observe(to: Runtime) -> None:
    """Connects the figures of the pools to the instruments of a runtime."""

    def told(place: int) -> Callable[[], list[tuple[int, Mapping[str, str]]]]:
        def pools() -> list[tuple[int, Mapping[str, str]]]:
            sums: dict[str, int] = {}
            for name, *figures in _pools():
                sums[name] = sums.get(name, 0) + figures[place]
            return [(value, {c.THREAD_POOL: name}) for name, value in sums.items()]

        return pools

    for place, metric in enumerate((c.THREAD_POOL_MAX, c.THREAD_POOL_USED, c.THREAD_POOL_WAITING)):
        to.instrument(metric).observers.append(told(place))
