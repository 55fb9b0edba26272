"""taskiq, by the broker that it has in memory."""

from __future__ import annotations

from typing import Any

from taskiq import InMemoryBroker
from taskiq.abc.broker import AsyncBroker

from tests.contract.cases import AsyncCase, Servers


class Taskiq(AsyncCase):
    name = "taskiq"
    metric = "background.job.duration"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.target = self.broker = InMemoryBroker(await_inplace=True, max_async_tasks=2)
        # taskiq renames what it decorates, which a method does not take.
        self.task = self.broker.task(task_name="contract")(self._made())

    def _made(self) -> Any:
        async def run(_value: str = "") -> str:
            await self.meet()
            return "42"

        return run

    async def do(self, *, odd: bool = False) -> Any:
        result = await (await self.task.kiq("\x1b" * 10_000 if odd else "")).wait_result()
        if result.error is not None:
            raise result.error
        return result.return_value

    def state(self) -> list[Any]:
        return [AsyncBroker.__init__, *self.broker.middlewares]

    async def aclose(self) -> None:
        await self.broker.shutdown()
