"""One request on its way through an ASGI app: its id, its operation, its response to the last byte.

The clock stops at the last byte of the body: background tasks run later, are no part of the request and are not
measured.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import Token
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from otel_perf import conventions as c
from otel_perf import guard, redaction
from otel_perf.integrations import headers
from otel_perf.integrations.others import Share
from otel_perf.integrations.routes import Routes, Scope
from otel_perf.integrations.tracebacks import in_background, unhandled
from otel_perf.telemetry import logs, operation, runtime, sdk
from otel_perf.telemetry.operation import REQUEST, Operation
from otel_perf.telemetry.series import Series

__all__ = ["App", "Message", "Receive", "Request", "Send", "excluded"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"))
_VERSIONS = frozenset(("1.0", "1.1", "2", "3"))
_ROUTE = c.REQUEST_DURATION.attributes.index(c.HTTP_ROUTE)
_STATUS = c.REQUEST_DURATION.attributes.index(c.HTTP_STATUS)
_random_bits = random.getrandbits


class _Plan:
    """What the hot path needs of one runtime's settings and of the propagators, made once for each."""

    __slots__ = ("_paths", "_pattern", "fields", "propagator", "runtime", "trace_response")

    def __init__(self, in_force: runtime.Runtime | None, propagator: Any) -> None:
        self.runtime = in_force
        self.propagator = propagator
        self.fields = {str(name).lower().encode("latin-1"): str(name) for name in propagator.fields}
        self.trace_response = in_force is not None and in_force.settings.trace_response
        given = in_force.settings.excluded_routes if in_force is not None else ()
        self._paths = frozenset(each for each in given if "*" not in each)
        wild = [".*".join(re.escape(part) for part in each.split("*")) for each in given if "*" in each]
        self._pattern = re.compile("|".join(wild), re.DOTALL) if wild else None

    def excludes(self, scope: Scope) -> bool:
        path: str = scope["path"]
        root: str = scope.get("root_path") or ""
        if root and path.startswith(root) and path[len(root) :].startswith("/"):
            path = path[len(root) :]
        return path in self._paths or (self._pattern is not None and self._pattern.fullmatch(path) is not None)


_plan = _Plan(None, propagate.get_global_textmap())


def _current_plan() -> _Plan:
    global _plan
    plan = _plan
    propagator = propagate.get_global_textmap()
    if plan.runtime is not runtime.current or plan.propagator is not propagator:
        plan = _plan = _Plan(runtime.current, propagator)
    return plan


@guard.safe("matching an excluded route", fallback=False)
def excluded(scope: Scope) -> bool:
    """Whether the settings in force exclude the path of a request."""
    return _current_plan().excludes(scope)


