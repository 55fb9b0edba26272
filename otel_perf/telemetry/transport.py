"""Where signals go and how, from our settings: addresses, protocols, certificates, headers, proxies."""

from __future__ import annotations

import importlib
import ipaddress
import logging
import re
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource

from otel_perf import redaction, sources
from otel_perf._version import __version__
from otel_perf.conventions import InstrumentKind
from otel_perf.settings import Settings, SettingsError
from otel_perf.telemetry.connection import Connection, Proxy
from otel_perf.telemetry.delivery import Delivery
from otel_perf.telemetry.sdk import Preferences
from otel_perf.telemetry.ways import (
    HttpLogs,
    HttpMetrics,
    HttpSpans,
    LogWay,
    MetricWay,
    SpanWay,
    StockMetrics,
    StockSpans,
)

__all__ = ["check", "log_way", "logs_endpoint", "metric_way", "metrics_endpoint", "span_way", "traces_endpoint"]

_log = logging.getLogger("otel_perf")

# By temporality preference: the kinds of which changes are sent, and whether callbacks tell them. With low memory those
# are totals, as a change would have to remember the total before.
_DELTA_KINDS: dict[str, frozenset[tuple[InstrumentKind, bool]]] = {
    "DELTA": frozenset((("counter", False), ("counter", True), ("histogram", False))),
    "LOWMEMORY": frozenset((("counter", False), ("histogram", False))),
}

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# What the sender itself decides about.
_RESERVED = frozenset(("connection", "content-encoding", "content-length", "content-type", "transfer-encoding"))


def traces_endpoint(settings: Settings) -> str | None:
    """Where spans go, or None."""
    if not _by_otlp(settings.traces_exporter):
        return None
    return _endpoint(settings, "traces", "/v1/traces")


def metrics_endpoint(settings: Settings) -> str | None:
    """Where metrics go, or None."""
    if not _by_otlp(settings.metrics_exporter):
        return None
    return _endpoint(settings, "metrics", "/v1/metrics")


def logs_endpoint(settings: Settings) -> str | None:
    """Where log records go, or None, which is so unless they are asked for."""
    if not _by_otlp(settings.logs_exporter):
        return None
    return _endpoint(settings, "logs", "/v1/logs")


def check(settings: Settings) -> None:
    """Finds out before anything is started whether the transport can be had, and says what is switched off.

    Raises:
        SettingsError: when a protocol is grpc and the extra is not installed, when a certificate cannot be read, or
            when a header or an address cannot be used.
    """
    if settings.disabled:
        return
    for signal, exporters in (("traces", settings.traces_exporter), ("metrics", settings.metrics_exporter)):
        if not _by_otlp(exporters):
            _log.info("otel_perf: %s_exporter is %s, so no %s are sent", signal, ",".join(exporters), signal)
    found = {
        "traces": traces_endpoint(settings),
        "metrics": metrics_endpoint(settings),
        "logs": logs_endpoint(settings),
    }
    for signal, endpoint in found.items():
        if endpoint is None:
            continue
        if signal == "logs" and _protocol(settings, signal) == "grpc":
            raise SettingsError(
                "log records are sent over HTTP alone: set logs_protocol='http/protobuf' and logs_endpoint, such as "
                "http://localhost:4318/v1/logs, or logs_exporter='none'"
            )
        _headers(settings, signal)
        context = _context(settings, signal, endpoint)
        if _protocol(settings, signal) == "grpc":
            _check_grpc()
        else:
            _check_address(settings, signal)
            try:
                Connection(endpoint, {}, context)
            except ValueError:
                raise SettingsError(f"the endpoint {redaction.url(endpoint)} has no usable host; correct it") from None


def _check_grpc() -> None:
    try:
        importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.exporter")
    except ImportError:
        raise SettingsError(
            "protocol='grpc' cannot be used: its exporter is not installed. Run `pip install 'otel-perf[grpc]'`, "
            "or use http/protobuf"
        ) from None


def span_way(settings: Settings, endpoint: str) -> Callable[[], SpanWay]:
    """What makes the way for spans, anew after each fork."""
    if _protocol(settings, "traces") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        arguments = _by_grpc(settings, "traces", endpoint)
        return lambda: StockSpans(OTLPSpanExporter(**arguments))
    deliver = _by_http(settings, "traces", "spans", endpoint)
    return lambda: HttpSpans(deliver(), _packed(settings, endpoint))


