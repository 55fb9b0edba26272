"""What is in force: one variable, found by handles on use."""

from __future__ import annotations

import otel_perf
from otel_perf import conventions as c
from otel_perf.telemetry import runtime


def test_configure_puts_a_runtime_in_force_and_shutdown_takes_it_away(telemetry):
    """It holds the settings, and reads those of the hot path once."""
    in_force = runtime.current
    assert in_force is telemetry.runtime
    assert in_force.settings.service_name == "test"
    assert (in_force.exemplars, in_force.slow_query_s) == (True, 0.2)
    otel_perf.shutdown()
    assert runtime.current is None


def test_series_are_found_by_metric_and_labels(telemetry):
    """An instrument is made once, in our own scope; labels are in the metric's order."""
    in_force = telemetry.runtime
    series = in_force.at(c.JOBS_ACTIVE, ("nightly",))
    assert series is in_force.at(c.JOBS_ACTIVE, ("nightly",))
    assert series.attributes == {c.JOB_NAME: "nightly"}
    assert in_force.instrument(c.JOBS_ACTIVE) is series.instrument
    assert series.instrument.scope.name == "otel_perf"
    assert series.instrument.scope.version == otel_perf.__version__
