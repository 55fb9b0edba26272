"""Requests to an ASGI app in this process, without a server, and plain apps to ask."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

__all__ = ["BODY", "START", "Copying", "answering", "ask", "ask_all", "drive", "scope"]

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
BODY = {"type": "http.response.body", "body": b"ok"}


def ask(app: Any, path: str, method: str = "GET", **options: Any) -> httpx.Response:
    """One request and its response; an exception of the app ends in a 500, as with a server."""
    return ask_all(app, (method, path), **options)[0]


def ask_all(app: Any, *requests: tuple[str, str], root_path: str = "", **options: Any) -> list[httpx.Response]:
    """Several requests, one after the other, on one event loop."""

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://streak.test:8080") as client:
            return [await client.request(method, path, **options) for method, path in requests]

    return asyncio.run(run())


def scope(path: str = "/", **more: Any) -> dict[str, Any]:
    """A scope as a server makes it."""
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": path, "raw_path": path.encode("utf-8", "replace"), "query_string": b"",
        "root_path": "", "headers": [], "client": ("127.0.0.1", 4242), "server": ("127.0.0.1", 8000), **more,
    }  # fmt: skip


def answering(*messages: Any, then: Any = None) -> Any:
    """An app that sends these messages; an exception among them is raised."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages or (START, BODY):
            if isinstance(message, BaseException):
                raise message
            await send(message)
        if then is not None:
            await then()

    return app


def drive(app: Any, **more: Any) -> list[Any]:
    """Calls an app with a bare scope; answers what it sent."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope(**more), receive, send))
    return sent


class Copying:
    """A middleware that hands on a copy of the scope, as some do."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(dict(scope), receive, send)
