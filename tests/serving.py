"""An ASGI app behind a real uvicorn on a free loopback port, for the length of a block."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

__all__ = ["served"]


@contextlib.contextmanager
def served(app: Any, **config: Any) -> Iterator[str]:
    """Serve the app from a thread of this process and give its address; at the end it has shut down in order."""
    server = uvicorn.Server(uvicorn.Config(app, **{"port": 0, "log_level": "warning", **config}))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "uvicorn did not start"
        threading.Event().wait(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
