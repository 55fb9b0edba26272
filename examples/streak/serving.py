"""Runs an app under uvicorn, and says clearly when its port is taken."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

__all__ = ["port_number", "serve"]

_LAST_PORT = 65_535


def port_number(value: str) -> int:
    """Parse a port for argparse."""
    port = int(value)
    if not 0 <= port <= _LAST_PORT:
        raise ValueError(f"{value} is no port: use 0 to {_LAST_PORT}")
    return port


def serve(make_app: Callable[[], FastAPI], name: str, *, host: str, port: int) -> int:
    """Serve until a signal ends it, and return the exit code. Port 0 takes a free one."""
    try:
        listener = _listen(host, port)
    except OSError as problem:
        print(f"{name}: {_explain(problem, host, port)}", file=sys.stderr)
        return 1
    with listener:
        app = make_app()
        shown = f"[{host}]" if ":" in host else host
        print(f"{name}: http://{shown}:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, log_config=None, log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        # uvicorn has shut down in order by then, and only hands Ctrl-C on to whoever started it.
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    return 0 if server.started else 3


def _listen(host: str, port: int) -> socket.socket:
    """Bind here and not in uvicorn, so that a taken port is known before the app starts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's delays off only where the protocol is named: without it answers take 40 ms longer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2_048)
    except OSError:
        listener.close()
        raise
    return listener


def _explain(problem: OSError, host: str, port: int) -> str:
    if problem.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken: choose another with --port, or --port 0 for any that is free"
    return f"cannot listen on port {port} of {host}: {problem.strerror}: choose others with --host and --port"
