"""The streak service under live traffic, with a live table: `make demo`, or `python -m examples.demo --help`.

It starts the push API and the streak service on loopback, drives traffic through them, shows what the service's own
`/api/performance` says, and stops everything again. Without an OTLP endpoint in the environment it starts a small
sink, so that spans and metrics really leave the service and what was delivered is what the sink decoded.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    # Imports take a second, and Ctrl-C within it is no reason for a traceback; `main` puts Python's handler back.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import asyncio
import json
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from otel_perf.cli.table import render

from .sink import Sink, port_number
from .streak import traffic

__all__ = ["main"]

_START_S = 30.0
_STOP_S = 15.0
_ENDPOINTS = (
    "OTEL_PERF_ENDPOINT", "OTEL_PERF_TRACES_ENDPOINT", "OTEL_PERF_METRICS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)  # fmt: skip
_say = Console(stderr=True, highlight=False)


class DemoError(Exception):
    """The demo cannot go on; the text says why and what to do."""


@dataclass(slots=True)
class _Service:
    """One process of the demo: it writes its address as one of its first lines."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    url: str = ""

    def await_address(self, deadline: float) -> None:
        """Wait for the line with the address; raise `DemoError` when the process ends or stays silent."""
        prefix = f"{self.name}: http"
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            for line in self._lines():
                if line.startswith(prefix) and line.endswith("\n"):
                    self.url = line.partition(": ")[2].strip()
                    return
            if ended:
                break
            time.sleep(0.05)
        raise DemoError(f"{self.name} did not start:\n{self.tail()}")

    def tail(self) -> str:
        return "".join(self._lines()[-20:]) or "(it wrote nothing)"

    def _lines(self) -> list[str]:
        return self.log.read_text("utf-8", "replace").splitlines(keepends=True)

    def stop(self) -> None:
        """SIGTERM, as a platform would; the service flushes. SIGKILL for one that does not go."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def _start(stack: ExitStack, name: str, module: str, port: int, env: dict[str, str]) -> _Service:
    log = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="otel_perf-demo-"))) / f"{name}.log"
    # A file, and no pipe: a pipe that nobody reads would stop the service when it is full.
    with log.open("w") as output:
        # A session of its own: Ctrl-C reaches the demo alone, which then reads the last figures and stops the rest.
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--port", str(port)],
            cwd=Path(__file__).resolve().parent.parent,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    service = _Service(name, process, log)
    stack.callback(service.stop)
    service.await_address(time.monotonic() + _START_S)
    return service


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            remedy = f"choose another with --port, for example --port {port + 1}, or --port 0 for any that is free"
            raise DemoError(f"port {port} of 127.0.0.1 cannot be used ({error.strerror}): {remedy}") from None


async def _performance(client: httpx.AsyncClient, service: _Service) -> dict[str, Any]:
    try:
        answer = await client.get(f"{service.url}/api/performance")
    except httpx.HTTPError as error:
        raise DemoError(f"{service.name} does not answer ({type(error).__name__}):\n{service.tail()}") from None
    if answer.status_code != 200:
        raise DemoError(f"{service.name} has no figures: {answer.text}")
    document: dict[str, Any] = answer.json()
    return document


async def _show(client: httpx.AsyncClient, streak: _Service, options: argparse.Namespace) -> None:
    if options.json or not Console().is_terminal:
        started = time.monotonic()
        while True:
            await asyncio.sleep(5)
            requests = (await _performance(client, streak))["requests"]
            _say.print(
                f"{time.monotonic() - started:4.0f} s: {requests['count']} requests, {requests['errors']} failed"
            )
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            # The addresses once more: the full screen hides what was printed before it.
            where = Text(f"{streak.url}/performance   {streak.url}/metrics   {streak.url}/docs   Ctrl-C stops", "dim")
            live.update(Group(where, render(await _performance(client, streak))), refresh=True)
            await asyncio.sleep(1)


async def _run(streak: _Service, push: _Service, secret: str, options: argparse.Namespace) -> dict[str, Any]:
    """Drive traffic until the time is up or Ctrl-C, and return what the services then say of themselves."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
        seconds = options.seconds or 10 * 365 * 86_400
        driving = asyncio.create_task(traffic.drive(streak.url, secret=secret, seconds=seconds, rate=options.rate))
        showing = asyncio.create_task(_show(client, streak, options))
        waiting = asyncio.create_task(stopped.wait())
        await asyncio.wait({driving, waiting, showing}, return_when=asyncio.FIRST_COMPLETED)
        interrupted = stopped.is_set()
        for task in (driving, showing, waiting):
            # What fails by itself is told; what is ended here is not.
            error = task.exception() if task.done() else None
            if isinstance(error, DemoError):
                raise error
            if error is not None:
                raise DemoError(f"the demo broke off: {error!r}\n{streak.tail()}")
            task.cancel()
        await asyncio.gather(driving, showing, waiting, return_exceptions=True)
        counts = None if interrupted or driving.cancelled() else driving.result()
        documents = [await _settled(client, service) for service in (streak, push)]
    return {"counts": counts, "streak": documents[0], "push": documents[1]}


