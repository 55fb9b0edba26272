"""Who a process says it is: what the environment names wins over the service's own name, in telemetry and in logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.streak.identity import Identity, identity_of
from otel_perf import __version__
from otel_perf.testing import FakeCollector

_ROOT = Path(__file__).parents[2]
_ATTRIBUTES = "a=b, service.name = my%20streak ,service.version=7,deployment.environment.name=stage,c"


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, ("streak", __version__, "demo")),
        ({"OTEL_SERVICE_NAME": "", "OTEL_RESOURCE_ATTRIBUTES": ""}, ("streak", __version__, "demo")),
        ({"OTEL_SERVICE_NAME": "mine"}, ("mine", __version__, "demo")),
        ({"OTEL_SERVICE_NAME": "mine", "OTEL_PERF_SERVICE_NAME": "ours"}, ("ours", __version__, "demo")),
        ({"OTEL_RESOURCE_ATTRIBUTES": _ATTRIBUTES}, ("my streak", "7", "stage")),
        ({"OTEL_RESOURCE_ATTRIBUTES": _ATTRIBUTES, "OTEL_SERVICE_NAME": "mine"}, ("mine", "7", "stage")),
        ({"OTEL_PERF_SERVICE_VERSION": "8", "OTEL_PERF_ENVIRONMENT": "live"}, ("streak", "8", "live")),
    ],
)
def test_the_environment_names_a_process(environ: dict[str, str], told: tuple[str, str, str]) -> None:
    """Any of the variables does; without one, and with an empty one, it is the process's own."""
    assert identity_of(environ, "streak") == Identity(*told)


def _run(tmp_path: Path, collector: FakeCollector, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "OTEL_SERVICE_NAME": "my-streak",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "DATABASE_URL": f"sqlite:///{tmp_path}/streak.db",
    }
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=_ROOT, env=env, capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip


def test_the_maintenance_goes_by_its_name(tmp_path: Path) -> None:
    """Its spans and the lines of its log have the name that `OTEL_SERVICE_NAME` gives it."""
    with FakeCollector() as collector:
        done = _run(tmp_path, collector, "examples.streak.maintain")
        assert done.returncode == 0, done.stderr
        assert {span.resource["service.name"] for span in collector.spans} == {"my-streak"}
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert {line["service"] for line in lines} == {"my-streak"}


@pytest.mark.parametrize("module", ["examples.streak.__main__", "examples.streak.push"])
def test_servers_go_by_theirs(tmp_path: Path, module: str) -> None:
    """The service and its push API are configured with it too; nothing is served here."""
    code = f"""
import {module} as module
from otel_perf import api
seen = []
module.serve = lambda make_app, *a, **k: (make_app(), seen.append(api.runtime.current.settings.service_name))[0] and 0
module._main([])
print(seen)
"""
    env = {**os.environ, "OTEL_SERVICE_NAME": "my-streak", "DATABASE_URL": f"sqlite:///{tmp_path}/streak.db"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=_ROOT, env=env, capture_output=True, text=True, check=False, timeout=50
    )
    assert done.stdout.splitlines()[-1] == "['my-streak']", done.stderr
