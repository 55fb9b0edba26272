"""SIGTERM, SIGHUP and SIGINT: what waits is sent, and the process ends as it would have ended without us."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import otel_perf
from otel_perf import guard, measure
from otel_perf.telemetry import pipeline, signals
from otel_perf.telemetry.pipeline import Pipeline
from otel_perf.telemetry.signals import EndSignals
from otel_perf.testing import FakeCollector, behaviour
from tests.reliability.processes import Together, started

LONG = {"OTEL_PERF_SPAN_INTERVAL_S": "60", "OTEL_PERF_METRIC_INTERVAL_S": "3600"}

# `before` and `after` are what the application does about signals, before and after `configure()`.
SCRIPT = """
    import signal, sys, threading, time
    {before}
    if "bare" not in sys.argv:
        import otel_perf
        from otel_perf import measure
        otel_perf.configure("script")
        for _ in range(700):
            with measure("work"):
                pass
    {after}
    print("ready")
    {then}
"""
SLEEP = "time.sleep(60)"


def script(before: str = "", after: str = "", then: str = SLEEP) -> str:
    return SCRIPT.format(before=before, after=after, then=then)


HANDLERS = {
    "nobody has the signal": script(),
    "it is busy": script(then="while True: pass"),
    "it waits for a lock": script(before="lock = threading.Lock(); lock.acquire()", then="lock.acquire()"),
    "a handler that exits": script(before="signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"),
    "a handler that sets a flag": script(
        before="told = []; signal.signal(signal.SIGTERM, lambda *a: told.append(a))",
        then="while not told: time.sleep(0.01)",
    ),
    "a later handler": script(after="signal.signal(signal.SIGTERM, lambda *_: sys.exit(8))"),
    "it is ignored": script(
        before="signal.signal(signal.SIGTERM, signal.SIG_IGN)", then="sys.stdin.read(1); sys.exit(9)"
    ),
    "a thread works on": script(
        then="def work():\n        while True: time.sleep(0.01)\n    threading.Thread(target=work).start()"
    ),
}


@pytest.fixture(scope="module")
def ended(request, tmp_path_factory):
    return Together(request, "case", lambda case: run(case, tmp_path_factory.getbasetemp()))


def run(case: str, folder: Path) -> tuple[list[int], list[str], FakeCollector]:
    """Exit codes without us, sending, and with a collector that hangs; what the second wrote and sent."""
    with FakeCollector() as collector, FakeCollector(behaviour.hang()) as hanging:
        sent = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **LONG}
        hung = {"OTEL_EXPORTER_OTLP_ENDPOINT": hanging.url, "OTEL_PERF_FLUSH_TIMEOUT_S": "0.3", **LONG}
        with (
            started("bare", script=HANDLERS[case], cwd=folder) as first,
            started("sent", script=HANDLERS[case], cwd=folder, **sent) as second,
            started("hung", script=HANDLERS[case], cwd=folder, **hung) as third,
        ):
            for each in (first, second, third):
                each.wait_for("ready")
                os.kill(each.pid, signal.SIGTERM)
                if case == "it is ignored":
                    each.process.stdin.write("x")
                    each.process.stdin.flush()
            return [each.exit_code() for each in (first, second, third)], second.lines, collector


@pytest.mark.parametrize("case", HANDLERS)
def test_a_script_that_is_terminated_loses_nothing(ended, case):
    """Everything arrives, and it ends by what it would have ended by; also where the collector hangs."""
    codes, lines, collector = ended[case]
    assert codes == [codes[0]] * 3, lines
    assert Counter(each.name for each in collector.spans) == {"work": 700}, lines
    assert collector.metric("operation.duration").points[0].count == 700
    assert lines == ["ready"]


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ("", "", -signal.SIGHUP),
        ("", "signal.signal(signal.SIGHUP, lambda *_: sys.exit(8))", 8),
        ("signal.signal(signal.SIGHUP, lambda *_: sys.exit(7))", "", 7),
    ],
    ids=["nobody has it", "a later handler", "an earlier handler"],
)
def test_a_terminal_that_is_gone_loses_nothing(tmp_path, before, after, code):
    """SIGHUP, where nobody has it; an application's own handler is left alone, whenever it came."""
    with (
        FakeCollector() as collector,
        started(
            script=script(before, after), cwd=tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **LONG
        ) as running,
    ):
        running.wait_for("ready")
        os.kill(running.pid, signal.SIGHUP)
        assert running.exit_code() == code
    assert len(collector.spans) == 700
    assert running.lines == ["ready"]


