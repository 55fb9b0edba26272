"""Sending spans: made = delivered + lost + queued at any time, whatever the endpoint does."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.sdk.trace.sampling import Sampler as StockSampler
from opentelemetry.trace import SpanContext, TraceFlags

from otel_perf import guard
from otel_perf.conventions import SCOPE
from otel_perf.settings import Settings
from otel_perf.telemetry import delivery, exporter, sdk, transport
from otel_perf.telemetry.delivery import LOST, Answer
from otel_perf.telemetry.exporter import SpanSender
from otel_perf.telemetry.provider import TracerProvider
from otel_perf.testing import FakeCollector, behaviour


class Gate:
    """A way that waits for permission and answers what it is told."""

    def __init__(self, *, opened: bool = True, bytes_each: int = 100) -> None:
        self.open = threading.Event()
        self.encoding = threading.Event()
        self.encoding.set()
        self.entered = threading.Event()
        self.answer: Answer | Exception = Answer(True)
        self.bytes_each = bytes_each
        self.broken: set[str] = set()
        self.batches: list[int] = []
        self.names: list[str] = []
        self.suppressed: list[bool] = []
        self.calls: list[str] = []
        if opened:
            self.open.set()

    def encode(self, spans: Sequence[ReadableSpan]) -> tuple[Any, int]:
        assert self.encoding.wait(20)
        if self.broken & {span.name for span in spans}:
            raise TypeError("it cannot be encoded")
        return list(spans), self.bytes_each * len(spans)

    def join(self, parts: Sequence[Any]) -> tuple[Any, int]:
        spans = [span for part in parts for span in part]
        return spans, self.bytes_each * len(spans)

    def send(self, encoded: Any) -> Answer:
        self.entered.set()
        assert self.open.wait(20)
        self.batches.append(len(encoded))
        self.names += [span.name for span in encoded]
        self.suppressed.append(sdk.suppressed())
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def stop(self, deadline: float) -> None:
        self.calls.append("stop")

    def abort(self) -> None:
        self.calls.append("abort")
        self.answer = LOST
        self.open.set()

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def make_sender():
    made: list[SpanSender] = []

    def make(gate: Gate, size: int = 4096, interval_s: float = 60, size_bytes: int = 1 << 24) -> SpanSender:
        made.append(SpanSender(lambda: gate, size, interval_s, size_bytes))
        return made[-1]

    yield make
    for sender in made:
        sender.shutdown(5)


def spans_into(sender: SpanSender, count: int, sampler: StockSampler = ALWAYS_ON, name: str = "s") -> None:
    provider = TracerProvider(sampler, Resource({}), shutdown_on_exit=False)
    provider.add_span_processor(sender)
    tracer = provider.get_tracer(SCOPE)
    for _ in range(count):
        tracer.start_span(name).end()


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
    sender = make_sender(Gate(), interval_s=0.01)
    spans_into(sender, 1)
    until(lambda: sender.delivered == 1)


def test_ending_a_span_is_one_call_and_takes_no_lock(make_sender):
    """Only `on_end`, while somebody else holds the lock of the counts."""
    sender = make_sender(Gate())
    span = TracerProvider(ALWAYS_ON, Resource({}), shutdown_on_exit=False).get_tracer(SCOPE).start_span("s")
    called: list[str] = []

    def trace(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    def end() -> None:
        sys.setprofile(trace)
        try:
            sender.on_end(span)
        finally:
            sys.setprofile(None)

    with sender._changed:
        thread = threading.Thread(target=end)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    assert called == ["on_end"]
    assert sender.made == 1


def test_a_full_queue_is_counted(make_sender):
    """What finds no room is lost and counted, and nobody waits."""
    gate = Gate(opened=False)
    sender = make_sender(gate, size=64)
    spans_into(sender, 32)
    assert gate.entered.wait(10)
    spans_into(sender, 100)
    assert sender.capacity == 64
    assert (sender.queued, sender.lost) == (64, {"queue_full": 68})
    assert balanced(sender)
    gate.open.set()
    assert sender.flush(10)
    assert sender.tally() == (132, 64, 68, 0)
    spans_into(sender, 1)
    assert sender.flush(10)
    assert sender.delivered == 65


def test_the_queue_is_bounded_in_bytes(make_sender):
    """Of what is encoded and of what is not yet: large spans leave less room, small ones more again."""
    gate = Gate(opened=False, bytes_each=1000)
    sender = make_sender(gate, size=4096, size_bytes=100_000)
    for _ in range(40):
        spans_into(sender, 50)
        sender._urgent = True
        sender._wake_up()
        until(lambda: not sender._queue)
        assert sender.waiting_bytes <= 100_000
    until(lambda: not sender._taken)
    queued = sender.queued
    assert 90 <= queued <= 100
    assert sender._room <= 10
    assert sender.tally() == (2000, 0, 2000 - queued, queued)
    assert list(sender.lost) == ["queue_full"]
    gate.open.set()
    assert sender.flush(10)
    assert (sender.waiting_bytes, sender.delivered) == (0, queued)


def test_one_large_span_does_not_keep_others_out(make_sender):
    """Where nothing waits there is room for a batch, whatever the last span was like; then the size is known anew."""
    gate = Gate(bytes_each=63_000)
    sender = make_sender(gate, size_bytes=65_536)
    spans_into(sender, 1)
    assert sender.flush(10)
    assert sender._size.each_bytes > 63_000
    gate.bytes_each = 100
    spans_into(sender, 200)
    assert sender.flush(10)
    assert sender.tally() == (201, 201, 0, 0)
    assert sender._size.each_bytes < 3000


def test_a_span_that_never_has_room_is_lost_alone(make_sender):
    """Also while others wait for the endpoint: there is always room for one to look at, as long as there is any."""
    gate = Gate(opened=False, bytes_each=40_000)
    sender = make_sender(gate, size_bytes=65_536)
    spans_into(sender, 1)
    sender.drain()
    assert gate.entered.wait(10)
    gate.bytes_each = 70_000
    spans_into(sender, 1)
    until(lambda: sender.lost == {"queue_full": 1})
    gate.bytes_each = 100
    for _ in range(20):
        spans_into(sender, 1)
        until(lambda: not sender._queue)
    gate.open.set()
    assert sender.flush(10)
    assert sender.tally() == (22, 21, 1, 0)


def test_large_spans_are_encoded_a_few_at_once(make_sender):
    """A thread that comes late to a full queue looks at a few, and takes slices by what it saw."""
    gate = Gate()
    sender = make_sender(gate)
    spans_into(sender, 100)  # small ones, so that nothing is known of what comes
    assert sender.flush(10)
    gate.batches.clear()
    gate.bytes_each = 200_000
    gate.encoding.clear()
    spans_into(sender, 300)
    asked: list[int] = []
    encode = gate.encode

    def measured(spans: Sequence[ReadableSpan]) -> tuple[Any, int]:
        asked.append(len(spans))
        return encode(spans)

    gate.encode = measured  # type: ignore[method-assign]
    gate.encoding.set()
    sender.flush(10)
    assert max(asked) <= 16
    assert asked[-1] == 1
    assert max(gate.batches) == 10  # of 2 MiB


def test_what_is_being_encoded_takes_room(make_sender):
    """The limit of the queue is for all spans that are not done with."""
    gate = Gate()
    gate.encoding.clear()
    sender = make_sender(gate, size=256)
    spans_into(sender, 64)
    until(lambda: sender._taken)
    spans_into(sender, 400)
    assert sender.queued == 256
    gate.encoding.set()
    assert sender.flush(10)
    assert sender.tally() == (464, 256, 208, 0)


def test_a_batch_that_is_too_large_is_parted(make_sender):
    """No request is larger than receivers take, nor than half the queue; the order stays."""
    gate = Gate(bytes_each=3000)
    sender = make_sender(gate, size_bytes=400_000)
    for number in range(80):
        spans_into(sender, 1, name=str(number))
    assert sender.flush(10)
    assert sum(gate.batches) == 80
    assert 2 <= len(gate.batches) <= 4
    assert max(gate.batches) <= 66
    assert gate.names == [str(number) for number in range(80)]
    gate.bytes_each = 410_000
    spans_into(sender, 1)
    assert not sender.flush(10)
    assert sender.lost == {"queue_full": 1}  # a span as large as that never has room


def test_what_cannot_be_joined_is_counted(make_sender, monkeypatch):
    """A fault in making one request of slices costs this batch."""
    monkeypatch.setattr(guard, "strict", False)
    gate = Gate()
    sender = make_sender(gate)
    join, gate.join = gate.join, None  # type: ignore[assignment]
    spans_into(sender, 3)
    assert not sender.flush(10)
    assert sender.lost == {"encoding": 3}
    gate.join = join
    spans_into(sender, 3)
    assert sender.flush(10)


def test_one_span_that_cannot_be_encoded_costs_itself(make_sender, monkeypatch):
    """The others of its batch are sent."""
    monkeypatch.setattr(guard, "strict", False)
    gate = Gate()
    gate.broken = {"bad"}
    sender = make_sender(gate)
    for name in ("a", "b", "bad", "c"):
        spans_into(sender, 1, name=name)
    assert not sender.flush(10)
    assert gate.names == ["a", "b", "c"]
    assert sender.lost == {"encoding": 1}
    assert guard.errors == 1


def test_what_is_rejected_is_a_loss(make_sender):
    """Of a partial success the rejected part; more than was sent cannot be rejected."""
    gate = Gate()
    gate.answer = Answer(True, 2)
    sender = make_sender(gate)
    spans_into(sender, 5)
    assert not sender.flush(10)
    assert sender.tally() == (5, 3, 2, 0)
    gate.answer = Answer(True, 99)
    spans_into(sender, 5)
    assert not sender.flush(10)
    assert (sender.tally(), sender.lost) == ((10, 3, 7, 0), {"rejected": 7})


def test_while_one_batch_waits_others_fill_up(make_sender):
    """A dead endpoint does not get a request for each interval when it comes back."""
    gate = Gate(opened=False)
    sender = make_sender(gate, interval_s=0.01)
    spans_into(sender, 1)
    assert gate.entered.wait(10)
    for _ in range(20):
        spans_into(sender, 5)
        time.sleep(0.005)
    gate.open.set()
    until(lambda: sender.delivered == 101)
    assert gate.batches == [1, 100]


def test_the_sum_holds_at_any_time(make_sender):
    """Threads make spans, the endpoint fails now and then, somebody looks: the sum is always right."""
    gate = Gate()
    sender = make_sender(gate, size=256, interval_s=0.001)
    threads = [threading.Thread(target=spans_into, args=(sender, 3000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    answers = itertools.cycle([Answer(True), LOST, Answer(True, 1)])
    looked, made = 0, 0
    while looked < 4 or any(thread.is_alive() for thread in threads):
        gate.answer = next(answers)
        tally = sender.tally()
        assert tally.made == tally.delivered + tally.lost + tally.queued
        assert tally.made >= made
        looked, made = looked + 1, tally.made
    for thread in threads:
        thread.join()
    sender.flush(10)
    assert sender.tally().made == 12_000
    assert sender.tally().queued == 0


@pytest.mark.parametrize("answer", [LOST, RuntimeError("broken")])
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
    sender = make_sender(Gate())
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
    """They count nowhere, unless somebody decides to keep them."""
    sender = make_sender(Gate())
    spans_into(sender, 5, ALWAYS_OFF)
    sender.on_end(ReadableSpan("no context"))
    unsampled = ReadableSpan("s", SpanContext(1, 1, False, TraceFlags(2)))
    sender.on_end(unsampled)
    assert sender.tally() == (0, 0, 0, 0)
    sender.put(unsampled)
    assert sender.flush(10)
    assert sender.tally() == (1, 1, 0, 0)


# The end --------------------------------------------------------------------------------------------------------------


def alive(sender: SpanSender) -> bool:
    return any(thread.is_alive() for thread in sender._threads)


def test_shutdown_delivers_and_stops(make_sender):
    """What waits is sent; what comes later is lost and counted; the second call does nothing."""
    gate = Gate()
    sender = make_sender(gate)
    spans_into(sender, 5)
    assert sender.shutdown(10)
    assert not alive(sender)
    assert gate.calls == ["stop", "close"]
    spans_into(sender, 2)
    assert sender.tally() == (7, 5, 2, 0)
    assert sender.lost == {"closed": 2}
    assert sender.shutdown(10)
    sender.after_fork()
    assert sender.made == 7  # a closed one stays closed in a child
    spans_into(sender, exporter._REFUSED_AT_ONCE)
    assert len(sender._refused) < exporter._REFUSED_AT_ONCE


def test_shutdown_in_time_counts_what_it_leaves(make_sender):
    """An endpoint that hangs costs the spans, not the exit; all of them are counted when it comes back."""
    gate = Gate(opened=False)
    sender = make_sender(gate, size=64)
    spans_into(sender, 32)
    assert gate.entered.wait(10)
    spans_into(sender, 20)
    assert not sender.shutdown(0.2)
    assert sender.lost == {"shutdown": 20, "export_failed": 32}
    assert sender.tally() == (52, 0, 52, 0)
    assert gate.calls == ["stop", "abort", "close"]
    assert not alive(sender)


def test_a_shutdown_in_the_middle_of_encoding(make_sender):
    """What is still to be encoded when the time is over is counted as well, and both threads end."""
    gate = Gate()
    gate.encoding.clear()
    sender = make_sender(gate, size=64)
    spans_into(sender, 60)
    assert not sender.shutdown(0.2)
    gate.encoding.set()
    for thread in sender._threads:
        thread.join(10)
    assert not alive(sender)
    assert sender.tally() == (60, 0, 60, 0)
    assert sender.lost == {"shutdown": 60}


def test_a_span_that_was_held_up_is_counted_after_the_end(make_sender):
    """A thread that saw room before the shutdown and puts its span in after it."""
    sender = make_sender(Gate())
    assert sender.shutdown(10)
    sender._queue.append(ReadableSpan("late"))
    assert sender.tally() == (1, 0, 1, 0)
    assert sender.lost == {"closed": 1}


def test_draining_sends_soon(make_sender):
    """Long before the interval is over, what waits and what comes."""
    sender = make_sender(Gate())
    spans_into(sender, 1)
    sender.drain()
    until(lambda: sender.delivered == 1)
    spans_into(sender, 1)
    until(lambda: sender.delivered == 2)
    sender.drain()
    assert sender.draining


def test_draining_and_ending_in_a_signal_handler(make_sender):
    """The handler interrupts the thread that holds the lock of the counts, and neither waits."""
    sender = make_sender(Gate(), size=64)

    def handler(*_: object) -> None:
        sender.drain()
        spans_into(sender, 64)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with sender._changed:
            os.kill(os.getpid(), signal.SIGUSR1)
            until(lambda: sender.draining)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sender.flush(10)
    assert sender.made == 64


def test_a_garbage_collection_may_end_a_span(make_sender):
    """In the thread that is just counting, or just ending another one."""
    sender = make_sender(Gate(), size=64)

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            spans_into(sender, 40)
            sender.tally()

    Cycle()
    with sender._changed:
        gc.collect()
    assert sender.flush(10)
    assert sender.made == 40


# Real endpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture
def collector(monkeypatch):
    monkeypatch.setattr(delivery, "_said", {})
    with FakeCollector() as made:
        yield made


@pytest.fixture
def over_http(collector):
    made: list[SpanSender] = []

    def make(**settings: Any) -> SpanSender:
        loaded = Settings(endpoint=collector.url, **settings)
        made.append(SpanSender(transport.span_way(loaded, f"{collector.url}/v1/traces"), 4096, 60))
        return made[-1]

    yield make
    for each in made:
        each.shutdown(0.2)


def test_spans_really_arrive(collector, over_http):
    """They are decoded from protobuf by a real server, all of them, once."""
    sender = over_http()
    spans_into(sender, 700)
    assert sender.flush(20)
    assert sender.shutdown(5)
    assert len({span.span_id for span in collector.spans}) == len(collector.spans) == 700


def test_a_partial_success_is_a_partial_loss(collector, over_http):
    """What was rejected is counted under its own reason."""
    collector.behaviour = behaviour.partial(3, "too old")
    sender = over_http()
    spans_into(sender, 10)
    assert not sender.flush(20)
    assert sender.tally() == (10, 7, 3, 0)
    assert len(collector.spans) == 7


@pytest.mark.parametrize("act", [behaviour.status(500), behaviour.html(), behaviour.refuse()])
def test_a_refusal_is_a_loss(collector, over_http, act):
    """What nobody took was not delivered."""
    collector.behaviour = act
    sender = over_http(export_timeout_s=0.2)
    spans_into(sender, 3)
    assert not sender.flush(20)
    assert sender.lost == {"export_failed": 3}


@pytest.mark.parametrize("act", [behaviour.hang(), behaviour.drip(0.02), behaviour.status(503, retry_after=50)])
def test_an_endpoint_that_holds_us_up_holds_up_nobody(collector, over_http, act):
    """`flush` and `shutdown` come back in time and say no; every span is counted when they do."""
    collector.behaviour = act
    sender = over_http(export_timeout_s=60)
    spans_into(sender, 3)
    assert not sender.flush(0.2)
    assert balanced(sender)
    assert sender.queued == 3
    assert not sender.shutdown(0.3)
    assert sender.tally() == (3, 0, 3, 0)
    assert not alive(sender)


def test_an_endpoint_that_wants_to_be_left_alone_is(collector, over_http):
    """Longer than an export may take: nothing is sent meanwhile, and nothing is lost."""
    collector.behaviour = behaviour.status(503, retry_after=1).times(1)
    sender = over_http(export_timeout_s=0.3)
    spans_into(sender, 3)
    assert not sender.flush(0.1)
    spans_into(sender, 3)
    assert not sender.flush(0.1)
    assert sender.tally() == (6, 0, 0, 6)
    assert len(collector.requests) == 1
    assert sender.flush(20)
    assert sender.tally() == (6, 6, 0, 0)


def test_a_shutdown_ends_the_wait_of_a_retry(collector, over_http):
    """And makes one more attempt, which may succeed."""
    collector.behaviour = behaviour.status(503, retry_after=50).times(1)
    sender = over_http(export_timeout_s=60)
    spans_into(sender, 3)
    assert not sender.flush(0.2)
    assert sender.shutdown(20)
    assert sender.tally() == (3, 3, 0, 0)


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
def test_a_forked_child_sends_for_itself(collector, over_http):
    """Own queue, zero counts, threads of its own, no inherited lock; the parent keeps what it had."""
    sender = over_http()
    spans_into(sender, 1)
    assert sender.flush(10)  # a connection is open
    spans_into(sender, 3)
    sender._refused.append(None)

    def child() -> bool:
        sender.after_fork()
        if sender.tally() != (0, 0, 0, 0) or not all(thread.is_alive() for thread in sender._threads):
            return False
        spans_into(sender, 2)
        return sender.shutdown(10) and sender.tally() == (2, 2, 0, 0)

    with sender._changed:
        assert in_child(child)
    assert sender.queued == 3
    assert sender.shutdown(10)
    assert sender.tally() == (5, 4, 1, 0)
    assert len(collector.spans) == 6


def test_a_closed_sender_starts_no_thread_in_a_child(make_sender):
    """A fork in the middle of a shutdown: the lock that another thread held is made anew, spans count as lost."""
    sender = make_sender(Gate())
    assert sender.shutdown(5)
    lock = sender._changed
    sender.after_fork()
    assert sender._changed is not lock
    assert not alive(sender)
    spans_into(sender, 1)
    assert sender.lost == {"closed": 1}
