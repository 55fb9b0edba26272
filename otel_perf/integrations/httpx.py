"""httpx, sync and async clients.

Its official extension points see too little: event hooks are not called when a request fails, and a transport sees
each redirect on its own and ends before the body. `Client.send` and `AsyncClient.send` are the public methods that
every call goes through once, so they are wrapped: one span a call, redirects, authentication and body included. A
streamed response is measured until it is closed.

Within `measure.external(...)` each call has a span of its own below, and the API is counted once, by the outer
operation, which fails with the last call in it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
from opentelemetry import propagate

from otel_perf import conventions as c
from otel_perf import guard, redaction
from otel_perf.integrations.patch import Patch, Patches
from otel_perf.integrations.registry import Undo
from otel_perf.telemetry import operation, runtime
from otel_perf.telemetry.operation import EXTERNAL, HTTP_CLIENT, Operation

__all__ = ["instrument", "matches"]

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_PORTS = {"http": 80, "https": 443}


def matches(target: object) -> bool:
    """Whether this is a client."""
    return isinstance(target, (httpx.Client, httpx.AsyncClient))


def instrument(target: httpx.Client | httpx.AsyncClient | None = None) -> Undo:
    """Measures the calls of one client, or with None of all clients, `httpx.get` and the like included."""
    return _patches.take(target)


class _Call:
    """One call in flight: its operations, from innermost to outermost, and the `measure.external` around it."""

    __slots__ = ("error_type", "http", "operations", "outer")

    def __init__(self, http: Operation | None, outer: Operation | None, external: Operation | None) -> None:
        self.http = http
        self.outer = outer
        self.error_type: str | None = None
        self.operations = [each for each in (http, external) if each is not None]

    def answered(self, response: httpx.Response) -> None:
        """Takes over what the response says; from 400 on its status is the error."""
        try:
            status = response.status_code
            if self.http is not None:
                self.http.label(c.HTTP_STATUS, status)
                self.http.label(c.PROTOCOL_VERSION, response.http_version.rpartition("/")[2])
            if status >= 400:
                self.fail(str(status))
        except Exception:
            guard.note("reading an httpx response")

    def fail(self, error: BaseException | str) -> None:
        """Marks the call as failed; the first error counts."""
        if self.error_type is None:
            self.error_type = error if isinstance(error, str) else redaction.exception_type(error)
        for each in self.operations:
            each.fail(error)

    def stop(self, error: BaseException | None = None) -> None:
        """Ends the call; the block around it takes over whether it failed, so that a retry makes good."""
        try:
            if error is not None:
                self.fail(error)
            if self.outer is not None:
                self.outer.last_error = self.error_type
        except Exception:
            guard.note("ending an httpx call")
        for each in self.operations:
            each.stop(error)

    def deactivate(self) -> None:
        for each in self.operations:
            each.deactivate()


def _begin(client: object, request: httpx.Request) -> _Call | None:
    if runtime.current is None or not _patches.measures(client):
        return None
    above = operation.current()
    if above is not None and above.within("http_client"):
        return None
    outer = _external(above)
    method = request.method if request.method in _METHODS else "_OTHER"
    url = request.url
    external = None
    if outer is None:
        external = operation.start(EXTERNAL, method, (url.host, method), activate=False, span=False)
    if _upstream_active(client):
        return _Call(None, outer, external)
    port = url.port or _PORTS.get(url.scheme)
    attributes = {c.URL_FULL: str(url), c.PEER_SERVICE: url.host}
    if method != request.method:
        attributes[c.HTTP_METHOD_ORIGINAL] = request.method
    labels = (method, url.host, port, None, url.scheme)
    http = operation.start(HTTP_CLIENT, method, labels, attributes)
    try:
        propagate.inject(request.headers)
    except Exception:
        guard.note("passing the trace context on")
    return _Call(http, outer, external)


def _external(above: Operation | None) -> Operation | None:
    while above is not None:
        if above.kind is EXTERNAL and not above.stopped:
            return above
        above = above.parent
    return None


def _upstream_active(client: object) -> bool:
    # opentelemetry-instrumentation-httpx makes the span, the metric and the headers itself.
    module: Any = sys.modules.get("opentelemetry.instrumentation.httpx")
    if module is None:
        return False
    if getattr(client, "_is_instrumented_by_opentelemetry", False):
        return True
    return bool(module.HTTPXClientInstrumentor().is_instrumented_by_opentelemetry)


def _started(client: object, request: httpx.Request) -> _Call | None:
    try:
        return _begin(client, request)
    except Exception:
        guard.note("starting an httpx call")
        return None


class _SyncBody(httpx.SyncByteStream):
    """A streamed body whose end is the end of the call."""

    def __init__(self, stream: httpx.SyncByteStream, call: _Call) -> None:
        self._stream = stream
        self._call = call

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except Exception as error:
            self._call.fail(error)
            raise

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._call.stop()


class _AsyncBody(httpx.AsyncByteStream):
    """The same for an async client."""

    def __init__(self, stream: httpx.AsyncByteStream, call: _Call) -> None:
        self._stream = stream
        self._call = call

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except Exception as error:
            self._call.fail(error)
            raise

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._call.stop()


def _finish(call: _Call, response: httpx.Response, streamed: bool) -> None:
    call.answered(response)
    if not streamed or response.is_closed:
        call.stop()
        return
    call.deactivate()
    if isinstance(response.stream, httpx.SyncByteStream):
        response.stream = _SyncBody(response.stream, call)
    else:
        response.stream = _AsyncBody(response.stream, call)


def _sync_send(original: Callable[..., httpx.Response]) -> Callable[..., httpx.Response]:
    @functools.wraps(original)
    def send(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        call = _started(self, request)
        if call is None:
            return original(self, request, **options)
        try:
            response = original(self, request, **options)
        except BaseException as error:
            call.stop(error)
            raise
        _finish(call, response, bool(options.get("stream")))
        return response

    return send


def _async_send(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def send(self: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        call = _started(self, request)
        if call is None:
            response: httpx.Response = await original(self, request, **options)
            return response
        try:
            response = await original(self, request, **options)
        except BaseException as error:
            call.stop(error)
            raise
        _finish(call, response, bool(options.get("stream")))
        return response

    return send


_patches = Patches(lambda: [Patch(httpx.Client, "send", _sync_send), Patch(httpx.AsyncClient, "send", _async_send)])
