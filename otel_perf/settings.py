"""The configuration of otel_perf: one frozen record, read once at start-up.

Precedence: an argument, then `OTEL_PERF_*`, then the standard `OTEL_*` variable, then `[tool.otel_perf]` in the
`pyproject.toml` of the working directory, then the default (see `sources`, the only module that reads `os.environ`).
A bad value raises `SettingsError`, which names the setting, the value and the remedy.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, cast

from otel_perf import sources, values
from otel_perf.sources import SettingsError

__all__ = ["Settings", "SettingsError", "reference_table"]

_SAMPLERS = (
    "always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off",
    "parentbased_traceidratio",
)  # fmt: skip
_LONGEST_EXPORT_S = 300


def _seconds(value: float) -> float:
    """The time of `OTEL_EXPORTER_OTLP_TIMEOUT`: milliseconds in the specification, seconds in Python's SDK."""
    if value == 0:  # no limit
        return _LONGEST_EXPORT_S
    return min(value / 1000, _LONGEST_EXPORT_S) if value > _LONGEST_EXPORT_S else value


_PROTOCOL = values.choice("http/protobuf", "grpc")


def _setting(
    parse: Callable[[object], Any], about: str, *, default: Any = MISSING, factory: Any = MISSING,
    standard: str | None = None, secret: bool = False, scale: float = 1,
    convert: Callable[[float], float] | None = None,
) -> Any:  # fmt: skip
    """A field of Settings: `standard` is its OTEL_ variable; `scale` or `convert` turn that one's unit into ours."""
    metadata: dict[str, Any] = {
        "parse": parse, "about": about, "standard": standard, "secret": secret, "scale": scale,
        "convert": convert or (None if scale == 1 else functools.partial(operator.mul, scale)),
    }  # fmt: skip
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be configured. `Settings.load()` reads it from its sources; see `docs/settings.md`."""

    service_name: str = _setting(
        values.text,
        "Name of the service on every span and metric.",
        default="unknown_service",
        standard="OTEL_SERVICE_NAME",
    )
    service_version: str | None = _setting(values.text, "Version of the service (`service.version`).", default=None)
    environment: str | None = _setting(
        values.text, "Where it runs (`deployment.environment.name`): production, staging, ...", default=None
    )
    resource_attributes: Mapping[str, str] = _setting(
        values.pairs, "More resource attributes, as key=value pairs.", factory=dict, standard="OTEL_RESOURCE_ATTRIBUTES"
    )
    disabled: bool = _setting(
        values.flag, "Switches otel_perf off: nothing is measured.", default=False, standard="OTEL_SDK_DISABLED"
    )
    endpoint: str | None = _setting(
        values.address,
        "Where spans and metrics are sent by OTLP; unset, nothing is sent.",
        default=None,
        standard="OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    traces_endpoint: str | None = _setting(
        values.address,
        "Whole address for spans where it differs from `endpoint`.",
        default=None,
        standard="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    )
    metrics_endpoint: str | None = _setting(
        values.address,
        "Whole address for metrics where it differs from `endpoint`.",
        default=None,
        standard="OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    )
    traces_exporter: tuple[str, ...] = _setting(
        values.words, "Without `otlp` among them no span is sent.", default=("otlp",), standard="OTEL_TRACES_EXPORTER"
    )
    metrics_exporter: tuple[str, ...] = _setting(
        values.words,
        "Without `otlp` among them no metric is sent.",
        default=("otlp",),
        standard="OTEL_METRICS_EXPORTER",
    )
    protocol: str = _setting(
        _PROTOCOL, "OTLP transport; `grpc` needs the extra `grpc`.", default="http/protobuf",
        standard="OTEL_EXPORTER_OTLP_PROTOCOL",
    )  # fmt: skip
    traces_protocol: str | None = _setting(
        _PROTOCOL, "The same for spans alone.", default=None, standard="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    )
    metrics_protocol: str | None = _setting(
        _PROTOCOL, "The same for metrics alone.", default=None, standard="OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"
    )
    headers: Mapping[str, str] = _setting(
        values.pairs,
        "Headers sent with each export, as key=value pairs.",
        factory=dict,
        standard="OTEL_EXPORTER_OTLP_HEADERS",
        secret=True,
    )
    traces_headers: Mapping[str, str] = _setting(
        values.pairs,
        "Headers for spans, in place of `headers`.",
        factory=dict,
        standard="OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        secret=True,
    )
    metrics_headers: Mapping[str, str] = _setting(
        values.pairs,
        "Headers for metrics, in place of `headers`.",
        factory=dict,
        standard="OTEL_EXPORTER_OTLP_METRICS_HEADERS",
        secret=True,
    )
    certificate: str | None = _setting(
        values.text, "File of the certificates (PEM) that the endpoint's is checked against; the system's otherwise.",
        default=None, standard="OTEL_EXPORTER_OTLP_CERTIFICATE",
    )  # fmt: skip
    traces_certificate: str | None = _setting(
        values.text, "The same for spans alone.", default=None, standard="OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"
    )
    metrics_certificate: str | None = _setting(
        values.text, "The same for metrics alone.", default=None, standard="OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE"
    )
    client_certificate: str | None = _setting(
        values.text, "File of our own certificate (PEM), for mutual TLS.", default=None,
        standard="OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    )  # fmt: skip
    traces_client_certificate: str | None = _setting(
        values.text, "The same for spans alone.", default=None,
        standard="OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
    )  # fmt: skip
    metrics_client_certificate: str | None = _setting(
        values.text, "The same for metrics alone.", default=None,
        standard="OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE",
    )  # fmt: skip
    client_key: str | None = _setting(
        values.text, "File of its private key (PEM).", default=None, standard="OTEL_EXPORTER_OTLP_CLIENT_KEY"
    )
    traces_client_key: str | None = _setting(
        values.text, "The same for spans alone.", default=None, standard="OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY"
    )
    metrics_client_key: str | None = _setting(
        values.text, "The same for metrics alone.", default=None, standard="OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY"
    )
    compression: str = _setting(
        values.choice("auto", "gzip", "none"),
        "Compression of exports; `auto` is gzip, and none to an endpoint on this machine, where it saves nothing.",
        default="auto",
        standard="OTEL_EXPORTER_OTLP_COMPRESSION",
    )
    export_timeout_s: float = _setting(
        values.number(0.1, _LONGEST_EXPORT_S),
        "Longest time for one export, retries included; in the standard variable more than 300 is milliseconds.",
        default=10.0,
        standard="OTEL_EXPORTER_OTLP_TIMEOUT",
        convert=_seconds,
    )
    metric_interval_s: float = _setting(
        values.number(0.1, 3600),
        "Time between two exports of metrics.",
        default=10.0,
        standard="OTEL_METRIC_EXPORT_INTERVAL",
        scale=0.001,
    )
    span_interval_s: float = _setting(
        values.number(0.05, 60),
        "Longest time that an ended span waits to be sent.",
        default=1.0,
        standard="OTEL_BSP_SCHEDULE_DELAY",
        scale=0.001,
    )
    queue_size: int = _setting(
        values.whole(64, 1_000_000),
        "Spans that can wait to be sent; more are dropped and counted.",
        default=4096,
        standard="OTEL_BSP_MAX_QUEUE_SIZE",
    )
    queue_size_bytes: int = _setting(
        values.whole(65_536, 1 << 31),
        "Bytes of encoded spans that can wait to be sent; more are dropped and counted.",
        default=16 * 1024 * 1024,
    )
    flush_timeout_s: float = _setting(
        values.number(0.1, 300), "Longest time for the flush at exit, all in all.", default=5.0
    )
    sampler: str = _setting(
        values.choice(*_SAMPLERS),
        "Which traces are recorded.",
        default="parentbased_always_on",
        standard="OTEL_TRACES_SAMPLER",
    )
    sample_ratio: float = _setting(
        values.number(0, 1),
        "Share of traces that the ratio samplers record.",
        default=1.0,
        standard="OTEL_TRACES_SAMPLER_ARG",
    )
    sample_rules: tuple[str, ...] = _setting(
        values.words,
        "Shares by method and path, the first that fits: `GET /health*=0,POST /pay*=1`; else the sampler decides.",
        default=(),
    )
    keep_errors: bool = _setting(
        values.flag,
        "Spans of this process are kept when the request or job failed, whatever was sampled.",
        default=False,
    )
    keep_slower_than_s: float | None = _setting(
        values.number(0.001, 3600), "The same when it took at least this long.", default=None
    )
    keep_routes: tuple[str, ...] = _setting(
        values.words, "The same when its route or name fits; `*` stands for any text.", default=()
    )
    trust_context: str = _setting(
        values.choice("always", "same-origin", "never"),
        "Whether the trace context and baggage of a request's sender are believed.",
        default="always",
    )
    exemplars: bool = _setting(values.flag, "Metrics carry example trace ids.", default=True)
    cardinality_limit: int = _setting(
        values.whole(10, 1_000_000), "Series per metric; what is beyond goes into one overflow series.", default=2000
    )
    slow_query_s: float = _setting(
        values.number(0.01, 60), "From this duration on a query counts as slow.", default=0.2
    )
    excluded_routes: tuple[str, ...] = _setting(
        values.words,
        "Paths that are not measured; `*` stands for any text.",
        default=(
            "/metrics", "/performance", "/performance/*", "/api/performance", "/api/performance/*",
            "/health", "/healthz", "/livez", "/readyz", "/api/health",
        ),
    )  # fmt: skip
    log_correlation: bool = _setting(
        values.flag, "Log records carry `request_id`, `trace_id` and `span_id`.", default=True
    )
    trace_response: bool = _setting(values.flag, "Responses carry the W3C `traceresponse` header.", default=True)
    access_token: str | None = _setting(
        values.text,
        "Bearer token that lets others than loopback clients read /performance and /metrics.",
        default=None,
        secret=True,
    )
    workers_dir: str | None = _setting(
        values.text, "Directory through which the workers of one host add up their figures; by default a private one "
        "below the temporary directory; `none` keeps each worker to itself.", default=None,
    )  # fmt: skip
    handle_signals: bool = _setting(
        values.flag, "SIGTERM and SIGHUP are noticed, so that what waits is sent before the process ends.", default=True
    )
    strict: bool = _setting(
        values.flag, "Raises otel_perf's own faults instead of keeping them from the app.", default=False
    )

    @classmethod
    def load(cls, **arguments: object) -> Settings:
        """Reads all settings from their sources; an argument that is None counts as not given.

        Raises:
            SettingsError: for an unknown name or a value that cannot be used.
        """
        names = [each.name for each in fields(cls)]
        table = sources.checked(arguments, names)
        found_values: dict[str, object] = {}
        for each in fields(cls):
            found = sources.find(each.name, each.metadata["standard"], arguments, table)
            if found is not None:
                value, source = found
                found_values[each.name] = sources.parse(each, value, source)
        return cls(**found_values)  # type: ignore[arg-type]  # parsed above, field by field

    @property
    def sends(self) -> bool:
        """Whether an endpoint is configured at all."""
        return bool(self.endpoint or self.traces_endpoint or self.metrics_endpoint)


def _shown_default(each: Any) -> str:
    default = each.default if each.default is not MISSING else ""
    if default is None or default == "":
        return ""
    if isinstance(default, tuple):
        return "`" + ",".join(cast("tuple[str, ...]", default)) + "`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def reference_table() -> str:
    """The reference of all settings as a Markdown table; `docs/settings.md` holds it and a test compares."""
    rows = ["| setting | variables | default | meaning |", "|---|---|---|---|"]
    for each in fields(Settings):
        variables = [f"`OTEL_PERF_{each.name.upper()}`"]
        if each.metadata["standard"]:
            unit = " (ms)" if each.metadata["scale"] == 0.001 else ""
            variables.append(f"`{each.metadata['standard']}`{unit}")
        rows.append(f"| `{each.name}` | {', '.join(variables)} | {_shown_default(each)} | {each.metadata['about']} |")
    return "\n".join(rows) + "\n"
