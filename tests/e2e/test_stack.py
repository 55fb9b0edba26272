"""The whole pipeline, driven and read back as an operator would do it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector import process
from collector.pipeline import PORTS
from tests.servers import find_or_skip

_ROOT = Path(__file__).resolve().parents[2]
_STACK = _ROOT / "collector" / "stack.py"
_TRACES = 1000

_FINDINGS = [
    "requests answered",
    "routes of the service that were asked",
    "requests in Prometheus, pushed",
    "requests in Prometheus, scraped",
    "requests in Prometheus, via_collector",
    "own metrics of the service in Prometheus",
    "traces in Jaeger",
    "steps of the service in Jaeger",
    "exemplars that open in Jaeger",
    "an exemplar's trace",
    "the same trace in Cloud Trace, otlp",
    "the same trace in Cloud Trace, legacy",
    "traces in Cloud Trace, otlp",
    "traces in Cloud Trace, legacy",
    "spans made, and accepted by the Collector",
    "refused, not queued or not sent by the Collector",
    "dropped by the services, and faults of otel_perf in them",
    "spans in Cloud Trace, otlp",
    "spans in Cloud Trace, legacy",
    "spans in Jaeger",
    "spans in the span metrics",
    "calls from streak to streak-push in the service graph",
    "calls in the service graph whose server is unknown",
    "version and environment of each service",
    "a planted secret",
]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def pipeline_programs() -> None:
    """Everything that the pipeline runs."""
    for name in ("otelcol", "jaeger", "prometheus", "redis-server", "postgres"):
        find_or_skip(name)


@pytest.fixture(scope="module")
def report(pipeline_programs: None) -> dict[str, Any]:
    """What `stack.py check` found, run once as a person would run it."""
    command = [sys.executable, str(_STACK), "check", "--json", "--traces", str(_TRACES)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert checked.stdout, checked.stderr
    loaded: dict[str, Any] = json.loads(checked.stdout.splitlines()[-1])
    assert (checked.returncode == 0) == loaded["ok"], checked.stderr
    return loaded


def test_everything_that_was_sent_arrived(report: dict[str, Any]) -> None:
    """Every question was asked, by name, and no finding of the check is missing anything."""
    assert [finding["name"] for finding in report["findings"]] == _FINDINGS
    assert [finding for finding in report["findings"] if not finding["ok"]] == []


def test_every_request_is_accounted_for(report: dict[str, Any]) -> None:
    """Each route has in Prometheus, by each of the three ways, exactly what the client sent."""
    assert len(report["routes"]) >= 9
    assert sum(route["sent"] for route in report["routes"]) == _TRACES
    for route in report["routes"]:
        assert route["sent"] == route["pushed"] == route["scraped"] == route["via_collector"] > 0, route


def test_no_trace_is_missing(report: dict[str, Any]) -> None:
    """Every request is a trace of its own, and Jaeger has them all."""
    assert report["traces"] == {"sent": _TRACES, "missing": 0}


@pytest.fixture
def pipeline_alone(pipeline_programs: None, tmp_path: Path) -> Iterator[tuple[process.Process, dict[str, int]]]:
    """`stack.py up` without the service, on ports of its own."""
    ports = dict(zip(PORTS, process.free_ports(len(PORTS)), strict=True))
    command = [sys.executable, str(_STACK), "up", "--no-app"]
    health = f"http://127.0.0.1:{ports['OTELCOL_HEALTH_PORT']}/"
    env = {name: str(port) for name, port in ports.items()} | {"TMPDIR": str(tmp_path)}
    log = tmp_path / "stack.log"
    with process.start("stack", command, log_path=log, env=env, healthy=process.http_ok(health)) as started:
        yield started, ports


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return [int(child) for child in listed.split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_up_takes_everything_down(
    pipeline_alone: tuple[process.Process, dict[str, int]], tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C, SIGTERM and SIGHUP stop every server, exit with 0, and leave no process, port or folder behind."""
    stack, ports = pipeline_alone
    _until_shown(stack, "Ctrl-C stops everything")
    children = _children(stack.pid)
    assert len(children) == 3
    stack.signal(number)
    _until_shown(stack, "stopping")
    # An impatient second one changes nothing: what goes down goes down in order.
    stack.signal(number)
    assert stack.wait(60) == 0, stack.log_tail()
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    assert [port for port in ports.values() if process.port_in_use(port)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["stack.log"]


def _until_shown(stack: process.Process, text: str) -> None:
    # Not `wait_healthy`: a stack that goes down may be gone by the time that somebody looks.
    give_up_at = time.monotonic() + 60
    while text not in stack.log_path.read_text(encoding="utf-8"):
        assert time.monotonic() < give_up_at, stack.log_tail()
        time.sleep(0.02)


def test_a_killed_stack_takes_its_servers_along(pipeline_alone: tuple[process.Process, dict[str, int]]) -> None:
    """Even after SIGKILL, which it cannot see, no server of the stack lives on."""
    stack, _ports = pipeline_alone
    _until_shown(stack, "Ctrl-C stops everything")
    children = _children(stack.pid)
    stack.signal(signal.SIGKILL)
    stack.wait(10)
    give_up_at = time.monotonic() + 30
    while (left := [child for child in children if _lives(child)]) and time.monotonic() < give_up_at:
        time.sleep(0.1)
    assert left == []


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_server_that_dies_ends_the_stack(pipeline_alone: tuple[process.Process, dict[str, int]]) -> None:
    """When one server dies the rest goes down too, and the exit code and its last words tell."""
    stack, _ports = pipeline_alone
    _until_shown(stack, "Ctrl-C stops everything")
    victim = next(child for child in _children(stack.pid) if "jaeger" in _command(child))
    os.kill(victim, signal.SIGKILL)
    assert stack.wait(60) == 1
    assert "jaeger ended with exit code -9" in stack.log_path.read_text(encoding="utf-8")


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_the_collectors_own_metrics_reach_prometheus(
    pipeline_alone: tuple[process.Process, dict[str, int]],
) -> None:
    """The plain stack scrapes the Collector, on whatever port it was given."""
    _stack, ports = pipeline_alone
    url = f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}/api/v1/query?query=otelcol_process_uptime"
    give_up_at = time.monotonic() + 30
    while True:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        if found or time.monotonic() > give_up_at:
            break
        time.sleep(0.5)
    assert [series["metric"]["job"] for series in found] == ["otelcol"]


