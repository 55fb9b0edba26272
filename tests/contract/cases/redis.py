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


class SyncRedisPipeline(Case):
    name = "redis"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.target = self.client = redis.Redis.from_url(servers.redis_url)
        self.client.set("contract", "42")

    def _execute(self, key: Any) -> Any:
        pipe: Any = self.client.pipeline(transaction=False)
        send = pipe._execute_pipeline

        def meet(*args: Any, **options: Any) -> Any:
            if self.error is not None:
                raise self.error
            return send(*args, **options)

        pipe._execute_pipeline = meet
        return pipe.get(key).execute()

    def work(self) -> Any:
        return self._execute("contract")

    def hostile(self) -> Any:
        return self._execute(b"\xff\x00" * 10_000)

    def state(self) -> list[Any]:
        return [redis.client.Pipeline.execute, redis.client.PubSub.execute_command, redis.client.PubSub.handle_message]

    def close(self) -> None:
        self.client.close()


class AsyncRedisPipeline(AsyncCase):
    name = "redis"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.target = self.client = redis.asyncio.Redis.from_url(servers.redis_url)
        self.loop.run_until_complete(self.client.set("contract", "42"))

    async def do(self, *, odd: bool = False) -> Any:
        pipe: Any = self.client.pipeline(transaction=False)
        send = pipe._execute_pipeline

        async def meet(*args: Any, **options: Any) -> Any:
            await self.meet()
            return await send(*args, **options)

        pipe._execute_pipeline = meet
        return await pipe.get(b"\xff\x00" * 10_000 if odd else "contract").execute()

    def state(self) -> list[Any]:
        later = redis.asyncio.client
        return [later.Pipeline.execute, later.PubSub.execute_command, later.PubSub.handle_message]

    async def aclose(self) -> None:
        await self.client.aclose()


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
