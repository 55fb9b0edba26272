"""Adapters from libraries to operations: one flat module each, listed in `registry`."""

from __future__ import annotations

from otel_perf.integrations.status import Report, Status, report

__all__ = ["Report", "Status", "report"]
