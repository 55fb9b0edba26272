"""The configuration of otel_perf: one frozen record, read once at start-up.

Precedence: an argument, then `OTEL_PERF_*`, then the standard `OTEL_*` variable, then `[tool.otel_perf]` in the
`pyproject.toml` of the working directory, then the default. This is the only module that reads `os.environ`.
A bad value raises `SettingsError`, which names the setting, the value and the remedy.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import operator
import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from otel_perf import values

__all__ = ["Settings", "SettingsError", "opted_in", "reference_table"]

_toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

_SAMPLERS = (
    "always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off",
    "parentbased_traceidratio",
)  # fmt: skip


# Variables of our tools, and those that Kubernetes makes for a service whose name begins with otel-perf.
_NOT_SETTINGS = re.compile(r"OTEL_PERF_(REQUIRE|TARGETS|TOOLS|(.+_)?(SERVICE_(HOST|PORT)|PORT)(_.+)?)", re.ASCII)
_LONGEST_EXPORT_S = 300


def _seconds(value: float) -> float:
    """The time of `OTEL_EXPORTER_OTLP_TIMEOUT`: milliseconds in the specification, seconds in Python's SDK."""
    if value == 0:  # no limit
        return _LONGEST_EXPORT_S
    return min(value / 1000, _LONGEST_EXPORT_S) if value > _LONGEST_EXPORT_S else value


class SettingsError(ValueError):
    """A setting has a value that cannot be used; the message names it and says what to do."""


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
    compression: str = _setting(
        values.choice("none", "gzip"), "Compression of exports.", default="gzip",
        standard="OTEL_EXPORTER_OTLP_COMPRESSION",
    )  # fmt: skip
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
    strict: bool = _setting(
        values.flag, "Raises otel_perf's own faults instead of keeping them from the app.", default=False
    )

    @classmethod
    def load(cls, **arguments: object) -> Settings:
        """Reads all settings from their sources; an argument that is None counts as not given.

        Raises:
            SettingsError: for an unknown name or a value that cannot be used.
        """
        table = _pyproject_table()
        names = [each.name for each in fields(cls)]
        _refuse_unknown(arguments, names, "configure()")
        _refuse_unknown(table, names, "[tool.otel_perf] in pyproject.toml")
        set_there = [name for name, value in os.environ.items() if name.startswith("OTEL_PERF_") and value.strip()]
        _refuse_unknown(
            [name for name in set_there if not _NOT_SETTINGS.fullmatch(name)],
            [f"OTEL_PERF_{name.upper()}" for name in names],
            "otel_perf in the environment",
        )
        found_values: dict[str, object] = {}
        for each in fields(cls):
            found = _find(each.name, each.metadata["standard"], arguments, table)
            if found is not None:
                value, source = found
                found_values[each.name] = _parse(each, value, source)
        return cls(**found_values)  # type: ignore[arg-type]  # parsed above, field by field

    @property
    def sends(self) -> bool:
        """Whether an endpoint is configured at all."""
        return bool(self.endpoint or self.traces_endpoint or self.metrics_endpoint)


@contextmanager
def opted_in(convention: str) -> Generator[None, None, None]:
    """Opts into stable semantic conventions for the length of the block: upstream reads the variable at first use."""
    name = "OTEL_SEMCONV_STABILITY_OPT_IN"
    before = os.environ.get(name)
    chosen = [part.strip() for part in (before or "").split(",") if part.strip()]
    if convention not in chosen and f"{convention}/dup" not in chosen:
        chosen.append(convention)
    os.environ[name] = ",".join(chosen)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _pyproject_table() -> Mapping[str, object]:
    try:
        source = Path("pyproject.toml").read_bytes()
    except OSError:
        return {}
    if b"otel_perf" not in source:
        return {}
    try:
        whole: Any = _toml.loads(source.decode("utf-8"))
    except ValueError as error:  # also what is no UTF-8
        raise SettingsError(f"pyproject.toml cannot be read: {error}") from error
    tools: Any = whole.get("tool")
    try:
        table: object = tools.get("otel_perf", {})
    except AttributeError:  # there are none
        return {}
    if not isinstance(table, dict):
        raise SettingsError("[tool.otel_perf] in pyproject.toml must be a table")
    return cast("Mapping[str, object]", table)


def _refuse_unknown(given: Iterable[str], names: Sequence[str], where: str) -> None:
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}"
            raise SettingsError(f"{where} has no setting {name!r}{hint}")


def _find(
    name: str, standard: str | None, arguments: Mapping[str, object], table: Mapping[str, object]
) -> tuple[object, str] | None:
    if arguments.get(name) is not None and arguments[name] != "":
        return arguments[name], name
    own = f"OTEL_PERF_{name.upper()}"
    for variable in (own, standard):
        # The specification wants an empty variable to count as unset; an empty argument often comes from one.
        if variable and os.environ.get(variable, "").strip():
            return os.environ[variable], variable
    if name in table:
        return table[name], f"{name} in [tool.otel_perf]"
    return None


def _parse(each: Any, value: object, source: str) -> object:
    hidden = each.metadata["secret"] or "@" in str(value)  # an address may have a password in it
    shown = "(hidden)" if hidden else repr(value)
    try:
        if source == each.metadata["standard"] and each.metadata["convert"]:
            value = each.metadata["convert"](float(str(value)))
        parsed = each.metadata["parse"](value)
    except (ValueError, TypeError) as error:
        reason = str(error) or "it cannot be read"
        message = f"{source}={shown} cannot be used: {reason}. Correct it, or remove it to get the default"
        raise SettingsError(message) from None
    return parsed


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
