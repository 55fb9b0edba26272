"""The handle that `measure` answers: context manager, async context manager and decorator in one object."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from types import TracebackType
from typing import Any, TypeVar, cast

from otel_perf import conventions as c
from otel_perf.telemetry import operation
from otel_perf.telemetry.operation import Kind, Operation

__all__ = ["Measured"]

F = TypeVar("F", bound=Callable[..., Any])


class Measured:
    """A piece of work to be measured: use it with `with`, with `async with`, or as a decorator, as often as needed."""

    __slots__ = ("_attributes", "_kind", "_labels", "_name", "_open")

    def __init__(
        self, kind: Kind, name: str | None, labels: tuple[Any, ...] = (), attributes: Mapping[str, Any] | None = None
    ) -> None:
        self._kind = kind
        self._name = name
        self._labels = labels
        self._attributes = attributes or {}
        # One handle may be entered by several threads and tasks at once; each takes out its own.
        self._open: list[Operation] = []

    def begin(self, *, activate: bool = True) -> Operation:
        """Starts the operation by hand; the caller stops it."""
        return operation.start(self._kind, self._name or "operation", self._labels, self._attributes, activate=activate)

    def __enter__(self) -> Operation:
        begun = self.begin()
        self._open.append(begun)
        return begun

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        mine = self._mine()
        if mine is not None:
            mine.stop(error)

    async def __aenter__(self) -> Operation:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _mine(self) -> Operation | None:
        mine = operation.current()
        while mine is not None:
            if mine in self._open:
                self._open.remove(mine)
                return mine
            mine = mine.parent
        # Stopped by hand within the block, or left in another context than it was entered in, as in a sync dependency
        # of FastAPI with a `yield`: there what is around it (the request) tells whose it is.
        around = operation.current()
        opened = self._open[::-1]
        mine = next((each for each in opened if each.stopped), None)
        mine = mine or next((each for each in opened if each.parent is around), None)
        mine = mine or next(iter(opened), None)
        if mine is not None:
            self._open.remove(mine)
        return mine

    def __call__(self, function: F) -> F:
        """Decorates a function, coroutine function, generator function or async generator function.

        Raises:
            TypeError: for a class, a `staticmethod` object or anything else that is no function.
        """
        given: object = function
        if isinstance(given, (type, staticmethod, classmethod)) or not callable(given):
            raise TypeError(
                f"measure cannot decorate {_what(function)}: put it on the function itself, below the others"
            )
        return cast("F", _wrap(self if self._name is not None else self._named_after(function), function))

    def _named_after(self, function: Callable[..., Any]) -> Measured:
        name = _qualified_name(function)
        return Measured(self._kind, name, (name, *self._labels[1:]), {c.CODE_FUNCTION: name, **self._attributes})


def _what(given: object) -> str:
    return "a class" if isinstance(given, type) else f"a {type(given).__name__} object"


def _qualified_name(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__).replace("<locals>.", "")
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"


def _wrap(measured: Measured, function: Callable[..., Any]) -> Callable[..., Any]:
    code = _code(function)
    if inspect.isasyncgenfunction(code):
        return _wrap_async_generator(measured, function)
    if inspect.isgeneratorfunction(code):
        return _wrap_generator(measured, function)
    if inspect.iscoroutinefunction(code):
        return _wrap_coroutine(measured, function)

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        begun = measured.begin()
        try:
            answer = function(*args, **kwargs)
        except BaseException as error:
            begun.stop(error)
            raise
        begun.stop()
        return answer

    return plain


def _code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function whose kind decides: of a partial the function in it, of a callable object its `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return type(function).__call__


def _wrap_coroutine(measured: Measured, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        begun = measured.begin()
        try:
            answer = await function(*args, **kwargs)
        except BaseException as error:
            begun.stop(error)
            raise
        begun.stop()
        return answer

    return coroutine


def _wrap_generator(measured: Measured, function: Callable[..., Any]) -> Callable[..., Any]:
    # The operation is current only while the generator's own code runs: held across a `yield` it would leak into the
    # caller, and a generator that is left early would leave it there.
    @functools.wraps(function)
    def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        source: Generator[Any, Any, Any] = function(*args, **kwargs)
        begun = measured.begin(activate=False)
        failure: BaseException | None = None
        sent: Any = None
        thrown: BaseException | None = None
        try:
            while True:
                begun.activate()
                try:
                    item = source.send(sent) if thrown is None else source.throw(thrown)
                except StopIteration as stop:
                    return stop.value
                finally:
                    begun.deactivate()
                if isinstance(thrown, GeneratorExit):
                    raise RuntimeError("generator ignored GeneratorExit")  # noqa: TRY004, TRY301  # in Python's own words
                try:
                    sent, thrown = (yield item), None
                except BaseException as error:  # `close` too: what the generator makes of it is its own affair
                    sent, thrown = None, error
        except GeneratorExit:  # left early, which is no failure
            raise
        except BaseException as error:
            failure = error
            raise
        finally:
            begun.stop(failure)
            failure = thrown = None  # a failure and this frame must not keep each other alive

    return generator


def _wrap_async_generator(measured: Measured, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        source: AsyncGenerator[Any, Any] = function(*args, **kwargs)
        begun = measured.begin(activate=False)
        failure: BaseException | None = None
        sent: Any = None
        thrown: BaseException | None = None
        try:
            while True:
                begun.activate()
                try:
                    item = await (source.asend(sent) if thrown is None else source.athrow(thrown))
                except StopAsyncIteration:
                    return
                finally:
                    begun.deactivate()
                try:
                    sent, thrown = (yield item), None
                except GeneratorExit:
                    begun.activate()
                    try:
                        await source.aclose()
                    finally:
                        begun.deactivate()
                    raise
                except BaseException as error:
                    sent, thrown = None, error
        except GeneratorExit:
            raise
        except BaseException as error:
            failure = error
            raise
        finally:
            begun.stop(failure)
            failure = thrown = None  # a failure and this frame must not keep each other alive

    return generator