async def _settled(client: httpx.AsyncClient, service: _Service) -> dict[str, Any]:
    """Read a service once nothing is under way in it any more, and no span waits that could still be sent.

    What a request that was broken off left to do is seen by the spans that still come.
    """
    deadline = time.monotonic() + 5
    made = None
    while True:
        document = await _performance(client, service)
        export = document["export"]
        busy = document["requests"]["active"] or (export["queued"] and not _owns_sink()) or export["made"] != made
        if not busy or time.monotonic() > deadline:
            return document
        made = export["made"]
        await asyncio.sleep(0.2)


def _owns_sink() -> bool:
    return not any(os.environ.get(name) for name in _ENDPOINTS)


def _environment(sink: Sink | None) -> dict[str, str]:
    """What the services start with: with a sink of the demo's own, nothing may lead their telemetry elsewhere."""
    if sink is None:
        return dict(os.environ)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    local = "127.0.0.1,localhost"
    return {**kept, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "NO_PROXY": local, "no_proxy": local}


def _summary(run: dict[str, Any], sink: Sink | None) -> dict[str, Any]:
    streak = run["streak"]
    exports = [run[name]["export"] for name in ("streak", "push")]
    made = sum(each["made"] or 0 for each in exports)
    delivered = sum(sink.spans.values()) if sink else sum(each["delivered"] or 0 for each in exports)
    routes: dict[str, Any] = {}
    for row in streak["requests"]["routes"]:
        template = row["route"] or "(no route)"
        key = f"{row['method']} {template}" if template in routes else template
        routes[key] = {"requests": row["count"], **{k: row[k] for k in ("errors", "p50_ms", "p95_ms", "p99_ms")}}
    return {
        "requests": streak["requests"]["count"],
        "errors": streak["requests"]["errors"],
        "routes": routes,
        "spans": {"made": made, "delivered": delivered, "lost": made - delivered},
        "cache": {"hits": streak["cache"]["hits"], "misses": streak["cache"]["misses"]},
        "queries": streak["queries"]["count"],
        "external": streak["external"]["count"],
        "jobs": streak["jobs"]["count"],
    }


def _complaints(run: dict[str, Any], summary: dict[str, Any]) -> list[str]:
    """What did not come out as it should."""
    found = []
    if not summary["spans"]["made"]:
        found.append("no span was made: see what the OTEL_ variables of the environment say of sampling and exporters")
    if summary["spans"]["lost"]:
        found.append(f"{summary['spans']['lost']} of {summary['spans']['made']} spans were not delivered")
    counts: traffic.Counts | None = run["counts"]
    if counts is not None:
        if counts.failed:
            found.append(f"{counts.failed} requests got no answer")
        elif counts.requests != summary["requests"]:
            found.append(f"the client sent {counts.requests} requests, the service measured {summary['requests']}")
    return found


def _demo(options: argparse.Namespace) -> int:
    if options.port:
        _require_free(options.port)
    secret = secrets.token_urlsafe(32)
    # Until the loop has its own handlers, SIGTERM ends the demo as Ctrl-C does: with nothing left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        sink = stack.enter_context(Sink()) if _owns_sink() else None
        env = {**_environment(sink), "STREAK_DEMO": "1", "STREAK_SECRET": secret, "PYTHONUNBUFFERED": "1"}
        # A line for each request would be nobody's to read, and fill the disk of a demo that runs for days.
        env.setdefault("STREAK_LOG_LEVEL", "warning")
        with ExitStack() as services:
            _say.print("starting the push API and the streak service ...")
            push = _start(services, "push", "examples.streak.push", 0, env)
            streak = _start(services, "streak", "examples.streak", options.port, {**env, "PUSH_URL": push.url})
            where = sink.url if sink else next(os.environ[name] for name in _ENDPOINTS if os.environ.get(name))
            addresses = (
                f"page     {streak.url}/performance\nAPI      {streak.url}/api/performance\n"
                f"metrics  {streak.url}/metrics\ndocs     {streak.url}/docs\nOTLP to  {where}"
            )
            _say.print(addresses, soft_wrap=True)
            run = asyncio.run(_run(streak, push, secret, options))
            _say.print("stopping ...")
        summary = _summary(run, sink)
    if not options.json:
        Console().print(render(run["streak"]))
        spans = summary["spans"]
        print(f"\nspans made {spans['made']}, delivered {spans['delivered']}, lost {spans['lost']}")
    complaints = _complaints(run, summary)
    for each in complaints:
        _say.print(f"demo: {each}", markup=False, soft_wrap=True)
    if options.json:
        print(json.dumps(summary), flush=True)
    return 1 if complaints else 0


def _positive(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("expected a number above 0")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code: 0 when all went well, 1 when something was lost, 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=_positive, help="end by itself after this long (default: Ctrl-C ends it)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")
    parser.add_argument(
        "--port", type=port_number, default=8000, help="the streak service's port (default 8000, 0: any)"
    )
    parser.add_argument("--rate", type=_positive, default=60.0, help="requests per second at most (default 60)")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = parser.parse_args(argv)
    if options.json and options.seconds is None:
        parser.error("--json needs --seconds: it prints when the run is over")
    try:
        return _demo(options)
    except DemoError as problem:
        _say.print(f"demo: {problem}", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        with suppress(BrokenPipeError):
            _say.print("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
