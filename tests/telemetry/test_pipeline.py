"""The lifecycle: one deadline for all parts, truthful answers, a new start after a fork."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from typing import Any

import pytest

from otel_perf import guard
from otel_perf.telemetry import pipeline
from otel_perf.telemetry.pipeline import Joined, Pipeline, Ticker


class Part:
    """A part that notes what it is told."""

    def __init__(self, answer: bool | Exception = True) -> None:
        self.answer = answer
        self.calls: list[tuple[str, float]] = []
        self.release = threading.Event()
        self.release.set()

    def _tell(self, what: str, timeout_s: float = 0) -> bool:
        self.calls.append((what, timeout_s))
        self.release.wait(20)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def after_fork(self) -> None:
        self._tell("fork")

    def flush(self, timeout_s: float) -> bool:
        return self._tell("flush", timeout_s)

    def shutdown(self, timeout_s: float) -> bool:
        return self._tell("shutdown", timeout_s)


@pytest.fixture
def make():
    made: list[Pipeline] = []

    def make(*parts: Any, timeout_s: float = 5.0) -> Pipeline:
        made.append(Pipeline(parts, timeout_s))
        return made[-1]

    yield make
    for each in made:
        each.shutdown()


def test_all_parts_are_flushed_and_stopped_once(make):
    """Yes only when all said yes; the second shutdown does nothing."""
    parts = [Part(), Part()]
    line = make(*parts)
    assert line.flush()
    assert line.shutdown()
    assert line.shutdown()
    for part in parts:
        assert [what for what, _ in part.calls] == ["flush", "shutdown"]
        assert 0 < part.calls[0][1] <= 5


def test_one_no_is_a_no(make):
    """A part that lost something, or that failed, makes the answer no, and the others are still asked."""
    parts = [Part(False), Part()]
    assert not make(*parts).flush()
    assert parts[1].calls


def test_a_part_that_fails_is_a_no(make, monkeypatch):
    """Its fault is counted and kept from the application."""
    monkeypatch.setattr(guard, "strict", False)
    parts = [Part(RuntimeError("part")), Part()]
    line = make(*parts)
    assert not line.flush(1)
    assert guard.errors == 1
    line.after_fork()
    assert guard.errors == 2
    assert [what for what, _ in parts[1].calls] == ["flush", "fork"]


def test_a_part_that_hangs_does_not_hold_up_the_others(make):
    """At the deadline the answer is no; the other parts were done meanwhile."""
    hanging, quick = Part(), Part()
    hanging.release.clear()
    line = make(hanging, quick)
    began = time.monotonic()
    assert not line.flush(0.2)
    assert time.monotonic() - began < 10
    assert quick.calls
    hanging.release.set()


def test_where_no_thread_can_be_started_parts_run_in_turn(make, monkeypatch):
    """While the interpreter goes down nothing is given up."""

    def refuse(_self) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    parts = [Part(), Part()]
    line = make(*parts)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert line.flush()
    assert [len(part.calls) for part in parts] == [1, 1]


def test_exit_shuts_down_unless_it_was_done(make, monkeypatch):
    """The pipeline is registered for exit, and no more once it was shut down."""
    registered: list[Any] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    monkeypatch.setattr(atexit, "unregister", registered.remove)
    part = Part()
    line = make(part)
    monkeypatch.setattr(pipeline, "_exited", [])
    assert registered == [line.at_exit]
    registered[0]()
    assert registered == []
    assert [what for what, _ in part.calls] == ["shutdown"]


def test_a_second_shutdown_waits_for_the_first(make):
    """Whoever comes second may rely on it; a handler within the first is not kept waiting for itself."""
    part = Part()
    part.release.clear()
    line = make(part)
    first = threading.Thread(target=line.shutdown)
    first.start()
    while not part.calls:
        time.sleep(0.001)
    assert not line.shutdown(0.01)
    part.release.set()
    assert line.shutdown()
    first.join()
    assert len(part.calls) == 1

    inner: list[bool] = []
    again = make(Part())
    again.on_end(lambda: inner.append(again.shutdown(20)))
    assert again.shutdown()
    assert inner == [True]


@pytest.fixture
def interrupt():
    """SIGALRM does to the main thread what Ctrl+C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.signal(signal.SIGALRM, before)


class InterruptedPart(Part):
    """One that is slow to stop, and during whose stopping Ctrl+C is pressed."""

    def shutdown(self, timeout_s: float) -> bool:
        if not self.calls:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
        return super().shutdown(timeout_s)


@pytest.mark.usefixtures("interrupt")
@pytest.mark.parametrize("answer", [True, False])
def test_an_interrupted_shutdown_is_gone_on_with(make, answer):
    """The second asks nobody twice, waits for those that were asked, and answers by what they said."""
    part, said = InterruptedPart(answer), []
    part.release.clear()
    line = make(part, Part())
    line.on_end(lambda: said.append("end"))
    with pytest.raises(KeyboardInterrupt):
        line.shutdown()
    assert said == []
    assert not line.shutdown(0.01)
    assert said == ["end"]
    part.release.set()
    other = make(quick := InterruptedPart(answer), Part())
    quick.release.clear()
    with pytest.raises(KeyboardInterrupt):
        other.shutdown()
    quick.release.set()
    assert other.shutdown() is answer
    assert other.shutdown() is answer
    assert [what for what, _ in quick.calls] == ["shutdown"]