def test_sigterm_and_sighup_at_once_are_one_end(tmp_path):
    """As systemd can send them: the first one ends the process, when what waits was sent."""
    with (
        FakeCollector(behaviour.slow(0.5)) as collector,
        started(script=script(), cwd=tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **LONG) as running,
    ):
        running.wait_for("ready")
        os.kill(running.pid, signal.SIGTERM)
        time.sleep(0.1)
        os.kill(running.pid, signal.SIGHUP)
        assert running.exit_code() == -signal.SIGTERM
    assert len(collector.spans) == 700


def test_ctrl_c_loses_nothing(tmp_path):
    """Python's own handler of SIGINT ends the script in order; its exit code is the usual one."""
    with (
        FakeCollector() as collector,
        started(script=script(), cwd=tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **LONG) as running,
    ):
        running.wait_for("ready")
        os.kill(running.pid, signal.SIGINT)
        assert running.exit_code() == -signal.SIGINT
    assert len(collector.spans) == 700


def test_ctrl_c_twice_says_what_was_lost(tmp_path):
    """The second one ends the wait for a dead collector at the exit; the line comes all the same."""
    with (
        FakeCollector(behaviour.hang()) as collector,
        started(
            script=script(then=SLEEP.replace("60", "0")), cwd=tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_PERF_FLUSH_TIMEOUT_S="300",
        ) as running,
    ):  # fmt: skip
        running.wait_for("ready")
        for _ in range(60):
            if running.process.poll() is None:  # the first may come before the exit functions
                os.kill(running.pid, signal.SIGINT)
                time.sleep(0.3)
        running.exit_code(1)
        assert "otel_perf: 700 spans could not be delivered" in running.text


def test_who_does_not_want_to_wait_sends_it_twice(tmp_path):
    """While the flush waits for a dead collector, a second SIGTERM ends it at once."""
    then = "while signal.getsignal(signal.SIGTERM) != signal.SIG_DFL: time.sleep(0.01)\n    print('draining'); " + SLEEP
    with (
        FakeCollector(behaviour.hang()) as collector,
        started(
            script=script(then=then),
            cwd=tmp_path,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_PERF_FLUSH_TIMEOUT_S="300",
        ) as running,
    ):
        running.wait_for("ready")
        os.kill(running.pid, signal.SIGTERM)
        running.wait_for("draining")
        os.kill(running.pid, signal.SIGTERM)
        assert running.exit_code(20) == -signal.SIGTERM


