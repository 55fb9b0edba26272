"""A process of the service as the schedule sees it: it begins today's run, and never gets far with it."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime, time
from typing import Any

from examples.streak.schedule import scheduled
from examples.streak.stores import open_database
from tests.streak.maintaining import Meddled, maintaining


async def _main(url: str, now: datetime) -> None:
    database = open_database(url)

    async def settle(*args: Any, **kwargs: Any) -> Any:
        batch = await database.runs.settle(*args, **kwargs)
        sys.stdout.write("under way\n")
        sys.stdout.flush()
        await asyncio.sleep(60)
        return batch

    runs = Meddled(database.runs, settle=settle)
    async with (
        maintaining(database, runs=runs, batch_size=5) as kit,
        scheduled(kit.maintenance, time(4, 5), lambda: now),
    ):
        await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], datetime.fromisoformat(sys.argv[2])))
