"""Sending spans: ending one is an append; two threads of ours encode batches and deliver them, with every span counted.

Every span is in one place: the queue, a batch that waits or is on its way, the delivered, or the lost. `made` is their
sum, so the account cannot fail to balance; each move between places is made under one lock, which ending a span never
takes. Only spans that end at the same moment can overshoot the limit of the queue, by one for each thread.

Memory is bounded by encoding early: a batch is encoded as soon as it is full, whether the endpoint answers or not, and
waits as (compressed) bytes, which are counted. What is not encoded yet is at most a batch, or what the queue takes
while the encoding thread does not get a turn; it is estimated by the largest size that spans lately had.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from otel_perf import guard
from otel_perf.telemetry.delivery import LOST, Answer
from otel_perf.telemetry.span import LeanSpan
from otel_perf.telemetry.ways import Batch, SpanWay, batches, unobserved

__all__ = ["SpanSender", "Tally"]

_BATCH = 512
_LARGEST_REQUEST_BYTES = 2 * 1024 * 1024  # receivers take 4 MiB at least
_DRAINING_EVERY_S = 0.1
_REFUSED_AT_ONCE = 4096


class Tally(NamedTuple):
    """What became of all spans, at one moment: `made` is the sum of the others."""

    made: int
    delivered: int
    lost: int
    queued: int


class SpanSender(SpanProcessor):
    """Queues ended spans and sends them in batches: made = delivered + lost + queued, always."""

    def __init__(
        self, make_way: Callable[[], SpanWay], queue_size: int, interval_s: float, queue_size_bytes: int = 1 << 24
    ) -> None:
        self._make_way = make_way
        self._capacity = queue_size
        self._capacity_bytes = queue_size_bytes
        self._batch = min(_BATCH, max(1, queue_size // 2))
        self._interval_s = interval_s
        self._closed = False
        #: Set by `drain`: what waits is sent every 100 ms.
        self.draining = False
        self._start()

    def _start(self) -> None:
        self._way = self._make_way()
        self._queue: deque[ReadableSpan] = deque()
        self._refused: deque[None] = deque()  # one for each, so that refusing takes no lock either
        self._room = self._enough = 0  # how many spans may wait, and for how many the encoding thread is woken
        # A lock as a signal, held until there is something to do: to release one is safe in a signal handler and in
        # a garbage collection, which a condition is not.
        self._wake = threading.Lock()
        self._wake.acquire()
        self._woken = False
        self._urgent = False
        # Re-entrant: while it is held, garbage collection may run code that asks for the counts.
        self._changed = threading.Condition(threading.RLock())
        self._batches: deque[Batch] = deque()
        self._in_hand = 0  # spans that were taken from the queue and are not done with
        self._bytes = 0
        self._span_bytes = 2048.0
        self._done = 0  # spans that were ever queued and are done with, and how many of those were lost
        self._failed = 0
        self._over = self._encoded_all = False
        self.delivered = 0
        self._lost: dict[str, int] = {}
        self._make_room()
        self._threads = [
            threading.Thread(target=self._encode_all, name="otel_perf-spans", daemon=True),
            threading.Thread(target=self._send_all, name="otel_perf-send", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # What the application's threads do -------------------------------------------------------------------------------

    def on_end(self, span: ReadableSpan) -> None:
        """Queues a sampled span, or counts it as lost when there is no room."""
        lean = type(span) is LeanSpan  # its own method would be a call for each span
        context = span._context if lean else span.get_span_context()  # pyright: ignore[reportPrivateUsage]  # see above
        if context is None or not context[3] & 1:  # its flags
            return
        # From here on the same as `put`: a call less for each span.
        queue = self._queue
        waiting = len(queue)
        if waiting < self._room:
            queue.append(span)
            if waiting + 1 >= self._enough and not self._woken:
                self._woken = True
                self._wake_up()
        else:
            self._refuse()

    def put(self, span: ReadableSpan) -> None:
        """Queues a span whatever its flag says: late rules keep what was not sampled."""
        queue = self._queue
        waiting = len(queue)
        if waiting < self._room:
            queue.append(span)
            if waiting + 1 >= self._enough and not self._woken:
                self._woken = True
                self._wake_up()
        else:
            self._refuse()

    def _refuse(self) -> None:
        self._refused.append(None)
        if len(self._refused) >= _REFUSED_AT_ONCE:  # the encoding thread counts them, unless it has ended
            self.tally()

    def _wake_up(self) -> None:
        with suppress(RuntimeError):  # it was told already
            self._wake.release()

    def drain(self) -> None:
        """From now on what waits is sent every 100 ms. Takes no lock: a signal handler may call it."""
        self.draining = True
        self._wake_up()

    # The account -----------------------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Spans that wait or are on their way."""
        return self.tally().queued

    @property
    def capacity(self) -> int:
        """Spans that can wait or be on their way."""
        return self._capacity

    @property
    def made(self) -> int:
        """Spans that were ever handed over."""
        return self.tally().made

    @property
    def lost(self) -> dict[str, int]:
        """Spans that were lost, by the reason."""
        with self._changed:
            self._count_refused()
            return dict(self._lost)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the batches that wait or are on their way."""
        return self._bytes

    def tally(self) -> Tally:
        """All counts at one moment."""
        with self._changed:
            self._count_refused()
            queued, lost = len(self._queue) + self._in_hand, sum(self._lost.values())
            return Tally(self.delivered + lost + queued, self.delivered, lost, queued)

    def _count_refused(self) -> None:
        refused = _emptied(self._refused)
        if self._encoded_all:
            refused += _emptied(self._queue)  # put there by a thread that was held up since before the end
        if refused:
            reason = "closed" if self._closed else "queue_full"
            self._lost[reason] = self._lost.get(reason, 0) + refused

    def _settle(self, count: int, lost: int, reason: str) -> None:
        """Spans in hand are done with, `lost` of them for a reason."""
        self._in_hand -= count
        self._done += count
        self._failed += lost
        self.delivered += count - lost
        if lost:
            self._lost[reason] = self._lost.get(reason, 0) + lost
        self._make_room()
        self._changed.notify_all()

    def _make_room(self) -> None:
        by_bytes = int((self._capacity_bytes - self._bytes) / self._span_bytes)
        self._enough = min(self._batch, max(1, by_bytes // 2))
        self._room = 0 if self._closed else max(0, min(self._capacity - self._in_hand, by_bytes))

    # Encoding --------------------------------------------------------------------------------------------------------

    def _encode_all(self) -> None:
        due = time.monotonic() + self._interval_s
        while True:
            self._wake.acquire(timeout=max(0.0, due - time.monotonic()))
            self._woken = False  # before the look at the queue: who comes later wakes us again
            with self._changed:
                over, urgent, self._urgent = self._over, self._urgent, False
            now = time.monotonic()
            pressing = urgent or over
            if now >= due or self.draining:
                due = now + (_DRAINING_EVERY_S if self.draining else self._interval_s)
                # While others wait for the endpoint, a batch may as well fill up.
                pressing = pressing or not self._in_hand
            left = len(self._queue)
            if not pressing:
                left -= left % self._enough
            while left > 0:
                taken = min(left, self._batch)
                self._encode(taken)
                left -= taken
            with self._changed:
                self._count_refused()
                if over:
                    self._encoded_all = True
                    self._changed.notify_all()
                    return

    def _encode(self, count: int) -> None:
        with self._changed:
            # A shutdown that ran out of time may have emptied the queue meanwhile.
            spans = [self._queue.popleft() for _ in range(min(count, len(self._queue)))]
            self._in_hand += len(spans)
        if not spans:
            return
        for part in batches(self._way, spans, min(_LARGEST_REQUEST_BYTES, self._capacity_bytes // 2)):
            with self._changed:
                if self._over:
                    self._settle(part.spans, part.spans, "shutdown")
                elif part.encoded is None:
                    self._settle(part.spans, part.spans, "encoding")
                elif self._bytes + part.size_bytes > self._capacity_bytes:
                    self._settle(part.spans, part.spans, "queue_full")
                else:
                    self._bytes += part.size_bytes
                    each = part.spans_bytes / part.spans
                    self._span_bytes = max(each, (self._span_bytes * 7 + each) / 8)
                    self._batches.append(part)
                    self._make_room()
                    self._changed.notify_all()

    # Sending ---------------------------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        with unobserved():
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._batches or self._encoded_all)
                    if not self._batches:
                        break
                    batch = self._batches.popleft()
                answer = self._sent(batch)
                rejected = min(answer.rejected, batch.spans)
                with self._changed:
                    self._bytes -= batch.size_bytes
                    if answer.delivered:
                        self._settle(batch.spans, rejected, "rejected")
                    else:
                        self._settle(batch.spans, batch.spans, "export_failed")
            self._way.close()

    def _sent(self, batch: Batch) -> Answer:
        try:
            return self._way.send(batch.encoded)
        except Exception:
            guard.note("sending spans")
            return LOST

    # The lifecycle ---------------------------------------------------------------------------------------------------

    def flush(self, timeout_s: float) -> bool:
        """Sends what is queued now, within the time; True when all of it was delivered."""
        with self._changed:
            wanted, failed = self._done + self._in_hand + len(self._queue), self._failed
            self._urgent = True
            self._wake_up()
            done = self._changed.wait_for(lambda: self._done >= wanted, timeout_s)
            return done and self._failed == failed

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """`flush`, under the SDK's name."""
        return self.flush(timeout_millis / 1000)

    def shutdown(self, timeout_s: float = 5.0) -> bool:  # type: ignore[override]  # the SDK's answers nothing
        """Flushes and stops; what could not be sent within the time is counted as lost."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            if self._closed:
                return True
            self._count_refused()
            self._closed = True
            self._room = 0
        # Whoever refuses now gets no second chance: exit does not wait for it.
        self._way.stop(deadline)
        # A little is left for the threads to end in, so that the counts are final when the time is over.
        flushed = self.flush(timeout_s - min(0.1, timeout_s / 10))
        with self._changed:
            self._over = True
            self._give_up()
        self._wake_up()
        if not flushed:
            self._way.abort()
        for thread in self._threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        return flushed

    def _give_up(self) -> None:
        """Counts everything that waits as lost."""
        waiting = _emptied(self._queue)
        self._in_hand += waiting
        for batch in self._batches:
            self._bytes -= batch.size_bytes
            waiting += batch.spans
        self._batches.clear()
        if waiting:
            self._settle(waiting, waiting, "shutdown")

    def after_fork(self) -> None:
        """The child sends its own spans over its own connection; the parent keeps what it had."""
        if self._closed:
            self._changed = threading.Condition(threading.RLock())  # spans still end, and are counted
        else:
            self._start()


def _emptied(queue: deque[Any]) -> int:
    count = 0
    with suppress(IndexError):
        while True:
            queue.popleft()
            count += 1
    return count
