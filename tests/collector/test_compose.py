"""The rules that docker-compose.otel.yml keeps, read from the file."""

from __future__ import annotations

import importlib.util
import re
from datetime import time
from pathlib import Path
from typing import Any

import yaml

from collector.pipeline import PORTS
from examples.streak.settings import Settings
from tests.streak.variables import VARIABLES

_ROOT = Path(__file__).resolve().parents[2]
_TEXT = (_ROOT / "docker-compose.otel.yml").read_text(encoding="utf-8")
_COMPOSE: dict[str, Any] = yaml.safe_load(_TEXT)
_SERVICES: dict[str, dict[str, Any]] = _COMPOSE["services"]
# These images hold one program and no shell, or nothing that could ask a port; the file says so beside each.
_NO_HEALTH_CHECK = {"otelcol", "jaeger", "otelcol-queue"}
_OURS = {name: service for name, service in _SERVICES.items() if "build" in service}


def _as_given(text: str, **given: str) -> str:
    """Put variables in as compose does: what is given, or else the default."""

    def value(match: re.Match[str]) -> str:
        name, operator, word = match.groups()
        if operator == "-":
            return given.get(name, word)
        return given.get(name) or ("letters-and-digits" if operator == ":?" else word)

    return re.sub(r"\$\{(\w+)(:-|:\?|-)([^}]*)\}", value, text)


def _environment(name: str, **given: str) -> dict[str, str]:
    return {variable: _as_given(text, **given) for variable, text in _OURS[name]["environment"].items()}


def test_all_parts_are_there() -> None:
    """The service, its neighbours and the whole pipeline."""
    assert set(_SERVICES) == {
        "streak", "push", "maintenance", "redis", "postgres", "otelcol-queue", "otelcol", "jaeger", "prometheus",
        "grafana",
    }  # fmt: skip


def test_ports_are_published_on_loopback_only() -> None:
    """No port of any container is reachable from another machine."""
    ports = [port for service in _SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) >= 6
    for port in ports:
        assert re.fullmatch(r"127\.0\.0\.1:\$\{\w+_PORT:-\d+\}:\d+", port), port
    assert not [name for name, service in _SERVICES.items() if service.get("network_mode") == "host"]


def test_ports_are_those_of_the_stack() -> None:
    """A port that plain processes use too has the same variable and the same default."""
    for name, usual in re.findall(r"127\.0\.0\.1:\$\{(\w+):-(\d+)\}", _TEXT):
        assert PORTS.get(name, (int(usual),))[0] == int(usual), name


def test_images_are_pinned_by_version() -> None:
    """Every image that is pulled names an exact version."""
    for name, service in _SERVICES.items():
        if "build" not in service:
            assert re.fullmatch(r"[\w./-]+:v?\d+(\.\d+){1,2}(-alpine)?", service["image"]), name


def test_the_collector_is_of_the_version_that_we_build() -> None:
    """Upstream's image is of the release of builder.yaml, so that one set of files serves both."""
    manifest = yaml.safe_load((_ROOT / "collector" / "otelcol" / "builder.yaml").read_text(encoding="utf-8"))
    image = f"otel/opentelemetry-collector-contrib:{manifest['dist']['version']}"
    assert _SERVICES["otelcol"]["image"] == image


def test_nothing_has_a_default_password() -> None:
    """Every secret must be given: unset, the start fails and says what to set."""
    for name in re.findall(r"\$\{(\w*(?:PASSWORD|TOKEN|SECRET)\w*)", _TEXT):
        assert f"${{{name}:?set {name}" in _TEXT
        assert not re.search(rf"\$\{{{name}(?::?-|\}})", _TEXT), name
    assert "GF_SECURITY_ADMIN_PASSWORD" in _SERVICES["grafana"]["environment"]
    assert "POSTGRES_PASSWORD" in _SERVICES["postgres"]["environment"]
    assert "--requirepass" in _SERVICES["redis"]["command"]


def test_what_scrapes_the_app_brings_the_token_that_it_asks_for() -> None:
    """Prometheus and the service are given the same secret."""
    assert _COMPOSE["secrets"]["access_token"] == {"environment": "OTEL_PERF_ACCESS_TOKEN"}
    assert {"source": "access_token", "target": "/etc/prometheus/token"} in _SERVICES["prometheus"]["secrets"]
    assert "OTEL_PERF_ACCESS_TOKEN" in _SERVICES["streak"]["environment"]
    # Compose cannot put a secret from the environment into a container whose file system is read-only.
    assert not _SERVICES["prometheus"].get("read_only")


