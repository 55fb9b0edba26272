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

from examples.demo import main
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
    assert summary["requests"] > 0
    assert summary["spans"]["delivered"] == 0
    assert summary["spans"]["lost"] == summary["spans"]["made"] > 0
    assert "were not delivered" in done.stderr
    # The loss is all there is to complain of: every request was answered, and measured once.
    assert "got no answer" not in done.stderr
    assert "the client sent" not in done.stderr


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
    ("arguments", "said"),
    [
        (["--json"], "--json needs --seconds"),
        (["--seconds", "0"], "argument --seconds: expected a number above 0"),
        (["--seconds", "x"], "argument --seconds: expected a number above 0"),
        (["--seconds", "nan"], "argument --seconds: expected a number above 0"),
        (["--rate=-1"], "argument --rate: expected a number above 0"),
        (["--port", "70000"], "argument --port: '70000' is no port: use 0 to 65535"),
        (["--port", "x"], "argument --port: 'x' is no port: use 0 to 65535"),
    ],
)
def test_bad_arguments(arguments, said, capsys):
    """Arguments that make no sense give exit code 2 and a word on what is wrong."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_environment_does_not_lead_telemetry_elsewhere():
    """With the demo's own sink nothing is lost, whatever the environment says of proxies, exporters and sampling."""
    done = run(
        "--seconds", "2", "--json", "--port", "0",
        HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9", OTEL_SDK_DISABLED="true",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_TRACES_SAMPLER="always_off", OTEL_SERVICE_NAME="other",
        OTEL_PERF_SAMPLER="always_off", NO_PROXY="", no_proxy="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spans = json.loads(done.stdout.splitlines()[-1])["spans"]
    assert spans["made"] == spans["delivered"] > 0


def test_no_span_is_no_success():
    """Where the user's own sampler keeps nothing, the exit code is 1 with the reason; spans go where they were sent."""
    with Sink() as sink:
        done = run(
            "--seconds", "1", "--json", "--port", "0",
            OTEL_PERF_TRACES_ENDPOINT=f"{sink.url}/v1/traces", OTEL_TRACES_SAMPLER="always_off",
        )  # fmt: skip
    assert done.returncode == 1
    assert "no span was made" in done.stderr
    assert not sink.spans


def test_a_disabled_sdk_is_told():
    """With an endpoint of the user's own and no telemetry, the reason is told without a traceback."""
    done = run(
        "--seconds", "1", "--json", "--port", "0",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_SDK_DISABLED="true",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("demo: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("after_s", [0.2, 0.6, 1.2, 2.0])
def test_ctrl_c_while_it_starts(after_s):
    """Ctrl-C during imports and while services start ends it with exit code 130, no traceback and no process left."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        time.sleep(after_s)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=40)
    finally:
        process.kill()
        process.wait()
    # On a machine that is fast the last of them finds it running, and then it ends as ever.
    assert process.returncode in {0, 130}, err
    assert "Traceback" not in err
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


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
