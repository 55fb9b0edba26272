"""The push-notification API that the streak service calls: a second service, tiny and local, and the client of it.

    python -m examples.streak.push --port 8001

It delivers nothing: it counts what it is given, takes as long as a real one might, and forgets.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections import deque
from collections.abc import Sequence
from typing import Annotated, Literal

import httpx
from fastapi import FastAPI
from pydantic import BaseModel, Field

from otel_perf import __version__, configure, instrument, measure
from otel_perf.web import mount

from .serving import port_number, serve

__all__ = ["MAX_MESSAGES", "Kind", "Message", "PushClient", "create_push_app"]

MAX_MESSAGES = 100
_TIMEOUT_S = 1.0
_RECENT = 1_000

Kind = Literal["welcome", "bonus", "milestone", "first_today", "logged", "at_risk", "broken"]


class Message(BaseModel):
    """One notification for one user. `logged` is silent: it makes the user's other devices show the new XP."""

    user: Annotated[str, Field(min_length=1, max_length=32)]
    kind: Kind


class _Request(BaseModel):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]


class _Accepted(BaseModel):
    accepted: int


def create_push_app(*, delay_s: float = 0.008) -> FastAPI:
    """Return the push API. `app.state.recent` holds the last messages."""
    app = FastAPI(title="push")
    app.state.recent = recent = deque[Message](maxlen=_RECENT)

    @app.post("/api/push", status_code=202)
    async def push(request: _Request) -> _Accepted:
        await asyncio.sleep(delay_s)
        recent.extend(request.messages)
        return _Accepted(accepted=len(request.messages))

    @app.get("/api/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


class PushClient:
    """Sends notifications, if there is someone to send them to. A failure is an answer here, never an exception."""

    def __init__(self, url: str | None, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._http: httpx.AsyncClient | None = None
        if url is not None:
            # The push API is a neighbour: a proxy that the environment names is not for it.
            self._http = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, transport=transport, trust_env=False)
            # Carries the trace over to the push API; `instrument("httpx")` would do it for all clients.
            instrument(self._http)

    async def send(self, *messages: Message) -> bool:
        """Tell whether the push API took the messages, of which there may be at most `MAX_MESSAGES`."""
        if self._http is None:
            return False
        try:
            async with measure.external("push", "send", category="notifications"):
                body = _Request(messages=list(messages)).model_dump()
                (await self._http.post("/api/push", json=body)).raise_for_status()
        except httpx.HTTPError:
            return False
        return True

    async def close(self) -> None:
        """Close the connections, if any."""
        if self._http is not None:
            await self._http.aclose()


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
