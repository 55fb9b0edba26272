"""Start a real server on a free loopback port, for the tests of the whole project and for `stack.py`.

Every function returns a started server that is a context manager: leaving it stops the process and removes the
folder that it worked in. A binary that is not there raises `tools.MissingToolError`, whose text holds the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from collector import process, tools
from collector.databases import Firestore, PostgreSQL, Redis, firestore, postgresql, redis
from collector.server import Server, start_in, work_folder

__all__ = [
    "CONFIG",
    "Firestore",
    "Jaeger",
    "Otelcol",
    "PostgreSQL",
    "Prometheus",
    "Redis",
    "Server",
    "firestore",
    "jaeger",
    "otelcol",
    "postgresql",
    "prometheus",
    "prometheus_folder",
    "redis",
]

# As in docker-compose.otel.yml: the Collector hands on what it holds, but does not wait for a backend that is away.
_OTELCOL_GRACE_S = 20.0

CONFIG = Path(__file__).resolve().parent / "config"


@dataclass(slots=True, kw_only=True)
class Prometheus(Server):
    """A Prometheus that takes remote writes."""

    port: int
    url: str
    remote_write_url: str


@dataclass(slots=True, kw_only=True)
class Jaeger(Server):
    """A Jaeger that keeps traces in memory."""

    url: str
    otlp_grpc: str
    otlp_http_url: str


@dataclass(slots=True, kw_only=True)
class Otelcol(Server):
    """A Collector."""

    otlp_http_url: str
    otlp_grpc: str
    metrics_url: str
    scrape_url: str
    health_url: str


def prometheus(
    *,
    port: int | None = None,
    targets: Mapping[str, Sequence[str]] | None = None,
    token: str = "unused",
    config: Path | None = None,
) -> Prometheus:
    """Start a Prometheus on the project's configuration.

    `targets` maps a target file of `prometheus.yml` (`collector`, `collector-scrape`, `app`) to what it scrapes.
    """
    binary = tools.find("prometheus")
    chosen = port or process.free_port()
    directory = work_folder("prometheus")
    prometheus_folder(directory, targets or {}, token, config=config)
    command = [
        str(binary),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{chosen}",
        "--web.enable-remote-write-receiver",
        "--enable-feature=exemplar-storage",
    ]
    url = f"http://127.0.0.1:{chosen}"
    started = start_in("prometheus", command, directory, healthy=process.http_ok(f"{url}/-/ready"))
    return Prometheus(
        process=started, directory=directory, port=chosen, url=url, remote_write_url=f"{url}/api/v1/write"
    )


def prometheus_folder(
    directory: Path, targets: Mapping[str, Sequence[str]], token: str, *, config: Path | None = None
) -> None:
    """Lay out what `prometheus.yml` expects beside itself: the target files and the token for the app's /metrics."""
    (directory / "prometheus.yml").symlink_to(config or CONFIG / "prometheus.yml")
    (directory / "targets").mkdir()
    for name, addresses in targets.items():
        shown = ", ".join(f'"{address}"' for address in addresses)
        (directory / "targets" / f"{name}.json").write_text(f'[{{"targets": [{shown}]}}]\n', encoding="utf-8")
    token_path = directory / "token"
    token_path.touch(mode=0o600)
    token_path.write_text(token, encoding="utf-8")


def jaeger(*, port: int | None = None, env: Mapping[str, str] | None = None) -> Jaeger:
    """Start a Jaeger on the project's configuration; `port` is the one for queries."""
    binary = tools.find("jaeger")
    directory = work_folder("jaeger")
    query, grpc, otlp_grpc, otlp_http, health = process.free_ports(5)
    query = port or query
    variables = {
        "JAEGER_QUERY_PORT": str(query),
        "JAEGER_QUERY_GRPC_PORT": str(grpc),
        "JAEGER_OTLP_GRPC_PORT": str(otlp_grpc),
        "JAEGER_OTLP_HTTP_PORT": str(otlp_http),
        "JAEGER_HEALTH_PORT": str(health),
        # It traces itself, to whatever listens on 4317, and this version has no other switch for that.
        "OTEL_TRACES_SAMPLER": "always_off",
        **(env or {}),
    }
    url = f"http://127.0.0.1:{variables['JAEGER_QUERY_PORT']}"
    command = [str(binary), "--config", str(CONFIG / "jaeger.yaml")]
    healthy = process.twice(process.http_ok(f"{url}/api/services"))
    started = start_in("jaeger", command, directory, env=variables, healthy=healthy)
    return Jaeger(
        process=started,
        directory=directory,
        url=url,
        otlp_grpc=f"127.0.0.1:{variables['JAEGER_OTLP_GRPC_PORT']}",
        otlp_http_url=f"http://127.0.0.1:{variables['JAEGER_OTLP_HTTP_PORT']}",
    )


def otelcol(
    *,
    configs: Sequence[Path] | None = None,
    env: Mapping[str, str] | None = None,
) -> Otelcol:
    """Start a Collector on `configs`, the project's `otelcol.yaml` when there are none; `env` overrides its ports."""
    binary = tools.find("otelcol")
    directory = work_folder("otelcol")
    http, grpc, health, metrics, scrape = process.free_ports(5)
    variables = {
        "OTELCOL_OTLP_HTTP_PORT": str(http),
        "OTELCOL_OTLP_GRPC_PORT": str(grpc),
        "OTELCOL_HEALTH_PORT": str(health),
        "OTELCOL_METRICS_PORT": str(metrics),
        "OTELCOL_SCRAPE_PORT": str(scrape),
        "OTELCOL_QUEUE_DIRECTORY": str(directory / "queue"),
        **(env or {}),
    }
    command = [str(binary)]
    for config in configs or [CONFIG / "otelcol.yaml"]:
        command += ["--config", str(config)]
    health_url = f"http://127.0.0.1:{variables['OTELCOL_HEALTH_PORT']}/"
    healthy = process.twice(process.http_ok(health_url))
    started = start_in("otelcol", command, directory, env=variables, healthy=healthy, grace_s=_OTELCOL_GRACE_S)
    return Otelcol(
        process=started,
        directory=directory,
        otlp_http_url=f"http://127.0.0.1:{variables['OTELCOL_OTLP_HTTP_PORT']}",
        otlp_grpc=f"127.0.0.1:{variables['OTELCOL_OTLP_GRPC_PORT']}",
        metrics_url=f"http://127.0.0.1:{variables['OTELCOL_METRICS_PORT']}/metrics",
        scrape_url=f"http://127.0.0.1:{variables['OTELCOL_SCRAPE_PORT']}/metrics",
        health_url=health_url,
    )
