"""Sending: made = delivered + lost + queued at any time, whatever the endpoint does."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from opentelemetry import context
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf import guard
from otel_perf.conventions import Metric
from otel_perf.settings import Settings
from otel_perf.telemetry import exporter, sdk, transport
from otel_perf.telemetry.exporter import MetricSender, SpanSender
from otel_perf.telemetry.series import Registry
from tests.telemetry.receiver import dead, receiver, silent


class Gate(SpanExporter):
    """An exporter that waits for permission and answers what it is told."""

    def __init__(self, *, opened: bool = True) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.answer: SpanExportResult | Exception = SpanExportResult.SUCCESS
        self.batches: list[int] = []
        self.suppressed: list[bool] = []
        if opened:
            self.open.set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        assert self.open.wait(20)
        self.batches.append(len(spans))
        self.suppressed.append(sdk.suppressed())
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def shutdown(self) -> None:
        self.open.set()


@pytest.fixture
def make_sender():
    made: list[SpanSender] = []

    def make(gate: SpanExporter, size: int = 4096, interval_s: float = 60) -> SpanSender:
        made.append(SpanSender(lambda: gate, size, interval_s))
        return made[-1]

    yield make
    for sender in made:
        sender.shutdown(5)


def spans_into(sender: SpanSender, count: int, sampler=ALWAYS_ON) -> None:
    provider = TracerProvider(sampler, Resource({}), shutdown_on_exit=False)
    provider.add_span_processor(sender)
    tracer = provider.get_tracer("t")
    for _ in range(count):
        tracer.start_span("s").end()


def balanced(sender: SpanSender) -> bool:
    tally = sender.tally()
    return tally.made == tally.delivered + tally.lost + tally.queued


def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    pytest.fail("it did not happen")


# Spans ----------------------------------------------------------------------------------------------------------------


def test_everything_is_delivered_on_flush(make_sender):
    """Batches of at most 512, with instrumentation kept away from the sending itself."""
    gate = Gate()
    sender = make_sender(gate)
    spans_into(sender, 1100)
    assert sender.force_flush(10_000)
    assert sum(gate.batches) == sender.delivered == sender.made == 1100
    assert max(gate.batches) == 512
    assert all(gate.suppressed)
    assert not sdk.suppressed()


def test_a_full_batch_does_not_wait_for_the_interval(make_sender):
    """Half a small queue is a batch too: it must not fill up while the sender sleeps."""
    gate = Gate()
    sender = make_sender(gate, size=64)
    for _ in range(20):
        spans_into(sender, 32)
        until(lambda: sender.queued == 0)
    assert sender.delivered == 640
    assert sender.lost == {}


def test_the_interval_sends_what_there_is(make_sender):
    """A single span leaves without a flush."""
    gate = Gate()
    sender = make_sender(gate, interval_s=0.01)
    spans_into(sender, 1)
    until(lambda: sender.delivered == 1)


def test_a_full_queue_is_counted(make_sender):
    """What finds no room is lost and counted, and nobody waits."""
    gate = Gate(opened=False)
    sender = make_sender(gate, size=64)
    spans_into(sender, 32)
    assert gate.entered.wait(10)
    spans_into(sender, 100)
    assert sender.capacity == 64
    assert (sender.queued, sender.lost) == (32 + 64, {"queue_full": 36})
    assert balanced(sender)
    gate.open.set()
    assert sender.flush(10)
    assert sender.tally() == (132, 96, 36, 0)


def test_the_sum_holds_at_any_time(make_sender):
    """Threads make spans, the endpoint fails now and then, somebody looks: the sum is always right."""
    gate = Gate()
    sender = make_sender(gate, size=256, interval_s=0.001)
    threads = [threading.Thread(target=spans_into, args=(sender, 3000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    answers = [SpanExportResult.SUCCESS, SpanExportResult.FAILURE]
    looked = 0
    while any(thread.is_alive() for thread in threads):
        gate.answer = answers[looked % 2]
        assert balanced(sender)
        looked += 1
    for thread in threads:
        thread.join()
    sender.flush(10)
    assert looked > 3
    assert balanced(sender)
    assert sender.tally().made == 12_000
    assert sender.tally().queued == 0


@pytest.mark.parametrize("answer", [SpanExportResult.FAILURE, RuntimeError("broken")])
def test_a_failed_export_is_counted(make_sender, monkeypatch, answer):
    """Flush says no; the next flush, with nothing new, says yes."""
    monkeypatch.setattr(guard, "strict", False)
    gate = Gate()
    gate.answer = answer
    sender = make_sender(gate)
    spans_into(sender, 5)
    assert not sender.flush(10)
    assert sender.lost == {"export_failed": 5}
    assert guard.errors == (1 if isinstance(answer, Exception) else 0)
    assert sender.flush(10)


def test_flush_asks_for_what_was_there(make_sender):
    """Spans that come while it waits do not keep it from ending."""
    gate = Gate()
    sender = make_sender(gate)
    stop = threading.Event()

    def produce() -> None:
        while not stop.is_set():
            spans_into(sender, 50)

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        assert sender.flush(20)
    finally:
        stop.set()
        thread.join()


def test_spans_that_are_not_sampled_are_not_made(make_sender):
    """They count nowhere."""
    sender = make_sender(Gate())
    spans_into(sender, 5, ALWAYS_OFF)
    assert sender.tally() == (0, 0, 0, 0)
    sender.on_end(ReadableSpan("no context"))
    assert sender.made == 0


def test_shutdown_delivers_and_stops(make_sender):
    """What waits is sent; what comes later is lost and counted; the second call does nothing."""
    gate = Gate()
    sender = make_sender(gate)
    spans_into(sender, 5)
    assert sender.shutdown(10)
    assert not sender._thread.is_alive()
    spans_into(sender, 2)
    assert sender.tally() == (7, 5, 2, 0)
    assert sender.lost == {"closed": 2}
    assert sender.shutdown(10)
    sender.after_fork()
    assert sender.made == 7  # a closed one stays closed in a child


def test_shutdown_in_time_counts_what_it_leaves(make_sender):
    """An endpoint that hangs costs the spans, not the exit."""
    gate = Gate(opened=False)
    sender = make_sender(gate, size=64)
    spans_into(sender, 32)
    assert gate.entered.wait(10)
    spans_into(sender, 20)
    gate.answer = SpanExportResult.FAILURE
    assert not sender.shutdown(0.2)
    until(lambda: sender.queued == 0)
    assert sender.lost == {"shutdown": 20, "export_failed": 32}
    assert balanced(sender)


def test_a_span_may_end_while_the_lock_is_held(make_sender):
    """Garbage collection may end a generator's span in the thread that is just queueing another one."""
    sender = make_sender(Gate())
    with sender._changed:
        spans_into(sender, 1)
    assert sender.made == 1


