"""httpx clients, sync and async."""

from __future__ import annotations

from typing import Any

import httpx

from tests.contract.cases import AsyncCase, Case, Servers


class SyncHTTPX(Case):
    name = "httpx"
    metric = "http.client.request.duration"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.answer = httpx.Response(200, text="42")
        self.target = self.client = httpx.Client(transport=httpx.MockTransport(self._meet))

    def _meet(self, _request: httpx.Request) -> httpx.Response:
        if self.error is not None:
            raise self.error
        return self.answer

    def work(self) -> Any:
        return self.client.get("http://contract.test/")

    def hostile(self) -> Any:
        return self.client.request("\x7f" * 100, "http://u:p@\u00fc.test:0/?" + "q=\x1b&" * 10_000)

    def state(self) -> list[Any]:
        return [httpx.Client.send, self.client._transport, *vars(self.client)]

    def close(self) -> None:
        self.client.close()


class AsyncHTTPX(AsyncCase):
    name = "httpx"
    metric = "http.client.request.duration"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.answer = httpx.Response(200, text="42")
        self.target = self.client = httpx.AsyncClient(transport=httpx.MockTransport(self._meet))

    async def _meet(self, _request: httpx.Request) -> httpx.Response:
        await self.meet()
        return self.answer

    async def do(self, *, odd: bool = False) -> Any:
        return await self.client.request("\x7f" if odd else "GET", "http://contract.test/")

    def state(self) -> list[Any]:
        return [httpx.AsyncClient.send, self.client._transport, *vars(self.client)]

    async def aclose(self) -> None:
        await self.client.aclose()
