"""SIGTERM and SIGHUP noticed, so that what waits is sent before the process ends as it would have ended without us."""

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

__all__ = ["Drains", "EndSignals"]

_LOOK_EVERY_S = 0.02

_HANGUP: int | None = getattr(signal, "SIGHUP", None)  # not on Windows

# `None` ends the thread, "drain" sends what waits, "owe" does so and then sends the signal again.
_Word = tuple[Literal["drain", "owe"], int] | None


@runtime_checkable
class Drains(Protocol):
    """A part that can be told to hand on soon whatever it gets; that may not take a lock."""

    def drain(self) -> None:
        """From now on nothing waits for long."""


class EndSignals:
    """The handler of the signals that end a process, and the thread that does the work.

    The handler sets flags, puts a word into a queue whose `put` may interrupt itself, and calls whoever had the signal
    before. It sends nothing, and takes no lock. Where nobody had the signal, the process would have ended at once:
    the default is put back, and the thread sends what waits and then the signal again, so that the exit code stays.

    uvicorn keeps the signals it gets and raises them again when its server has stopped. Where it had the signal before
    us (an app that is imported by `uvicorn app:app`) that would end the process with what its last requests left, so
    the raising is taken over from it: the thread does it, after the last flush.

    SIGTERM is taken whoever has it. SIGHUP, which says that a terminal is gone, is taken where nobody has it: to an
    application that has it, it means something else.
    """

    def __init__(
        self, drain: Callable[[], object], flush: Callable[[], object], shutdown: Callable[[], object]
    ) -> None:
        self._drain = drain
        self._flush = flush
        self._shutdown = shutdown
        self._on = False
        self._to_renew: set[int] = set()
        self._owing: int | None = None  # the process that has to be sent the signal again, and which one
        self._owed: int = signal.SIGTERM
        self._previous: dict[int, Any] = {}
        self._handler = self._handle  # one object, to be known again

    def install(self) -> bool:
        """Takes the signals; False where that cannot be done, or where they are not ours to take."""
        self._previous = _ours_to_take()
        if not self._previous:
            return False
        self._start()
        try:
            for number in self._previous:
                signal.signal(number, self._handler)
        except ValueError:  # this is not the main thread, or not the main interpreter
            self._words.put(None)
            return False
        self._on = True
        atexit.register(self._at_exit)
        return True

    def undo(self) -> None:
        """Gives them back where they are still ours; where not, our handler only passes them on from now on."""
        if not self._on:
            return
        self._on = False
        for number, previous in self._previous.items():
            if signal.getsignal(number) is self._handler:
                with contextlib.suppress(ValueError):  # only the main thread can give it back
                    signal.signal(number, previous)
        if not self._owes():
            atexit.unregister(self._at_exit)
            self._words.put(None)

    def after_fork(self) -> None:
        """Starts the thread anew in a forked child, which owes nothing."""
        if self._on:
            self._owing = None
            self._to_renew = set(self._previous)
            self._start()

    def renew(self) -> None:
        """Takes them again in a forked child that put another's in our place, as gunicorn's do with --preload.

        Only where it is uvicorn's or nobody's: any other handler may pass the signal on to ours.
        """
        for number in list(self._to_renew) if self._on else ():
            present = signal.getsignal(number)
            if present is signal.SIG_DFL or _kept(present) is not None:
                self._to_renew.discard(number)
                self._previous[number] = present
                with contextlib.suppress(ValueError):
                    signal.signal(number, self._handler)

    def _start(self) -> None:
        # Its `put` is re-entrant by its documentation: a signal may come while another is put.
        self._words: SimpleQueue[_Word] = SimpleQueue()
        threading.Thread(target=self._run, args=(self._words,), name="otel_perf-signals", daemon=True).start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous[number]
        if self._on:
            self._drain()
            self._words.put(("drain", number))
        if callable(previous):
            previous(number, frame)
            if self._on and _take_over(previous, number):
                self._owe(number)
            return
        signal.signal(number, signal.SIG_DFL)
        if not self._on:
            signal.raise_signal(number)
        elif not self._owes():  # systemd can send SIGHUP right after SIGTERM
            self._owe(number)

    def _owe(self, number: int) -> None:
        self._owing, self._owed = os.getpid(), number
        self._words.put(("owe", number))

    def _owes(self) -> bool:
        return self._owing == os.getpid()

    def _run(self, words: SimpleQueue[_Word]) -> None:
        while (word := words.get()) is not None:
            what, number = word
            try:
                if what == "owe":
                    self._pay(number)
                elif signal.getsignal(number) is not signal.SIG_DFL:
                    self._flush()  # where the default is back, all is done at once by the next word
            except Exception:
                guard.note("draining at a signal")

    def _pay(self, number: int) -> None:
        # uvicorn puts back what was there before it when its server has stopped.
        previous = self._previous[number]
        held = (self._handler, previous) if callable(previous) else (self._handler,)
        while signal.getsignal(number) in held:
            time.sleep(_LOOK_EVERY_S)
        if signal.getsignal(number) is signal.SIG_DFL:
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
            os.kill(os.getpid(), self._owed)


def _ours_to_take() -> dict[int, Any]:
    """The signals that we take, and who has them."""
    found: dict[int, Any] = {}
    present = signal.getsignal(signal.SIGTERM)
    if present is not None and present is not signal.SIG_IGN:
        found[signal.SIGTERM] = present
    if _HANGUP is not None and signal.getsignal(_HANGUP) is signal.SIG_DFL:
        found[_HANGUP] = signal.SIG_DFL
    return found


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
