"""The registry: every value that is recorded, once, for all readers.

Each attribute set of an instrument has a pending list; recording is one `list.append`. A fold (on collect, each
second, or at 512 values) moves the pending values into one cell per cursor. A cursor is one reader's view: its own
temporality and aggregation. OTLP, Prometheus, the page and stock readers are cursors on the same registry.

There is no lock on the hot path: recording only *tries* the fold lock, and a fork renews it.
"""

from __future__ import annotations

import logging
import threading

from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf import guard
from otel_perf.conventions import SCOPE, InstrumentKind, Metric
from otel_perf.telemetry.batch import Batch
from otel_perf.telemetry.cursor import Collected, Cursor, IsDelta, MakeCell, cumulative, default_cell
from otel_perf.telemetry.instrument import Instrument, Observe, Observed, Series
from otel_perf.telemetry.streams import Streams, Views

__all__ = ["Collected", "Cursor", "Instrument", "Observe", "Registry", "Series", "default_cell"]

_log = logging.getLogger("otel_perf")


class Registry:
    """All instruments and cursors of this process."""

    def __init__(self, cardinality_limit: int = 2000) -> None:
        self.cardinality_limit = cardinality_limit
        self.fold_lock = threading.Lock()
        self._instruments: dict[tuple[InstrumentationScope, str, InstrumentKind, str], Instrument] = {}
        self._names: dict[tuple[InstrumentationScope, str], Instrument] = {}
        self._cursors: list[Cursor] = []
        self._lock = threading.RLock()  # re-entrant for the reason given in Instrument
        self._streams: Streams | None = None

    def instrument(self, metric: Metric, scope: InstrumentationScope) -> Instrument:
        """The instrument of this metric and scope, made on first use; its first description and bounds count."""
        # Kind and unit belong to the identity: neither gauges and counters nor seconds and milliseconds add up.
        key = (scope, metric.name.lower(), metric.kind, metric.unit)
        found = self._instruments.get(key)
        if found is None:
            with self._lock:
                found = self._instruments.get(key)
                if found is None:
                    found = self._instruments[key] = Instrument(self, metric, scope)
                    self._named(found)
                    self._narrow(found)
        return found

    def _named(self, made: Instrument) -> None:
        metric = made.metric
        first = self._names.setdefault((made.scope, metric.name.lower()), made)
        if first is not made:
            _log.warning(
                "otel_perf: two metrics of %s are called %s: a %s in %r and a %s in %r; readers may take one for the "
                "other, so give one of them another name",
                made.scope.name, metric.name, first.metric.kind, first.metric.unit, metric.kind, metric.unit,
            )  # fmt: skip

    def instruments(self) -> list[Instrument]:
        """All instruments, in the order in which they were made."""
        return list(self._instruments.values())

    def cursor(
        self,
        make: MakeCell = default_cell,
        delta: IsDelta = cumulative,
        *,
        raw: bool = False,
        keep_exemplars: bool = False,
    ) -> Cursor:
        """A new reader's view; it sees what is recorded from now on."""
        cursor = Cursor(self, make, delta, raw=raw, keep_exemplars=keep_exemplars)
        with self.fold_lock:
            self.fold_held()  # what came before belongs to the others
            self._cursors.append(cursor)
        return cursor

    def remove(self, cursor: Cursor) -> None:
        """Forgets a reader; removing one that is gone already is no error."""
        with self.fold_lock:
            if cursor in self._cursors:
                self._cursors.remove(cursor)

    def fold(self, series: Series) -> None:
        """Moves one series' pending values into the cells, unless somebody folds right now."""
        if self.fold_lock.acquire(blocking=False):
            try:
                self._fold(series)
            finally:
                self.fold_lock.release()

    def fold_all(self) -> None:
        """Moves all pending values into the cells."""
        with self.fold_lock:
            self.fold_held()

    def fold_held(self) -> None:
        """`fold_all` for a caller that holds the fold lock."""
        for instrument in self.instruments():
            for series in list(instrument.series.values()):
                self._fold(series)

    def _fold(self, series: Series) -> None:
        pending = series.pending
        size = len(pending)
        if not size:
            return
        # Two steps that are safe beside appends: nobody but the holder of the fold lock removes.
        values = pending[:size]
        del pending[:size]
        try:
            batch = Batch(values)
        except TypeError:  # something that is no number was recorded past the API
            guard.note(f"adding up metric {series.instrument.metric.name}")
            return
        viewed = (series,) if self._streams is None else self._streams.series(series)
        for cursor in self._cursors:
            for each in (series,) if cursor.raw else viewed:
                cursor.feed(each, batch)

    def view(self, views: Views) -> None:
        """Lets readers that are not raw see what these views make of the instruments."""
        with self._lock:
            self._streams = Streams(views)
            for instrument in self.instruments():
                self._narrow(instrument)

    def viewed(self, told: list[tuple[Instrument, Observed]]) -> list[tuple[Instrument, Observed]]:
        """What views make of that which callbacks told."""
        return told if self._streams is None else self._streams.told(told)

    def _narrow(self, instrument: Instrument) -> None:
        instrument.narrow(None if self._streams is None else self._streams.keys(instrument))

    def reset(self) -> None:
        """Starts from zero with other readers and no views: `configure` is called again."""
        with self.fold_lock, self._lock:
            self._cursors.clear()
            self._streams = None
            for instrument in self.instruments():
                instrument.forget()
                instrument.narrow(None)
                if instrument.scope.name == SCOPE:
                    instrument.observers.clear()

    def after_fork(self) -> None:
        """Starts from zero with the same readers in a forked child, with locks that nobody holds."""
        self.fold_lock = threading.Lock()
        self._lock = threading.RLock()
        for instrument in self.instruments():
            instrument.after_fork()
        if self._streams is not None:
            self._streams.after_fork()
        for cursor in self._cursors:
            cursor.forget()
