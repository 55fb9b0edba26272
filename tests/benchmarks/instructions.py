"""Instructions of one request, counted by `perf` or by valgrind's callgrind: nearly free of noise, and slow to get.

Each scenario runs twice, with few requests and with more; the difference leaves out the start of the process.
`make bench ARGS="--instructions"` asks for it.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["NAMES", "how", "per_request"]

#: Slow under valgrind, so only what the figures compare.
NAMES = ("bare", "ours", "native_stock", "contrib")

_ROOT = Path(__file__).absolute().parents[2]
_FEW, _MANY = 100, 400
_PERF = ("perf", "stat", "-x,", "-e", "instructions:u", "--")
_CALLGRIND = ("valgrind", "--tool=callgrind", f"--callgrind-out-file={os.devnull}", "--")


def how() -> tuple[str, ...] | None:
    """The command that counts on this machine; None where nothing does."""
    if shutil.which("perf"):
        tried = subprocess.run([*_PERF, sys.executable, "-c", ""], capture_output=True, text=True, check=False)
        if re.search(r"^\d+,", tried.stderr, re.MULTILINE):
            return _PERF
    return _CALLGRIND if shutil.which("valgrind") else None


def per_request(name: str, sink: str, environ: dict[str, str], command: tuple[str, ...]) -> float:
    """Instructions that one request of a scenario takes, its export included.

    Raises:
        ValueError: when the counter told nothing.
    """
    with ThreadPoolExecutor() as both:
        few, many = both.map(lambda requests: _counted(name, sink, environ, command, requests), (_FEW, _MANY))
    return (many - few) / (_MANY - _FEW)


def _counted(name: str, sink: str, environ: dict[str, str], command: tuple[str, ...], requests: int) -> int:
    run = [*command, sys.executable, "-m", "tests.benchmarks.instructions", name, sink, str(requests)]
    done = subprocess.run(run, cwd=_ROOT, env=environ, capture_output=True, text=True, check=False, timeout=300)
    found = re.search(r"Collected : (\d+)|^(\d+),", done.stderr, re.MULTILINE)
    if done.returncode or not found:
        raise ValueError(f"{name}: {command[0]} counted nothing: {done.stderr[-300:]}")
    return int(found[1] or found[2])


def main() -> None:
    """So many requests of a scenario, and no more."""
    name, sink, requests = sys.argv[1], sys.argv[2], int(sys.argv[3])
    from tests.benchmarks import asgi, scenarios

    ready = scenarios.prepare(name, sink)
    app = scenarios.application()
    ready.apply(app)

    async def drive() -> None:
        for _ in range(requests):
            await asgi.request(app, asgi.KINDS["plain"])

    asyncio.run(drive())
    ready.flush()
    sys.stdout.flush()
    os._exit(0)  # what happens at exit is not the request's cost


if __name__ == "__main__":
    main()
