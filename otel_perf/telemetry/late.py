"""Late rules: what was not sampled is kept all the same when its local root failed, was slow or had a certain route.

Such spans are recorded and held here, within bounds, until the local root ends. Their flag stays unsampled, so that
nobody downstream is told that they are.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from otel_perf import conventions as c
from otel_perf import guard
from otel_perf.settings import Settings
from otel_perf.telemetry.foreign import Copied
from otel_perf.telemetry.sampling import wild

__all__ = ["Bounds", "Keep", "Late", "late"]

Put = Callable[[ReadableSpan], object]


@dataclass(frozen=True, slots=True)
class Keep:
    """What a local root must be for its spans to be kept."""

    errors: bool = False
    slower_than_ns: float | None = None
    routes: re.Pattern[str] | None = None

    @classmethod
    def of(cls, settings: Settings) -> Keep | None:
        """The rules that the settings ask for, or None."""
        slower, routes = settings.keep_slower_than_s, settings.keep_routes
        if not settings.keep_errors and slower is None and not routes:
            return None
        pattern = "|".join(wild(route, f"r{number}") for number, route in enumerate(routes))
        return cls(
            settings.keep_errors,
            None if slower is None else slower * 1e9,
            re.compile(pattern, re.DOTALL) if routes else None,
        )

    def why(self, root: ReadableSpan) -> str | None:
        """The first rule that an ended local root fits, or None."""
        if self.errors and root.status.status_code is StatusCode.ERROR:
            return "error"
        slow_ns = self.slower_than_ns
        if slow_ns is not None and (root.end_time or 0) - (root.start_time or 0) >= slow_ns:
            return "slow"
        if self.routes is not None:
            attributes = root.attributes or {}
            route = attributes.get(c.HTTP_ROUTE) or attributes.get(c.JOB_NAME) or root.name
            if self.routes.fullmatch(str(route)):
                return "route"
        return None


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is held at most, and how long spans that end after their local root follow its decision."""

    traces: int = 1024
    spans_per_trace: int = 256
    spans: int = 8192
    decisions: int = 4096
    follow_s: float = 30.0


class _Held:
    """Spans of one trace that ended undecided, by the span id of their parent."""

    __slots__ = ("children", "count")

    def __init__(self) -> None:
        self.children: dict[int, list[tuple[int, ReadableSpan]]] = {}
        self.count = 0

    def take(self, root: int) -> list[tuple[int, ReadableSpan]]:
        """Takes out all that descends from a span, whatever the order of their ends."""
        taken: list[tuple[int, ReadableSpan]] = []
        waiting = [root]
        while waiting:
            found = self.children.pop(waiting.pop(), ())
            taken += found
            waiting += [span_id for span_id, _ in found]
        self.count -= len(taken)
        return taken


class Late:
    """Hands sampled spans straight on, and holds others until their local root ends and a rule decides.

    A local root has no parent, or one in another process. Where one process asks itself, each request decides for what
    descends from it alone.
    """

    def __init__(
        self, keep: Keep, put: Put, bounds: Bounds | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keep = keep
        self._put = put
        self._bounds = bounds or Bounds()
        self._clock = clock
        #: Spans that were given up undecided for want of room, by reason.
        self.lost: dict[str, int] = {}
        #: Local roots that were kept, by rule.
        self.kept: dict[str, int] = {}
        self.after_fork()

    def after_fork(self) -> None:
        """The child holds its own spans; the parent keeps what it had."""
        # Re-entrant: while it is held, garbage collection may end a span of the same thread.
        self._lock = threading.RLock()
        self._held: dict[int, _Held] = {}
        # When something was decided of a trace, and what, by span id; the newest last.
        self._decided: dict[int, tuple[float, dict[int, bool]]] = {}
        self._spans = 0
        self.lost.clear()
        self.kept.clear()

    @property
    def held(self) -> int:
        """Spans that wait for their local root."""
        return self._spans

    def on_end(self, span: ReadableSpan) -> None:
        """Takes a span that ended."""
        try:
            context = span.get_span_context()
            if context is None:
                return
            # A tuple: trace id, span id, remote, flags. By its properties each would cost a call.
            if context[3] & 1:
                self._put(span)
                return
            parent = span.parent
            if parent is None or parent[2]:
                self._decide(span, context[0], context[1])
            else:
                self._hold(span, context[0], context[1], parent[1])
        except Exception:
            guard.note("deciding which spans are kept")

    def _decide(self, root: ReadableSpan, trace_id: int, span_id: int) -> None:
        why = self._keep.why(root)
        now = self._clock()
        past = now - self._bounds.follow_s
        decided = self._decided
        with self._lock:
            before = decided.pop(trace_id, None)
            known: dict[int, bool] = {} if before is None else before[1]
            decided[trace_id] = (now, known)
            if trace_id in self._held or known:
                family = self._settle(known, trace_id, span_id, why is not None)
            else:
                family = []
                known[span_id] = why is not None
            if why is not None:
                self.kept[why] = self.kept.get(why, 0) + 1
            while len(decided) > self._bounds.decisions or next(iter(decided.values()))[0] < past:
                decided.pop(next(iter(decided)))
        if why is not None:
            for each in family:
                self._put(each)
            self._put(_kept(root, why))

    def _hold(self, span: ReadableSpan, trace_id: int, span_id: int, parent_id: int) -> None:
        with self._lock:
            decided = self._decided.get(trace_id)
            kept = None if decided is None else decided[1].get(parent_id)
            if decided is None or kept is None:
                self._keep_back(span, trace_id, span_id, parent_id)
                return
            family = self._settle(decided[1], trace_id, span_id, kept)
        if kept:
            self._put(span)
            for each in family:
                self._put(each)

    def _settle(self, known: dict[int, bool], trace_id: int, span_id: int, kept: bool) -> list[ReadableSpan]:
        """Notes the decision about a span and all that is held below it, and takes that out."""
        held = self._held.get(trace_id)
        family = [] if held is None else held.take(span_id)
        self._spans -= len(family)
        if held is not None and not held.children:
            self._held.pop(trace_id, None)
        room = max(0, self._bounds.spans_per_trace - len(known))
        for each in [span_id, *[found for found, _ in family]][:room]:
            known[each] = kept
        return [span for _, span in family]

    def _keep_back(self, span: ReadableSpan, trace_id: int, span_id: int, parent_id: int) -> None:
        bounds = self._bounds
        held = self._held.get(trace_id)
        if held is None:
            held = self._held[trace_id] = _Held()
        if held.count >= bounds.spans_per_trace:
            self._lose(1, "late_trace_full")
            return
        held.children.setdefault(parent_id, []).append((span_id, span))
        held.count += 1
        self._spans += 1
        while self._held and (self._spans > bounds.spans or len(self._held) > bounds.traces):
            oldest = self._held.pop(next(iter(self._held)))
            self._spans -= oldest.count
            self._lose(oldest.count, "late_full")

    def _lose(self, count: int, reason: str) -> None:
        self.lost[reason] = self.lost.get(reason, 0) + count


def late(settings: Settings, put: Put) -> Late | None:
    """What applies the late rules of the settings before spans are put, or None where there are none."""
    keep = Keep.of(settings)
    return None if keep is None else Late(keep, put)


def _kept(of: ReadableSpan, why: str) -> ReadableSpan:
    """An ended local root and beside its attributes the rule that kept it: an ended span itself takes no more."""
    return Copied(of, of.name, {**(of.attributes or {}), c.KEPT_BY: why}, of.events, of.links, of.status)