def log_way(settings: Settings, resource: Callable[[], Resource]) -> Callable[[], LogWay] | None:
    """What makes the way for log records, anew after each fork; None where they are not sent."""
    endpoint = logs_endpoint(settings)
    if endpoint is None:
        return None
    deliver = _by_http(settings, "logs", "log records", endpoint)
    return lambda: HttpLogs(deliver(), _packed(settings, endpoint), resource)


def metric_way(settings: Settings, endpoint: str) -> Callable[[], MetricWay]:
    """What makes the way for metrics, anew after each fork."""
    if _protocol(settings, "metrics") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        arguments = _by_grpc(settings, "metrics", endpoint)
        return lambda: StockMetrics(OTLPMetricExporter(**arguments), settings.export_timeout_s)
    deliver = _by_http(settings, "metrics", "metrics", endpoint)
    wants = _preferences()
    return lambda: HttpMetrics(deliver(), _packed(settings, endpoint), wants)


def _by_otlp(exporters: tuple[str, ...]) -> bool:
    # Python's SDK also knows otlp_proto_http and otlp_proto_grpc.
    return any(each.lower().startswith("otlp") for each in exporters)


def _own(settings: Settings, signal: str, name: str) -> tuple[str, Any]:
    """A setting that each signal may have its own of: the name of the one in force, and its value."""
    own = f"{signal}_{name}"
    value = getattr(settings, own)
    return (own, value) if value else (name, getattr(settings, name))


def _protocol(settings: Settings, signal: str) -> str:
    return str(_own(settings, signal, "protocol")[1])


def _endpoint(settings: Settings, signal: str, path: str) -> str | None:
    name, given = _own(settings, signal, "endpoint")
    if not given:
        return None
    address = str(given)
    if _protocol(settings, signal) == "grpc":  # it has no paths: its endpoint is a host
        return address if "://" in address else f"{_bare_scheme(signal)}://{address}"
    return address if name != "endpoint" else address + path


def _bare_scheme(signal: str) -> str:
    """Without a scheme gRPC uses TLS, unless the standard variable says otherwise."""
    own, general = f"OTEL_EXPORTER_OTLP_{signal.upper()}_INSECURE", "OTEL_EXPORTER_OTLP_INSECURE"
    return "http" if (sources.standard(own) or sources.standard(general)).lower() == "true" else "https"


def _check_address(settings: Settings, signal: str) -> None:
    """Finds addresses that cannot work by HTTP.

    Raises:
        SettingsError: for those.
    """
    name, given = _own(settings, signal, "endpoint")
    if "://" not in given:
        raise SettingsError(
            f"{name}={redaction.url(given)!r} has no scheme; write http://{redaction.url(given)}, or https:// for TLS, "
            "or set protocol='grpc'"
        )
    if name == "endpoint" and "?" in given:
        raise SettingsError(
            f"endpoint={redaction.url(given)!r} has a query, behind which no path can be put; remove it, "
            "or give whole addresses by traces_endpoint and metrics_endpoint"
        )


def _headers(settings: Settings, signal: str) -> dict[str, str]:
    setting, given = _own(settings, signal, "headers")
    headers: Mapping[str, str] = given
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise SettingsError(
                f"{setting}: the header {redaction.text(name, 64)!r} cannot be sent; remove line breaks and characters "
                "that are not Latin-1, and percent-encode commas"
            )
    return {name.lower(): value.strip() for name, value in headers.items()}


def _packed(settings: Settings, endpoint: str) -> bool:
    # Between processes of one machine bytes cost less than the time to compress them.
    return settings.compression == "gzip" or (settings.compression == "auto" and not _is_loopback(endpoint))


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    number = _ip(host)
    if number is None:
        return host == "localhost" or host.endswith(".localhost")
    return number.is_loopback or number.is_unspecified  # who connects to 0.0.0.0 reaches this machine


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(number, "ipv4_mapped", None) or number


# HTTP ----------------------------------------------------------------------------------------------------------------


def _by_http(settings: Settings, signal: str, what: str, endpoint: str) -> Callable[[], Delivery]:
    headers = {"user-agent": f"otel-perf/{__version__}", "content-type": "application/x-protobuf"}
    headers |= {name: value for name, value in _headers(settings, signal).items() if name not in _RESERVED}
    context, proxy = _context(settings, signal, endpoint), _proxy(endpoint)
    return lambda: Delivery(Connection(endpoint, headers, context, proxy), what, endpoint, settings.export_timeout_s)


