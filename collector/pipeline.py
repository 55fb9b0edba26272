"""All servers of the pipeline, and the streak service over them, as one thing that goes up and comes down.

The order is that of the data turned round: what receives starts first and stops last, so that on the way down each
part can hand on what it still holds.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from collector import process, servers, tools
from collector.server import Server, start_in, work_folder

__all__ = [
    "PORTS",
    "BadProfileError",
    "BusyPortError",
    "Pipeline",
    "Service",
    "chosen_ports",
    "free_choice",
    "pipeline",
]

_ROOT = Path(__file__).resolve().parent.parent
_NEEDED = ("otelcol", "jaeger", "prometheus")
_NEEDED_BY_APP = ("redis-server", "postgres")

# The names are also those of docker-compose.otel.yml and of the configuration files.
PORTS: dict[str, tuple[int, str]] = {
    "STREAK_PORT": (8000, "the streak service"),
    "PUSH_PORT": (8001, "its push API"),
    "OTELCOL_OTLP_GRPC_PORT": (4317, "the Collector, OTLP by gRPC"),
    "OTELCOL_OTLP_HTTP_PORT": (4318, "the Collector, OTLP by HTTP"),
    "OTELCOL_HEALTH_PORT": (13133, "the Collector's health"),
    "OTELCOL_METRICS_PORT": (8888, "the Collector's own metrics"),
    "OTELCOL_SCRAPE_PORT": (8889, "the Collector's scrape endpoint"),
    "PROMETHEUS_PORT": (9090, "Prometheus"),
    "JAEGER_QUERY_PORT": (16686, "Jaeger"),
    "JAEGER_QUERY_GRPC_PORT": (16685, "Jaeger's gRPC queries"),
    "JAEGER_OTLP_GRPC_PORT": (14317, "Jaeger, OTLP by gRPC"),
    "JAEGER_OTLP_HTTP_PORT": (14318, "Jaeger, OTLP by HTTP"),
    "JAEGER_HEALTH_PORT": (14133, "Jaeger's health"),
}
_APP_PORTS = ("STREAK_PORT", "PUSH_PORT")

Say = Callable[[str], None]
_S = TypeVar("_S", bound=Server)


class BusyPortError(RuntimeError):
    """Something else listens on a port; the text says which and what to do."""


class BadProfileError(RuntimeError):
    """A profile of the Collector cannot be used as things are; the text says what to do."""


@dataclass(slots=True, kw_only=True)
class Service(Server):
    """A started service of the example."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The started pipeline; without the app its four servers are None."""

    prometheus: servers.Prometheus
    jaeger: servers.Jaeger
    otelcol: servers.Otelcol
    redis: servers.Redis | None = None
    postgresql: servers.PostgreSQL | None = None
    push: Service | None = None
    streak: Service | None = None
    secret: str = ""
    """What the streak service signs its tokens with."""
    token: str = ""
    """What opens its /metrics to those that are not on this machine."""

    @property
    def servers(self) -> list[Server]:
        """All servers that run."""
        every = (self.prometheus, self.jaeger, self.otelcol, self.redis, self.postgresql, self.push, self.streak)
        return [server for server in every if server is not None]


def chosen_ports(environ: Mapping[str, str], *, app: bool) -> dict[str, int]:
    """Return the ports to use: the usual ones, or what the environment says; raise when one is taken."""
    ports: dict[str, int] = {}
    for name, (usual, what) in PORTS.items():
        if not app and name in _APP_PORTS:
            continue
        given = environ.get(name) or str(usual)
        if not given.isdecimal() or not 1 <= int(given) <= 65535:
            raise BusyPortError(f"{name} is {given!r}, not a port. Remedy: set it to a number from 1 to 65535")
        twin = next((other for other, port in ports.items() if port == int(given)), None)
        if twin is not None:
            raise BusyPortError(f"{name} and {twin} are both {given}. Remedy: give each a port of its own")
        ports[name] = int(given)
        if process.port_in_use(ports[name]):
            raise BusyPortError(
                f"port {given} ({what}) is taken. Remedy: stop what listens there (ss -ltnp 'sport = :{given}' shows "
                f"it), choose another with {name}=..., or let all be chosen with --free-ports"
            )
    return ports


def free_choice() -> dict[str, int]:
    """Return a free port for each name."""
    return dict(zip(PORTS, process.free_ports(len(PORTS)), strict=True))


