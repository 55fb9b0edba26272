"""The client of aiohttp.

Its official hooks, `TraceConfig`, do not see a body that is read as it comes, nor the failures of one, and can only be
given to sessions that are yet to be made. `ClientSession._request` is what every call goes through once, redirects
included, so that is wrapped. The headers are put on by a client middleware, which sees each request on its own. The
end of the body is told by its connection: aiohttp gives it back when the body ends, is closed or is left alone.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from typing import Any

import aiohttp
from yarl import URL

from otel_perf import guard, redaction
from otel_perf.integrations import http_call
from otel_perf.integrations.http_call import Body, Call
from otel_perf.integrations.patch import Patch, Patches
from otel_perf.integrations.registry import Undo
from otel_perf.telemetry import runtime

__all__ = ["elsewhere", "instrument", "matches"]

_UPSTREAM = "opentelemetry.instrumentation.aiohttp_client"
_TIMEOUT = redaction.exception_type(asyncio.TimeoutError())


def matches(target: object) -> bool:
    """Whether this is a session."""
    return isinstance(target, aiohttp.ClientSession)


def instrument(target: aiohttp.ClientSession | None = None) -> Undo:
    """Measures the calls of one session, or with None of all sessions, `aiohttp.request` included."""
    return _patches.take(target)


def elsewhere() -> str | None:
    """Who else measures all sessions."""
    module: Any = sys.modules.get(_UPSTREAM)
    if module is None or not module.AioHttpClientInstrumentor().is_instrumented_by_opentelemetry:
        return None
    return "opentelemetry-instrumentation-aiohttp-client"


def _foreign(session: aiohttp.ClientSession) -> bool:
    # Upstream measures by trace configurations, which may be given to one session only.
    hooks: list[Any] = [hook for each in session.trace_configs for hook in each.on_request_start]
    return any(getattr(hook, "__module__", None) == _UPSTREAM for hook in hooks)


def _address(session: Any, target: Any, parameters: Any) -> str:
    try:
        url = target if isinstance(target, URL) else URL(target)
        if not url.absolute:
            url = session._build_url(url)
        return str(url.update_query(parameters) if parameters else url)
    except (AttributeError, TypeError, ValueError):  # it is no address: aiohttp will say so, and the call has failed
        return ""


def _start(session: Any, method: Any, target: Any, options: dict[str, Any]) -> Call | None:
    call = None
    try:
        foreign = _UPSTREAM in sys.modules and _foreign(session)
        address = _address(session, target, options.get("params"))
        call = http_call.start(str(method).upper(), address, "aiohttp", foreign=foreign)
        if call is not None and not foreign:
            given = options.get("middlewares")
            before = getattr(session, "_middlewares", ()) if given is None else given
            options["middlewares"] = (*before, functools.partial(_carry, call))
    except Exception:
        guard.note("starting a call of aiohttp")
    return call


async def _carry(call: Call, request: aiohttp.ClientRequest, handler: Callable[..., Any]) -> Any:
    """Puts the trace context on each request to a host that may have it; a redirect begins without."""
    call.reroute(None, request.headers, str(request.url))
    return await handler(request)


def _request(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def request(self: Any, method: str, str_or_url: Any, **options: Any) -> aiohttp.ClientResponse:
        response: aiohttp.ClientResponse
        wanted = runtime.current is not None and (_patches.everything or _patches.measures(self))
        call = _start(self, method, str_or_url, options) if wanted else None
        if call is None:
            response = await original(self, method, str_or_url, **options)
            return response
        try:
            response = await original(self, method, str_or_url, **options)
        except BaseException as error:
            _fail(call, error)
            raise
        _finish(call, response)
        return response

    return request


def _fail(call: Call, error: BaseException) -> None:
    # `raise_for_status` of the session; an answer that is no HTTP has a status too, which nobody sent.
    if isinstance(error, aiohttp.ClientResponseError) and error.status >= 400 and error.__cause__ is None:
        call.answered(error.status, None)
    call.stop(error)


def _finish(call: Call, response: aiohttp.ClientResponse) -> None:
    try:
        version = response.version
        call.answered(response.status, None if version is None else f"{version.major}.{version.minor}")
        connection = response.connection
        if connection is not None and response.status != 101:
            # The callback holds the body: where it is dropped without a call, that ends the call.
            connection.add_callback(functools.partial(_ended, call.stream(), response.content))
            return
    except Exception:
        guard.note("reading a response of aiohttp")
    call.stop()


def _ended(body: Body, content: aiohttp.StreamReader) -> None:
    """The body ended, broke off, was closed or was left alone."""
    call = body.call
    try:
        error = content.exception()
        if error is not None and not _closed(error):
            call.fail(error)
        elif not content.is_eof():
            raised = sys.exc_info()[1]
            if raised is not None and _raised_by(raised, content):
                call.fail(raised)
            elif getattr(getattr(content, "_timer", None), "_cancelled", False):
                call.fail(_TIMEOUT)
    except Exception:
        guard.note("reading a body of aiohttp")
    call.stop()


def _closed(error: BaseException) -> bool:
    """Whether this is how aiohttp marks a body that its reader has closed."""
    return type(error) is aiohttp.ClientConnectionError and error.args == ("Connection closed",)


def _raised_by(error: BaseException, content: aiohttp.StreamReader) -> bool:
    """Whether an exception comes from reading this body, as a cancellation does: the body is not told."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_locals.get("self") is content:
            return True
        trace = trace.tb_next
    return False


_patches = Patches(lambda: [Patch(aiohttp.ClientSession, "_request", _request)])