class Request:
    """One request on its way. It stands in the scope, so that it is found behind middlewares that copy the scope."""

    __slots__ = (
        "_active", "_attached", "_ended_ns", "_headers", "_id_token", "_plan", "_routes", "_send", "_share",
        "_trailers", "excluded", "operation", "request_id", "routed", "status",
    )  # fmt: skip

    def __init__(self, routes: Routes, share: Share, scope: Scope, send: Send) -> None:
        self.routed = scope
        self.operation: Operation | None = None
        self.request_id: str | None = None
        self.status: int | None = None
        self.excluded = False
        self._routes = routes
        self._share = share
        self._send = send
        self._plan = _plan
        self._active: Series | None = None
        self._attached: Token[otel_context.Context] | None = None
        self._id_token: Token[str | None] | None = None
        self._headers: Any = ()
        self._trailers = False
        self._ended_ns: int | None = None

    def begin(self) -> None:
        """Reads the headers, gives the request its id and starts the operation; never raises."""
        try:
            scope = self.routed
            plan = self._plan = _current_plan()
            seen = headers.read(scope["headers"], plan.fields)
            self.request_id = request_id = seen.request_id or f"{_random_bits(128):032x}"
            state: Any = scope.setdefault("state", {})
            if isinstance(state, dict):
                state["request_id"] = request_id
            self._id_token = logs.request_id.set(request_id)
            if plan.runtime is None:
                return
            if plan.excludes(scope):
                context = otel_context.set_value(sdk.SUPPRESS_KEY, True)
                self._attached = otel_context.attach(context)
                self.excluded = True
            else:
                self._start(scope, plan.runtime, seen)
        except Exception:
            guard.note("starting a request")

    def _start(self, scope: Scope, in_force: runtime.Runtime, seen: headers.Seen) -> None:
        original: str = scope["method"]
        method = original if original in _METHODS else "_OTHER"
        scheme = "https" if scope.get("scheme") == "https" else "http"
        version = scope.get("http_version")
        labels = [method, None, None, scheme, version if version in _VERSIONS else None]
        share = self._share
        attributes = context = None
        if share.span:
            attributes = headers.attributes(scope, seen, scheme)
            attributes[c.REQUEST_ID] = self.request_id
            if method != original:
                attributes[c.HTTP_METHOD_ORIGINAL] = original
            if seen.carrier:
                context = self._parent(seen.carrier)
        if share.active:
            self._active = in_force.at(c.REQUESTS_ACTIVE, (method, scheme))
            self._active.record(1)
        # Also where another makes span and metric there is an operation: what is below belongs to it.
        self.operation = operation.start(
            REQUEST, _span_name(method, None), labels, attributes, context=context, span=share.span,
            metrics=share.duration,
        )  # fmt: skip

    def exclude(self) -> None:
        """Takes it out of what is measured after all: only routing tells of some requests that nobody wants them."""
        begun = self.operation
        if begun is not None and not begun.stopped:
            # A span that never ends is never exported.
            self.excluded = begun.stopped = True
            self._inactive()

    def _parent(self, carrier: dict[str, str]) -> otel_context.Context | None:
        try:
            found: otel_context.Context = self._plan.propagator.extract(carrier, otel_context.get_current())
            return found
        except Exception:
            # Propagators read what a stranger sent: the request counts all the same.
            guard.note("reading the trace context of a request")
            return None

    async def send(self, message: Message) -> None:
        """The app's way out: puts our headers on the response and sees its last byte."""
        kind = message["type"]
        if kind == "http.response.start":
            message = self._respond(message)
        await self._send(message)
        if kind == "http.response.body":
            if not self._trailers and not message.get("more_body"):
                self._last_byte()
        elif kind == "http.response.pathsend" or (
            kind == "http.response.trailers" and not message.get("more_trailers")
        ):
            self._last_byte()

    def _respond(self, message: Message) -> Message:
        try:
            self.status = int(message["status"])  # enumerations of statuses are written as their names
            self._trailers = bool(message.get("trailers"))
            self._headers = sent = list(message.get("headers", ()))
            names = {name.lower(): value for name, value in sent}
            own = names.get(b"x-request-id")
            if own is not None:
                # A middleware of the app's own gives ids: what the client sees counts.
                self.request_id = headers.well_formed(own) or self.request_id
                if self.operation is not None:
                    self.operation.set(c.REQUEST_ID, self.request_id)
            elif self.request_id is not None:
                sent.append((b"x-request-id", self.request_id.encode()))
            span = self._span()
            if span is not None and self._plan.trace_response and b"traceresponse" not in names:
                of = span.get_span_context()
                value = b"00-%032x-%016x-%02x" % (of.trace_id, of.span_id, of.trace_flags)
                sent.append((b"traceresponse", value))
            # Neither the message nor its list is ours: a response object may be sent many times.
            return {**message, "headers": sent}
        except Exception:
            guard.note("starting a response")
            return message

    def _span(self) -> Any:
        """The recorded server span of this request, of whomever it is."""
        begun = self.operation
        if begun is None or self.excluded:
            return None
        if self._share.span:
            return begun.span if begun.recording else None
        span = _foreign_span()
        if span is not None:
            span.set_attributes(self._on_foreign_span())
            if self.status is not None and self.status >= 500:
                # It may end with the response, before the exception reaches us.
                error = unhandled()
                self._fail_foreign(str(self.status) if error is None else redaction.exception_type(error))
        return span

    def _fail_foreign(self, error_type: str) -> None:
        """Says on another's span what our metric says of the request; where the metric is another's too, so is this."""
        span = _foreign_span() if self._share.duration and not self._share.span else None
        if span is not None:
            span.set_attribute(c.ERROR_TYPE, error_type)
            span.set_status(Status(StatusCode.ERROR))

    def _on_foreign_span(self) -> dict[str, Any]:
        """What is ours to say on another's span: the request id, and the query once more, without its values."""
        query = self.routed.get("query_string")
        added = {c.URL_QUERY: query.decode("latin-1")} if query else {}
        return redaction.redact({**added, c.REQUEST_ID: self.request_id or ""})

    def _last_byte(self) -> None:
        if self.status is not None and self.status >= 500:
            # Starlette answers 500 before it hands on the exception, which says more than the status.
            self._ended_ns = time.perf_counter_ns()
            self._inactive()
        else:
            self._stop(None)

    def end(self, error: BaseException | None = None) -> None:
        """The app returned or raised; does nothing when the response was complete before."""
        if self.operation is None or self.operation.stopped:
            return
        if self._ended_ns is None:
            error = self._cut_short(error)
        elif error is not None and in_background(error):
            error = None
        self._stop(error)

    def _cut_short(self, error: BaseException | None) -> BaseException | None:
        """Says how a response failed that has no end; a client that leaves an event stream is no failure."""
        begun = self.operation
        try:
            left = error is None or type(error).__name__ in {"CancelledError", "ClientDisconnect"}
            if left and any(
                name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in self._headers
            ):
                return None
            if error is None and begun is not None:
                # An app that returns early and without an exception was told that the client had left.
                begun.fail("client_disconnected" if self.status is not None else "incomplete_response")
        except Exception:
            guard.note("ending a request")
        return error

    def _stop(self, error: BaseException | None) -> None:
        begun = self.operation
        if begun is None or begun.stopped:
            return
        try:
            labels = begun.labels
            labels[_ROUTE] = route = self._routes.template(self.routed)
            labels[_STATUS] = status = self.status
            if route is not None and begun.span is not None:
                begun.span.update_name(_span_name(labels[0], route))
            if error is None and status is not None and status >= 500:
                begun.fail(str(status))
        except Exception:
            guard.note("ending a request")
        begun.stop(error, ended_ns=self._ended_ns, deactivate=False)
        self._inactive()
        if begun.error_type is not None:
            try:
                self._fail_foreign(begun.error_type)
            except Exception:
                guard.note("marking another's span")

    def _inactive(self) -> None:
        active, self._active = self._active, None
        # After another `configure()` counts have started anew, without this request.
        if active is not None and self._plan.runtime is runtime.current:
            active.record(-1)

    def leave(self) -> None:
        """Puts back what was current before the request, in the context where it was made current."""
        try:
            if self.operation is not None:
                self.operation.deactivate()
            if self._attached is not None:
                sdk.detach(self._attached)
            if self._id_token is not None:
                logs.request_id.reset(self._id_token)
        except ValueError:
            pass  # an app that was closed from another context than it ran in takes its own context with it
        except Exception:
            guard.note("leaving a request")


def _span_name(method: str, route: str | None) -> str:
    if method == "_OTHER":
        method = "HTTP"
    return method if route is None else f"{method} {route}"


def _foreign_span() -> Any:
    """The server span that another has made current, where it still records."""
    span = trace.get_current_span()
    return span if span.is_recording() and getattr(span, "kind", None) is SpanKind.SERVER else None
