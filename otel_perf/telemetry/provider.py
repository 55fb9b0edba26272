"""The provider of lean tracers, and lean tracers over a provider that the application made with the SDK."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk import trace as stock

from otel_perf.telemetry import lean, naming
from otel_perf.telemetry.tracer import LeanTracer

__all__ = ["TracerProvider", "over"]


class TracerProvider(stock.TracerProvider):
    """The SDK's own provider, but its tracers are lean where the SDK is one that we know."""

    def get_tracer(
        self, instrumenting_module_name: str, instrumenting_library_version: str | None = None,
        schema_url: str | None = None, attributes: Mapping[str, Any] | None = None,
    ) -> trace.Tracer:  # fmt: skip
        # What is no text would cost whole batches, of any exporter.
        name, version = naming.text(instrumenting_module_name) or "", naming.text(instrumenting_library_version)
        made = super().get_tracer(name, version, naming.text(schema_url), attributes)
        return _lean(self, made)


def over(
    provider: trace.TracerProvider, name: str, version: str | None = None, schema_url: str | None = None
) -> trace.Tracer:
    """A tracer of any provider: lean where the provider is the SDK's own, else the one that the provider gives."""
    made = provider.get_tracer(name, version, schema_url)
    # A subclass that makes tracers in its own way has its reasons.
    if isinstance(provider, stock.TracerProvider) and type(provider).get_tracer is stock.TracerProvider.get_tracer:
        return _lean(provider, made)
    return made


def _lean(provider: stock.TracerProvider, made: trace.Tracer) -> trace.Tracer:
    # Where the SDK counts its own spans its own tracer has to make them.
    if type(made) is not stock.Tracer or not lean.works(provider, made) or lean.counts_spans(made):
        return made
    return lean.replace_tracer(provider, made, LeanTracer)
