"""The in-process reader."""

from __future__ import annotations

import random
import threading

import pytest
from opentelemetry.sdk.metrics.view import DropAggregation, View
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

import otel_perf
from otel_perf import conventions as c
from otel_perf import measure
from otel_perf.conventions import Metric
from otel_perf.insight import live
from otel_perf.insight.live import Live
from otel_perf.telemetry import runtime
from otel_perf.telemetry.aggregation import quantile
from otel_perf.telemetry.series import Registry
from otel_perf.telemetry.windowed import WINDOW_S
from otel_perf.telemetry.workers import Exchange


def distributions(reader, metric=c.STEP_DURATION):
    return [cell for name, _, cell in reader.read().windows if name == metric.name]


def test_percentiles_are_those_of_the_values(telemetry):
    """p50, p95 and p99 of the reader lie within 4.5 % of the exact ones."""
    chance = random.Random(7)
    values = [chance.lognormvariate(-4, 1) for _ in range(5000)]
    series = telemetry.runtime.at(c.STEP_DURATION, ("work", None, None))
    for value in values:
        series.record(value)
    [cell] = distributions(live.of(telemetry.runtime))
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
            for _, _, cell in reader.read().windows:
                cell.recent()

    def record():
        for _ in range(1000):
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
    assert [cell.total.count for cell in distributions(reader)] == [6000]


def test_uptime_and_window_grow_together_at_first():
    """Right after the start a rate is over the time that passed, later over a minute, never over less than a second."""
    registry = Registry()
    exchange = Exchange(registry)
    started_s = exchange.read().started_ns / 1e9
    now_s = started_s
    reader = Live(registry, exchange, lambda: now_s)
    for passed_s, window_s in ((0, 1), (20, 20), (1020, WINDOW_S)):
        now_s = started_s + passed_s
        assert (reader.read().uptime_s, reader.read().window_s) == pytest.approx((passed_s, window_s), abs=0.001)


def test_a_second_configure_starts_a_new_reader(telemetry):
    """After configuring anew the reader of the old runtime is gone and the new one counts from zero."""
    with measure("work"):
        pass
    old = telemetry.runtime
    otel_perf.configure(service_name="again", workers_dir="none")
    new = runtime.current
    assert new is not old
    assert live.of(new).read().windows == []
    with pytest.raises(KeyError):
        live.of(old)


def test_views_of_the_application_do_not_reach_insight(telemetry):
    """A view that drops metrics takes them from `/metrics`, and the page still knows them."""
    views = [View(instrument_name="operation.*", aggregation=DropAggregation())]
    otel_perf.configure(service_name="views", workers_dir="none", views=views)
    in_force = runtime.current
    measure.record("load", seconds=0.5, items=7)
    text = in_force.exposition.render(in_force.resource)
    assert "operation_" not in text
    read = live.of(in_force).read()
    assert [value for name, labels, value in read.numbers if labels.get(c.STEP_NAME) == "load"] == [7]
    assert [cell.total.count for cell in distributions(live.of(in_force))] == [1]


def test_labels_that_look_alike_are_one_number():
    """Insight adds up what differs only in the type of a label or in the version of a scope, as `/metrics` does."""
    registry = Registry()
    reader = Live(registry, Exchange(registry))
    for version, code, sold in (("1", 200, 1), ("1", "200", 2), ("2", 200, 4)):
        scope = InstrumentationScope("lib", version)
        registry.instrument(Metric("sold", "", "counter", ""), scope).of({"code": code}).record(sold)
    assert [(name, value) for name, _, value in reader.read().numbers] == [("sold", 7)]