def test_locks_that_the_main_thread_holds_do_not_hold_up_the_end(tmp_path):
    """The handler takes none, and what the thread cannot get costs no more than its time."""
    held = """
        import time, otel_perf
        from otel_perf import measure
        from otel_perf.telemetry import runtime
        otel_perf.configure("script", flush_timeout_s=0.3)
        with measure("work"):
            pass
        with runtime.current.registry.fold_lock:
            print("ready")
            time.sleep(60)
    """
    with (
        FakeCollector() as collector,
        started(script=held, cwd=tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as running,
    ):
        running.wait_for("ready")
        os.kill(running.pid, signal.SIGTERM)
        assert running.exit_code(20) == -signal.SIGTERM
        collector.wait_for(spans=1)


# In this process ------------------------------------------------------------------------------------------------------


class Part:
    """A part that can drain."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.flushed = threading.Event()

    def after_fork(self) -> None: ...

    def drain(self) -> None:
        self.told.append("drain")

    def flush(self, timeout_s: float) -> bool:
        self.told.append("flush")
        self.flushed.set()
        return True

    def shutdown(self, timeout_s: float) -> bool:
        self.told.append("shutdown")
        return True


@pytest.fixture
def heard():
    """What the application's own handler was called with; the handler of before is back at the end."""
    calls: list[tuple[object, ...]] = []

    def own(*arguments: object) -> None:
        calls.append(arguments)

    before = signal.signal(signal.SIGTERM, own)
    yield calls
    for left in list(pipeline._live):  # of a test that failed: it must not end the others
        if left._signals is not None:
            left._signals._owing = None
        left.shutdown()
    signal.signal(signal.SIGTERM, before)


def test_the_handler_of_before_is_called_as_it_was(heard):
    """With the same arguments, once the parts were told to drain; what waits is flushed; undone at the end."""
    own = signal.getsignal(signal.SIGTERM)
    part = Part()
    line = Pipeline([part], 5)
    line.handle_signals()
    signal.raise_signal(signal.SIGTERM)
    assert part.told[0] == "drain"
    assert heard[0][0] == signal.SIGTERM
    assert heard[0][1].f_code.co_name == "test_the_handler_of_before_is_called_as_it_was"
    assert part.flushed.wait(10)
    assert line.shutdown()
    assert signal.getsignal(signal.SIGTERM) is own
    assert part.told == ["drain", "flush", "shutdown"]


def test_a_handler_that_was_put_over_ours_stays(heard):
    """Ours is not taken away below it, and passes the signal on when it gets it after the end."""
    part = Part()
    line = Pipeline([part], 5)
    line.handle_signals()
    ours = signal.getsignal(signal.SIGTERM)
    over: list[object] = []

    def theirs(number, frame):
        over.append(number)
        ours(number, frame)

    signal.signal(signal.SIGTERM, theirs)
    line.shutdown()
    assert signal.getsignal(signal.SIGTERM) is theirs
    signal.raise_signal(signal.SIGTERM)
    assert (over, len(heard), part.told) == ([signal.SIGTERM], 1, ["shutdown"])


def test_uvicorns_signals_are_raised_after_the_flush(heard):
    """What uvicorn keeps to raise when its server has stopped is raised by us, when it gave the signal back."""

    class Server:
        def __init__(self) -> None:
            self._captured_signals: list[int] = []

        def handle_exit(self, number, frame) -> None:
            self._captured_signals.append(number)

    own = signal.getsignal(signal.SIGTERM)
    server = Server()
    signal.signal(signal.SIGTERM, server.handle_exit)
    part = Part()
    line = Pipeline([part], 5)
    line.handle_signals()
    signal.raise_signal(signal.SIGTERM)
    assert server._captured_signals == []
    assert part.flushed.wait(10)
    assert heard == []
    signal.signal(signal.SIGTERM, own)
    deadline = time.monotonic() + 20
    while not heard and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [number for number, _ in heard] == [signal.SIGTERM]
    line.shutdown()
    assert part.told == ["drain", "flush", "flush", "shutdown"]


def test_a_fault_while_draining_is_kept(heard, monkeypatch):
    """It is counted, and the thread goes on."""
    monkeypatch.setattr(guard, "strict", False)
    flushed = threading.Semaphore(0)

    def fail() -> None:
        flushed.release()
        raise RuntimeError("flush")

    sigterm = EndSignals(lambda: None, fail, lambda: None)
    assert sigterm.install()
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
        assert flushed.acquire(timeout=10)
    sigterm.undo()
    sigterm.undo()
    assert len(heard) == 2


def test_where_signals_are_not_ours_to_take(heard):
    """An ignored signal, an embedding program's, another thread, a switch: nothing is installed and nothing fails."""
    own = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert not EndSignals(lambda: None, lambda: None, lambda: None).install()
    signal.signal(signal.SIGTERM, own)
    signal.signal(signal.SIGHUP, hangup)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(signals.signal, "getsignal", lambda _: None)
        assert not EndSignals(lambda: None, lambda: None, lambda: None).install()
    elsewhere = threading.Thread(target=otel_perf.configure)
    elsewhere.start()
    elsewhere.join()
    assert signal.getsignal(signal.SIGTERM) is own
    otel_perf.configure(handle_signals=False)
    assert signal.getsignal(signal.SIGTERM) is own
    otel_perf.configure()
    assert signal.getsignal(signal.SIGTERM) is not own
    otel_perf.configure()
    with measure("work"):
        signal.raise_signal(signal.SIGTERM)
    assert len(heard) == 1
    assert otel_perf.shutdown()
    assert signal.getsignal(signal.SIGTERM) is own


def test_a_shutdown_in_another_thread_leaves_a_handler_that_passes_on(heard):
    """Only the main thread can give the signal back; until then ours does nothing of its own."""
    part = Part()
    line = Pipeline([part], 5)
    line.handle_signals()
    elsewhere = threading.Thread(target=line.shutdown)
    elsewhere.start()
    elsewhere.join()
    signal.raise_signal(signal.SIGTERM)
    assert (len(heard), part.told) == (1, ["shutdown"])
