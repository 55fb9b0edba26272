"""Slow queries: kept by template in the process, written to a log, and told to whoever wants to hear of them.

An operation hands itself over when it was slow, sampled or not; nothing is done for any other. What takes time
(the file, log handlers, hooks, Sentry) happens in a thread that is started with the first slow query. Its queue is
bounded, and what finds no room is counted.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from otel_perf import conventions as c
from otel_perf import guard, redaction
from otel_perf.telemetry.callers import Place, caller
from otel_perf.telemetry.logs import request_id
from otel_perf.telemetry.query_listeners import tell
from otel_perf.telemetry.slow_query import SlowQuery

if TYPE_CHECKING:
    from otel_perf.telemetry.operation import Operation
    from otel_perf.telemetry.runtime import Runtime
    from otel_perf.telemetry.slow_query_log import SlowQueryLog

__all__ = ["SlowQueries", "SlowQuery", "Template"]

_QUEUE = 1000
_RECENT = 200
_TEMPLATES = 500
_LONGEST_LABEL = 256


@dataclass(frozen=True, slots=True)
class Template:
    """The slow queries of one template."""

    template: str
    count: int
    critical_count: int
    total_s: float
    max_s: float
    last: SlowQuery


class SlowQueries:
    """The slow queries of this process; a part of the pipeline."""

    def __init__(self, log: SlowQueryLog | None = None) -> None:
        self._log = log
        self._closed = False
        self._start_anew()

    def _start_anew(self) -> None:
        # Re-entrant: while one is held, garbage collection may end an operation of the same thread.
        self._lock = threading.RLock()
        self._writing = threading.RLock()
        self._wake = threading.Event()
        self._waiting: deque[SlowQuery] = deque()
        self._thread: threading.Thread | None = None
        self._recent: deque[SlowQuery] = deque(maxlen=_RECENT)
        self._templates: OrderedDict[str, Template] = OrderedDict()
        self._said_lost = 0
        self._writer = 0  # the thread that hands over
        #: What could not be written, by reason.
        self.lost: dict[str, int] = {}

    # Reading ----------------------------------------------------------------------------------------------------------

    def recent(self) -> list[SlowQuery]:
        """The last slow queries, the newest last."""
        with self._lock:
            return list(self._recent)

    def by_template(self) -> list[Template]:
        """The slow queries by template, those first that took the most time in all."""
        with self._lock:
            return sorted(self._templates.values(), key=lambda each: each.total_s, reverse=True)

    # Recording --------------------------------------------------------------------------------------------------------

    def record(self, operation: Operation, in_force: Runtime) -> Place | None:
        """Takes an operation that was slow, and answers where it was called; it never raises."""
        try:
            found = _slow_query(operation, in_force)
            values = (*operation.labels[:-1], found.threshold)
            in_force.at(c.QUERY_SLOW, values).record(1)
            self._keep(found)
            self._hand_on(found)
            return found.caller
        except Exception:
            guard.note("recording a slow query")
            return None

    def _keep(self, found: SlowQuery) -> None:
        with self._lock:
            self._recent.append(found)
            known = self._templates.pop(found.statement, None)
            self._templates[found.statement] = Template(
                found.statement,
                1 if known is None else known.count + 1,
                (0 if known is None else known.critical_count) + (found.threshold == "critical"),
                found.duration_s if known is None else known.total_s + found.duration_s,
                found.duration_s if known is None else max(known.max_s, found.duration_s),
                found,
            )
            if len(self._templates) > _TEMPLATES:
                self._templates.popitem(last=False)

    def _hand_on(self, found: SlowQuery) -> None:
        if self._closed or self._writer == threading.get_ident():
            return  # what a hook asks of a database is not told to hooks
        if len(self._waiting) >= _QUEUE:
            self._lose(1, "queue_full")
            return
        self._waiting.append(found)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="otel_perf-slow_queries", daemon=True)
                    try:
                        thread.start()
                    except RuntimeError:  # the interpreter goes down; a flush may still come
                        return
                    self._thread = thread
        self._wake.set()

    def _lose(self, count: int, reason: str) -> None:
        with self._lock:
            self.lost[reason] = self.lost.get(reason, 0) + count

    # Handing on -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wake = self._wake
        while True:
            wake.wait()
            wake.clear()
            try:
                with self._writing:
                    self._hand_over()
            except Exception:
                guard.note("writing slow queries")
            if self._closed:
                return

    def _hand_over(self) -> None:
        """Hands over what waits, for a caller that holds `_writing`."""
        self._writer = threading.get_ident()
        try:
            self._hand_over_all()
        finally:
            self._writer = 0

    def _hand_over_all(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), 64))]
            if self._log is not None:
                unwritten = self._log.write(batch)
                if unwritten:
                    self._lose(unwritten, "write_failed")
            for each in batch:
                tell(each)

    # The pipeline's part ----------------------------------------------------------------------------------------------

    def after_fork(self) -> None:
        """The child has its own slow queries, queue and thread; the parent writes what it had."""
        if self._log is not None:
            self._log.after_fork()
        self._start_anew()

    def flush(self, timeout_s: float) -> bool:
        """Hands over what waits; True only when nothing was lost since the last time."""
        if not self._writing.acquire(timeout=max(0.0, timeout_s)):
            return False  # a hook or a disk that hangs
        try:
            self._hand_over()
        finally:
            self._writing.release()
        lost = sum(self.lost.values())
        whole, self._said_lost = lost == self._said_lost, lost
        return whole

    def shutdown(self, timeout_s: float) -> bool:
        """Flushes, ends the thread and closes the file."""
        deadline = time.monotonic() + timeout_s
        self._closed = True
        done = self.flush(timeout_s)
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
            done = done and not thread.is_alive()
        if done and self._log is not None:
            self._log.close()
        return done


def _slow_query(operation: Operation, in_force: Runtime) -> SlowQuery:
    seconds = operation.seconds or 0.0
    threshold: Literal["slow", "critical"] = "critical" if seconds >= in_force.critical_query_s else "slow"
    context = None if operation.span is None else operation.span.get_span_context()
    has_ids = context is not None and context.is_valid
    labels = [None if each is None else redaction.text(str(each), _LONGEST_LABEL) for each in operation.labels]
    rows: object = operation.rows
    return SlowQuery(
        time_s=time.time(), threshold=threshold, duration_s=seconds, system=labels[0], operation=labels[1],
        collection=labels[2], namespace=labels[3], statement=str(operation.template or redaction.text(operation.name)),
        summary=redaction.text(operation.name, 255), rows=rows if isinstance(rows, int) else None,
        error_type=operation.error_type, caller=caller(), request_id=request_id.get(),
        trace_id=f"{context.trace_id:032x}" if has_ids and context is not None else None,
        span_id=f"{context.span_id:016x}" if has_ids and context is not None else None,
        sampled=context is not None and bool(context.trace_flags & 1),
    )  # fmt: skip