@contextmanager
def pipeline(
    ports: Mapping[str, int],
    *,
    app: bool = True,
    profiles: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    targets: Sequence[str] = (),
    say: Say = print,
) -> Iterator[Pipeline]:
    """Find or install every program, start every server, and stop them all at the end.

    `profiles` are further files of the Collector, `env` is added to the environment of everything that runs, `targets`
    are the second ways that Prometheus is to scrape as well (`app`, `collector-scrape`).
    """
    # All programs before the first server: what cannot be had must leave nothing half started.
    tools.install([*_NEEDED, *(_NEEDED_BY_APP if app else ())])
    extra = dict(env or {})
    token = os.environ.get("OTEL_PERF_ACCESS_TOKEN") or secrets.token_urlsafe(24)
    secret = os.environ.get("STREAK_SECRET") or secrets.token_urlsafe(32)
    variables = {**{name: str(port) for name, port in ports.items()}, **extra}
    configs = _checked_configs(profiles, variables)
    with _going_down_undisturbed(say) as stack:

        def up(name: str, begin: Callable[[], _S]) -> _S:
            began = time.monotonic()
            say(f"{name}: starting")
            server = begin()
            stack.enter_context(server)
            say(f"{name}: ready after {time.monotonic() - began:.1f} s")
            return server

        prometheus = up("prometheus", lambda: _prometheus(ports, targets, token))
        variables["JAEGER_PROMETHEUS_URL"] = prometheus.url
        jaeger = up("jaeger", lambda: servers.jaeger(port=ports["JAEGER_QUERY_PORT"], env=variables))
        variables["JAEGER_OTLP_ENDPOINT"] = jaeger.otlp_grpc
        variables["PROMETHEUS_REMOTE_WRITE_URL"] = prometheus.remote_write_url
        otelcol = up("otelcol", lambda: servers.otelcol(configs=configs, env=variables))
        if not app:
            yield Pipeline(prometheus=prometheus, jaeger=jaeger, otelcol=otelcol)
            return
        redis = up("redis", servers.redis)
        postgresql = up("postgresql", servers.postgresql)
        told = {"OTEL_EXPORTER_OTLP_ENDPOINT": otelcol.otlp_http_url, "OTEL_PERF_ACCESS_TOKEN": token, **extra}
        push = up("push", lambda: _service("push", "examples.streak.push", ports["PUSH_PORT"], told))
        told |= {"DATABASE_URL": postgresql.url, "REDIS_URL": redis.url, "PUSH_URL": push.url, "STREAK_SECRET": secret}
        streak = up("streak", lambda: _service("streak", "examples.streak", ports["STREAK_PORT"], told))
        yield Pipeline(
            prometheus=prometheus,
            jaeger=jaeger,
            otelcol=otelcol,
            redis=redis,
            postgresql=postgresql,
            push=push,
            streak=streak,
            secret=secret,
            token=token,
        )


@contextmanager
def _going_down_undisturbed(say: Say) -> Iterator[ExitStack]:
    stack = ExitStack()
    try:
        yield stack
    finally:
        with process.undisturbed():
            say("stopping: the services first, so that the Collector takes their last data")
            stack.close()


def _checked_configs(profiles: Sequence[str], variables: Mapping[str, str]) -> list[Path]:
    """Return the Collector's files, once it is known that it could start with them."""
    configs = [servers.CONFIG / name for name in ("otelcol.yaml", *profiles)]
    known = sorted(path.name for path in servers.CONFIG.glob("otelcol.*.yaml"))
    unknown = [name for name in profiles if name not in known]
    if unknown:
        raise BadProfileError(f"no profile {', '.join(unknown)}. Remedy: choose from {', '.join(known)}")
    environ = {**os.environ, **variables}
    if profiles and not environ.get("GOOGLE_CLOUD_PROJECT"):
        raise BadProfileError("GOOGLE_CLOUD_PROJECT is not set. Remedy: set it to the project that traces go to")
    credentials = environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    # Unset is not wrong: on Google's own machines there are credentials without a file.
    if profiles and credentials and not os.access(credentials, os.R_OK):
        raise BadProfileError(
            f"GOOGLE_APPLICATION_CREDENTIALS is {credentials}, which cannot be read. Remedy: the path of a key file"
        )
    command = [str(tools.find("otelcol")), "validate"]
    for config in configs:
        command += ["--config", str(config)]
    checked = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if checked.returncode != 0:
        raise BadProfileError(f"the Collector refuses its configuration:\n{checked.stderr.strip()}")
    return configs


def _prometheus(ports: Mapping[str, int], targets: Sequence[str], token: str) -> servers.Prometheus:
    known = {
        "collector": f"127.0.0.1:{ports['OTELCOL_METRICS_PORT']}",
        "collector-scrape": f"127.0.0.1:{ports['OTELCOL_SCRAPE_PORT']}",
        "app": f"127.0.0.1:{ports.get('STREAK_PORT', 0)}",
    }
    scraped = {name: [known[name]] for name in ("collector", *targets)}
    return servers.prometheus(port=ports["PROMETHEUS_PORT"], targets=scraped, token=token)


def _service(name: str, module: str, port: int, env: Mapping[str, str]) -> Service:
    command = [sys.executable, "-m", module, "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    healthy = process.http_ok(f"{url}/api/health")
    # The services are modules of this checkout; they run elsewhere, so that what they write is removed with the folder.
    told = {"PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1", **env}
    folder = work_folder(name)
    return Service(process=start_in(name, command, folder, env=told, healthy=healthy), directory=folder, url=url)
