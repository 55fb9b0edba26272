"""SIGTERM noticed, so that what waits is sent before the process ends as it would have ended without us."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import FrameType
from typing import Any, Literal, Protocol, cast, runtime_checkable

from otel_perf import guard

__all__ = ["Drains", "Sigterm"]

_LOOK_EVERY_S = 0.02

# `None` ends the thread, "drain" sends what waits, "owe" does so and then sends the signal again.
_Word = Literal["drain", "owe"] | None


@runtime_checkable
class Drains(Protocol):
    """A part that can be told to hand on soon whatever it gets; that may not take a lock."""

    def drain(self) -> None:
        """From now on nothing waits for long."""


class Sigterm:
    """The handler of SIGTERM and the thread that does the work.

    The handler sets flags, puts a word into a queue whose `put` may interrupt itself, and calls whoever had the signal
    before. It sends nothing, and takes no lock. Where nobody had the signal, the process would have ended at once:
    the default is put back, and the thread sends what waits and then the signal again, so that the exit code stays.

    uvicorn keeps the signals it gets and raises them again when its server has stopped. Where it had the signal before
    us (an app that is imported by `uvicorn app:app`) that would end the process with what its last requests left, so
    the raising is taken over from it: the thread does it, after the last flush.
    """

    def __init__(
        self, drain: Callable[[], object], flush: Callable[[], object], shutdown: Callable[[], object]
    ) -> None:
        self._drain = drain
        self._flush = flush
        self._shutdown = shutdown
        self._on = False
        self._forked = False
        self._owing: int | None = None  # the process that has to be sent the signal again
        self._previous: Any = None
        self._handler = self._handle  # one object, to be known again

    def install(self) -> bool:
        """Takes the signal; False where that cannot be done, or where it is to be ignored."""
        previous = signal.getsignal(signal.SIGTERM)
        if previous is None or previous is signal.SIG_IGN:
            return False
        self._previous = previous
        self._start()
        try:
            signal.signal(signal.SIGTERM, self._handler)
        except ValueError:  # this is not the main thread, or not the main interpreter
            self._words.put(None)
            return False
        self._on = True
        atexit.register(self._at_exit)
        return True

    def undo(self) -> None:
        """Gives the signal back where it is still ours; where it is not, our handler only passes it on from now on."""
        if not self._on:
            return
        self._on = False
        if signal.getsignal(signal.SIGTERM) is self._handler:
            with contextlib.suppress(ValueError):  # only the main thread can give it back
                signal.signal(signal.SIGTERM, self._previous)
        if not self._owes():
            atexit.unregister(self._at_exit)
            self._words.put(None)

    def after_fork(self) -> None:
        """Starts the thread anew in a forked child, which owes nothing."""
        if self._on:
            self._owing = None
            self._forked = True
            self._start()

    def renew(self) -> None:
        """Takes the signal again in a forked child that put another's in our place, as gunicorn's do with --preload.

        Only where it is uvicorn's or nobody's: any other handler may pass the signal on to ours.
        """
        present = signal.getsignal(signal.SIGTERM)
        if self._on and self._forked and (present is signal.SIG_DFL or _kept(present) is not None):
            self._forked = False
            self._previous = present
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGTERM, self._handler)

    def _start(self) -> None:
        # Its `put` is re-entrant by its documentation: a signal may come while another is put.
        self._words: SimpleQueue[_Word] = SimpleQueue()
        threading.Thread(target=self._run, args=(self._words,), name="otel_perf-signals", daemon=True).start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous
        if self._on:
            self._drain()
            self._words.put("drain")
        if callable(previous):
            previous(number, frame)
            if self._on and _take_over(previous, number):
                self._owe()
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._on:
            self._owe()
        else:
            signal.raise_signal(signal.SIGTERM)

    def _owe(self) -> None:
        self._owing = os.getpid()
        self._words.put("owe")

    def _owes(self) -> bool:
        return self._owing == os.getpid()

    def _run(self, words: SimpleQueue[_Word]) -> None:
        while (word := words.get()) is not None:
            try:
                if word == "owe":
                    self._pay()
                elif signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
                    self._flush()  # where the default is back, all is done at once by the next word
            except Exception:
                guard.note("draining at SIGTERM")

    def _pay(self) -> None:
        # uvicorn puts back what was there before it when its server has stopped.
        held = (self._handler, self._previous) if callable(self._previous) else (self._handler,)
        while signal.getsignal(signal.SIGTERM) in held:
            time.sleep(_LOOK_EVERY_S)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._shutdown()
        else:
            self._flush()
        self._send_again()

    def _at_exit(self) -> None:
        if self._owes():
            self._shutdown()
            self._send_again()

    def _send_again(self) -> None:
        if self._owes():
            self._owing = None
            os.kill(os.getpid(), signal.SIGTERM)


def _kept(handler: object) -> list[int] | None:
    """The signals that uvicorn keeps to raise them later, where this is the handler of one of its servers."""
    kept: Any = getattr(getattr(handler, "__self__", None), "_captured_signals", None)
    return cast("list[int]", kept) if isinstance(kept, list) else None


def _take_over(handler: Callable[..., object], number: int) -> bool:
    """Whether uvicorn kept this signal, which it is our task now to send again."""
    kept = _kept(handler)
    if kept is None or number not in kept:
        return False
    kept.remove(number)
    return True
