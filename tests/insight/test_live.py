"""The in-process reader."""

from __future__ import annotations

import random
import threading

import pytest

import otel_perf
from otel_perf import conventions as c
from otel_perf import measure
from otel_perf.insight import live
from otel_perf.insight.live import SLOT_S, WINDOW_S, Live, Windowed
from otel_perf.telemetry import runtime
from otel_perf.telemetry.aggregation import quantile


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_windowed_forgets_after_a_minute_and_the_total_does_not():
    """Values leave the recent minute as it passes and stay in the total."""
    clock = Clock()
    cell = Windowed(clock)
    cell.feed([0.1, 0.2])
    clock.now += WINDOW_S - SLOT_S
    cell.feed([0.3])
    assert (cell.recent().count, cell.total.count) == (3, 3)
    clock.now += SLOT_S
    assert (cell.recent().count, cell.total.count) == (1, 3)
    clock.now += WINDOW_S
    cell.feed([0.4])
    assert (cell.recent().count, cell.total.count) == (1, 4)
    assert len(cell._slots) == 1


def test_windowed_gives_a_point_and_resets():
    """As a cell it answers the point of all values, and nothing after a reset."""
    cell = Windowed(Clock())
    cell.feed([0.1])
    point = cell.point({"a": "b"}, 1, 2)
    assert point is not None
    assert point.count == 1
    cell.reset()
    assert cell.point({}, 1, 2) is None
    assert cell.recent().count == 0


def test_percentiles_are_those_of_the_values(telemetry):
    """p50, p95 and p99 of the reader lie within 4.5 % of the exact ones."""
    chance = random.Random(7)
    values = [chance.lognormvariate(-4, 1) for _ in range(5000)]
    series = telemetry.runtime.at(c.STEP_DURATION, ("work", None, None))
    for value in values:
        series.record(value)
    with live.of(telemetry.runtime).held() as held:
        cell = next(cell for name, attributes, cell in held if name == c.STEP_DURATION.name)
        values.sort()
        for share in (0.5, 0.95, 0.99):
            exact = values[round(share * len(values)) - 1]
            assert quantile(cell.total, share) == pytest.approx(exact, rel=0.045)


def test_reading_while_threads_record_loses_nothing(telemetry):
    """Six threads record while another reads all the time: in the end every value is there, once."""
    reader = live.of(telemetry.runtime)
    done = threading.Event()

    def read():
        while not done.is_set():
            with reader.held() as held:
                for _, _, cell in held:
                    if isinstance(cell, Windowed):
                        cell.recent()

    def record():
        for _ in range(3000):
            with measure("work"):
                pass

    reading = threading.Thread(target=read)
    threads = [threading.Thread(target=record) for _ in range(6)]
    reading.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reading.join()
    with reader.held() as held:
        assert [cell.total.count for name, _, cell in held if name == c.STEP_DURATION.name] == [18_000]


def test_uptime_and_window_grow_together_at_first():
    """Right after the start a rate is over the time that passed, later over a minute, never over less than a second."""
    from otel_perf.telemetry.series import Registry

    clock = Clock()
    reader = Live(Registry(), clock)
    assert (reader.uptime_s, reader.window_s) == (0.0, 1.0)
    clock.now += 20
    assert (reader.uptime_s, reader.window_s) == (20.0, 20.0)
    clock.now += 1000
    assert (reader.uptime_s, reader.window_s) == (1020.0, WINDOW_S)


def test_a_second_configure_starts_a_new_reader(telemetry):
    """After configuring anew the reader of the old runtime is gone and the new one counts from zero."""
    with measure("work"):
        pass
    old = telemetry.runtime
    otel_perf.configure(service_name="again")
    new = runtime.current
    assert new is not old
    with live.of(new).held() as held:
        assert [name for name, _, cell in held if isinstance(cell, Windowed)] == []
    with pytest.raises(KeyError):
        live.of(old)
