"""Sessions of aiohttp."""

from __future__ import annotations

from typing import Any

import aiohttp
from aiohttp import web

from tests.contract.cases import AsyncCase, Servers


class Aiohttp(AsyncCase):
    name = "aiohttp"
    metric = "http.client.request.duration"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        app = web.Application()

        async def answer(_: web.Request) -> web.Response:
            return web.Response(text="42")

        app.router.add_route("*", "/", answer)
        self.runner = web.AppRunner(app, access_log=None)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/"
        self.target = self.session = aiohttp.ClientSession(middlewares=(self._meet,))

    async def _meet(self, request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
        await self.meet()
        answer: aiohttp.ClientResponse = await handler(request)
        return answer

    async def do(self, *, odd: bool = False) -> Any:
        if odd:
            return await self._text("GET", self.url + "?" + "q=\x1b&" * 200 + "#\u202e")
        return await self._text("GET", self.url)

    async def _text(self, method: str, url: str) -> str:
        async with self.session.request(method, url) as answer:
            return await answer.text()

    def state(self) -> list[Any]:
        return [vars(aiohttp.ClientSession)["_request"], *vars(self.session)]

    async def aclose(self) -> None:
        await self.session.close()
        await self.runner.cleanup()