# Real endpoints -------------------------------------------------------------------------------------------------------


def over_http(url: str, **settings) -> SpanSender:
    loaded = Settings(endpoint=url, **settings)
    return SpanSender(transport.span_exporter(loaded, f"{url}/v1/traces"), 4096, 60)


def test_spans_really_arrive():
    """They are decoded from protobuf by a real server, all of them, once."""
    with receiver() as kept:
        sender = over_http(kept.url)
        spans_into(sender, 700)
        assert sender.flush(20)
        assert sender.shutdown(5)
        assert len({span.span_id for _, span in kept.spans}) == len(kept.spans) == 700


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_refusal_is_a_loss(status, caplog):
    """What is answered with an error was not delivered."""
    exporter.quieten()
    with receiver() as kept:
        kept.status = status
        sender = over_http(kept.url)
        spans_into(sender, 3)
        assert not sender.flush(20)
        assert sender.lost == {"export_failed": 3}
        sender.shutdown(5)


def test_a_dead_endpoint_is_counted_and_quiet(caplog, monkeypatch):
    """Nothing is raised, all is counted, and the log has at most one line a minute."""
    monkeypatch.setattr(exporter._quiet, "_next", 0.0)
    exporter.quieten()
    exporter.quieten()
    sender = over_http(dead(), export_timeout_s=0.2)
    for _ in range(5):
        spans_into(sender, 2)
        assert not sender.flush(20)
    assert sender.lost == {"export_failed": 10}
    assert len(caplog.records) == 1
    sender.shutdown(5)


def test_the_applications_own_log_is_left_alone(caplog):
    """The limit holds for what is logged while we send, not for others who use the same libraries."""
    exporter.quieten()
    log = logging.getLogger("urllib3.connectionpool")
    for _ in range(3):
        log.warning("theirs")
    assert len(caplog.records) == 3


def test_a_minute_later_one_more_line():
    """The limit is a rate, not an end."""
    limit = exporter._OncePerMinute()
    record = logging.makeLogRecord({})
    with exporter._unobserved():
        assert [limit.filter(record) for _ in range(3)] == [True, False, False]
        limit._next -= 61
        assert limit.filter(record)
    assert limit.filter(record)


def test_a_hanging_endpoint_does_not_hold_up_a_flush():
    """`flush` comes back and says no; what is on its way is still counted as queued."""
    with silent() as url:
        sender = over_http(url, export_timeout_s=1.0)
        spans_into(sender, 3)
        began = time.monotonic()
        assert not sender.flush(0.3)
        assert time.monotonic() - began < 10
        assert balanced(sender)
        assert sender.queued == 3
        sender.shutdown(0.1)
        sender._thread.join(10)
        assert sender.tally() == (3, 0, 3, 0)


