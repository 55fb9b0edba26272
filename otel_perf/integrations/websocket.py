"""One WebSocket connection on its way through an ASGI app: its span, its duration, its messages as counts.

There is no convention for WebSockets yet. The name `WS {route}` and `network.protocol.name` are what FastAPI's own
telemetry makes of them; the metrics are ours. A connection lasts from the handshake until one side closes it.
"""

from __future__ import annotations

import random
import time
from contextvars import Token
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Link

from otel_perf import conventions as c
from otel_perf import guard
from otel_perf.integrations import foreign, headers, places, plan
from otel_perf.integrations.plan import Plan
from otel_perf.integrations.request import Message, Receive, Send
from otel_perf.integrations.routes import Routes, Scope
from otel_perf.telemetry import logs, operation, runtime, sdk
from otel_perf.telemetry.kind import WEBSOCKET
from otel_perf.telemetry.operation import Operation
from otel_perf.telemetry.series import Series

__all__ = ["CLOSE_CODE", "MESSAGES_RECEIVED", "MESSAGES_SENT", "Connection"]

#: Of our own, on spans only.
CLOSE_CODE = "websocket.close.code"
MESSAGES_RECEIVED = "websocket.messages.received"
MESSAGES_SENT = "websocket.messages.sent"

_ROUTE = c.WEBSOCKET_DURATION.attributes.index(c.HTTP_ROUTE)
_FORBIDDEN = 403  # what servers answer where an app closes before it accepts
# Gone without a word, and failed at the server. Other codes are the peers' agreement, or the caller's own doing.
_ABNORMAL = frozenset((1006, 1011))
# How apps are told that a client has left; a server that stops cancels what still listens.
_LEFT_BY = frozenset(("CancelledError", "ClientDisconnect", "ClientDisconnected", "WebSocketDisconnect"))
_LEFT: Scope = {}


