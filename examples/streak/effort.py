"""One go at a run of the maintenance: the first, or one that takes it up where it was ended half-way."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import anyio
import structlog

from .batches import Batches, Progress
from .cache import ReadCache
from .leases import Held, LeaseLostError
from .metrics import record_batch
from .outbox import Outbox
from .push import PushClient
from .records import Run, SettledBatch, Tally
from .retries import Retries
from .settings import Settings
from .stores import Runs

__all__ = ["Effort", "StaleCacheError", "forget_owed"]

_KEPT_FOR = timedelta(days=90)
# Every run clears up after those before it, so that there is little to look back at.
_LOOK_BACK = 5
_END_TIMEOUT_S = 5.0
_FORGET_FOR_S = 5.0

_log = structlog.get_logger("streak.maintenance")


class StaleCacheError(Exception):
    """Values that the run made old are still in the cache, which does not answer."""


async def forget_owed(cache: ReadCache, retries: Retries) -> None:
    """Wait a little until the cache has dropped what it should have, or count that it has not."""
    left = await cache.pay(_FORGET_FOR_S)
    if left:
        retries.note("forget", StaleCacheError())
        _log.warning("Cached values stay old until their time is up", values=left)


class Effort:
    """Does what is left of a run."""

    def __init__(
        self,
        run: Run,
        held: Held,
        *,
        runs: Runs,
        cache: ReadCache,
        push: PushClient,
        settings: Settings,
        outbox_for_s: float,
    ) -> None:
        self._runs = runs
        self._cache = cache
        self._held = held
        self._run = run
        self._settings = settings
        self._push = push
        self._outbox_for_s = outbox_for_s
        self.retries = Retries()
        self.tally = Tally()
        """What this go came to; the run as a whole may have more."""
        self.users_left = 0
        """Users of the batches that failed."""
        self._outbox = Outbox(runs, push, run.id, self.retries)

    async def make(self, progress: Progress | None) -> Run:
        """Do it, and return the run as it ended."""
        try:
            if self._run.resumed:
                # Who was stopped half-way may have written a batch and not come to forget its users.
                await self._cache.forget_all()
            await self._settle(progress)
            await self._deliver_kept()
            await forget_owed(self._cache, self.retries)
            await self._clear_up()
            return await self.retries("run", self._complete)
        except LeaseLostError as error:
            # The run is somebody else's now: what becomes of it is theirs to write.
            return self._failed(error)
        except Exception as error:
            return await self._end(type(error).__name__) or self._failed(error)
        except BaseException:
            # Whatever stopped it, the next one takes it up; until then nobody is to believe that it is under way.
            with anyio.move_on_after(_END_TIMEOUT_S, shield=True):
                await self._end("interrupted")
            raise

    async def _settle(self, progress: Progress | None) -> None:
        batches = Batches(self._runs, self._settings, self._run.day, self.retries, progress)
        done = await self.retries("run", lambda: self._runs.done(self._run.id))
        try:
            await batches.settle(self._run.id, self._held, done, self._follow_up)
        finally:
            self.tally, self.users_left = batches.tally, batches.users_left
            if batches.tally.broken:
                await self._cache.forget_board()

    async def _follow_up(self, batch: SettledBatch) -> int:
        """Do what follows a batch that is written; nothing of it may undo, or fail, the batch."""
        record_batch(batch)
        await self._cache.forget_users(batch.changed)
        try:
            return await self._outbox.deliver(batch.range, batch.messages)
        except Exception:
            # It is counted, and the messages are kept.
            return 0

    async def _deliver_kept(self) -> None:
        try:
            await self._outbox.deliver_kept(self._outbox_for_s)
        except Exception as error:
            # Whoever was accounted for is, told or not; the messages are kept.
            self.retries.note("notify", error)

    async def _clear_up(self) -> None:
        """Forget old runs, and end those of the days before: what they left undone, this run has done."""
        try:
            for run in await self._runs.history(_LOOK_BACK):
                if run.day < self._run.day:
                    await self._close(run)
            await self._runs.forget_runs(self._held.now - _KEPT_FOR)
        except Exception as error:
            self.retries.note("forget", error)

    async def _close(self, run: Run) -> None:
        if run.state == "running":
            await self._runs.end(run.id, self._held.now, "abandoned", holder=self._held.holder)
        dropped = await Outbox(self._runs, self._push, run.id, self.retries).drop_kept()
        if dropped:
            _log.warning("Notifications of an older day dropped", run_id=run.id, dropped=dropped)

    async def _complete(self) -> Run:
        self._held.check()
        return await self._runs.end(self._run.id, self._held.now, holder=self._held.holder)

    async def _end(self, error: str) -> Run | None:
        try:
            return await self._runs.end(self._run.id, self._held.now, error, holder=self._held.holder)
        except Exception as problem:
            self.retries.note("run", problem)
            return None

    def _failed(self, error: Exception) -> Run:
        """Return the run as it would be written."""
        tally = self._run.tally + self.tally
        return replace(self._run, state="failed", ended_at=self._held.now, error=type(error).__name__, tally=tally)
