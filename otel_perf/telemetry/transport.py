"""The stock OTLP exporters, made from our settings; certificates come from the standard variables."""

from __future__ import annotations

import importlib
import ipaddress
import logging
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace.export import SpanExporter

from otel_perf.settings import Settings, SettingsError

__all__ = ["check", "metric_exporter", "metrics_endpoint", "span_exporter", "traces_endpoint"]

_log = logging.getLogger("otel_perf")


def traces_endpoint(settings: Settings) -> str | None:
    """Where spans go, or None."""
    if not _by_otlp(settings.traces_exporter):
        return None
    return settings.traces_endpoint or _below(settings, _traces_protocol(settings), "/v1/traces")


def metrics_endpoint(settings: Settings) -> str | None:
    """Where metrics go, or None."""
    if not _by_otlp(settings.metrics_exporter):
        return None
    return settings.metrics_endpoint or _below(settings, _metrics_protocol(settings), "/v1/metrics")


def check(settings: Settings) -> None:
    """Finds out before anything is started whether the transport can be had, and says what is switched off.

    Raises:
        SettingsError: when a protocol is grpc and the extra is not installed.
    """
    if settings.disabled:
        return
    for signal, exporters in (("traces", settings.traces_exporter), ("metrics", settings.metrics_exporter)):
        if not _by_otlp(exporters):
            _log.info("otel_perf: %s_exporter is %s, so no %s are sent", signal, ",".join(exporters), signal)
    used = {
        _traces_protocol(settings) if traces_endpoint(settings) else None,
        _metrics_protocol(settings) if metrics_endpoint(settings) else None,
    }
    if "grpc" in used:
        try:
            importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.exporter")
        except ImportError:
            raise SettingsError(
                "protocol='grpc' cannot be used: its exporter is not installed. Run `pip install 'otel-perf[grpc]'`, "
                "or use http/protobuf"
            ) from None


def span_exporter(settings: Settings, endpoint: str) -> Callable[[], SpanExporter]:
    """What makes a span exporter, anew after each fork."""
    headers = settings.traces_headers or settings.headers
    if _traces_protocol(settings) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return lambda: Grpc(**_by_grpc(settings, endpoint, headers))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return lambda: OTLPSpanExporter(**_by_http(settings, endpoint, headers))


def metric_exporter(settings: Settings, endpoint: str) -> Callable[[], MetricExporter]:
    """What makes a metric exporter, anew after each fork."""
    headers = settings.metrics_headers or settings.headers
    if _metrics_protocol(settings) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

        return lambda: Grpc(**_by_grpc(settings, endpoint, headers))
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    return lambda: OTLPMetricExporter(**_by_http(settings, endpoint, headers))


def _by_otlp(exporters: tuple[str, ...]) -> bool:
    # Python's SDK also knows otlp_proto_http and otlp_proto_grpc.
    return any(each.lower().startswith("otlp") for each in exporters)


def _traces_protocol(settings: Settings) -> str:
    return settings.traces_protocol or settings.protocol


def _metrics_protocol(settings: Settings) -> str:
    return settings.metrics_protocol or settings.protocol


def _below(settings: Settings, protocol: str, path: str) -> str | None:
    # gRPC has no paths: its endpoint is a host.
    return settings.endpoint and (settings.endpoint if protocol == "grpc" else settings.endpoint + path)


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _arguments(settings: Settings, endpoint: str, headers: Mapping[str, str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {"endpoint": endpoint, "timeout": settings.export_timeout_s}
    if headers:
        arguments["headers"] = {key.lower(): value for key, value in headers.items()}
    return arguments


def _by_http(settings: Settings, endpoint: str, headers: Mapping[str, str]) -> dict[str, Any]:
    from opentelemetry.exporter.otlp.proto.http import Compression

    arguments = _arguments(settings, endpoint, headers)
    arguments["compression"] = Compression(settings.compression)
    if _is_loopback(endpoint):
        # A proxy of the environment is another machine, which has no way to our loopback address.
        session: Any = importlib.import_module("requests").Session()
        session.trust_env = False
        arguments["session"] = session
    return arguments


def _by_grpc(settings: Settings, endpoint: str, headers: Mapping[str, str]) -> dict[str, Any]:
    from grpc import Compression

    arguments = _arguments(settings, endpoint, headers)
    arguments["compression"] = Compression.Gzip if settings.compression == "gzip" else Compression.NoCompression
    if _is_loopback(endpoint):
        arguments["channel_options"] = (("grpc.enable_http_proxy", 0),)
    return arguments
