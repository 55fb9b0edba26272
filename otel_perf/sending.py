"""Where measurements are sent: the settings of OTLP export, which `Settings` inherits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from otel_perf import values

__all__ = ["Sending"]

_LONGEST_EXPORT_S = 300


def _seconds(value: float) -> float:
    """The time of `OTEL_EXPORTER_OTLP_TIMEOUT`: milliseconds in the specification, seconds in Python's SDK."""
    if value == 0:  # no limit
        return _LONGEST_EXPORT_S
    return min(value / 1000, _LONGEST_EXPORT_S) if value > _LONGEST_EXPORT_S else value


_PROTOCOL = values.choice("http/protobuf", "grpc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """What concerns the endpoint; a signal's own setting stands in place of the one for all."""

    endpoint: str | None = values.setting(
        values.address,
        "Where spans and metrics are sent by OTLP; unset, nothing is sent.",
        default=None,
        standard="OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    traces_endpoint: str | None = values.setting(
        values.address,
        "Whole address for spans where it differs from `endpoint`.",
        default=None,
        standard="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    )
    metrics_endpoint: str | None = values.setting(
        values.address,
        "Whole address for metrics where it differs from `endpoint`.",
        default=None,
        standard="OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    )
    logs_endpoint: str | None = values.setting(
        values.address, "Whole address for log records where it differs from `endpoint`.", default=None,
        standard="OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
    )  # fmt: skip
    traces_exporter: tuple[str, ...] = values.setting(
        values.words, "Without `otlp` among them no span is sent.", default=("otlp",), standard="OTEL_TRACES_EXPORTER"
    )
    metrics_exporter: tuple[str, ...] = values.setting(
        values.words,
        "Without `otlp` among them no metric is sent.",
        default=("otlp",),
        standard="OTEL_METRICS_EXPORTER",
    )
    logs_exporter: tuple[str, ...] = values.setting(
        values.words, "With `otlp` among them log records are sent.", default=("none",), standard="OTEL_LOGS_EXPORTER"
    )
    protocol: str = values.setting(
        _PROTOCOL, "OTLP transport; `grpc` needs the extra `grpc`.", default="http/protobuf",
        standard="OTEL_EXPORTER_OTLP_PROTOCOL",
    )  # fmt: skip
    traces_protocol: str | None = values.setting(
        _PROTOCOL, "The same for spans alone.", default=None, standard="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    )
    metrics_protocol: str | None = values.setting(
        _PROTOCOL, "The same for metrics alone.", default=None, standard="OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"
    )
    logs_protocol: str | None = values.setting(
        _PROTOCOL, "The same for log records alone.", default=None, standard="OTEL_EXPORTER_OTLP_LOGS_PROTOCOL"
    )
    headers: Mapping[str, str] = values.setting(
        values.pairs,
        "Headers sent with each export, as key=value pairs.",
        factory=dict,
        standard="OTEL_EXPORTER_OTLP_HEADERS",
        secret=True,
    )
    traces_headers: Mapping[str, str] = values.setting(
        values.pairs,
        "Headers for spans, in place of `headers`.",
        factory=dict,
        standard="OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        secret=True,
    )
    metrics_headers: Mapping[str, str] = values.setting(
        values.pairs,
        "Headers for metrics, in place of `headers`.",
        factory=dict,
        standard="OTEL_EXPORTER_OTLP_METRICS_HEADERS",
        secret=True,
    )
    logs_headers: Mapping[str, str] = values.setting(
        values.pairs, "Headers for log records, in place of `headers`.", factory=dict,
        standard="OTEL_EXPORTER_OTLP_LOGS_HEADERS", secret=True,
    )  # fmt: skip
    certificate: str | None = values.setting(
        values.text, "File of the certificates (PEM) that the endpoint's is checked against; the system's otherwise.",
        default=None, standard="OTEL_EXPORTER_OTLP_CERTIFICATE",
    )  # fmt: skip
    traces_certificate: str | None = values.setting(
        values.text, "The same for spans alone.", default=None, standard="OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"
    )
    metrics_certificate: str | None = values.setting(
        values.text, "The same for metrics alone.", default=None, standard="OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE"
    )
    logs_certificate: str | None = values.setting(
        values.text, "The same for log records alone.", default=None, standard="OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE"
    )
    client_certificate: str | None = values.setting(
        values.text, "File of our own certificate (PEM), for mutual TLS.", default=None,
        standard="OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    )  # fmt: skip
    traces_client_certificate: str | None = values.setting(
        values.text, "The same for spans alone.", default=None,
        standard="OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
    )  # fmt: skip
    metrics_client_certificate: str | None = values.setting(
        values.text, "The same for metrics alone.", default=None,
        standard="OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE",
    )  # fmt: skip
    logs_client_certificate: str | None = values.setting(
        values.text, "The same for log records alone.", default=None,
        standard="OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE",
    )  # fmt: skip
    client_key: str | None = values.setting(
        values.text, "File of its private key (PEM).", default=None, standard="OTEL_EXPORTER_OTLP_CLIENT_KEY"
    )
    traces_client_key: str | None = values.setting(
        values.text, "The same for spans alone.", default=None, standard="OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY"
    )
    metrics_client_key: str | None = values.setting(
        values.text, "The same for metrics alone.", default=None, standard="OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY"
    )
    logs_client_key: str | None = values.setting(
        values.text, "The same for log records alone.", default=None, standard="OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY"
    )
    compression: str = values.setting(
        values.choice("auto", "gzip", "none"),
        "Compression of exports; `auto` is gzip, and none to an endpoint on this machine, where it saves nothing.",
        default="auto",
        standard="OTEL_EXPORTER_OTLP_COMPRESSION",
    )
    export_timeout_s: float = values.setting(
        values.number(0.1, _LONGEST_EXPORT_S),
        "Longest time for one export, retries included; in the standard variable more than 300 is milliseconds.",
        default=10.0,
        standard="OTEL_EXPORTER_OTLP_TIMEOUT",
        convert=_seconds,
    )
    metric_interval_s: float = values.setting(
        values.number(0.1, 3600),
        "Time between two exports of metrics.",
        default=10.0,
        standard="OTEL_METRIC_EXPORT_INTERVAL",
        scale=0.001,
    )
    span_interval_s: float = values.setting(
        values.number(0.05, 60),
        "Longest time that an ended span waits to be sent.",
        default=1.0,
        standard="OTEL_BSP_SCHEDULE_DELAY",
        scale=0.001,
    )
    queue_size: int = values.setting(
        values.whole(64, 1_000_000),
        "Spans that can wait to be sent; more are dropped and counted.",
        default=4096,
        standard="OTEL_BSP_MAX_QUEUE_SIZE",
    )
    queue_size_bytes: int = values.setting(
        values.whole(65_536, 1 << 31),
        "Bytes of encoded spans that can wait to be sent; more are dropped and counted.",
        default=16 * 1024 * 1024,
    )
    flush_timeout_s: float = values.setting(
        values.number(0.1, 300), "Longest time for the flush at exit, all in all.", default=5.0
    )
