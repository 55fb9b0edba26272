"""The daily maintenance: who missed a day spends a freeze or loses the streak, and who is about to is told.

Users are taken a batch at a time in the order of their names, each batch in a transaction of its own, so memory stays
the same however many there are, and a run that was ended half-way goes on where it was: whoever has been seen today is
not seen again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import date

from otel_perf import measure

from .cache import LEADERBOARD, PROFILE, ReadCache
from .push import MAX_MESSAGES, Message, PushClient
from .records import Batch
from .service import BOARD_SIZE
from .store import Store
from .telemetry import record_settled

__all__ = ["BATCH_SIZE", "Summary", "run_daily_maintenance"]

# One call of the push API takes a batch.
BATCH_SIZE = MAX_MESSAGES


@dataclass(slots=True)
class Summary:
    """What a run did, or, as a dry run, would have done."""

    day: date
    dry_run: bool
    processed: int = 0
    freezes_spent: int = 0
    broken: int = 0
    at_risk: int = 0
    notified: int = 0

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        self.processed += len(batch.settled)
        for _, settled in batch.settled:
            self.freezes_spent += settled.freezes_spent
            self.broken += bool(settled.broken)
            self.at_risk += not settled.broken


@measure("run_daily_maintenance", category="streak")
async def run_daily_maintenance(
    store: Store, cache: ReadCache, push: PushClient, today: date, *, dry_run: bool = False
) -> Summary:
    """Account for all days before today. A second run of a day finds nothing to do."""
    summary = Summary(today, dry_run)
    if dry_run:
        # Not a run of the job: it must not look as if today's had been done.
        async for batch in _batches(store, today, dry_run=True):
            summary.add(batch)
        return summary
    async with measure.job("streak.maintenance", every="1d") as job:
        async for batch in _batches(store, today):
            summary.add(batch)
            job.items = summary.processed
            summary.notified += await _tell(push, batch)
            await _forget(cache, batch)
            for _, settled in batch.settled:
                record_settled(settled)
    return summary


async def _batches(store: Store, today: date, *, dry_run: bool = False) -> AsyncIterator[Batch]:
    after = ""
    while True:
        batch = await store.settle_batch(today, after=after, size=BATCH_SIZE, dry_run=dry_run)
        # A batch may be short before the last one, when another run took some of its users: only an empty one ends it.
        if batch.last is None:
            return
        yield batch
        after = batch.last


async def _tell(push: PushClient, batch: Batch) -> int:
    """Notify those who lost their streak and those who lose it, or a freeze, unless they do something today."""
    messages = [Message(user=name, kind="broken" if settled.broken else "at_risk") for name, settled in batch.settled]
    return len(messages) if await push.send(*messages) else 0


async def _forget(cache: ReadCache, batch: Batch) -> None:
    changed = [PROFILE.key(user=name) for name, settled in batch.settled if settled.changed]
    if changed:
        await cache.forget(*changed, LEADERBOARD.key(limit=BOARD_SIZE))
