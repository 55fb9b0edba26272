"""Wrapping a client of one's own (vector search, document store, ...) so that its calls are measured as queries."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Coroutine, Mapping
from types import CoroutineType
from typing import Any, TypeVar, cast

from otel_perf import conventions as c
from otel_perf import guard
from otel_perf.arguments import Calls, Told, takes
from otel_perf.telemetry.operation import Operation

__all__ = ["wrap"]

T = TypeVar("T")


def wrap(client: T, methods: Mapping[str, str], told: Told) -> T:
    """Answers a stand-in for `client` whose named methods are measured; everything else is the client's own.

    Args:
        client: any object, sync or async.
        methods: method name -> operation name, such as `{"vector_search": "search"}`; `{"index.query": "search"}` is
            the method of an object that the client holds.
        told: what all its calls have in common, and which of their arguments tell more.

    Raises:
        AttributeError: when the client has no method of that name.
        TypeError: when no method takes an argument of that name.
    """
    inner: dict[str, dict[str, str]] = {}
    for method in methods:
        holder, _, rest = method.partition(".")
        if rest:
            inner.setdefault(holder, {})[rest] = methods[method]
        if not (hasattr(client, holder) if rest else callable(getattr(client, method, None))):
            message = f"{type(client).__name__} has no method {method!r}; it has: {', '.join(_known(client))}"
            raise AttributeError(message)
    own = {name: operation for name, operation in methods.items() if "." not in name}
    for argument in (told.collection_argument, told.filter_argument):
        if argument and own and not any(takes(getattr(client, name), argument) for name in own):
            raise TypeError(f"no measured method of {type(client).__name__} has an argument {argument!r}")
    makers: dict[str, Callable[[Any], Any]] = {
        name: functools.partial(_method, name=operation, told=told) for name, operation in own.items()
    }
    holders: dict[str, Callable[[Any], Any]] = {
        name: functools.partial(wrap, methods=of_it, told=told) for name, of_it in inner.items()
    }
    for name, hold in holders.items():
        hold(getattr(client, name))  # what is wrong with them is told at once
    kind: type = type(client)
    return cast("T", _stand_in(kind)(client, makers, holders))


def _known(client: object) -> list[str]:
    # Statically, since properties may connect to somewhere.
    named = [name for name in dir(client) if not name.startswith("_")]
    return [name for name in named if callable(inspect.getattr_static(client, name, None))]


def _method(method: Callable[..., Any], name: str, told: Told) -> Callable[..., Any]:
    calls = Calls(method, name, told)
    if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
        return calls.stream(method)
    if inspect.iscoroutinefunction(method):
        return _coroutine(calls, method)
    return _plain(calls, method)


def _coroutine(calls: Calls, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        begun = calls.of(args, kwargs).begin()
        try:
            answer = await method(*args, **kwargs)
        except BaseException as error:
            begun.stop(error)
            raise
        _stop(begun, answer)
        return answer

    return coroutine


def _plain(calls: Calls, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        begun = calls.of(args, kwargs).begin()
        try:
            answer = method(*args, **kwargs)
        except BaseException as error:
            begun.stop(error)
            raise
        # By the class alone: the answer is the application's, and to ask it for an attribute may fail.
        kind = cast("type[object]", type(answer))
        if issubclass(kind, CoroutineType):  # a plain method that answers a coroutine
            begun.deactivate()
            return _finishing(answer, begun)
        if hasattr(kind, "add_done_callback"):  # a future: its answer comes later, and it must stay what it is
            begun.deactivate()
            _await(answer, begun)
            return answer
        _stop(begun, answer)
        return answer

    return call


def _stop(begun: Operation, answer: Any) -> None:
    """Ends a call; a list that it answered says how many there were."""
    if issubclass(cast("type[object]", type(answer)), (list, tuple)):
        try:
            begun.set(c.DB_ROWS, len(answer))
        except Exception:
            guard.note("counting what a client answered")
    begun.stop()


def _await(future: Any, begun: Operation) -> None:
    try:
        future.add_done_callback(functools.partial(_done, begun))
    except Exception:
        begun.stop()
        guard.note("waiting for a future")


def _finishing(answer: CoroutineType[Any, Any, Any], begun: Operation) -> Any:
    coroutine: Any = _finish(answer, begun)
    coroutine.__name__, coroutine.__qualname__ = answer.__name__, answer.__qualname__
    # Cancelled before it started, it never comes to await the answer, which Python would complain about.
    weakref.finalize(coroutine, _discard, answer).atexit = False
    return coroutine


def _discard(answer: CoroutineType[Any, Any, Any]) -> None:
    if inspect.getcoroutinestate(answer) == inspect.CORO_CREATED:
        answer.close()


async def _finish(answer: Coroutine[Any, Any, Any], begun: Operation) -> Any:
    begun.activate()
    try:
        value = await answer
    except BaseException as error:
        begun.stop(error)
        raise
    _stop(begun, value)
    return value


def _done(begun: Operation, future: Any) -> None:
    try:
        if future.cancelled():
            begun.fail("cancelled")
        error = None if future.cancelled() else future.exception()
        if error is None and not future.cancelled():
            _stop(begun, future.result())
        else:
            begun.stop(error)
    except Exception:
        guard.note("the end of a future")


class _Measured:
    """Stands in for a client; reads, writes and `isinstance` go through to it."""

    __slots__ = ("__weakref__", "_client", "_held", "_holders", "_makers", "_methods")

    def __init__(
        self, client: Any, makers: Mapping[str, Callable[[Any], Callable[..., Any]]],
        holders: Mapping[str, Callable[[Any], Any]],
    ) -> None:  # fmt: skip
        object.__setattr__(self, "_client", client)
        object.__setattr__(self, "_makers", makers)
        object.__setattr__(self, "_holders", holders)
        # What the client holds under each of those names, and our stand-in for it.
        object.__setattr__(self, "_held", {})
        object.__setattr__(self, "_methods", {name: make(getattr(client, name)) for name, make in makers.items()})

    def __getattribute__(self, name: str) -> Any:
        methods = object.__getattribute__(self, "_methods")
        if name in methods:
            return methods[name]
        # `__class__` too, so that isinstance checks see the client's own class.
        found = getattr(object.__getattribute__(self, "_client"), name)
        hold = object.__getattribute__(self, "_holders").get(name)
        return found if hold is None else _held(self, name, found, hold)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_client"), name, value)
        _renew(self, name)

    def __delattr__(self, name: str) -> None:
        delattr(object.__getattribute__(self, "_client"), name)
        _renew(self, name)

    def __repr__(self) -> str:
        return f"<measured {object.__getattribute__(self, '_client')!r}>"


def _held(stand_in: _Measured, name: str, found: Any, hold: Callable[[Any], Any]) -> Any:
    """The stand-in for an object that the client holds; another one where a property answers another object."""
    held = object.__getattribute__(stand_in, "_held")
    known = held.get(name)
    if known is None or known[0] is not found:
        try:
            known = held[name] = found, hold(found)
        except (AttributeError, TypeError):  # it is something else now
            return found
    return known[1]


def _renew(stand_in: _Measured, name: str) -> None:
    """Measures what the client has under this name now, where it is one of the methods."""
    make = object.__getattribute__(stand_in, "_makers").get(name)
    if make is None:
        return
    method = getattr(object.__getattribute__(stand_in, "_client"), name, None)
    methods = object.__getattribute__(stand_in, "_methods")
    if callable(method):
        methods[name] = make(method)
    else:
        methods.pop(name, None)


# What Python looks up on the class, not on the object: a client that is a context manager, a container or callable
# stays one.
_FORWARDED = (
    "__aenter__", "__aexit__", "__aiter__", "__anext__", "__await__", "__bool__", "__call__", "__contains__",
    "__delitem__", "__dir__", "__enter__", "__eq__", "__exit__", "__getitem__", "__hash__", "__iter__", "__len__",
    "__next__", "__setitem__", "__str__",
)  # fmt: skip


@functools.lru_cache(maxsize=256)
def _stand_in(client: type) -> type[_Measured]:
    """A class whose special methods are those that this class of clients has."""
    forwarded = {name: _forward(name) for name in _FORWARDED if getattr(client, name, None) is not None}
    return type(f"Measured{client.__name__}", (_Measured,), {"__slots__": (), **forwarded})


def _forward(name: str) -> Callable[..., Any]:
    def call(self: _Measured, /, *args: Any, **kwargs: Any) -> Any:
        methods = object.__getattribute__(self, "_methods")
        client = object.__getattribute__(self, "_client")
        answer = (methods.get(name) or getattr(client, name))(*args, **kwargs)
        # `with client as c` often answers the client itself: that must be the measured one.
        return self if answer is client else answer

    async def enter(self: _Measured) -> Any:
        client = object.__getattribute__(self, "_client")
        answer = await client.__aenter__()
        return self if answer is client else answer

    return enter if name == "__aenter__" else call
