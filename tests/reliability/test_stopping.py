"""Servers that are told to stop: nothing is lost, the exit code is the one without us, and no collector holds it up."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from otel_perf import conventions as c
from otel_perf.testing import FakeCollector, attributes, behaviour
from tests.reliability.processes import Running, Together, started

APP = """
import asyncio, os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        if os.environ["LIFESPAN"] == "raises":
            raise RuntimeError("no lifespan here")
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    slow = scope["path"] == "/slow"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b"first", "more_body": slow})
    if slow:
        await asyncio.sleep(0.3)
        await send({"type": "http.response.body", "body": b"last"})

if os.environ["MEASURED"] == "yes":
    import otel_perf
    otel_perf.configure("app", span_interval_s=60, metric_interval_s=3600)
    app = otel_perf.instrument(app)
"""

SERVE = """
import asyncio, sys, uvicorn
import app
server = uvicorn.Server(uvicorn.Config(app.app, port=0))
asyncio.run(server.serve())
"""

UVICORN = ("-m", "uvicorn", "app:app", "--port", "0")
GUNICORN = (
    "-W", "ignore", "-m", "gunicorn", "app:app", "--bind", "127.0.0.1:0", "-w", "2", "-k",
    "uvicorn.workers.UvicornWorker", "--no-control-socket",
)  # fmt: skip
SERVERS = {
    "uvicorn": UVICORN,
    "uvicorn, two workers": (*UVICORN, "--workers", "2"),
    "uvicorn, lifespan off": (*UVICORN, "--lifespan", "off"),
    "uvicorn, two workers, lifespan off": (*UVICORN, "--workers", "2", "--lifespan", "off"),
    "serve()": ("serve.py",),
    "serve(), no lifespan": ("serve.py",),
    "gunicorn": GUNICORN,
    "gunicorn, no lifespan": GUNICORN,
    "gunicorn, worker of its own": (*GUNICORN, "-k", "asgi"),
    "gunicorn, worker of its own, no lifespan": (*GUNICORN, "-k", "asgi"),
    "gunicorn, preloaded": (*GUNICORN, "--preload"),
    "gunicorn, preloaded, no lifespan": (*GUNICORN, "--preload"),
}
QUICK = 12


@dataclass
class Ended:
    """What became of a server without us, one that sent, and one whose collector hung."""

    codes: list[int]
    texts: list[str]
    collector: FakeCollector


@pytest.fixture(scope="module")
def ended(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("servers")
    (folder / "app.py").write_text(APP)
    (folder / "serve.py").write_text(SERVE)
    return Together(request, "server", lambda server: run(server, folder))


def run(server: str, folder: Path) -> Ended:
    lifespan = "raises" if "no lifespan" in server else "ok"
    with FakeCollector() as collector, FakeCollector(behaviour.hang()) as hanging, contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(started(*SERVERS[server], cwd=folder, LIFESPAN=lifespan, **environment))
            for environment in (
                {"MEASURED": "no"},
                {"MEASURED": "yes", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
                {
                    "MEASURED": "yes",
                    "OTEL_EXPORTER_OTLP_ENDPOINT": hanging.url,
                    "OTEL_PERF_FLUSH_TIMEOUT_S": "0.5",
                },
            )
        ]
        for each in running:
            if "worker of its own" in server:
                # With uvloop a signal that comes while such a worker loads its app is lost: also without us.
                each.wait_for("ASGI server listening", times=2)
            use(each)
        return Ended([each.exit_code(20) for each in running], [each.text for each in running], collector)


def wait_until_open(port: int) -> None:
    """With workers, uvicorn says its address before anybody listens there."""
    for _ in range(1000):
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=20).close()
            return
        time.sleep(0.01)


def use(running: Running) -> None:
    """Sends requests, and SIGTERM while the last is on its way."""
    port = int(running.wait_for(r"http://127\.0\.0\.1:(\d+)"))
    wait_until_open(port)
    for path in [*(QUICK * ["/quick"]), "/slow"]:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as client:
            client.request("GET", path)
            answer = client.getresponse()
            assert answer.status == 200
            if path == "/slow":
                assert answer.read(5) == b"first"
                os.kill(running.pid, signal.SIGTERM)
                assert answer.read() == b"last"
            else:
                assert answer.read() == b"first"


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_loses_nothing_when_it_is_told_to_stop(ended, server):
    """Every request is sent, the one in flight too; with a hanging collector it ends as well; the exit code stays."""
    run = ended[server]
    told = run.texts[1]
    assert run.codes == [run.codes[0]] * 3, told
    assert len(run.collector.spans) == QUICK + 1, told
    counts: Counter[str] = Counter()
    durations = [each for each in run.collector.metrics if each.name == c.REQUEST_DURATION.name]
    for metric in {each.resource["service.instance.id"]: each for each in durations}.values():
        for point in metric.points:
            counts[attributes(point)["http.request.method"]] += point.count
    assert counts == {"GET": QUICK + 1}
    assert "Traceback" not in told or "no lifespan" in server