def test_health_is_checked_where_the_image_can() -> None:
    """Every service has a health check but those whose image has nothing to run one with."""
    assert {name for name, service in _SERVICES.items() if "healthcheck" not in service} == _NO_HEALTH_CHECK


def test_waiting_for_health_waits_for_something() -> None:
    """A service waits for the health only of one that has a check."""
    for name, service in _SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in _SERVICES[needed], name


def test_the_mounted_files_are_in_the_checkout() -> None:
    """Every file and folder that a container is given exists, and is given read-only."""
    volumes = [volume for service in _SERVICES.values() for volume in service.get("volumes", [])]
    mounted = [volume for volume in volumes if volume.startswith("./")]
    assert len(mounted) >= 6
    for volume in mounted:
        source, _, mode = re.sub(r"\$\{OTEL_PERF_TARGETS:-(\w+)\}", r"\1", volume).split(":")
        assert (_ROOT / source).exists(), volume
        assert mode == "ro", volume


def test_containers_gain_no_privileges() -> None:
    """Nothing runs privileged, and what stays up cannot gain privileges."""
    for name, service in _SERVICES.items():
        assert not service.get("privileged"), name
        if name != "otelcol-queue":
            assert service["security_opt"] == ["no-new-privileges:true"], name


def test_our_images_are_told_what_they_read() -> None:
    """Every variable that the service, its maintenance and the push API are given is one that the code reads."""
    assert set(_OURS) == {"streak", "maintenance", "push"}
    for name, service in _OURS.items():
        assert set(service["environment"]) <= VARIABLES, name
    # What an operator may want to set can be set, but for where the tables are, which compose knows.
    wanted = {variable for variable in VARIABLES if variable.startswith("STREAK_")}
    assert wanted <= set(_SERVICES["streak"]["environment"])


def test_our_settings_are_good_as_they_are() -> None:
    """Told nothing but the secrets, the service has its usual settings, and runs the maintenance once a day."""
    settings = Settings.from_environment(_environment("streak"))
    usual = Settings()
    assert (settings.batch_size, settings.batches_in_flight) == (usual.batch_size, usual.batches_in_flight)
    assert (settings.warm_up, settings.kpis_every_s) == (usual.warm_up, usual.kpis_every_s)
    assert settings.requests_per_minute == usual.requests_per_minute
    assert settings.maintenance_at == time(4, 5)
    assert not settings.demo
    assert Settings.from_environment(_environment("streak", STREAK_MAINTENANCE_AT="")).maintenance_at is None
    # Two that would start it by themselves are one too many; where both read, they read the same.
    maintenance = _environment("maintenance", STREAK_BATCH_SIZE="500")
    assert Settings.from_environment(maintenance).maintenance_at is None
    assert Settings.from_environment(maintenance).batch_size == 500
    assert Settings.from_environment(maintenance).database_url == settings.database_url
    assert Settings.from_environment(maintenance).redis_url == settings.redis_url


def test_our_commands_are_there() -> None:
    """Each of our images runs a module that exists; the maintenance takes the options that it is run with."""
    for name, service in _OURS.items():
        program = [*service.get("entrypoint", []), *service["command"]]
        assert program[:2] == ["python", "-m"], name
        assert importlib.util.find_spec(program[2]), name
    assert _SERVICES["maintenance"]["command"] == []
    assert _SERVICES["maintenance"]["profiles"] == ["maintenance"]
    assert _SERVICES["maintenance"]["restart"] == "no"
    for name in ("streak", "push"):
        port = _SERVICES[name]["command"][-1]
        assert f"127.0.0.1:{port}/api/health" in _SERVICES[name]["healthcheck"]["test"][-1]


def test_our_images_write_nothing() -> None:
    """The root of each of our images is read-only; temporary files go into memory, and not without a limit."""
    for name, service in _OURS.items():
        assert service["read_only"] is True, name
        assert service["tmpfs"] == ["/tmp:size=64m"], name
        assert service["cap_drop"] == ["ALL"], name
