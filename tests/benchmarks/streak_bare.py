"""The streak service with nothing instrumented at all: `python -m tests.benchmarks.streak_bare --port 0`.

Every name of otel_perf that the service uses does nothing here, and `configure()` is never called. The SDK's own
switch, `OTEL_SDK_DISABLED`, would not be the same: wrappers, pages and instruments stay in place under it, and cost a
little.
"""

from __future__ import annotations

import sys
from typing import Any

import otel_perf
import otel_perf.web

__all__ = ["Nothing"]


class Nothing:
    """Stands for anything of otel_perf's: it gives functions back as they are, and itself for all else."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        return given[0] if len(given) == 1 and not named and callable(given[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        """Takes what an operation would be told."""

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets errors pass."""

    async def __aenter__(self) -> Nothing:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Lets errors pass."""


def main() -> int:
    """Takes otel_perf away before the service is imported, and runs it."""
    for module, names in (
        (otel_perf, ("catalogue", "configure", "flush", "instrument", "measure", "on_critical_query", "shutdown")),
        (otel_perf.web, ("mount",)),
    ):
        for name in names:
            setattr(module, name, Nothing())
    from examples.streak import __main__ as service

    return service._main()


if __name__ == "__main__":
    sys.exit(main())
