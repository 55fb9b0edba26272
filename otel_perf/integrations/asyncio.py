"""asyncio: how late an event loop is, and how busy its threads are, for workers without a web framework.

An app that is measured has its loop watched by itself, and so has a program that calls `configure()` in its loop.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop

from otel_perf.integrations.registry import Undo
from otel_perf.telemetry import loops

__all__ = ["instrument", "matches"]


def matches(target: object) -> bool:
    """Whether this is an event loop."""
    return isinstance(target, AbstractEventLoop)


def instrument(loop: AbstractEventLoop) -> Undo:
    """Watches a loop, running or not, under this configuration and those that follow."""
    return Undo(loops.keep(loop))
