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
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from otel_perf.telemetry.aggregation import Cell, LastValue, Point, Value
from otel_perf.telemetry.group import Group
from otel_perf.telemetry.instrument import Series
from otel_perf.telemetry.pipeline import Ticker
from otel_perf.telemetry.series import Registry, default_cell
from otel_perf.telemetry.summing import Tally, Window

if TYPE_CHECKING:
    from otel_perf.telemetry.ledger import Ledger

__all__ = ["Exchange"]

_PUBLISH_EVERY_S = 1.0

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
        self._registry = registry
        self._cursor = registry.cursor(_cell, keep_exemplars=True)
        self._raw = registry.cursor(_no_distribution, raw=True) if viewed else None
        self._group = group
        self._heads = group is not None and group.heads
        self._ledger = _ledger(group, registry.cardinality_limit) if group is not None else None
        self._started_ns = time.time_ns()
        self._failed = False
        # Re-entrant: a callback of the application's may ask for the figures.
        self._lock = threading.RLock()
        self._ticker = self._start() if self._ledger is not None and not self._heads else None

    def _start(self) -> Ticker:
        return Ticker("workers", _PUBLISH_EVERY_S, self._publish)

    def read(self) -> Tally:
        """The figures of all workers up to now; of this one alone where it has no others."""
        return self._read(windows=True)

    def metrics(self) -> Tally:
        """The same for those who do not ask for what insight keeps, which is most of the work."""
        return self._read(windows=False)

    def _read(self, *, windows: bool) -> Tally:
        with self._lock:
            ledger = self._ledger
            if ledger is None or not self._has_others(ledger):
                return self._own(windows=windows)
            own = self._own()
            self._put(ledger, own)
        try:
            for tally, living in ledger.read(windows=windows):
                own.add(tally, living=living)
        except OSError as error:
            self._say(error)
        return own

    def _has_others(self, ledger: Ledger) -> bool:
        return not self._heads or (self._group is not None and ledger.exists())

    def _own(self, *, windows: bool = True) -> Tally:
        tally = Tally(self._started_ns)
        tally.take(self._cursor.collect(), "all" if self._raw is None else "metrics")
        if self._raw is not None:
            tally.take(self._raw.collect(), "insight")
        if windows:
            tally.take_windows(self.windows())
        return tally

    def _publish(self) -> None:
        with self._lock:
            if self._ledger is None:
                return
            own = self._own()
            # A child that does nothing we measure is no worker: nobody should see it in the sums.
            recorded = own.windows or not all(figures.observed for figures in own.families.values())
            if recorded or self._ledger.joined:
                self._put(self._ledger, own)

    def _put(self, ledger: Ledger, own: Tally) -> None:
        try:
            joins = not ledger.joined
            ledger.publish(own)
        except OSError as error:
            self._say(error)
            return
        self._failed = False
        if joins and self._group is not None:
            _tidy(self._group)

    def _say(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            _log.warning(
                "otel_perf: the workers' figures cannot be added up, each worker answers for itself: %s. Let "
                "OTEL_PERF_WORKERS_DIR name a directory that they can write to, or say `none`",
                error,
            )

    def after_fork(self) -> None:
        """A forked child is a worker of the same group, with counts from zero."""
        self._lock = threading.RLock()
        self._started_ns = time.time_ns()
        self._failed = False
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
        return self._ticker is None or self._ticker.flush(timeout_s)

    def shutdown(self, timeout_s: float) -> bool:
        """Publishes a last time, and leaves the figures to those who go on."""
        done = self._ticker is None or self._ticker.shutdown(timeout_s)
        with self._lock:
            ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.leave()
        if self._heads and self._group is not None:
            _remove_if_deserted(self._group)
        return done


class _Dated(LastValue):
    """A gauge that knows when it was set: of several workers' the one that was set last counts."""

    __slots__ = ("_set_ns",)

    def feed(self, batch: Sequence[Value]) -> None:
        super().feed(batch)
        self._set_ns = time.time_ns()

    def point(self, attributes: Mapping[str, Any], start_ns: int, now_ns: int) -> Point | None:  # noqa: ARG002
        return None if self.value is None else super().point(attributes, start_ns, self._set_ns)


def _cell(series: Series) -> Cell | None:
    return _Dated() if series.instrument.metric.kind == "gauge" else default_cell(series)


def _no_distribution(series: Series) -> Cell | None:
    return None if series.instrument.metric.kind == "histogram" else _cell(series)


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
