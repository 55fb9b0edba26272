"""A span that is current for a block, or for each call of a function, without a generator behind it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode

from otel_perf.telemetry import sdk

if TYPE_CHECKING:
    from otel_perf.telemetry.tracer import LeanTracer

__all__ = ["CurrentSpan"]

# Bound once: they are called for every span.
_get_context, _set_context, _reset_context = sdk.get_context, sdk.set_context, sdk.reset_context
_SPAN_KEY = sdk.SPAN_KEY


class CurrentSpan:
    """A span that is current for a block, or for each call of a function."""

    __slots__ = ("_arguments", "_end_on_exit", "_span", "_token", "_tracer")

    def __init__(self, tracer: LeanTracer, arguments: tuple[Any, ...], end_on_exit: bool) -> None:
        self._tracer = tracer
        self._arguments = arguments
        self._end_on_exit = end_on_exit

    def __enter__(self) -> Span:
        span = self._span = self._tracer.start_span(*self._arguments)
        self._token = _set_context(Context({**_get_context(), _SPAN_KEY: span}))
        return span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        span = self._span
        try:
            _reset_context(self._token)
        except ValueError:
            otel_context.detach(self._token)  # it fails again, and logs it as the SDK does
        try:
            if isinstance(error, Exception) and span.is_recording():
                if self._arguments[6]:
                    span.record_exception(error)
                if self._arguments[7]:
                    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        finally:
            if self._end_on_exit:
                span.end()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Makes a function, coroutine functions included, each of whose calls is a span."""
        of = self._tracer, self._arguments, self._end_on_exit
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def waited(*args: Any, **kwargs: Any) -> Any:
                with CurrentSpan(*of):
                    return await function(*args, **kwargs)

            return waited

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with CurrentSpan(*of):
                return function(*args, **kwargs)

        return called
