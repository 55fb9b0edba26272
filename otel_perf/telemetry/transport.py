"""The stock OTLP exporters, made from our settings; certificates come from the standard variables."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace.export import SpanExporter

from otel_perf.settings import Settings, SettingsError

__all__ = ["check", "metric_exporter", "metrics_endpoint", "span_exporter", "traces_endpoint"]


def traces_endpoint(settings: Settings) -> str | None:
    """Where spans go, or None."""
    return settings.traces_endpoint or _below(settings, "/v1/traces")


def metrics_endpoint(settings: Settings) -> str | None:
    """Where metrics go, or None."""
    return settings.metrics_endpoint or _below(settings, "/v1/metrics")


def check(settings: Settings) -> None:
    """Finds out before anything is started whether the transport can be had.

    Raises:
        SettingsError: when `protocol` is grpc and the extra is not installed.
    """
    if settings.protocol == "grpc" and settings.sends and not settings.disabled:
        try:
            importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.exporter")
        except ImportError:
            raise SettingsError(
                "protocol='grpc' cannot be used: its exporter is not installed. Run `pip install 'otel-perf[grpc]'`, "
                "or use http/protobuf"
            ) from None


def _below(settings: Settings, path: str) -> str | None:
    # gRPC has no paths: its endpoint is a host.
    return settings.endpoint and (settings.endpoint if settings.protocol == "grpc" else settings.endpoint + path)


def _arguments(settings: Settings, endpoint: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {"endpoint": endpoint, "timeout": settings.export_timeout_s}
    if settings.headers:
        arguments["headers"] = {key.lower(): value for key, value in settings.headers.items()}
    if settings.protocol == "grpc":
        from grpc import Compression as GrpcCompression

        gzip = settings.compression == "gzip"
        arguments["compression"] = GrpcCompression.Gzip if gzip else GrpcCompression.NoCompression
    else:
        from opentelemetry.exporter.otlp.proto.http import Compression

        arguments["compression"] = Compression(settings.compression)
    return arguments


def span_exporter(settings: Settings, endpoint: str) -> Callable[[], SpanExporter]:
    """What makes a span exporter, anew after each fork."""
    if settings.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return lambda: Grpc(**_arguments(settings, endpoint))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return lambda: OTLPSpanExporter(**_arguments(settings, endpoint))


def metric_exporter(settings: Settings, endpoint: str) -> Callable[[], MetricExporter]:
    """What makes a metric exporter, anew after each fork."""
    if settings.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

        return lambda: Grpc(**_arguments(settings, endpoint))
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    return lambda: OTLPMetricExporter(**_arguments(settings, endpoint))
