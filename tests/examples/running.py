"""An example as a user runs it: a process of its own that serves on a free port."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ROOT", "running"]

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def running(module: str, *arguments: str, **env: str) -> Iterator[str]:
    """Run `python -m module` and give the address it serves at; at the end SIGTERM has stopped it in order."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PORT": "0", **env},
    )
    try:
        assert process.stderr is not None
        said: list[str] = []
        while not (found := re.search(r"running on (http\S+)", said[-1] if said else "")):
            said.append(process.stderr.readline())
            assert said[-1], said
        yield found[1]
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
        assert "Traceback" not in rest, rest
        assert process.returncode == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()
