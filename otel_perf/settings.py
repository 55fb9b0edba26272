"""The configuration of otel_perf: one frozen record, read once at start-up.

Precedence: an argument, then `OTEL_PERF_*`, then the standard `OTEL_*` variable, then `[tool.otel_perf]` in the
`pyproject.toml` of the working directory, then the default (see `sources`, the only module that reads `os.environ`).
A bad value raises `SettingsError`, which names the setting, the value and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, cast

from otel_perf import sources, values
from otel_perf.sending import Sending
from otel_perf.sources import SettingsError

__all__ = ["Settings", "SettingsError", "reference_table"]

_SAMPLERS = (
    "always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off",
    "parentbased_traceidratio",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Sending):
    """Everything that can be configured. `Settings.load()` reads it from its sources; see `docs/settings.md`."""

    service_name: str = values.setting(
        values.text,
        "Name of the service on every span and metric.",
        default="unknown_service",
        standard="OTEL_SERVICE_NAME",
    )
    service_version: str | None = values.setting(
        values.text, "Version of the service (`service.version`).", default=None
    )
    environment: str | None = values.setting(
        values.text, "Where it runs (`deployment.environment.name`): production, staging, ...", default=None
    )
    resource_attributes: Mapping[str, str] = values.setting(
        values.pairs, "More resource attributes, as key=value pairs.", factory=dict, standard="OTEL_RESOURCE_ATTRIBUTES"
    )
    disabled: bool = values.setting(
        values.flag, "Switches otel_perf off: nothing is measured.", default=False, standard="OTEL_SDK_DISABLED"
    )
    sampler: str = values.setting(
        values.choice(*_SAMPLERS),
        "Which traces are recorded.",
        default="parentbased_always_on",
        standard="OTEL_TRACES_SAMPLER",
    )
    sample_ratio: float = values.setting(
        values.number(0, 1),
        "Share of traces that the ratio samplers record.",
        default=1.0,
        standard="OTEL_TRACES_SAMPLER_ARG",
    )
    sample_rules: tuple[str, ...] = values.setting(
        values.words,
        "Shares by method and path, the first that fits: `GET /health*=0,POST /pay*=1`; else the sampler decides.",
        default=(),
    )
    keep_errors: bool = values.setting(
        values.flag,
        "Spans of this process are kept when the request or job failed, whatever was sampled.",
        default=False,
    )
    keep_slower_than_s: float | None = values.setting(
        values.number(0.001, 3600), "The same when it took at least this long.", default=None
    )
    keep_routes: tuple[str, ...] = values.setting(
        values.words, "The same when its route or name fits; `*` stands for any text.", default=()
    )
    trust_context: str = values.setting(
        values.choice("always", "same-origin", "never"),
        "Whether the trace context and baggage of a request's sender are believed.",
        default="always",
    )
    exemplars: bool = values.setting(values.flag, "Metrics carry example trace ids.", default=True)
    cardinality_limit: int = values.setting(
        values.whole(10, 1_000_000), "Series per metric; what is beyond goes into one overflow series.", default=2000
    )
    slow_query_s: float = values.setting(
        values.number(0.01, 60), "From this duration on a query counts as slow.", default=0.2
    )
    critical_query_s: float = values.setting(
        values.number(0.01, 60), "From this duration on a slow query is critical.", default=1.0
    )
    slow_query_log: str | None = values.setting(
        values.text, "File that slow queries are written to, a JSON line each; kept are 5 files of 10 MB.", default=None
    )
    repeated_query_count: int = values.setting(
        values.whole(2, 10_000), "So many queries of one template within a request make it an N+1 candidate.", default=5
    )
    redis_info_interval_s: float = values.setting(
        values.number(0, 3600), "Time between two looks at a Redis server's own figures; 0 takes none.", default=15.0
    )
    propagate_to: tuple[str, ...] = values.setting(
        values.words,
        "Hosts that get the trace context with a call; `*` stands for any text, `private` for hosts without a dot, "
        "private addresses and `*.internal`, `*.local`, `*.svc`, `*.svc.cluster.local`.",
        default=("private",),
    )
    route_classes: tuple[str, ...] = values.setting(
        values.words, "Classes of routes, the first that fits: `payment=/pay*,admin=/admin*`.", default=()
    )
    request_phases: bool = values.setting(
        values.flag, "Spans and durations of dependencies, endpoint and serialization in FastAPI apps.", default=False
    )
    disabled_instrumentations: tuple[str, ...] = values.setting(
        values.words, "Libraries that `instrument()` leaves alone.", default=(),
        standard="OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
    )  # fmt: skip
    runtime_metrics: bool = values.setting(
        values.flag, "Figures of the process: CPU, memory, GC, threads, event loops.", default=True
    )
    vitals_per_minute: int = values.setting(
        values.whole(0, 1_000_000), "Web vitals taken in a minute, all clients together; 0 takes none.", default=6000
    )
    excluded_routes: tuple[str, ...] = values.setting(
        values.words,
        "Paths that are not measured; `*` stands for any text.",
        default=(
            "/metrics", "/performance", "/performance/*", "/api/performance", "/api/performance/*",
            "/health", "/healthz", "/livez", "/readyz", "/api/health",
        ),
    )  # fmt: skip
    log_correlation: bool = values.setting(
        values.flag, "Log records carry `request_id`, `trace_id` and `span_id`.", default=True
    )
    logs_level: str = values.setting(
        values.choice("debug", "info", "warning", "error", "critical"), "Log records from this level on are sent.",
        default="info",
    )  # fmt: skip
    trace_response: bool = values.setting(values.flag, "Responses carry the W3C `traceresponse` header.", default=True)
    access_token: str | None = values.setting(
        values.text,
        "Bearer token that lets others than loopback clients read /performance and /metrics.",
        default=None,
        secret=True,
    )
    workers_dir: str | None = values.setting(
        values.text, "Directory through which the workers of one host add up their figures; by default a private one "
        "below the temporary directory; `none` keeps each worker to itself.", default=None,
    )  # fmt: skip
    handle_signals: bool = values.setting(
        values.flag, "SIGTERM and SIGHUP are noticed, so that what waits is sent before the process ends.", default=True
    )
    strict: bool = values.setting(
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
        return bool(self.endpoint or self.traces_endpoint or self.metrics_endpoint or self.logs_endpoint)


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
