"""Accounts for all users, batch after batch, and says what it came to so far."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import date

from otel_perf import measure

from .leases import Held, LeaseLostError
from .records import Range, SettledBatch, Tally
from .retries import Retries
from .scanner import gaps, scan
from .settings import Settings
from .stores import Runs
from .walk import walk

__all__ = ["Batches", "Progress"]

Progress = Callable[[Tally], None]
"""Is told what a run came to so far, after each batch."""
_Then = Callable[[SettledBatch], Awaitable[int]]


class Batches:
    """One pass over the users that are due."""

    def __init__(
        self, runs: Runs, settings: Settings, day: date, retries: Retries, progress: Progress | None = None
    ) -> None:
        self._runs = runs
        self._settings = settings
        self._day = day
        self._retries = retries
        self._progress = progress
        self.tally = Tally()
        """What this pass came to so far."""
        self.users_left = 0
        """Users of the batches that failed; there may be more behind them."""
        self._sizes: dict[Range, int] = {}

    async def settle(self, run_id: str, held: Held, done: Sequence[Range], then: _Then) -> None:
        """Account for everybody beside what is done. `then` is what follows a batch; it returns how many were told."""

        async def settle(part: Range) -> tuple[SettledBatch, int]:
            batch = await self._retries("settle", lambda: self._guarded(held, run_id, part))
            return batch, await then(batch)

        await self._walk(done, settle)

    async def rehearse(self, done: Sequence[Range]) -> None:
        """Count what a run would do beside what is done, and write nothing."""

        async def rehearse(part: Range) -> tuple[SettledBatch, int]:
            return await self._retries("settle", lambda: self._runs.settle("", part, self._day, dry_run=True)), 0

        await self._walk(done, rehearse)

    async def _guarded(self, held: Held, run_id: str, part: Range) -> SettledBatch:
        # Each time anew: the lease may be lost while a batch is tried again. The store looks again as it writes.
        held.check()
        return await self._runs.settle(run_id, part, self._day, holder=held.holder)

    async def _walk(
        self, done: Sequence[Range], settle: Callable[[Range], Awaitable[tuple[SettledBatch, int]]]
    ) -> None:
        async def due(after: str, until: str | None) -> Sequence[str]:
            limit = self._settings.batch_size
            names = await self._retries(
                "settle", lambda: self._runs.due(self._day, after=after, until=until, limit=limit)
            )
            if names:
                self._sizes[Range(after, names[-1])] = len(names)
            return names

        async def work(part: Range) -> None:
            size = self._sizes.pop(part, 0)
            try:
                async with measure("settle_batch", category="streak") as step:
                    batch, notified = await settle(part)
                    step.items = batch.tally.processed
            except Exception:
                self.users_left += size
                raise
            self.tally += batch.tally + Tally(notified=notified)
            if self._progress is not None:
                self._progress(self.tally)

        ranges, workers = scan(list(gaps(done)), due), self._settings.batches_in_flight
        await walk(ranges, work, workers=workers, ends_at_once=(LeaseLostError,))
