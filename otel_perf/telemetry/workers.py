"""The exchange: the workers of one host give one truthful answer, whichever of them is asked.

Each worker publishes its cumulative figures to the directory of its group: each second, when it is asked, and at its
end. Whoever is asked publishes first and adds up all that is there, so no answer is behind an earlier one. What a
worker counted stays when it ends. `/metrics` and insight read this same exchange.

A process without siblings has no thread and no file of this: when it is asked it looks whether there is a directory.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from otel_perf.telemetry.aggregation import Cell
from otel_perf.telemetry.group import Group
from otel_perf.telemetry.instrument import Series
from otel_perf.telemetry.pipeline import Ticker
from otel_perf.telemetry.publication import Cells, Publication
from otel_perf.telemetry.series import Collected, Registry
from otel_perf.telemetry.summing import Tally, Window

if TYPE_CHECKING:
    from otel_perf.telemetry.ledger import Ledger

__all__ = ["Exchange"]

_PUBLISH_EVERY_S = 1.0
# Where one publication costs more than this share of the time until the next, the next comes later.
_SHARE = 0.02
_PUBLISH_AT_LEAST_EVERY_S = 10.0

_log = logging.getLogger("otel_perf")


class Exchange:
    """The figures of this worker and of those that belong to it."""

    def __init__(self, registry: Registry, group: Group | None = None, *, viewed: bool = False) -> None:
        """The exchange of this registry.

        Args:
            registry: what this worker records.
            group: the workers that it belongs to, if any.
            viewed: the application has views, which change what `/metrics` shows but not what insight looks for.
        """
        #: What insight keeps of this worker, up to now; insight puts it in.
        self.windows: Callable[[], Sequence[Window]] = tuple
        #: The same as it is told to others.
        self.window_texts: Callable[[], Sequence[str]] = tuple
        self._registry = registry
        self._cells = Cells()
        self._cursor = registry.cursor(self._cells, keep_exemplars=True)
        self._raw = registry.cursor(self._no_distribution, raw=True) if viewed else None
        self._group = group
        self._heads = group is not None and group.heads
        self._ledger = _ledger(group, registry.cardinality_limit) if group is not None else None
        self._publication = Publication()
        self._started_ns = time.time_ns()
        self._failed = False
        self._asked = False
        self._due_s = 0.0
        # Re-entrant: a callback of the application's may ask for the figures.
        self._lock = threading.RLock()
        self._ticker = self._start() if self._ledger is not None and not self._heads else None

    def _start(self) -> Ticker:
        return Ticker("workers", _PUBLISH_EVERY_S, self._tick)

    def _tick(self) -> None:
        with self._lock:
            if not self._asked and time.monotonic() < self._due_s:
                return
            self._asked = False
            began_s = time.thread_time()
            self._publish()
            cost_s = time.thread_time() - began_s
            self._due_s = time.monotonic() + min(cost_s / _SHARE, _PUBLISH_AT_LEAST_EVERY_S)

    def read(self) -> Tally:
        """The figures of all workers up to now; of this one alone where it has no others."""
        return self._read(windows=True)

    def metrics(self) -> Tally:
        """The same for those who do not ask for what insight keeps, which is most of the work."""
        return self._read(windows=False)

    def _read(self, *, windows: bool) -> Tally:
        with self._lock:
            ledger = self._ledger
            collected = self._collect()
            if ledger is None or not self._has_others(ledger):
                return self._own(collected, windows=windows)
            told = self._put(ledger, collected)
            # Where nobody else can see the newest figures, this worker may not show them either: the next answer comes
            # from another worker, and would be less.
            own = self._own(collected, windows=windows) if told else ledger.published(windows=windows)
            if not ledger.joined:
                return self._own(collected, windows=windows)
        try:
            others = ledger.read(windows=windows)
        except OSError as error:
            self._say(error)
            others = []
        if own is None and not others:
            return self._own(collected, windows=windows)
        whole = own or Tally(self._started_ns, living=0)
        for tally, living in others:
            whole.add(tally, living=living)
        return whole

    @property
    def has_others(self) -> bool:
        """Whether this is one of several workers, as far as it can tell without asking them."""
        ledger = self._ledger
        return ledger is not None and self._has_others(ledger)

    def _has_others(self, ledger: Ledger) -> bool:
        return not self._heads or (self._group is not None and ledger.exists())

    def _is_idle(self) -> bool:
        """Whether nothing happened since the last publication, as far as can be told without making a new one."""
        if self._raw is not None:  # views may make cells of their own
            return False
        self._registry.fold_all()
        return not self._cells.fed and self._publication.says(self._cursor.observe())

    def _collect(self) -> list[tuple[str, list[Collected]]]:
        self._registry.fold_all()
        self._cells.fed = False
        if self._raw is None:
            return [("all", self._cursor.collect())]
        return [("metrics", self._cursor.collect()), ("insight", self._raw.collect())]

    def _no_distribution(self, series: Series) -> Cell | None:
        return None if series.instrument.metric.kind == "histogram" else self._cells(series)

    def _own(self, collected: Sequence[tuple[str, Sequence[Collected]]], *, windows: bool) -> Tally:
        tally = Tally(self._started_ns)
        for reader, listed in collected:
            tally.take(listed, reader)
        if windows:
            tally.take_windows(self.windows())
        return tally

    def _publish(self) -> None:
        with self._lock:
            if self._ledger is None:
                return
            if self._ledger.joined and self._is_idle():
                self._put(self._ledger)
                return
            collected = self._collect()
            # A child that does nothing we measure is no worker: nobody should see it in the sums.
            recorded = not all(each.instrument.observers for _, listed in collected for each in listed)
            if recorded or self._ledger.joined or self.window_texts():
                self._put(self._ledger, collected)

    def _put(self, ledger: Ledger, collected: Sequence[tuple[str, Sequence[Collected]]] | None = None) -> bool:
        """Whether the others can see it; without anything new it shows that this worker is there."""
        if collected is not None:
            self._publication.renew(self._started_ns, collected, self.window_texts())
        try:
            joins = not ledger.joined
            ledger.publish(self._publication.document)
        except OSError as error:
            self._say(error)
            return False
        self._failed = False
        if joins and self._group is not None:
            _tidy(self._group)
        return True

    def _say(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            joined = self._ledger is not None and self._ledger.joined
            _log.warning(
                "otel_perf: the workers' figures cannot be added up, %s: %s. Let OTEL_PERF_WORKERS_DIR name a "
                "directory that they can write to, or say `none`",
                "all answer with what was written last" if joined else "each worker answers for itself",
                error,
            )

    def after_fork(self) -> None:
        """A forked child is a worker of the same group, with counts from zero."""
        self._lock = threading.RLock()
        self._started_ns = time.time_ns()
        self._failed = self._asked = False
        self._due_s = 0.0
        self._publication = Publication()
        if self._ledger is None:
            return
        self._ledger.after_fork()
        self._heads = False
        if self._ticker is None:
            self._ticker = self._start()
        else:
            self._ticker.after_fork()

    def flush(self, timeout_s: float) -> bool:
        """Publishes; nothing is lost where that fails, since the figures are sums."""
        self._asked = True
        return self._ticker is None or self._ticker.flush(timeout_s)

    def shutdown(self, timeout_s: float) -> bool:
        """Publishes a last time, and leaves the figures to those who go on."""
        self._asked = True
        done = self._ticker is None or self._ticker.shutdown(timeout_s)
        with self._lock:
            ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.leave()
        if self._heads and self._group is not None:
            _remove_if_deserted(self._group)
        return done


def _ledger(group: Group, limit: int) -> Ledger:
    from otel_perf.telemetry.ledger import Ledger  # it needs `fcntl`, which is not there on Windows

    return Ledger(lambda: group.directory, group.prepare, limit=limit, lasts=group.certain)


def _tidy(group: Group) -> None:
    """Removes what groups left that ended without anybody to do so."""
    from otel_perf.telemetry.ledger import deserted

    with contextlib.suppress(OSError):
        for each in group.stale():
            if deserted(each):
                shutil.rmtree(each, ignore_errors=True)


def _remove_if_deserted(group: Group) -> None:
    from otel_perf.telemetry.ledger import deserted

    with contextlib.suppress(OSError):
        if group.directory.is_dir() and deserted(group.directory):
            shutil.rmtree(group.directory, ignore_errors=True)