@pytest.mark.usefixtures("interrupt")
def test_the_end_is_said_although_the_exit_is_interrupted(make, monkeypatch):
    """Nobody would come after it; and it is said again at the very end, when more may have been lost."""
    monkeypatch.setattr(pipeline, "_exited", [])
    part, said = InterruptedPart(), []
    part.release.clear()
    line = make(part)
    line.on_end(lambda: said.append("end"))
    with pytest.raises(KeyboardInterrupt):
        line.at_exit()
    assert said == ["end"]
    part.release.set()
    line.at_exit()
    assert said == ["end"]
    pipeline._exited.pop()
    pipeline._at_the_very_end()
    assert said == ["end", "end"]


def test_nothing_to_stop_is_stopped_at_once(make):
    """A pipeline without parts has nothing to wait for."""
    assert make().shutdown()


def test_a_flush_and_the_shutdown_after_it_share_the_time(make):
    """What the end of an app used up of the deadline is not there for the end of the process; what is told counts."""
    part = Part()
    part.release.clear()
    line = make(part, timeout_s=0.5)
    assert not line.flush()
    part.release.set()
    ended, took_s = line._flushed
    assert took_s >= 0.5
    line._flushed = (ended + 3600, took_s)  # however long this machine takes to come here
    line.shutdown()
    assert part.calls[0][1] > 0.4
    assert 0 < part.calls[1][1] <= 0.1

    told = Part()
    other = make(told, timeout_s=0.5)
    other.flush()
    other.shutdown(3)
    assert 2 < told.calls[1][1] <= 3


def test_parts_that_can_drain_are_told(make):
    """The others are left alone."""
    drained: list[str] = []
    part = Part()
    part.drain = lambda: drained.append("told")  # type: ignore[attr-defined]
    make(Part(), part).drain()
    assert drained == ["told"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_starts_the_parts_anew(make):
    """In the child, what was registered runs first, then every part; a closed pipeline is left alone."""
    order: list[str] = []
    part, closed = Part(), Part()
    part.after_fork = lambda: order.append("part")  # type: ignore[method-assign]
    line = make(part)
    line.on_fork(lambda: order.append("first"))
    make(closed).shutdown()
    child = os.fork()
    if child == 0:
        os._exit(0 if order == ["first", "part"] and closed.calls[-1][0] == "shutdown" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert order == []
    pipeline._after_fork_in_child()
    assert order == ["first", "part"]


def test_a_ticker_calls_at_its_interval_and_at_the_end():
    """Steadily, on flush, and once more when it stops."""
    calls = threading.Semaphore(0)
    ticker = Ticker("test", 0.01, calls.release)
    for _ in range(3):
        assert calls.acquire(timeout=10)
    assert ticker.shutdown(5)
    while calls.acquire(blocking=False):
        pass
    assert ticker.flush(1)
    assert calls.acquire(blocking=False)
    assert not calls.acquire(timeout=0.05)


def test_a_ticker_outlives_a_fault(monkeypatch):
    """The next call comes all the same; a flush that fails says so."""
    monkeypatch.setattr(guard, "strict", False)
    calls = threading.Semaphore(0)

    def fail() -> None:
        calls.release()
        raise RuntimeError("call")

    ticker = Ticker("test", 0.01, fail)
    for _ in range(3):
        assert calls.acquire(timeout=10)
    assert not ticker.flush(1)
    assert not ticker.shutdown(5)
    assert guard.errors >= 3


def test_a_ticker_that_hangs_says_no():
    """Its last call does not come, and the time is kept."""
    hanging, entered = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        hanging.wait(20)

    ticker = Ticker("test", 0.01, hang)
    assert entered.wait(10)
    assert not ticker.shutdown(0.05)
    hanging.set()


def test_a_ticker_starts_anew_after_a_fork():
    """With a thread and an event of its own."""
    calls = threading.Semaphore(0)
    ticker = Ticker("test", 0.01, calls.release)
    first = ticker._stop
    ticker.after_fork()
    first.set()
    for _ in range(3):
        assert calls.acquire(timeout=10)
    assert ticker.shutdown(5)


class Provider:
    """A provider of the application's own."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.flushed: list[int] = []

    def force_flush(self, timeout_millis: int) -> object:
        self.flushed.append(timeout_millis)
        return self.answer


@pytest.mark.parametrize(("answer", "done"), [(True, True), (None, True), (False, False)])
def test_a_joined_provider_is_flushed_and_never_stopped(answer, done):
    """Its own answer counts; one that says nothing is believed."""
    provider = Provider(answer)
    joined = Joined(provider)
    joined.after_fork()
    assert joined.flush(1.5) is done
    assert joined.shutdown(0.5) is done
    assert provider.flushed == [1500, 500]


def test_a_joined_provider_that_cannot_be_flushed_is_no_failure():
    """Some providers of the API have no such method."""
    assert Joined(object()).flush(1)


def test_what_waits_is_passed_on_first():
    """Before the provider is flushed, on every flush and at the end."""
    order: list[str] = []
    provider = Provider(True)
    provider.force_flush = lambda _: order.append("flush")  # type: ignore[method-assign,assignment]
    ticker = Ticker("test", 3600, lambda: order.append("pass"))
    ticker._stop.set()  # the thread that a fork leaves behind
    joined = Joined(provider, ticker)
    joined.after_fork()
    assert joined.flush(1)
    assert order == ["pass", "flush"]
    assert joined.shutdown(5)
