"""OpenTelemetry as the app has had it all along; nothing in here knows of otel_perf."""

from __future__ import annotations

from fastapi import FastAPI
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

__all__ = ["instrument_upstream", "start"]


def start() -> None:
    """Set the providers that the app sends by, to OTEL_EXPORTER_OTLP_ENDPOINT."""
    resource = Resource.create({"service.name": "orders", "team": "shop"})
    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracers)
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=[reader]))


def instrument_upstream(app: FastAPI) -> None:
    """Have upstream's instrumentor make the spans and durations of requests."""
    FastAPIInstrumentor.instrument_app(app, exclude_spans=["receive", "send"])
