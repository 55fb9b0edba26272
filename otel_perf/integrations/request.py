"""One request on its way through an ASGI app: its id, its operation, its response to the last byte.

The clock stops at the last byte of the body. The record is made when the app is done, or when its background tasks
begin, which are no part of the request: what fails in between, such as a commit after the response, is still told.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import Token
from functools import partial
from typing import Any

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext

from otel_perf import conventions as c
from otel_perf import guard
from otel_perf.integrations import foreign, headers, places, plan
from otel_perf.integrations.others import Share
from otel_perf.integrations.plan import Plan
from otel_perf.integrations.routes import Routes, Scope
from otel_perf.integrations.tracebacks import CLIENT_LEFT, client_left, in_background, unhandled
from otel_perf.telemetry import logs, operation, runtime, sdk
from otel_perf.telemetry.operation import JOB, REQUEST, Operation
from otel_perf.telemetry.series import Series
from otel_perf.telemetry.span import LeanSpan

__all__ = ["App", "Message", "Receive", "Request", "Send", "in_progress"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"))
_VERSIONS = frozenset(("1.0", "1.1", "2", "3"))
_ROUTE = c.REQUEST_DURATION.attributes.index(c.HTTP_ROUTE)
_STATUS = c.REQUEST_DURATION.attributes.index(c.HTTP_STATUS)
# Bound once: they are called for every request.
_get_context, _SUPPRESS_KEY, _SPAN_KEY = sdk.get_context, sdk.SUPPRESS_KEY, sdk.SPAN_KEY
_now_ns = time.perf_counter_ns
_LEFT: Scope = {}
_HTTP_ROUTE, _HTTP_STATUS = c.HTTP_ROUTE, c.HTTP_STATUS
_FLAGS = tuple(f"{number:02x}" for number in range(256))
_random_bits = random.getrandbits
_set_request_id, _reset_request_id = logs.request_id.set, logs.request_id.reset


class Request(Operation):
    """One request on its way. It stands in the scope, so that it is found behind middlewares that copy the scope.

    Until it has begun, and where nobody wants it measured, it counts as stopped. What the path of a request comes to is
    written out here: each function, and each object, that is touched once in a request costs more than what it does.
    """

    __slots__ = (
        "_active", "_attached", "_ended_ns", "_headers", "_id_token", "_known", "_left", "_receive", "_routes", "_send",
        "_share", "_trailers", "excluded", "request_id", "routed", "router", "status",
    )  # fmt: skip

    def __init__(self, routes: Routes, share: Share, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(REQUEST, "HTTP", [])
        self.stopped = True
        self.routed = scope
        #: What stands before the first router that it came to; see `routes`.
        self.router: object = None
        self.request_id: str | None = None
        self.status: int | None = None
        self.excluded = False
        self._routes = routes
        self._share = share
        self._receive = receive
        self._send = send
        self._known: Plan | None = None
        self._active: Series | None = None
        self._attached: Token[Context] | None = None
        self._id_token: Token[str | None] | None = None
        self._headers: Any = ()
        self._trailers = False
        self._left = False  # whether the app was told that the client had, before it answered
        self._ended_ns: int | None = None

    def begin(self) -> None:
        """Reads the headers, gives the request its id and starts the operation; never raises."""
        try:
            scope = self.routed
            known = plan.latest
            if known.runtime is not runtime.current or known.propagator is not propagate.get_global_textmap():
                known = plan.current()
            self._known = known
            pairs: Any = scope["headers"]
            if pairs.__class__ is not list:  # ASGI says iterable: the app wants to read them as well
                pairs = scope["headers"] = list(pairs)
            seen: dict[bytes, bytes] = dict(pairs)
            if len(seen) != len(pairs):  # a name that comes twice
                seen = headers.joined(pairs)
            given = seen.get(b"x-request-id")
            request_id = headers.well_formed(given) if given is not None else None
            self.request_id = request_id = request_id or _random_bits(128).to_bytes(16, "big").hex()
            state: Any = scope.setdefault("state", {})
            if type(state) is dict:
                state["request_id"] = request_id
            self._id_token = _set_request_id(request_id)
            in_force = known.runtime
            if in_force is None:
                return
            path = scope["path"]
            if (
                path in known.paths or path.startswith(known.beginnings)
                if known.simple and not scope.get("root_path")
                else known.excludes(scope)
            ):
                self._attached = sdk.set_context(Context({**_get_context(), _SUPPRESS_KEY: True}))
                self.excluded = True
            else:
                self._start(scope, known, in_force, seen)
        except Exception:
            guard.note("starting a request")

    def _start(self, scope: Scope, known: Plan, in_force: runtime.Runtime, seen: dict[bytes, bytes]) -> None:
        # Also where another makes span and metric there is an operation: what is below belongs to it.
        self.stopped = False
        self.started_ns = _now_ns()
        original: str = scope["method"]
        if original in _METHODS:
            self.name = method = original
        else:
            method = "_OTHER"
        scheme = "https" if scope.get("scheme") == "https" else "http"
        version = scope.get("http_version")
        labels: list[Any] = [method, None, None, scheme, version if version in _VERSIONS else None, None]
        self.labels = labels
        share = self._share
        if share.active:
            active = self._active = known.actives.get((method, scheme)) or known.active(method, scheme)
            if active is not None:
                active.record(1)
        if share.duration:
            self.runtime = in_force
        context = _get_context()
        if share.span and not context.get(_SUPPRESS_KEY):
            try:
                self._open(scope, known, in_force, seen, context)
            except Exception:  # of a sampler or a processor, say: the request is measured without a span
                guard.note("opening the span of a request")
        self.activate()
        self.started_ns = _now_ns()

    def _open(
        self, scope: Scope, known: Plan, in_force: runtime.Runtime, seen: dict[bytes, bytes], context: Context
    ) -> None:
        links: tuple[Link, ...] = ()
        if known.carried.isdisjoint(seen):
            above: Any = context.get(_SPAN_KEY)
            parent = None if above is None else above.get_span_context()
        else:
            parent, context, links = known.caller(seen, self.labels[3], context)
        attributes = partial(headers.attributes, scope, seen, self.labels, self.request_id)
        operation.open_span(self, in_force, parent, context, attributes, links=links)

    def header(self, name: bytes) -> bytes | None:
        """A header that the caller sent, by its name in small letters."""
        return next((value for key, value in self.routed.get("headers", ()) if key.lower() == name), None)

    @property
    def completed_ns(self) -> int | None:
        """When its response was whole, by `time.perf_counter_ns()`; None before."""
        return self._ended_ns

    @property
    def phases(self) -> bool | None:
        """Whether its app wants phases; None leaves it to the settings."""
        return self._routes.phases

    def route(self) -> str | None:
        """The template of the route that it came to, so far."""
        return self._routes.template(self.routed)

    def exclude(self) -> None:
        """Takes it out of what is measured after all: only routing tells of some requests that nobody wants them."""
        if not self.stopped:
            # A span that never ends is never exported.
            self.excluded = self.stopped = True
            self.recorded = None
            self._inactive()

    async def receive(self) -> Message:
        """The app's way in: hears that the client has left, which a server tells only whoever asks."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and self.status is None:
            self._left = True
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """The app's way out: puts our headers on the response and sees its last byte."""
        kind = message["type"]
        if kind == "http.response.body":
            if message.get("more_body") or self._trailers:
                return self._send(message)
            return self._send_last(message)
        if kind == "http.response.start":
            return self._send(self._respond(message))
        if kind == "http.response.pathsend" or (kind == "http.response.trailers" and not message.get("more_trailers")):
            return self._send_last(message)
        return self._send(message)

    async def _send_last(self, message: Message) -> None:
        await self._send(message)
        if self._ended_ns is None:
            self._ended_ns = _now_ns()
            self._inactive()

    def _respond(self, message: Message) -> Message:
        try:
            self.status = int(message["status"])  # enumerations of statuses are written as their names
            self._trailers = bool(message.get("trailers"))
            self._headers = sent = list(message.get("headers", ()))
            names: dict[bytes, bytes] = dict(sent)
            # ASGI wants names in small letters; these are the other ways in which people write this one.
            own = names.get(b"x-request-id") or names.get(b"X-Request-ID") or names.get(b"X-Request-Id")
            if own is not None:
                # A middleware of the app's own gives ids: what the client sees counts.
                self.request_id = headers.well_formed(own) or self.request_id
                self.set(c.REQUEST_ID, self.request_id)
            elif self.request_id is not None:
                sent.append((b"x-request-id", self.request_id.encode()))
            of = self.recorded if self._share.span else self._foreign()
            known = self._known
            if of is not None and known is not None and known.trace_response and b"traceresponse" not in names:
                trace_id, span_id = of[0].to_bytes(16, "big").hex(), of[1].to_bytes(8, "big").hex()
                sent.append((b"traceresponse", f"00-{trace_id}-{span_id}-{_FLAGS[of[3]]}".encode()))
            # Neither the message nor its list is ours: a response object may be sent many times.
            return {**message, "headers": sent}
        except Exception:
            guard.note("starting a response")
            return message

    def _foreign(self) -> SpanContext | None:
        """The ids of the server span that another has made, where it is recorded; it is told what is ours to say."""
        span = None if self.stopped else foreign.span()
        if span is None:
            return None
        foreign.describe(span, self.routed, self.request_id)
        known = self._known
        if known is not None and (self.status == 404 or known.classes is not None):
            span.set_attributes(self._place(known, self.route()))
        if self._share.duration and self.status is not None and self.status >= 500:
            foreign.answered(span, self.status)
        ids: SpanContext = span.get_span_context()
        return ids

    def complete(self) -> None:
        """Ends it where its response is whole: what comes now, a background task, is no part of it."""
        if self._ended_ns is not None:
            self.end(unhandled())

    def end(self, error: BaseException | None = None) -> None:
        """The app returned or raised; does nothing where the request has ended before."""
        if self.stopped:
            return
        if error is not None or self._left or self._ended_ns is None:
            error = self._judged(error)
        try:
            labels, status = self.labels, self.status
            labels[_ROUTE] = route = self._routes.template(self.routed)
            labels[_STATUS] = status
            if error is None and status is not None and status >= 500:
                self.fail(str(status))
            span: Any = self.span
            known = self._known
            if known is not None and (status == 404 or known.classes is not None) and self.recorded is not None:
                span.set_attributes(self._place(known, route))
            if route is not None and self.recorded is not None:
                name = f"{self.name} {route}"
                if type(span) is LeanSpan and status is not None and len(route) <= span.longest_attribute:
                    # As `stop` would do, but that works for any labels. A template is the developer's own text.
                    span.settle(name, {_HTTP_ROUTE: route, _HTTP_STATUS: status})
                    self.told = labels.copy()
                else:
                    span.update_name(name)
        except Exception:
            guard.note("ending a request")
        self.stop(error, ended_ns=self._ended_ns, deactivate=False)
        if self._active is not None:
            self._inactive()
        if self.error_type is not None and self._share.duration and not self._share.span:
            foreign.mark(self.error_type)

    def _judged(self, error: BaseException | None) -> BaseException | None:
        """The exception that counts, if any; where the client left, or there is no end, says that instead."""
        try:
            if self._ended_ns is not None:
                # A cancellation that comes so late is the server's doing, and a task of its own what one raises.
                if not isinstance(error, Exception) or in_background(error):
                    error = None
                if self._left and error is None:
                    self.fail(CLIENT_LEFT)
            elif headers.is_event_stream(self._headers) and (
                error is None or client_left(error) or type(error).__name__ == "CancelledError"
            ):
                return None  # to leave it is how it ends
            elif error is None:
                # An app that returns early and without an exception was told that the client had left.
                self.fail(CLIENT_LEFT if self._left or self.status is not None else "incomplete_response")
            if error is not None and client_left(error):
                self.fail(CLIENT_LEFT)
                # Starlette's answer to what nobody handled went to nobody.
                error, self.status = None, None if self._left and self.status == 500 else self.status
        except Exception:
            guard.note("ending a request")
        return error

    def _place(self, known: Plan, route: str | None) -> dict[str, str]:
        return places.attributes(self.routed, route, known.classes, unmatched=self.status == 404)

    def _inactive(self) -> None:
        active, self._active = self._active, None
        # After another `configure()` counts have started anew, without this request.
        if active is not None and self._known is not None and self._known.runtime is runtime.current:
            active.pending.append(-1)  # whoever counts the next request up sees to it that they are folded

    def leave(self) -> None:
        """Puts back what was current before the request, in the context where it was made current."""
        try:
            self.routed = _LEFT  # it has us: objects that hold each other live until the garbage collector comes
            if self._token is not None:
                self.deactivate()
            if self._attached is not None:
                sdk.reset_context(self._attached)
            if self._id_token is not None:
                _reset_request_id(self._id_token)
        except ValueError:
            pass  # an app that was closed from another context than it ran in takes its own context with it
        except Exception:
            guard.note("leaving a request")


def in_progress() -> Request | None:
    """The request that current work belongs to, its response whole or not; None outside of one, and within a job."""
    found = operation.current()
    while found is not None and found.kind is not JOB:
        if isinstance(found, Request):
            return found
        found = found.parent
    return None