# Metrics --------------------------------------------------------------------------------------------------------------


class Numbers(MetricExporter):
    def __init__(self) -> None:
        super().__init__()
        self.answer: MetricExportResult | Exception = MetricExportResult.SUCCESS
        self.values: list[float] = []
        self.stopped = 0

    def export(self, metrics_data, timeout_millis=10_000, **kwargs):
        assert context.get_value(sdk.SUPPRESS_KEY)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is MetricExportResult.SUCCESS:
            [metric] = metrics_data.resource_metrics[0].scope_metrics[0].metrics
            self.values += [point.value for point in metric.data.data_points]
        return self.answer

    def force_flush(self, timeout_millis=10_000):
        return True

    def shutdown(self, timeout_millis=30_000, **kwargs):
        self.stopped += 1


@pytest.fixture
def metrics():
    registry, kept = Registry(), Numbers()
    counter = registry.instrument(Metric("m", "1", "counter", ""), InstrumentationScope("t")).of({})
    sender = MetricSender(lambda: kept, registry, lambda: Resource({}), 3600)
    yield sender, counter, kept
    sender.shutdown(5)


def test_metrics_are_sent_on_flush_and_at_the_end(metrics):
    """Totals go out with each flush and a last time at the end; with nothing recorded nothing is sent."""
    sender, counter, kept = metrics
    assert sender.flush(5)
    assert kept.values == []
    counter.record(1)
    assert sender.flush(5)
    counter.record(1)
    assert sender.shutdown(5)
    assert kept.values == [1, 2]
    assert kept.stopped == 1


def test_metrics_are_sent_at_their_interval():
    """Without anybody asking."""
    registry, kept = Registry(), Numbers()
    sender = MetricSender(lambda: kept, registry, lambda: Resource({}), 0.01)
    registry.instrument(Metric("m", "1", "counter", ""), InstrumentationScope("t")).of({}).record(1)
    until(lambda: bool(kept.values))
    sender.shutdown(5)


@pytest.mark.parametrize("answer", [MetricExportResult.FAILURE, RuntimeError("broken")])
def test_a_failed_export_of_metrics_is_counted(metrics, monkeypatch, answer):
    """The points are counted as lost; the totals go out with the next export."""
    monkeypatch.setattr(guard, "strict", False)
    sender, counter, kept = metrics
    counter.record(5)
    kept.answer = answer
    assert not sender.flush(5)
    assert sender.lost == 1
    kept.answer = MetricExportResult.SUCCESS
    assert sender.flush(5)
    assert kept.values == [5]


# Fork -----------------------------------------------------------------------------------------------------------------


def in_child(check: Callable[[], bool]) -> bool:
    """Runs a check in a forked child, which leaves without any clean-up of the parent's."""
    child = os.fork()
    if child == 0:
        done = False
        with suppress(BaseException):
            done = check()
        os._exit(0 if done else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_sends_for_itself():
    """Own queue, zero counts, a thread of its own, no inherited lock; the parent keeps what it had."""
    with receiver() as kept:
        sender = over_http(kept.url)
        spans_into(sender, 3)

        def child() -> bool:
            sender.after_fork()
            if sender.tally() != (0, 0, 0, 0) or not sender._thread.is_alive():
                return False
            spans_into(sender, 2)
            return sender.shutdown(10) and sender.tally() == (2, 2, 0, 0)

        with sender._changed:
            assert in_child(child)
        assert sender.queued == 3
        assert sender.shutdown(10)
        assert len(kept.spans) == 5


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_counts_for_itself(metrics):
    """The child's metrics begin at zero with an exporter of its own, even when the parent was just sending."""
    sender, counter, kept = metrics
    counter.record(5)
    sender.lost = 3

    def child() -> bool:
        sender._cursor._registry.after_fork()
        sender.after_fork()
        counter.record(1)
        return sender.lost == 0 and sender.shutdown(5) and kept.values == [1]

    with sender._lock:
        assert in_child(child)
    assert sender.flush(5)
    assert kept.values == [5]


def test_a_closed_sender_starts_no_thread_in_a_child(make_sender):
    """A fork in the middle of a shutdown: the lock that another thread held is made anew, spans count as lost."""
    sender = make_sender(Gate())
    assert sender.shutdown(5)
    lock = sender._changed
    sender.after_fork()
    assert sender._changed is not lock
    assert not sender._thread.is_alive()
    spans_into(sender, 1)
    assert sender.lost == {"closed": 1}