def test_a_busy_port_is_told_before_anything_starts(pipeline_programs: None) -> None:
    """A taken port gives exit code 1, its name, what it is for and how to choose another."""
    ports = dict(zip(PORTS, process.free_ports(len(PORTS)), strict=True))
    with socket.create_server(("127.0.0.1", ports["PROMETHEUS_PORT"])):
        env = {**os.environ, **{name: str(port) for name, port in ports.items()}}
        ended = subprocess.run(
            [sys.executable, str(_STACK), "up", "--no-app"], env=env, capture_output=True, text=True, check=False
        )
    assert ended.returncode == 1
    assert f"port {ports['PROMETHEUS_PORT']} (Prometheus) is taken" in ended.stderr
    assert "PROMETHEUS_PORT=" in ended.stderr
    assert "starting" not in ended.stderr


def test_a_program_that_cannot_be_had_starts_nothing(tmp_path: Path) -> None:
    """Without a program and without a way to install it, the stack says what to do and starts nothing."""
    ports = dict(zip(PORTS, process.free_ports(len(PORTS)), strict=True))
    env = {name: str(port) for name, port in ports.items()}
    env |= {"PATH": str(tmp_path), "OTEL_PERF_TOOLS": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, str(_STACK), "up", "--no-app"], env=env, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "no apt-get" in ended.stderr
    assert "Remedy" in ended.stderr
    assert "starting" not in ended.stderr
