"""httpx, sync and async clients.

Its official extension points see too little: event hooks are not called when a request fails, and a transport sees
each redirect on its own and ends before the body. `Client.send` and `AsyncClient.send` are the public methods that
every call goes through once, so they are wrapped: one span a call, redirects, authentication and body included. A
streamed response is measured until it is closed.

A redirect copies the headers of the request, so the method that builds it is wrapped too: the trace context must not
travel on to a stranger. It is private; where it is gone, no context is passed on.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx

from otel_perf import guard
from otel_perf.integrations import http_call
from otel_perf.integrations.http_call import MARK, Body, Call
from otel_perf.integrations.patch import Patch, Patches
from otel_perf.integrations.registry import Undo
from otel_perf.telemetry import runtime

__all__ = ["elsewhere", "instrument", "matches"]

_UPSTREAM = "opentelemetry.instrumentation.httpx"
_VERSIONS = {b"HTTP/1.0": "1.0", b"HTTP/1.1": "1.1", b"HTTP/2": "2", b"HTTP/3": "3"}
_BUILD = "_build_redirect_request"
_TRACEPARENT = b"traceparent"
#: Whether headers are kept in a list as we know it.
_appends = getattr(httpx.Headers({"A": "b"}), "_list", None) == [(b"A", b"a", b"b")]
_redirecting: type | None = next((each for each in httpx.Client.__mro__ if _BUILD in vars(each)), None)


def matches(target: object) -> bool:
    """Whether this is a client."""
    return isinstance(target, (httpx.Client, httpx.AsyncClient))


def instrument(target: httpx.Client | httpx.AsyncClient | None = None) -> Undo:
    """Measures the calls of one client, or with None of all clients, `httpx.get` and the like included."""
    return _patches.take(target)


def elsewhere() -> str | None:
    """Who else measures all clients."""
    module: Any = sys.modules.get(_UPSTREAM)
    if module is None or not module.HTTPXClientInstrumentor().is_instrumented_by_opentelemetry:
        return None
    return "opentelemetry-instrumentation-httpx"


def _foreign(client: object) -> bool:
    # opentelemetry-instrumentation-httpx makes the span, the metric and the headers itself.
    return getattr(client, "_is_instrumented_by_opentelemetry", False) or elsewhere() is not None


def _start(client: Any, request: httpx.Request) -> Call | None:
    try:
        foreign = _UPSTREAM in sys.modules and _foreign(client)
        call = http_call.start(request.method, str(request.url), "httpx", client, foreign=foreign)
    except Exception:
        guard.note("starting an httpx call")
        return None
    if call is not None and _redirecting is not None:
        _carry(call, request)
    return call


def _carry(call: Call, request: httpx.Request) -> None:
    """Puts the context on: a header that is new is appended, which the public way takes several looks for."""
    headers: Any = request.headers
    if not _appends or MARK in vars(request):
        call.carry(request, headers)
        return
    try:
        given = headers._list
        # As they were before.
        names = [name for _, name, _ in given]
        for key, value in call.headers.items():
            name = key.encode("ascii")
            lower = name.lower()
            if lower in names or _TRACEPARENT in names:
                call.carry(request, headers)
                return
            given.append((name, lower, value.encode("ascii")))
        setattr(request, MARK, call.headers)
    except Exception:
        guard.note("passing the trace context on")


class _SyncBody(httpx.SyncByteStream):
    """A streamed body whose end is the end of the call."""

    def __init__(self, stream: httpx.SyncByteStream, body: Body) -> None:
        self._stream = stream
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except Exception as error:
            self._body.call.fail(error)
            raise

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._body.call.stop()


class _AsyncBody(httpx.AsyncByteStream):
    """The same for an async client."""

    def __init__(self, stream: httpx.AsyncByteStream, body: Body) -> None:
        self._stream = stream
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except GeneratorExit:  # whoever read it has enough
            raise
        except BaseException as error:  # cancelled, too
            self._body.call.fail(error)
            raise

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._body.call.stop()


def _finish(call: Call, response: httpx.Response, options: dict[str, Any]) -> None:
    try:
        call.answered(response.status_code, _VERSIONS.get(response.extensions.get("http_version", b"HTTP/1.1")))
    except Exception:
        guard.note("reading an httpx response")
    if not options.get("stream") or response.is_closed:
        call.stop()
    elif isinstance(response.stream, httpx.SyncByteStream):
        response.stream = _SyncBody(response.stream, call.stream())
    else:
        response.stream = _AsyncBody(response.stream, call.stream())


def _sync_send(original: Callable[..., httpx.Response]) -> Callable[..., httpx.Response]:
    @functools.wraps(original)
    def send(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        if runtime.current is None or not (_patches.everything or _patches.measures(self)):
            return original(self, request, **options)
        call = _start(self, request)
        if call is None:
            return original(self, request, **options)
        try:
            response = original(self, request, **options)
        except BaseException as error:
            call.stop(error)
            raise
        _finish(call, response, options)
        return response

    return send


def _async_send(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def send(self: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        response: httpx.Response
        wanted = runtime.current is not None and (_patches.everything or _patches.measures(self))
        call = _start(self, request) if wanted else None
        if call is None:
            response = await original(self, request, **options)
            return response
        try:
            response = await original(self, request, **options)
        except BaseException as error:
            call.stop(error)
            raise
        _finish(call, response, options)
        return response

    return send


def _build_redirect(original: Callable[..., httpx.Request]) -> Callable[..., httpx.Request]:
    @functools.wraps(original)
    def build(self: Any, request: httpx.Request, response: httpx.Response) -> httpx.Request:
        built = original(self, request, response)
        http_call.reroute(self, built, built.headers, str(built.url))
        return built

    return build


def _made() -> list[Patch]:
    patches = [Patch(httpx.Client, "send", _sync_send), Patch(httpx.AsyncClient, "send", _async_send)]
    return patches if _redirecting is None else [*patches, Patch(_redirecting, _BUILD, _build_redirect)]


_patches = Patches(_made)
