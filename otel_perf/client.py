"""Wrapping a client of one's own (vector search, document store, ...) so that its calls are measured as queries."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Coroutine, Mapping
from types import CoroutineType
from typing import Any, TypeVar, cast

from otel_perf import guard
from otel_perf.handle import Measured
from otel_perf.telemetry.operation import QUERY, Operation

__all__ = ["wrap"]

T = TypeVar("T")


def wrap(client: T, system: str, methods: Mapping[str, str], collection: str | None = None) -> T:
    """Answers a stand-in for `client` whose named methods are measured; everything else is the client's own.

    Args:
        client: any object, sync or async.
        system: `db.system.name` of its calls.
        methods: method name -> operation name, such as `{"vector_search": "search"}`.
        collection: `db.collection.name`, where it is always the same.

    Raises:
        AttributeError: when the client has no method of that name.
    """
    for method in methods:
        if not callable(getattr(client, method, None)):
            message = f"{type(client).__name__} has no method {method!r}; it has: {', '.join(_known(client))}"
            raise AttributeError(message)  # noqa: TRY004  # a name that is missing, whatever is there instead
    kind: type = type(client)
    makers = {
        name: functools.partial(_method, system=system, name=operation, collection=collection)
        for name, operation in methods.items()
    }
    return cast("T", _stand_in(kind)(client, makers))


def _known(client: object) -> list[str]:
    # Statically, since properties may connect to somewhere.
    named = [name for name in dir(client) if not name.startswith("_")]
    return [name for name in named if callable(inspect.getattr_static(client, name, None))]


def _method(method: Callable[..., Any], system: str, name: str, collection: str | None) -> Callable[..., Any]:
    span_name = f"{name} {collection}" if collection else name
    handle = Measured(QUERY, span_name, (system, name, collection))
    if inspect.iscoroutinefunction(method) or inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
        return handle(method)

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        begun = handle.begin()
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
        begun.stop()
        return answer

    return call


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
    begun.stop()
    return value


def _done(begun: Operation, future: Any) -> None:
    try:
        if future.cancelled():
            begun.fail("cancelled")
        begun.stop(None if future.cancelled() else future.exception())
    except Exception:
        guard.note("the end of a future")


class _Measured:
    """Stands in for a client; reads, writes and `isinstance` go through to it."""

    __slots__ = ("__weakref__", "_client", "_makers", "_methods")

    def __init__(self, client: Any, makers: Mapping[str, Callable[[Any], Callable[..., Any]]]) -> None:
        object.__setattr__(self, "_client", client)
        object.__setattr__(self, "_makers", makers)
        object.__setattr__(self, "_methods", {name: make(getattr(client, name)) for name, make in makers.items()})

    def __getattribute__(self, name: str) -> Any:
        methods = object.__getattribute__(self, "_methods")
        if name in methods:
            return methods[name]
        # `__class__` too, so that isinstance checks see the client's own class.
        return getattr(object.__getattribute__(self, "_client"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_client"), name, value)
        _renew(self, name)

    def __delattr__(self, name: str) -> None:
        delattr(object.__getattribute__(self, "_client"), name)
        _renew(self, name)

    def __repr__(self) -> str:
        return f"<measured {object.__getattribute__(self, '_client')!r}>"


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
