"""Who a process says it is, in its telemetry and in its log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from otel_perf import __version__

__all__ = ["Identity", "identity_of"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What `configure()` is given: `configure(**asdict(identity))`."""

    service_name: str
    service_version: str
    environment: str


def identity_of(environ: Mapping[str, str], name: str) -> Identity:
    """Return what the environment says of a process; what it leaves open is the process's own.

    What is given to `configure()` wins over the environment, so that has to be asked first.
    """
    # The last of two counts, as it does for OpenTelemetry.
    named = dict(_attributes(environ.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    return Identity(
        environ.get("OTEL_PERF_SERVICE_NAME") or environ.get("OTEL_SERVICE_NAME") or named.get("service.name") or name,
        # The example has no release of its own, so it goes by that of the SDK.
        environ.get("OTEL_PERF_SERVICE_VERSION") or named.get("service.version") or __version__,
        environ.get("OTEL_PERF_ENVIRONMENT") or named.get("deployment.environment.name") or "demo",
    )


def _attributes(pairs: str) -> Iterator[tuple[str, str]]:
    for pair in pairs.split(","):
        key, _, value = pair.partition("=")
        yield key.strip(), unquote(value.strip())
