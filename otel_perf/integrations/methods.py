"""Methods of any kind (plain, coroutine, generator, async generator), measured; each stays of its kind."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol

from otel_perf import guard
from otel_perf.integrations.streams import End, drain, drain_later
from otel_perf.telemetry.operation import Operation

__all__ = ["Calls", "measured", "stream_of"]


class Calls(Protocol):
    """What becomes of the operations of a library's calls."""

    def begin(
        self, of: Any, args: tuple[Any, ...], options: Mapping[str, Any], activate: bool, /
    ) -> Operation | None: ...

    def answered(self, begun: Operation, answer: Any, /) -> None: ...

    def failed(self, begun: Operation, error: BaseException, /) -> None: ...

    def streamed(self, begun: Operation, error: BaseException | None, count: int, /) -> None: ...


def measured(calls: Calls, last: type | None = None) -> Callable[[Any], Any]:
    """What wraps a method so that its calls are measured; `last` is what an async generator yields behind its end."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(original):
            return _async_stream(calls, original, last)
        if inspect.isgeneratorfunction(original):
            return _stream(calls, original)
        return (_coroutine if inspect.iscoroutinefunction(original) else _plain)(calls, original)

    return wrap


def _begin(
    calls: Calls, of: Any, args: tuple[Any, ...], options: Mapping[str, Any], activate: bool
) -> Operation | None:
    try:
        return calls.begin(of, args, options, activate)
    except Exception:
        guard.note("starting a measured call")
        return None


def _plain(calls: Calls, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def plain(self: Any, /, *args: Any, **options: Any) -> Any:
        begun = _begin(calls, self, args, options, True)
        if begun is None:
            return original(self, *args, **options)
        try:
            answer = original(self, *args, **options)
        except BaseException as error:
            calls.failed(begun, error)
            raise
        calls.answered(begun, answer)
        return answer

    return plain


def _coroutine(calls: Calls, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def coroutine(self: Any, /, *args: Any, **options: Any) -> Any:
        begun = _begin(calls, self, args, options, True)
        if begun is None:
            return await original(self, *args, **options)
        try:
            answer = await original(self, *args, **options)
        except BaseException as error:
            calls.failed(begun, error)
            raise
        calls.answered(begun, answer)
        return answer

    return coroutine


def _stream(calls: Calls, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def generator(self: Any, /, *args: Any, **options: Any) -> Generator[Any, Any, Any]:
        begun = _begin(calls, self, args, options, False)
        source: Generator[Any, Any, Any] = original(self, *args, **options)
        return (yield from source if begun is None else drain(source, begun, calls.streamed))

    return generator


def _async_stream(calls: Calls, original: Callable[..., Any], last: type | None) -> Callable[..., Any]:
    @functools.wraps(original)
    async def generator(self: Any, /, *args: Any, **options: Any) -> Any:
        begun = _begin(calls, self, args, options, False)
        source = original(self, *args, **options)
        stream = source if begun is None else drain_later(source, begun, calls.streamed, last)
        try:
            async for item in stream:
                yield item
        finally:
            await stream.aclose()

    return generator


def stream_of(calls: Calls, original: Callable[..., Any]) -> Callable[..., Any]:
    """For a plain method that asks at once and answers a generator of what comes: both are one operation."""

    @functools.wraps(original)
    def pages(self: Any, /, *args: Any, **options: Any) -> Any:
        begun = _begin(calls, self, args, options, False)
        if begun is None:
            return original(self, *args, **options)
        begun.activate()
        try:
            source = original(self, *args, **options)
        except BaseException as error:
            calls.failed(begun, error)
            raise
        begun.deactivate()
        stream = _primed(source, begun, calls.streamed)
        next(stream)  # it has begun, so that it ends as well, whether anybody asks it for something or not
        return stream

    return pages


def _primed(source: Any, begun: Operation, end: End) -> Any:
    try:
        yield None
    except GeneratorExit:
        source.close()
        end(begun, None, 0)
        raise
    yield from drain(source, begun, end)