class Connection(Operation):
    """One connection. It stands in the scope like a request does, so that routing is seen behind middlewares."""

    __slots__ = (
        "_accepted", "_active", "_attached", "_close_code", "_ended_ns", "_id_token", "_known", "_messages", "_receive",
        "_routes", "_send", "_theirs", "_wants_span", "excluded", "received", "request_id", "routed", "router", "sent",
        "status",
    )  # fmt: skip

    def __init__(self, routes: Routes, scope: Scope, receive: Receive, send: Send, *, span: bool) -> None:
        super().__init__(WEBSOCKET, "WS", [])
        self.stopped = True
        self.routed = scope
        self.router: object = None
        self.request_id: str | None = None
        #: The status of a refused handshake.
        self.status: int | None = None
        self.excluded = False
        self.received = self.sent = 0
        self._routes = routes
        self._receive = receive
        self._send = send
        self._wants_span = span
        #: The span of another, where ours is not wanted.
        self._theirs: Any = None
        self._known: Plan | None = None
        self._active: Series | None = None
        #: The series of received and of sent messages, once there is one.
        self._messages: list[Series | None] = [None, None]
        self._accepted = False
        self._close_code: int | None = None
        self._ended_ns: int | None = None
        self._attached: Token[Context] | None = None
        self._id_token: Token[str | None] | None = None

    def begin(self) -> None:
        """Reads the headers, gives the connection its id and starts the operation; never raises."""
        try:
            scope = self.routed
            known = self._known = plan.current()
            scope["headers"] = pairs = list(scope.get("headers", ()))
            seen = headers.joined(pairs)
            given = seen.get(b"x-request-id")
            self.request_id = headers.well_formed(given) if given is not None else None
            self.request_id = self.request_id or random.getrandbits(128).to_bytes(16, "big").hex()
            state: Any = scope.setdefault("state", {})
            if type(state) is dict:
                state["request_id"] = self.request_id
            self._id_token = logs.request_id.set(self.request_id)
            if known.runtime is None:
                return
            if known.excludes(scope):
                self._attached = sdk.set_context(Context({**sdk.get_context(), sdk.SUPPRESS_KEY: True}))
                self.excluded = True
            else:
                self._start(scope, known, known.runtime, seen)
        except Exception:
            guard.note("starting a connection")

    def _start(self, scope: Scope, known: Plan, in_force: runtime.Runtime, seen: dict[bytes, bytes]) -> None:
        self.stopped = False
        self.started_ns = time.perf_counter_ns()
        scheme = "wss" if scope.get("scheme") in {"wss", "https"} else "ws"
        self.labels = [None, scheme, None]
        self.runtime = in_force
        self._active = in_force.at(c.WEBSOCKETS_ACTIVE, (scheme,))
        self._active.record(1)
        if not self._wants_span:
            self._theirs = foreign.span()
        context = sdk.get_context()
        if self._wants_span and not context.get(sdk.SUPPRESS_KEY):
            try:
                self._open(scope, known, in_force, seen, context)
            except Exception:
                guard.note("opening the span of a connection")
        self.activate()

    def _open(
        self, scope: Scope, known: Plan, in_force: runtime.Runtime, seen: dict[bytes, bytes], context: Context
    ) -> None:
        secure = self.labels[1] == "wss"
        links: tuple[Link, ...] = ()
        if known.carried.isdisjoint(seen):
            above: Any = context.get(sdk.SPAN_KEY)
            parent = None if above is None else above.get_span_context()
        else:
            parent, context, links = known.caller(seen, "https" if secure else "http", context)

        def attributes() -> dict[str, Any]:
            as_request = (None, None, None, "https" if secure else "http", None, None)
            found = headers.attributes(scope, seen, as_request, self.request_id)
            del found[c.HTTP_METHOD]
            return {**found, c.URL_SCHEME: self.labels[1], c.PROTOCOL_NAME: "websocket"}

        operation.open_span(self, in_force, parent, context, attributes, links=links)

    def header(self, name: bytes) -> bytes | None:
        """A header of the handshake, by its name in small letters."""
        return next((value for key, value in self.routed.get("headers", ()) if key.lower() == name), None)

    def exclude(self) -> None:
        """Takes it out of what is measured after all."""
        if not self.stopped:
            self.excluded = self.stopped = True
            self.recorded = None
            self._inactive()

    async def receive(self) -> Message:
        """The app's way in: counts messages and sees the client leave."""
        message = await self._receive()
        kind = message["type"]
        if kind == "websocket.receive":
            self.received += 1
            self._count(0)
        elif kind == "websocket.disconnect":
            self._closed(message.get("code", 1005))
        return message

    async def send(self, message: Message) -> None:
        """The app's way out: counts messages, and puts our headers on the answer to the handshake."""
        kind = message["type"]
        if kind == "websocket.send":
            await self._send(message)
            self.sent += 1
            self._count(1)
            return
        if kind in {"websocket.accept", "websocket.http.response.start"}:
            message = self._answer(message)
        await self._send(message)
        if kind == "websocket.accept":
            self._accepted = True
        elif kind == "websocket.close":
            if self._accepted:
                self._closed(message.get("code", 1000))
            else:
                self.status = _FORBIDDEN
                self._over()
        elif kind == "websocket.http.response.body" and not message.get("more_body"):
            self._over()

    def _over(self) -> None:
        if self._ended_ns is None:
            self._ended_ns = time.perf_counter_ns()

    def _closed(self, code: Any) -> None:
        if self._close_code is None:
            self._close_code = code if isinstance(code, int) else None
        self._over()

    def _count(self, direction: int) -> None:
        try:
            series = self._messages[direction]
            if series is None:
                if self.stopped or self.runtime is None:
                    return
                route = self._routes.template(self.routed)
                values = (route, "transmit" if direction else "receive")
                series = self._messages[direction] = self.runtime.at(c.WEBSOCKET_MESSAGES, values)
            series.record(1)
        except Exception:
            guard.note("counting a message")

    def _answer(self, message: Message) -> Message:
        try:
            if message["type"] == "websocket.http.response.start":
                self.status = int(message["status"])
            sent = list(message.get("headers", ()))
            names = {name.lower() for name, _ in sent}
            if b"x-request-id" not in names and self.request_id is not None:
                sent.append((b"x-request-id", self.request_id.encode()))
            of = self.recorded
            if of is None and not self._wants_span and not self.stopped:
                # Where theirs is around ours it was there from the start, and something within is current by now.
                self._theirs = span = self._theirs or foreign.span()
                if span is not None:
                    foreign.describe(span, self.routed, self.request_id)
                    of = span.get_span_context()
            known = self._known
            if of is not None and known is not None and known.trace_response and b"traceresponse" not in names:
                told = f"00-{of.trace_id:032x}-{of.span_id:016x}-{of.trace_flags:02x}"
                sent.append((b"traceresponse", told.encode()))
            return {**message, "headers": sent}
        except Exception:
            guard.note("answering a handshake")
            return message

    def end(self, error: BaseException | None = None) -> None:
        """The app returned or raised."""
        if self.stopped:
            return
        try:
            error = self._failure(error)
            self.labels[_ROUTE] = route = self._routes.template(self.routed)
            span: Any = self.span
            if self.recorded is not None:
                if route is not None:
                    span.update_name(f"WS {route}")
                span.set_attributes(self._told(route))
            elif self._theirs is not None and self._theirs.is_recording():
                self._theirs.set_attributes(self._told(route))
                if self.error_type is not None:
                    foreign.fail(self._theirs, self.error_type)
        except Exception:
            guard.note("ending a connection")
        self.stop(error, ended_ns=self._ended_ns, deactivate=False)
        self._inactive()

    def _failure(self, error: BaseException | None) -> BaseException | None:
        if error is not None and type(error).__name__ not in _LEFT_BY:
            return error
        if self._accepted and self._close_code in _ABNORMAL:
            self.fail(str(self._close_code))
        elif self.status is not None and self.status >= 500:
            self.fail(str(self.status))
        elif error is None and not self._accepted and self.status is None and self._close_code is None:
            self.fail("incomplete_response")
        return None

    def _told(self, route: str | None) -> dict[str, Any]:
        found: dict[str, Any] = {MESSAGES_RECEIVED: self.received, MESSAGES_SENT: self.sent}
        if self._close_code is not None:
            found[CLOSE_CODE] = self._close_code
        if self.status is not None:
            found[c.HTTP_STATUS] = self.status
        classes = None if self._known is None else self._known.classes
        refused = self.status is not None and not self._accepted
        found.update(places.attributes(self.routed, route, classes, unmatched=refused))
        return found

    def _inactive(self) -> None:
        active, self._active = self._active, None
        # After another `configure()` counts have started anew, without this connection.
        if active is not None and self.runtime is runtime.current:
            active.record(-1)

    def leave(self) -> None:
        """Puts back what was current before the connection, in the context where it was made current."""
        try:
            self.routed = _LEFT  # it has us: see `Request.leave`
            if self._token is not None:
                self.deactivate()
            if self._attached is not None:
                sdk.reset_context(self._attached)
            if self._id_token is not None:
                logs.request_id.reset(self._id_token)
        except ValueError:
            pass  # closed from another context than it ran in
        except Exception:
            guard.note("leaving a connection")
