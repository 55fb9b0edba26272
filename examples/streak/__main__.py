"""Runs the service: `python -m examples.streak --port 8000`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from fastapi import FastAPI

from otel_perf import configure

from .app import create_app
from .identity import identity_of
from .logs import configure_logging
from .serving import port_number, serve
from .settings import BadSettingError, Settings


def _make_app() -> FastAPI:
    settings = Settings.from_environment(os.environ)
    identity = identity_of(os.environ, "streak")
    configure(**asdict(identity))
    configure_logging(settings, service=identity.service_name)
    return create_app(settings)


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.streak", description="Run the streak service.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=port_number, default=8000)
    options = parser.parse_args(argv)
    try:
        return serve(_make_app, "streak", host=options.host, port=options.port)
    except BadSettingError as problem:
        print(f"streak: {problem}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(_main())
