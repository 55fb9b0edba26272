"""Run the whole pipeline as plain processes, with the configuration files that docker compose uses.

`python collector/stack.py up` starts it and waits for Ctrl-C; `python collector/stack.py check` starts it on free
ports, drives traffic through the streak service, and reads back what arrived.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 - said in words, to those who run the script with an older Python
    sys.exit("stack.py: Python 3.10 or later is needed. Remedy: run it in the project's environment (.venv/bin/python)")

if __package__ in (None, ""):  # run as a script: Python put this folder on the path, not the one above it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from collector import pipeline, process, provision, tools

__all__ = ["main"]

_POLL_S = 0.5
_MAX_TRACES = 5000
_TOLD = (pipeline.BadProfileError, pipeline.BusyPortError, process.StartError)
_EPILOG = """\
examples:
  python collector/stack.py                    the pipeline and the streak service, until Ctrl-C
  python collector/stack.py up --no-app        only the pipeline: send to http://127.0.0.1:4318
  PROMETHEUS_PORT=9091 python collector/stack.py up
  python collector/stack.py check              start all of it on free ports, drive traffic, read back what arrived
  python collector/stack.py check --json       the same for machines: one JSON object on the last line

Programs are found on PATH or in the cache folder, or installed: python collector/tools.py list shows them.
Google Cloud Trace is a profile: --profile otelcol.cloudtrace-otlp.yaml, with GOOGLE_CLOUD_PROJECT and credentials set.
exit codes: 0 done; 1 something is missing, did not start, or did not arrive; 2 wrong arguments; 130 stopped by Ctrl-C
during a check
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.no_app and "app" in options.scrape:
        parser.error("--scrape app needs the streak service, which --no-app leaves out")
    process.interrupted_by_signals()
    try:
        if options.command == "check":
            # The stand-in of Cloud Trace speaks gRPC while servers are started; these become programs of their own
            # at once, so gRPC need not prepare for living on in a fork, and need not warn that it cannot.
            os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
            # Not before it is asked for: `up` needs nothing but the standard library.
            from collector import check

            return check.run(traces=options.traces, as_json=options.json)
        return _up(app=not options.no_app, free=options.free_ports, profiles=options.profile, targets=options.scrape)
    except (tools.MissingToolError, provision.InstallError, *_TOLD) as error:
        print(f"stack.py: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"stack.py: Python's package {error.name} is missing. Remedy: run it in the project's environment "
            "(`make stack`, or .venv/bin/python collector/stack.py)",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("stack.py: stopped", file=sys.stderr)
        return 130 if options.command == "check" else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stack.py",
        description="Run the pipeline as plain processes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command="up", no_app=False, free_ports=False, profile=[], scrape=[])
    commands = parser.add_subparsers(dest="command", metavar="{up,check}")
    up = commands.add_parser("up", help="start everything and wait for Ctrl-C (the default)")
    up.add_argument("--no-app", action="store_true", help="leave out the streak service, Redis and PostgreSQL")
    up.add_argument("--free-ports", action="store_true", help="take free ports instead of the usual ones")
    up.add_argument("--profile", action="append", default=[], metavar="FILE", help="a further file of collector/config")
    up.add_argument(
        "--scrape", action="append", default=[], choices=("app", "collector-scrape"), help="have it scraped as well"
    )
    check = commands.add_parser("check", help="start everything, drive traffic, read back what arrived")
    check.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    check.add_argument(
        "--traces",
        type=_traces,
        default=1000,
        metavar="N",
        help="requests to send, each a trace (%(default)s); with few, chance leaves routes unasked, which is told",
    )
    return parser


def _traces(text: str) -> int:
    # The driver remembers no more trace ids than that.
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_TRACES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_MAX_TRACES}")
    return int(text)


def _up(*, app: bool, free: bool, profiles: Sequence[str], targets: Sequence[str]) -> int:
    ports = pipeline.free_choice() if free else pipeline.chosen_ports(os.environ, app=app)
    with pipeline.pipeline(ports, app=app, profiles=profiles, targets=targets, say=_say) as running:
        print(_addresses(running), flush=True)
        return _watch(running)


def _watch(running: pipeline.Pipeline) -> int:
    try:
        while True:
            for server in running.servers:
                if not server.process.alive:
                    code, tail = server.process.exit_code, server.process.log_tail()
                    _say(f"{server.process.name} ended with exit code {code}, so the rest stops too:\n{tail}")
                    return 1
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        return 0


def _addresses(running: pipeline.Pipeline) -> str:
    lines = [
        ("Prometheus", running.prometheus.url),
        ("Jaeger", f"{running.jaeger.url}  (API; the page is in the container image only)"),
        ("OTLP by HTTP", f"{running.otelcol.otlp_http_url}  (OTEL_EXPORTER_OTLP_ENDPOINT of your service)"),
        ("OTLP by gRPC", running.otelcol.otlp_grpc),
        ("Collector", f"{running.otelcol.health_url} health, {running.otelcol.metrics_url} its own metrics"),
    ]
    if running.streak is not None and running.push is not None:
        lines.insert(0, ("Streak", f"{running.streak.url}  (page: {running.streak.url}/performance)"))
        lines.insert(1, ("Push API", running.push.url))
        lines.append(("Secret", f"STREAK_SECRET={running.secret}  (python -m examples.streak.auth makes tokens)"))
    shown = "\n".join(f"  {name:13} {text}" for name, text in lines)
    return f"\n{shown}\n\n  Grafana comes with docker compose: docs/collector.md. Ctrl-C stops everything.\n"


def _say(text: str) -> None:
    print(f"[stack] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
