"""`make demo`, run as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from examples.sink import Sink

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "examples.demo"]


def run(*arguments, **env):
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        env={**os.environ, **env},
    )


def test_it_ends_by_itself_and_prints_one_object():
    """With --seconds and --json it ends with exit code 0, and its last line says that nothing was lost."""
    done = run("--seconds", "5", "--json", "--port", "0")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])

    assert summary["requests"] > 50
    assert summary["errors"] > 0, "the failing route of the demo must show"
    assert summary["spans"]["made"] == summary["spans"]["delivered"] > summary["requests"]
    assert summary["spans"]["lost"] == 0
    assert summary["cache"]["hits"] > 0
    assert summary["cache"]["misses"] > 0
    assert summary["queries"] > 0
    assert summary["external"] > 0
    assert summary["jobs"] >= 1
    calendar = summary["routes"]["/api/calendar"]
    assert 0 < calendar["p50_ms"] <= calendar["p95_ms"] <= calendar["p99_ms"]
    assert summary["routes"]["/api/report"]["p50_ms"] > 250, "the slow route of the demo must show"
    assert sum(route["requests"] for route in summary["routes"].values()) == summary["requests"]


def test_an_endpoint_of_ones_own_is_used():
    """With an endpoint in the environment no sink is started: spans arrive there."""
    with Sink() as sink:
        done = run("--seconds", "2", "--json", "--port", "0", OTEL_EXPORTER_OTLP_ENDPOINT=sink.url)
        summary = json.loads(done.stdout.splitlines()[-1])
        assert done.returncode == 0, done.stderr
        assert sum(sink.spans.values()) == summary["spans"]["made"] == summary["spans"]["delivered"]


def test_a_dead_endpoint_costs_nothing_but_is_told():
    """With an endpoint where nobody listens all requests are answered; the loss is counted and the exit code is 1."""
    done = run(
        "--seconds", "2", "--json", "--port", "0",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_PERF_EXPORT_TIMEOUT_S="0.5",
    )  # fmt: skip
    summary = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1
    assert summary["requests"] > 20
    assert summary["spans"]["delivered"] == 0
    assert summary["spans"]["lost"] == summary["spans"]["made"] > 0
    assert "were not delivered" in done.stderr


def test_a_busy_port():
    """A port in use gives exit code 1 and names --port, and starts nothing."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = run("--seconds", "1", "--port", str(port))
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--json"], ["--seconds", "0"], ["--seconds", "x"], ["--port", "70000"], ["--rate", "-1"]]
)
def test_bad_arguments(arguments):
    """Arguments that make no sense give exit code 2 and a word on what is wrong."""
    done = run(*arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_it_all(how):
    """A signal ends the demo with its figures, and none of its processes is left."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        lines = []
        while not any(line.startswith("OTLP to") for line in lines):
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 2
        time.sleep(1.5)
        process.send_signal(how)
        out, err = process.communicate(timeout=40)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert "lost 0" in out
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
