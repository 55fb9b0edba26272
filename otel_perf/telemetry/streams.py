"""Streams: what views make of the instruments. A stream is an instrument of its own, whose series readers see instead.

One instrument can give several streams or none. A stream's series are never recorded into: the registry feeds what
is recorded into the instrument's series to them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from otel_perf.telemetry import labels
from otel_perf.telemetry.instrument import Instrument, Observed, Series

__all__ = ["Streams", "Views"]

#: The streams of an instrument, given whether callbacks tell its values; None where no view is about it.
Views = Callable[[Instrument, bool], "Sequence[Instrument] | None"]


class Streams:
    """The streams of all instruments, each made on first use."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._streams: dict[tuple[Instrument, bool], Sequence[Instrument]] = {}
        self._series: dict[Series, tuple[Series, ...]] = {}
        self._lock = threading.RLock()  # re-entrant for the reason given in Instrument

    def of(self, instrument: Instrument, observed: bool) -> Sequence[Instrument]:
        """What readers see of an instrument: its streams, or itself where no view is about it."""
        with self._lock:
            found = self._streams.get((instrument, observed))
            if found is None:
                made = self._views(instrument, observed)
                found = self._streams[instrument, observed] = (instrument,) if made is None else made
            return found

    def series(self, series: Series) -> tuple[Series, ...]:
        """The series that readers see of a recorded one; called under the fold lock."""
        found = self._series.get(series)
        if found is None:
            instrument = series.instrument
            found = self._series[series] = tuple(
                series if stream is instrument else stream.of(series.attributes)
                for stream in self.of(instrument, False)
            )
        return found

    def told(self, told: list[tuple[Instrument, Observed]]) -> list[tuple[Instrument, Observed]]:
        """What readers see of that which callbacks told."""
        return [
            (stream, pairs if stream is instrument else _narrowed(stream, pairs))
            for instrument, pairs in told
            for stream in self.of(instrument, True)
        ]

    def keys(self, instrument: Instrument) -> frozenset[str] | None:
        """The attributes that any stream keeps, or None for all: what none keeps need not be recorded."""
        kept = [stream.keys for stream in self.of(instrument, False)]
        if not kept or None in kept:
            return None
        return frozenset[str]().union(*(keys for keys in kept if keys is not None))

    def after_fork(self) -> None:
        """Gives the locks anew in a forked child."""
        self._lock = threading.RLock()
        for streams in self._streams.values():
            for stream in streams:
                stream.after_fork()


def _narrowed(stream: Instrument, pairs: Observed) -> Observed:
    if stream.keys is None:
        return pairs
    gauge = stream.metric.kind == "gauge"
    kept: Observed = []
    places: dict[labels.Key, int] = {}
    for value, attributes in pairs:
        fewer = {name: each for name, each in attributes.items() if name in stream.keys}
        place = places.setdefault(labels.key(fewer), len(kept))
        if place == len(kept):
            kept.append((value, fewer))
        else:  # sets that fall together: of a gauge the last one counts, others add up
            kept[place] = (value if gauge else kept[place][0] + value, fewer)
    return kept
