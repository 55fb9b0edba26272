"""The engine "upstream": opentelemetry-instrumentation-fastapi over our providers, by the stable names."""

from __future__ import annotations

from typing import Any, cast

from otel_perf.integrations import providers, stability
from otel_perf.integrations.registry import Undo

__all__ = ["require", "wrap"]


class _Shell:
    """What the instrumentor needs of an app. It would build the middlewares anew; this hands it those that exist."""

    def __init__(self, stack: Any) -> None:
        self._stack = stack

    def build_middleware_stack(self) -> Any:
        return self._stack

    def forget(self) -> None:
        """Lets go of the stack: whoever holds what undoes this must not hold the app."""
        self._stack = None


def require() -> Any:
    """The upstream instrumentor.

    Raises:
        ImportError: when it is not installed.
    """
    try:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    except ImportError as error:
        message = "engine='upstream' needs opentelemetry-instrumentation-fastapi: pip install 'otel-perf[upstream]'"
        raise ImportError(message) from error
    return FastAPIInstrumentor


def wrap(stack: Any) -> tuple[Any, Undo]:
    """A middleware stack with the upstream middleware around it, and how to undo what else that changed."""
    instrumentor = require()
    shell = cast("Any", _Shell(stack))
    with stability.opted_in("http"):
        instrumentor.instrument_app(
            shell, tracer_provider=providers.TRACERS, meter_provider=providers.METERS, exclude_spans=["receive", "send"]
        )
        wrapped = shell.build_middleware_stack()
        shell.forget()
    return wrapped, Undo(lambda: instrumentor.uninstrument_app(shell))
