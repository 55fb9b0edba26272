"""The push-notification API that the streak service calls: a second service, tiny and local, and the client of it.

    python -m examples.streak.push --port 8001

It delivers nothing: it counts what it is given, takes as long as a real one might, and forgets.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Annotated

import httpx
from circuitbreaker import STATE_HALF_OPEN, CircuitBreaker  # type: ignore[import-untyped]  # it has no types
from fastapi import FastAPI
from pydantic import BaseModel, Field

from otel_perf import __version__, catalogue, configure, instrument, measure
from otel_perf.web import mount

from .records import Kind, Message
from .serving import port_number, serve

__all__ = ["MAX_MESSAGES", "Kind", "Message", "PushClient", "create_push_app"]

MAX_MESSAGES = 100
_TIMEOUT_S = 1.0
_RECENT = 1_000
_FAILURES_IN_A_ROW = 5
_TRY_AGAIN_AFTER_S = 30

#: Answers that say something of the API, not of what it was given.
_TOO_MANY = 429
_SERVER_ERROR = 500


class _Incoming(BaseModel):
    user: Annotated[str, Field(min_length=1, max_length=32)]
    kind: Kind


class _Request(BaseModel):
    messages: Annotated[list[_Incoming], Field(min_length=1, max_length=MAX_MESSAGES)]


class _Accepted(BaseModel):
    accepted: int


def create_push_app(*, delay_s: float = 0.008, keep: int = _RECENT) -> FastAPI:
    """Return the push API. `app.state.recent` holds the last messages, and so many of them."""
    app = FastAPI(title="push")
    app.state.recent = recent = deque[Message](maxlen=keep)

    @app.post("/api/push", status_code=202)
    async def push(request: _Request) -> _Accepted:
        await asyncio.sleep(delay_s)
        recent.extend(Message(message.user, message.kind) for message in request.messages)
        return _Accepted(accepted=len(request.messages))

    @app.get("/api/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


class PushClient:
    """Sends notifications, if there is someone to send them to. A failure is an answer here, never an exception.

    After five failures in a row the circuit is open: for half a minute nothing is sent, and nobody waits. Then one
    call tries again, for all.
    """

    def __init__(
        self,
        url: str | None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        try_again_after_s: float = _TRY_AGAIN_AFTER_S,
    ) -> None:
        self._http: httpx.AsyncClient | None = None
        # The library counts in whole seconds where it says how long is left; its own arithmetic takes any number.
        self._circuit = CircuitBreaker(_FAILURES_IN_A_ROW, try_again_after_s, httpx.HTTPError, name="push")
        self._trying = False
        if url is not None:
            # The push API is a neighbour: a proxy that the environment names is not for it.
            self._http = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, transport=transport, trust_env=False)
            # Carries the trace over to the push API; `instrument("httpx")` would do it for all clients.
            instrument(self._http)
            _clients.add(self)

    @property
    def configured(self) -> bool:
        """Tell whether there is a push API at all."""
        return self._http is not None

    @property
    def available(self) -> bool:
        """Tell whether messages are sent: not while the circuit is open. Without a push API nothing is amiss."""
        return not self._circuit.opened

    async def send(self, *messages: Message) -> bool:
        """Tell whether the push API took the messages, of which there may be at most `MAX_MESSAGES`."""
        if len(messages) > MAX_MESSAGES:
            raise ValueError(f"{len(messages)} messages are too many for a call: send {MAX_MESSAGES} at most")
        if self._http is None or self._circuit.opened:
            return False
        if self._circuit.state != STATE_HALF_OPEN:
            return await self._send(self._http, messages)
        if self._trying:
            return False
        self._trying = True
        try:
            return await self._send(self._http, messages)
        finally:
            self._trying = False

    async def close(self) -> None:
        """Close the connections, if any."""
        _clients.discard(self)
        if self._http is not None:
            await self._http.aclose()

    async def _send(self, http: httpx.AsyncClient, messages: Sequence[Message]) -> bool:
        problem: httpx.HTTPError | None = None
        try:
            async with measure.external("push", "send", category="notifications"):
                body = {"messages": [{"user": message.user, "kind": message.kind} for message in messages]}
                (await http.post("/api/push", json=body)).raise_for_status()
        except httpx.HTTPError as caught:
            problem = caught
        # The circuit hears of it here and not around the call: it would take a cancelled call for a success.
        try:
            with self._circuit:
                if problem is not None and not _is_refusal(problem):
                    raise problem
        except httpx.HTTPError:
            return False
        return problem is None


def _is_refusal(problem: httpx.HTTPError) -> bool:
    """Tell whether the API works and did not want just this."""
    if not isinstance(problem, httpx.HTTPStatusError):
        return False
    return problem.response.status_code < _SERVER_ERROR and problem.response.status_code != _TOO_MANY


_clients: weakref.WeakSet[PushClient] = weakref.WeakSet()


def _observe_circuits() -> float | None:
    clients = list(_clients)
    return float(not all(client.available for client in clients)) if clients else None


catalogue.gauge(
    "streak.push.circuit_open",
    unit="{circuit}",  # not 1: Prometheus would call it a ratio
    observe=_observe_circuits,
    about="1 while the push API is left alone after failures in a row, otherwise 0",
)


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.streak.push", description="A local push API.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=port_number, default=8001)
    parser.add_argument("--delay-ms", type=float, default=8.0, help="how long it takes to answer (default: 8)")
    options = parser.parse_args(argv)

    def make_app() -> FastAPI:
        environment = os.environ.get("OTEL_PERF_ENVIRONMENT") or "demo"
        configure(service_name="streak-push", service_version=__version__, environment=environment)
        app = create_push_app(delay_s=options.delay_ms / 1_000)
        instrument(app)
        mount(app)
        return app

    return serve(make_app, "push", host=options.host, port=options.port)


if __name__ == "__main__":
    sys.exit(_main())
