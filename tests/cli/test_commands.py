"""The commands, in processes of their own and against real services."""

from __future__ import annotations

import subprocess
import sys

from fastapi import FastAPI
from typer.testing import CliRunner

import otel_perf
from otel_perf import measure
from otel_perf.cli.commands import app as cli
from otel_perf.web import mount
from tests.serving import served

ELSEWHERE = "http://127.0.0.1:9"


def run(*arguments):
    return CliRunner().invoke(cli, list(arguments))


def test_top_once_prints_the_table_of_a_running_service(telemetry):
    """`top --once` reads a real service and prints its figures."""
    app = FastAPI()
    mount(app)
    with measure.job("nightly"):
        pass
    with served(app) as url:
        result = run("top", "--once", "--url", url)
    assert result.exit_code == 0
    assert "nightly" in result.output


def test_nobody_there():
    """An address where nothing answers gives exit code 1 and the remedy."""
    result = run("top", "--once", "--url", ELSEWHERE)
    assert result.exit_code == 1
    assert "Is the service running there? Say where with --url" in " ".join(result.output.split())


def test_a_service_without_the_page(telemetry):
    """A service that has no /api/performance gives exit code 1 and names mount(app)."""

    async def plain(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    with served(plain, lifespan="off") as url:
        result = run("top", "--once", "--url", url)
    assert result.exit_code == 1
    assert "does the service call mount(app)?" in " ".join(result.output.split())


def test_a_service_that_refuses(telemetry):
    """What the service says when it refuses is passed on, with exit code 1."""
    app = FastAPI()
    mount(app)
    otel_perf.shutdown()
    with served(app) as url:
        result = run("top", "--once", "--url", url)
    assert result.exit_code == 1
    assert "otel_perf is not configured" in " ".join(result.output.split())


def test_help_and_version_as_a_process():
    """`python -m otel_perf.cli` teaches its commands and tells its version."""
    helped = subprocess.run(
        [sys.executable, "-m", "otel_perf.cli", "--help"], capture_output=True, text=True, check=True
    )
    told = subprocess.run(
        [sys.executable, "-m", "otel_perf.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert "top" in helped.stdout
    assert told.stdout.strip() == otel_perf.__version__


def test_top_refreshes_until_ctrl_c(telemetry, monkeypatch):
    """Without --once the table is drawn again and again, and Ctrl-C leaves with exit code 0."""
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("otel_perf.cli.commands.time.sleep", sleep)
    app = FastAPI()
    mount(app)
    with served(app) as url:
        result = run("top", "--url", url, "--interval", "0.5")
    assert result.exit_code == 0
    assert looks == [0.5, 0.5, 0.5]


def test_without_its_libraries_the_extra_is_named():
    """Where typer is missing, the command says what to install instead of a traceback."""
    script = "import sys; sys.modules['typer'] = None; import otel_perf.cli"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'otel-perf[cli]'" in done.stderr
    assert "Traceback" not in done.stderr
