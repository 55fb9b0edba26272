"""Wrapping a client of one's own (vector search, document store, ...) so that its calls are measured as queries."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from otel_perf.handle import Measured
from otel_perf.telemetry.operation import QUERY

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
            known = [name for name in dir(client) if not name.startswith("_") and callable(getattr(client, name, None))]
            raise AttributeError(f"{type(client).__name__} has no method {method!r}; it has: {', '.join(known)}")
    measured = {name: _method(getattr(client, name), system, op, collection) for name, op in methods.items()}
    return cast("T", _Measured(client, measured))


def _method(method: Callable[..., Any], system: str, name: str, collection: str | None) -> Callable[..., Any]:
    span_name = f"{name} {collection}" if collection else name
    handle = Measured(QUERY, span_name, (system, name, collection))
    if not inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = handle.begin()
            try:
                answer = method(*args, **kwargs)
            except BaseException as error:
                begun.stop(error)
                raise
            if inspect.isawaitable(answer):  # a plain method that answers a coroutine
                begun.deactivate()
                return _finish(answer, begun)
            begun.stop()
            return answer

        return call
    return handle(method)


async def _finish(answer: Any, begun: Any) -> Any:
    begun.activate()
    try:
        value = await answer
    except BaseException as error:
        begun.stop(error)
        raise
    begun.stop()
    return value


class _Measured:
    """Stands in for a client; reads, writes and `isinstance` go through to it."""

    __slots__ = ("_client", "_methods")

    def __init__(self, client: Any, methods: dict[str, Callable[..., Any]]) -> None:
        object.__setattr__(self, "_client", client)
        object.__setattr__(self, "_methods", methods)

    @property
    def __class__(self) -> type:  # type: ignore[override]  # so that isinstance checks see the client's own class
        return type(object.__getattribute__(self, "_client"))

    def __getattr__(self, name: str) -> Any:
        methods = object.__getattribute__(self, "_methods")
        if name in methods:
            return methods[name]
        return getattr(object.__getattribute__(self, "_client"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_client"), name, value)

    def __repr__(self) -> str:
        return f"<measured {object.__getattribute__(self, '_client')!r}>"
