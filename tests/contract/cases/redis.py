"""redis-py clients, sync and async."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio

from tests.contract.cases import AsyncCase, Case, Servers


class SyncRedis(Case):
    name = "redis"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.target = self.client = redis.Redis.from_url(servers.redis_url)
        self.client.set("contract", "42")
        self._send, self.client._send_command_parse_response = self.client._send_command_parse_response, self._meet

    def _meet(self, *args: Any, **options: Any) -> Any:
        if self.error is not None:
            raise self.error
        return self._send(*args, **options)

    def work(self) -> Any:
        return self.client.get("contract")

    def hostile(self) -> Any:
        return self.client.get(b"\xff\x00" * 10_000)

    def state(self) -> list[Any]:
        return [redis.Redis.execute_command, redis.client.Pipeline.execute, redis.RedisCluster.execute_command]

    def close(self) -> None:
        self.client.close()


class AsyncRedis(AsyncCase):
    name = "redis"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.target = self.client = redis.asyncio.Redis.from_url(servers.redis_url)
        self.loop.run_until_complete(self.client.set("contract", "42"))
        self._send, self.client._send_command_parse_response = self.client._send_command_parse_response, self._meet

    async def _meet(self, *args: Any, **options: Any) -> Any:
        await self.meet()
        return await self._send(*args, **options)

    async def do(self, *, odd: bool = False) -> Any:
        return await self.client.get(b"\xff\x00" * 10_000 if odd else "contract")

    def state(self) -> list[Any]:
        return [redis.asyncio.Redis.execute_command, redis.asyncio.client.Pipeline.execute]

    async def aclose(self) -> None:
        await self.client.aclose()
