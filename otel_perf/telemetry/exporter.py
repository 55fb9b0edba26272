"""Sending spans: ending one is an append; two threads of ours encode batches and deliver them, with every span counted.

Log records are sent in the same way (see `log_export`). The account is that of `account`, with moves under one lock,
which ending a span never takes. Only spans that end at the same moment can overshoot the limit of the queue, by one for
each thread.

Memory is bounded by encoding early: each 64 spans, or fewer large ones, are encoded whether the endpoint answers or
not, and wait as bytes, which are counted. What is not encoded yet is what the queue takes until the encoding thread
gets its turn, by the size that spans lately had. While nothing waits there is room for a batch whatever that size was:
only so can it be found to have been too large.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from otel_perf import guard
from otel_perf.telemetry.account import Account, Tally, emptied
from otel_perf.telemetry.delivery import LOST, Answer
from otel_perf.telemetry.filling import FIRST_LOOK, Batch, Filling, ItemSize, Slice, slices
from otel_perf.telemetry.span import LeanSpan
from otel_perf.telemetry.ways import LARGEST_REQUEST_BYTES, Way, unobserved

__all__ = ["Sender", "SpanSender", "Tally"]

T = TypeVar("T")

_BATCH = 512
_DRAINING_EVERY_S = 0.1
_REFUSED_AT_ONCE = 4096


class Sender(Account[T]):
    """Queues items and sends them in batches: made = delivered + lost + queued, always."""

    #: What is sent, and the word for it in the names of threads.
    what = "items"
    signal = "items"

    def __init__(
        self, make_way: Callable[[], Way[T]], queue_size: int, interval_s: float, queue_size_bytes: int = 1 << 24
    ) -> None:
        self._make_way = make_way
        self._capacity = queue_size
        self._capacity_bytes = queue_size_bytes
        self._largest_bytes = min(LARGEST_REQUEST_BYTES, queue_size_bytes // 2)
        self._batch = min(_BATCH, max(1, queue_size // 2))
        self._interval_s = interval_s
        #: Set by `drain`: what waits is sent every 100 ms.
        self.draining = False
        super().__init__()
        self._start()

    def _start(self) -> None:
        self._way = self._make_way()
        self._room = self._enough = 0  # how many items may wait, and for how many the encoding thread is woken
        # A lock as a signal, held until there is something to do: to release one is safe in a signal handler and in
        # a garbage collection, which a condition is not.
        self._wake = threading.Lock()
        self._wake.acquire()
        self._woken = False
        self._urgent = False
        self._batches: deque[Batch] = deque()
        self._bytes = 0  # of what is encoded and not done with
        self._taken = 0  # items that are just being encoded
        self._filling = Filling()
        self._size = ItemSize(self._capacity_bytes)
        self._over = False
        self._make_room()
        self._threads = [
            threading.Thread(target=self._encode_all, name=f"otel_perf-{self.signal}", daemon=True),
            threading.Thread(target=self._send_all, name=f"otel_perf-send-{self.signal}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # What the application's threads do -------------------------------------------------------------------------------

    def put(self, item: T) -> None:
        """Queues an item, or counts it as lost when there is no room; of spans the flag is not asked."""
        queue = self._queue
        waiting = len(queue)
        if waiting < self._room:
            queue.append(item)
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

    # Room ------------------------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Items that can wait or be on their way."""
        return self._capacity

    @property
    def waiting_bytes(self) -> int:
        """Bytes of what is encoded and waits or is on its way."""
        return self._bytes

    def _make_room(self) -> None:
        each = self._size.each_bytes
        by_bytes = int((self._capacity_bytes - self._bytes) / each) - self._taken
        self._enough = max(1, min(self._batch, self._size.look, by_bytes // 2))
        # An estimate that is too large is unlearned by the items that come all the same.
        least = int(self._bytes < self._capacity_bytes) if self._in_hand else self._batch
        self._room = 0 if self._closed else max(0, min(self._capacity - self._in_hand, max(least, by_bytes)))

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
                pressing = pressing or self._in_hand == self._filling.items
            left, most = len(self._queue), FIRST_LOOK  # a few at first: others may come than came before
            while left > 0:
                left -= self._encode(min(left, most))
                most = self._batch
            if pressing:
                self._seal()
            with self._changed:
                self._count_refused()
                if over:
                    self._encoded_all = True
                    self._changed.notify_all()
                    return

    def _encode(self, most: int) -> int:
        """Takes a slice from the queue, `most` spans at most, and encodes it; answers how many were asked for."""
        with self._changed:
            count = min(most, self._size.slice, self._batch - self._filling.items)
            # A shutdown that ran out of time may have emptied the queue meanwhile.
            self._taken = min(count, len(self._queue))
            self._in_hand += self._taken
            self._make_room()  # before they are taken, so that nobody finds their room twice
            items = [self._queue.popleft() for _ in range(self._taken)]
        if items:
            for each in slices(self._way, items, self._largest_bytes):
                self._fill(each)
        return count

    def _fill(self, each: Slice) -> None:
        size_bytes = each.size_bytes
        if (
            self._filling.size_bytes + size_bytes > self._largest_bytes
            or self._bytes + size_bytes > self._capacity_bytes
        ):
            self._seal()  # which may make it smaller, too
        with self._changed:
            self._taken -= each.items
            self._size.learn(each.items, size_bytes)
            if self._over:
                self._settle(each.items, each.items, "shutdown")
            elif each.part is None:
                self._settle(each.items, each.items, "encoding")
            elif self._bytes + size_bytes > self._capacity_bytes:
                self._settle(each.items, each.items, "queue_full")
            else:
                self._bytes += size_bytes
                self._filling.add(each)
                self._make_room()
        if self._filling.items >= self._batch or self._filling.size_bytes >= self._largest_bytes:
            self._seal()

    def _seal(self) -> None:
        """What has filled up is one batch, which waits to be sent."""
        with self._changed:
            filled, self._filling = self._filling, Filling()
        if not filled.items:
            return
        try:
            encoded, size_bytes = self._way.join(filled.parts)
        except Exception:
            guard.note(f"encoding {self.what}")
            encoded, size_bytes = None, 0
        with self._changed:
            self._bytes -= filled.size_bytes
            if self._over or encoded is None:
                self._settle(filled.items, filled.items, "shutdown" if self._over else "encoding")
            else:
                self._bytes += size_bytes
                self._batches.append(Batch(encoded, filled.items, size_bytes))
                self._make_room()
                self._changed.notify_all()

    # Sending ---------------------------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        with unobserved():
            while self._send_next():
                pass
            self._way.close()

    def _send_next(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._batches or self._encoded_all)
            if not self._batches:
                return False
            batch = self._batches.popleft()
        answer = self._sent(batch)
        rejected = min(answer.rejected, batch.items)
        with self._changed:
            self._bytes -= batch.size_bytes
            if answer.delivered:
                self._settle(batch.items, rejected, "rejected")
            else:
                self._settle(batch.items, batch.items, "export_failed")
        return True

    def _sent(self, batch: Batch) -> Answer:
        try:
            return self._way.send(batch.encoded)
        except Exception:
            guard.note(f"sending {self.what}")
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

    def shutdown(self, timeout_s: float = 5.0) -> bool:
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
        waiting: int = emptied(self._queue)
        self._in_hand += waiting
        filled, self._filling = self._filling, Filling()
        self._bytes -= filled.size_bytes
        waiting += filled.items
        for batch in self._batches:
            self._bytes -= batch.size_bytes
            waiting += batch.items
        self._batches.clear()
        if waiting:
            self._settle(waiting, waiting, "shutdown")

    def after_fork(self) -> None:
        """The child sends its own items over its own connection; the parent keeps what it had."""
        if self._closed:
            self._changed = threading.Condition(threading.RLock())  # more comes, and is counted
        else:
            self._open()
            self._start()


class SpanSender(Sender[ReadableSpan], SpanProcessor):
    """Queues ended spans and sends them."""

    what = signal = "spans"

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

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """`flush`, under the SDK's name."""
        return self.flush(timeout_millis / 1000)

    def shutdown(self, timeout_s: float = 5.0) -> bool:  # type: ignore[override]  # the SDK's answers nothing
        """`Sender.shutdown`, which is of two families here."""
        return super().shutdown(timeout_s)
