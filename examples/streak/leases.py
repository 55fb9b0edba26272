"""Keeps two runs of the maintenance apart, over processes and hosts: one lease, which whoever has it goes on extending.

A holder is called `host:pid:random`. Who finds the lease with a process of this host that is gone takes it over at
once; from other hosts nobody can tell, so it has to run out.

When it runs out is for the database's clock to say, not for those of the hosts, which may be apart. A host whose clock
is wrong by more than an hour is refused: it might take today for another day.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from math import ceil
from pathlib import Path

import anyio
import psutil

from .metrics import record_error
from .records import Lease
from .stores import LeaseLostError, Runs

__all__ = ["AlreadyRunningError", "ClockError", "Held", "LeaseLostError", "hold", "is_gone", "new_holder"]

TTL_S = 60.0
EXTEND_EVERY_S = 5.0
_RELEASE_TIMEOUT_S = 5.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROCESS_IDS = Path("/proc/self/ns/pid")
_LONGEST_HOST = 40
_MAX_CLOCK_ERROR = timedelta(hours=1)


def _steady_clock() -> Callable[[], float]:
    # The monotonic clock of Linux stands still while the host is suspended; this one does not.
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic if clock is None else partial(time.clock_gettime, clock)


_steady_s = _steady_clock()


class AlreadyRunningError(Exception):
    """Another run has the lease."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(f"the maintenance is under way: {lease.holder} has the lease until {lease.until:%H:%M:%S} UTC")
        self.lease = lease

    @property
    def retry_after_s(self) -> int:
        """Return in how many seconds it is free, at the latest, unless it is extended."""
        asked_at = self.lease.asked_at or datetime.now(timezone.utc)
        return max(1, ceil((self.lease.until - asked_at).total_seconds()))


class ClockError(Exception):
    """The clocks of this host and of the database are too far apart to agree on what day it is."""


def _host() -> str:
    """Return a name for what shares process ids with this process: this boot of this host, or one container on it.

    The host's name alone would not do. On Cloud Run each instance is called `localhost`, and containers may share a
    name: one would take the living process of another for gone.
    """
    name = socket.gethostname().replace(":", "-")[:_LONGEST_HOST]
    try:
        shared = _BOOT_ID.read_text(encoding="ascii") + str(_PROCESS_IDS.readlink())
    except OSError:
        # Whatever cannot be told apart is never called gone: its lease runs out.
        shared = secrets.token_hex(8)
    return f"{name}-{hashlib.sha256(shared.encode()).hexdigest()[:8]}"


_HOST = _host()


def new_holder() -> str:
    """Return a name for somebody in this process."""
    return f"{_HOST}:{os.getpid()}:{secrets.token_hex(4)}"


def is_gone(holder: str) -> bool:
    """Tell whether a holder was a process of this host that has ended."""
    host, _, rest = holder.partition(":")
    pid = rest.partition(":")[0]
    if host != _HOST or not pid.isdecimal():
        return False
    try:
        return psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


class Held:
    """The lease, as long as it is had."""

    def __init__(self, runs: Runs, holder: str, now: datetime, began_s: float, *, ttl_s: float) -> None:
        self._runs = runs
        self.holder = holder
        self._now = now
        self._began_s = began_s
        self._ttl_s = ttl_s
        # Not later than the database has it: it was asked for before it was given.
        self._good_until_s = began_s + ttl_s
        self._lost_to: str | None = None

    @property
    def now(self) -> datetime:
        """Return the moment: when the run was asked for, and the time since."""
        return self._now + timedelta(seconds=_steady_s() - self._began_s)

    def check(self) -> None:
        """Raise `LeaseLostError` when the lease is not had any more."""
        if self._lost_to is not None:
            raise LeaseLostError(f"{self._lost_to} has the lease now")
        if _steady_s() >= self._good_until_s:
            raise LeaseLostError("the lease ran out before it was extended")

    async def extend(self) -> None:
        """Extend it once. What ran out is lost: somebody else may have had it since, and be through with the run."""
        # What counts is when it was asked for, not when the answer came.
        asked_s = _steady_s()
        if asked_s >= self._good_until_s:
            self._lost_to = "somebody else, or nobody,"
            return
        lease = await self._runs.lease(self.holder, None, self._ttl_s)
        if lease.holder != self.holder:
            self._lost_to = lease.holder
        else:
            self._good_until_s = asked_s + self._ttl_s

    async def go_on_extending(self, every_s: float) -> None:
        """Extend it again and again, until it is lost. A failure is tried again the next time."""
        while self._lost_to is None:
            await asyncio.sleep(every_s)
            try:
                await self.extend()
            except Exception as error:
                record_error("lease", error)


def _require_right_clock(lease: Lease) -> None:
    now = datetime.now(timezone.utc)
    if lease.asked_at is not None and abs(now - lease.asked_at) > _MAX_CLOCK_ERROR:
        here, there = (f"{moment:%Y-%m-%d %H:%M} UTC" for moment in (now, lease.asked_at))
        raise ClockError(
            f"the clock of this host says {here}, and that of the database {there}: set the one that is wrong"
        )


@asynccontextmanager
async def hold(
    runs: Runs, now: datetime, *, ttl_s: float = TTL_S, extend_every_s: float = EXTEND_EVERY_S
) -> AsyncIterator[Held]:
    """Have the lease for the length of a block, or raise `AlreadyRunningError`, or `ClockError`.

    `now` is the moment of the run, and nothing to the lease.
    """
    holder, began_s = new_holder(), _steady_s()
    lease = await runs.lease(holder, None, ttl_s)
    if lease.holder != holder and is_gone(lease.holder):
        lease = await runs.lease(holder, None, ttl_s, instead_of=lease.holder)
    if lease.holder != holder:
        raise AlreadyRunningError(lease)
    try:
        _require_right_clock(lease)
    except ClockError:
        await runs.release(holder)
        raise
    held = Held(runs, holder, now, began_s, ttl_s=ttl_s)
    extending = asyncio.create_task(held.go_on_extending(extend_every_s), name="streak lease")
    try:
        yield held
    finally:
        # Also when the run is being cancelled. If giving it back fails, it runs out.
        with anyio.move_on_after(_RELEASE_TIMEOUT_S, shield=True):
            extending.cancel()
            with suppress(asyncio.CancelledError):
                await extending
            try:
                await runs.release(holder)
            except Exception as error:
                record_error("lease", error)
