"""requests.

It has one official hook, for responses, which is not called when a request fails. `Session.send` is the public method
that every call goes through, prepared requests included; redirects go through it again, within the first. So it is
wrapped: one span a call, with redirects, authentication, the retries of an adapter, and the body.

A streamed response is measured until its body is read, broken or closed: `Response.iter_content`, which all its ways
to read go through, and `Response.close` say so. What is read from `response.raw` ends with `close()`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import requests

from otel_perf import guard
from otel_perf.integrations import http_call
from otel_perf.integrations.http_call import Body, Call
from otel_perf.integrations.patch import Patch, Patches
from otel_perf.integrations.registry import Undo
from otel_perf.telemetry import runtime

__all__ = ["elsewhere", "instrument", "matches"]

_UPSTREAM = "opentelemetry.instrumentation.requests"
_BODY = "_otel_perf_body"
_NONE = object()
_VERSIONS = {10: "1.0", 11: "1.1", 20: "2", 30: "3"}


def matches(target: object) -> bool:
    """Whether this is a session."""
    return isinstance(target, requests.Session)


def instrument(target: requests.Session | None = None) -> Undo:
    """Measures the calls of one session, or with None of all sessions, `requests.get` and the like included."""
    return _patches.take(target)


def elsewhere() -> str | None:
    """Who else measures all sessions."""
    module: Any = sys.modules.get(_UPSTREAM)
    if module is None or not module.RequestsInstrumentor().is_instrumented_by_opentelemetry:
        return None
    return "opentelemetry-instrumentation-requests"


def _start(request: requests.PreparedRequest) -> Call | None:
    call = None
    try:
        foreign = _UPSTREAM in sys.modules and elsewhere() is not None
        # A redirect is a copy of the request, which shares its hooks.
        call = http_call.start(request.method or "", request.url or "", "requests", request.hooks, foreign=foreign)
        if call is not None:
            call.carry(request, request.headers)
    except Exception:
        guard.note("starting a call of requests")
    return call


def _send(original: Callable[..., requests.Response]) -> Callable[..., requests.Response]:
    @functools.wraps(original)
    def send(self: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        if runtime.current is None or not (_patches.everything or _patches.measures(self)):
            return original(self, request, **options)
        # A redirect goes through here again, a call that a hook makes does too.
        within = http_call.reroute(getattr(request, "hooks", _NONE), request, request.headers, request.url or "")
        call = None if within else _start(request)
        if call is None:
            return original(self, request, **options)
        try:
            response = original(self, request, **options)
        except BaseException as error:
            call.stop(error)
            raise
        _finish(call, response, bool(options.get("stream", self.stream)))
        return response

    return send


def _finish(call: Call, response: requests.Response, streamed: bool) -> None:
    try:
        call.answered(response.status_code, _VERSIONS.get(getattr(response.raw, "version", None) or 0))
        following = response.next
        if following is not None:  # whoever follows the redirect by hand
            call.reroute(following, following.headers, following.url or "")
        if streamed and not getattr(response, "_content_consumed", False):
            vars(response)[_BODY] = call.stream()
            return
    except Exception:
        guard.note("reading a response of requests")
    call.stop()


def _iter_content(original: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    @functools.wraps(original)
    def iter_content(self: requests.Response, *args: Any, **options: Any) -> Iterator[Any]:
        chunks = original(self, *args, **options)
        body = vars(self).get(_BODY)
        return chunks if body is None or body.call.stopped else _watched(chunks, body)

    return iter_content


def _watched(chunks: Iterator[Any], body: Body) -> Iterator[Any]:
    try:
        yield from chunks
    except Exception as error:
        body.call.stop(error)
        raise
    body.call.stop()


def _close(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def close(self: requests.Response) -> None:
        try:
            original(self)
        finally:
            body = vars(self).get(_BODY)
            if body is not None:
                body.call.stop()

    return close


_patches = Patches(
    lambda: [
        Patch(requests.Session, "send", _send),
        Patch(requests.Response, "iter_content", _iter_content),
        Patch(requests.Response, "close", _close),
    ]
)
