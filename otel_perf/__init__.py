"""Performance monitoring for Python services, native to OpenTelemetry, at a tenth of the usual cost.

from otel_perf import configure, instrument, measure

configure(service_name="streak")
instrument(app)
"""

from __future__ import annotations

from otel_perf import catalogue
from otel_perf._version import __version__
from otel_perf.api import configure, flush, shutdown
from otel_perf.integrations.registry import instrument
from otel_perf.measure import measure
from otel_perf.settings import Settings, SettingsError
from otel_perf.telemetry.query_listeners import on_critical_query

__all__ = [
    "Settings",
    "SettingsError",
    "__version__",
    "catalogue",
    "configure",
    "flush",
    "instrument",
    "measure",
    "on_critical_query",
    "shutdown",
]
