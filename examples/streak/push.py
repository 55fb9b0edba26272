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
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Final

import httpx
from circuitbreaker import STATE_HALF_OPEN, CircuitBreaker  # type: ignore[import-untyped]  # it has no types
from fastapi import FastAPI, Header
from pydantic import BaseModel, Field

from otel_perf import catalogue, configure, instrument, measure
from otel_perf.web import mount

from .identity import identity_of
from .records import Kind, Message
from .serving import port_number, serve

__all__ = ["IDEMPOTENCY_KEY", "MAX_MESSAGES", "Answer", "Kind", "Message", "PushClient", "create_push_app"]

#: The header by which the API knows a call that it was sent before.
IDEMPOTENCY_KEY: Final = "Idempotency-Key"

MAX_MESSAGES = 100
_TIMEOUT_S = 1.0
_RECENT = 1_000
_FAILURES_IN_A_ROW = 5
_TRY_AGAIN_AFTER_S = 30

#: Answers that say something of the API, not of what it was given: too slow, and too many.
_NOT_REFUSALS = frozenset({408, 429})
_CLIENT_ERROR, _SERVER_ERROR = 400, 500
_KEYS_REMEMBERED = 10_000
_LONGEST_KEY = 200


class _Incoming(BaseModel):
    user: Annotated[str, Field(min_length=1, max_length=32)]
    kind: Kind


class _Request(BaseModel):
    messages: Annotated[list[_Incoming], Field(min_length=1, max_length=MAX_MESSAGES)]


class _Accepted(BaseModel):
    accepted: int


def create_push_app(*, delay_s: float = 0.008, keep: int = _RECENT) -> FastAPI:
    """Return the push API. `app.state.recent` holds the last messages, and so many of them.

    A call with an `Idempotency-Key` that it had before, of the last ten thousand, is taken and not delivered again.
    """
    app = FastAPI(title="push")
    app.state.recent = recent = deque[Message](maxlen=keep)
    keys = OrderedDict[str, None]()

    def is_new(key: str | None) -> bool:
        if key is None:
            return True
        if key in keys:
            keys.move_to_end(key)
            return False
        keys[key] = None
        if len(keys) > _KEYS_REMEMBERED:
            keys.popitem(last=False)
        return True

    @app.post("/api/push", status_code=202)
    async def push(
        request: _Request, idempotency_key: Annotated[str | None, Header(max_length=_LONGEST_KEY)] = None
    ) -> _Accepted:
        await asyncio.sleep(delay_s)
        if is_new(idempotency_key):
            recent.extend(Message(message.user, message.kind) for message in request.messages)
        return _Accepted(accepted=len(request.messages))

    @app.get("/api/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call."""

    taken: bool
    refused: bool = False
    """The API works, and will not take just this, now or later."""
    retry_after_s: float | None = None
    """When the API says that it may be asked again."""


_NOT_TAKEN = Answer(taken=False)


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
        return (await self.offer(messages)).taken

    async def offer(self, messages: Sequence[Message], key: str | None = None) -> Answer:
        """Send messages, at most `MAX_MESSAGES`, and say what became of them. The API takes each key once."""
        if len(messages) > MAX_MESSAGES:
            raise ValueError(f"{len(messages)} messages are too many for a call: send {MAX_MESSAGES} at most")
        if self._http is None or self._circuit.opened:
            return _NOT_TAKEN
        if self._circuit.state != STATE_HALF_OPEN:
            return await self._send(self._http, messages, key)
        if self._trying:
            return _NOT_TAKEN
        self._trying = True
        try:
            return await self._send(self._http, messages, key)
        finally:
            self._trying = False

    async def close(self) -> None:
        """Close the connections, if any."""
        _clients.discard(self)
        if self._http is not None:
            await self._http.aclose()

    async def _send(self, http: httpx.AsyncClient, messages: Sequence[Message], key: str | None) -> Answer:
        problem: httpx.HTTPError | None = None
        try:
            async with measure.external("push", "send", category="notifications"):
                body = {"messages": [{"user": message.user, "kind": message.kind} for message in messages]}
                headers = {} if key is None else {IDEMPOTENCY_KEY: key}
                (await http.post("/api/push", json=body, headers=headers)).raise_for_status()
        except httpx.HTTPError as caught:
            problem = caught
        # The circuit hears of it here and not around the call: it would take a cancelled call for a success.
        try:
            with self._circuit:
                if problem is not None and not _is_refusal(problem):
                    raise problem
        except httpx.HTTPError as failure:
            return Answer(taken=False, retry_after_s=_retry_after_s(failure))
        return Answer(taken=problem is None, refused=problem is not None)


def _retry_after_s(problem: httpx.HTTPError) -> float | None:
    if not isinstance(problem, httpx.HTTPStatusError):
        return None
    given = problem.response.headers.get("Retry-After", "")
    # It may be a date as well; then the pauses between attempts have to do.
    return float(given[:9]) if given.isascii() and given.isdecimal() else None


def _is_refusal(problem: httpx.HTTPError) -> bool:
    """Tell whether the API works and did not want just this."""
    if not isinstance(problem, httpx.HTTPStatusError):
        return False
    status = problem.response.status_code
    return _CLIENT_ERROR <= status < _SERVER_ERROR and status not in _NOT_REFUSALS


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
        configure(**asdict(identity_of(os.environ, "streak-push")))
        app = create_push_app(delay_s=options.delay_ms / 1_000)
        instrument(app)
        mount(app)
        return app

    return serve(make_app, "push", host=options.host, port=options.port)


if __name__ == "__main__":
    sys.exit(_main())
