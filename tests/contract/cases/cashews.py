"""A cashews cache."""

from __future__ import annotations

import logging
from typing import Any

import cashews
from cashews import Cache

from tests.contract.cases import AsyncCase, Servers


class Cashews(AsyncCase):
    name = "cashews"
    metric = "cache.operation.duration"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.target = self.cache = Cache()
        self.cache.setup("mem://")
        self.value = object()
        self.loop.run_until_complete(self.cache.set("contract", self.value))
        self.cache.add_middleware(self._meet)

    async def _meet(self, call: Any, _cmd: Any, _backend: Any, *args: Any, **kwargs: Any) -> Any:
        await self.meet()
        return await call(*args, **kwargs)

    async def do(self, *, odd: bool = False) -> Any:
        return await self.cache.get("\ud800\x1b" * 10_000 if odd else "contract")

    async def aclose(self) -> None:
        await self.cache.close()

    def state(self) -> list[Any]:
        logger = logging.getLogger("cashews.backends.redis.client")
        return [*self.cache._default_middlewares, *logger.filters, cashews.Cache.get]
