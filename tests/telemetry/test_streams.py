"""Streams are what readers see instead of the instruments that views are about."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf.conventions import Metric
from otel_perf.telemetry.instrument import Instrument
from otel_perf.telemetry.series import Collected, Registry

SCOPE = InstrumentationScope("tests")


def counter(registry: Registry, name: str = "c") -> Instrument:
    return registry.instrument(Metric(name, "1", "counter", ""), SCOPE)


def narrowing(registry: Registry, *kept: set[str] | None):
    """Views that make of each instrument called `c` one stream for each set of kept attributes."""

    def views(instrument: Instrument, observed: bool) -> Sequence[Instrument] | None:
        if instrument.metric.name != "c":
            return None
        made = []
        for keys in kept:
            stream = Instrument(registry, Metric(f"stream{len(made)}", "1", "counter", ""), SCOPE)
            stream.keys = None if keys is None else frozenset(keys)
            made.append(stream)
        return made

    return views


def read(collected: Sequence[Collected]) -> dict[str, dict[str, float]]:
    return {
        each.instrument.metric.name: {str(point.attributes): point.value for point in each.points}  # type: ignore[union-attr]
        for each in collected
    }


def test_readers_see_streams_and_raw_readers_the_instrument():
    """One instrument gives several streams; others are seen as they are; the page sees no stream."""
    registry = Registry()
    registry.view(narrowing(registry, {"a"}, None))
    cursor, raw = registry.cursor(), registry.cursor(raw=True)
    for b in range(2):
        counter(registry).of({"a": "x", "b": b}).record(1)
    counter(registry, "other").of({}).record(5)
    both = {"{'a': 'x', 'b': 0}": 1, "{'a': 'x', 'b': 1}": 1}
    assert read(cursor.collect()) == {"stream0": {"{'a': 'x'}": 2}, "stream1": both, "other": {"{}": 5}}
    assert read(raw.collect()) == {"c": both, "other": {"{}": 5}}


def test_what_no_stream_keeps_is_not_recorded():
    """Attributes that no view wants make no series; the instruments made before the views follow too."""
    registry = Registry()
    early = counter(registry)
    registry.view(narrowing(registry, {"a"}, {"b"}))
    assert early.of({"a": 1, "b": 2, "c": 3}) is early.of({"a": 1, "b": 2, "c": 4})
    assert early.of({"a": 1, "b": 2, "c": 3}).attributes == {"a": 1, "b": 2}
    registry.reset()
    assert early.of({"a": 1, "c": 3}).attributes == {"a": 1, "c": 3}


def test_no_stream_is_no_metric():
    """An instrument that is dropped is still there for the page."""
    registry = Registry()
    registry.view(narrowing(registry))
    cursor, raw = registry.cursor(), registry.cursor(raw=True)
    instrument = counter(registry)
    instrument.of({}).record(1)
    instrument.observers.append(lambda: [(1, {"told": True})])
    assert cursor.collect() == []
    assert list(read(raw.collect())) == ["c"]


def test_a_forked_child_has_locks_that_nobody_holds():
    """The streams go on in the child, from zero."""
    registry = Registry()
    registry.view(narrowing(registry, None))
    cursor = registry.cursor()
    counter(registry).of({}).record(1)
    registry.fold_all()
    streams = registry._streams
    assert streams is not None
    streams._lock.acquire()
    streams.of(counter(registry), False)[0]._lock.acquire()
    registry.after_fork()
    counter(registry).of({}).record(2)
    counter(registry).of({"new": 1}).record(3)
    assert read(cursor.collect()) == {"stream0": {"{}": 2, "{'new': 1}": 3}}