def _proxy(endpoint: str) -> Proxy | None:
    """The proxy of the environment for an endpoint."""
    if _is_loopback(endpoint):
        return None  # a proxy is another machine, which has no way to our loopback address
    parts = urlsplit(endpoint)
    proxies = urllib.request.getproxies()
    address = proxies.get(parts.scheme) or proxies.get("all")
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    # A host with its port is also found where the port is not named.
    if not address or urllib.request.proxy_bypass(f"{host}:{port}") or _in_a_network(host, proxies.get("no", "")):
        return None
    proxy = Proxy.at(address)
    if proxy is None:
        _log.warning(
            "otel_perf: the proxy %s of the environment is left aside: only proxies with an http:// address are known",
            redaction.url(address),
        )
    return proxy


def _in_a_network(host: str, no_proxy: str) -> bool:
    """Whether an address is in one of the networks of `NO_PROXY`, such as 10.0.0.0/8: `urllib` knows names alone."""
    number = _ip(host)
    if number is None:
        return False
    for each in no_proxy.split(","):
        if "/" in each:
            with suppress(ValueError):  # no network
                if number in ipaddress.ip_network(each.strip(), strict=False):
                    return True
    return False


def _preferences() -> Preferences:
    """What the standard variables ask of metrics; as with the stock exporter an unknown word counts as the default."""
    wanted = sources.standard("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE").upper() or "CUMULATIVE"
    buckets = (
        sources.standard("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION") or "explicit_bucket_histogram"
    )
    if wanted not in ("CUMULATIVE", *_DELTA_KINDS):
        _log.warning("otel_perf: the temporality preference %r is unknown, so cumulative is used", wanted)
    exponential = buckets == "base2_exponential_bucket_histogram"
    if not exponential and buckets != "explicit_bucket_histogram":
        _log.warning("otel_perf: the histogram aggregation %r is unknown, so explicit buckets are used", buckets)
    return Preferences(
        _DELTA_KINDS.get(wanted, frozenset()),
        {"histogram": ExponentialBucketHistogramAggregation()} if exponential else {},
    )


# Certificates --------------------------------------------------------------------------------------------------------


def _context(settings: Settings, signal: str, endpoint: str) -> ssl.SSLContext | None:
    """What TLS is made with; None where there is none."""
    if urlsplit(endpoint).scheme != "https":
        return None
    name, authorities = _own(settings, signal, "certificate")
    try:
        context = ssl.create_default_context(cafile=authorities)
    except OSError as error:  # also what ssl says about a file that it does not understand
        raise _unusable(name, authorities, error, "certificates, or remove it to trust the system's") from None
    name, certificate = _own(settings, signal, "client_certificate")
    key_name, key = _own(settings, signal, "client_key")
    if certificate:
        try:
            context.load_cert_chain(certificate, key, password="")  # so that nobody is asked for one
        except OSError as error:
            names = f"{name} with {key_name}" if key else name
            raise _unusable(names, certificate, error, "our certificate and its unencrypted key") from None
    elif key:
        raise SettingsError(f"{key_name} is of no use without client_certificate; set both, or none")
    return context


def _unusable(name: str, path: str, error: OSError, wanted: str) -> SettingsError:
    why = "it is not PEM, or does not fit" if isinstance(error, ssl.SSLError) else (error.strerror or "").lower()
    return SettingsError(f"{name}={path!r} cannot be used: {why}. Name a readable PEM file of {wanted}")


# gRPC ----------------------------------------------------------------------------------------------------------------


def _by_grpc(settings: Settings, signal: str, endpoint: str) -> dict[str, Any]:
    import grpc

    arguments: dict[str, Any] = {"endpoint": endpoint, "timeout": settings.export_timeout_s}
    headers = _headers(settings, signal)
    if headers:
        arguments["headers"] = headers
    packed = _packed(settings, endpoint)
    arguments["compression"] = grpc.Compression.Gzip if packed else grpc.Compression.NoCompression
    if _is_loopback(endpoint):
        arguments["channel_options"] = (("grpc.enable_http_proxy", 0),)
    if urlsplit(endpoint).scheme == "https":
        arguments["insecure"] = False
        files = [_own(settings, signal, name)[1] for name in ("certificate", "client_key", "client_certificate")]
        contents = [Path(file).read_bytes() if file else None for file in files]
        arguments["credentials"] = grpc.ssl_channel_credentials(*contents)
    return arguments
