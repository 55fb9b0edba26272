"""Keeps two runs of the maintenance apart, over processes and hosts: one lease, which whoever has it goes on extending.

A holder is called `host:pid:random`. Who finds the lease with a process of this host that is gone takes it over at
once; from other hosts nobody can tell, so it has to run out.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

import anyio
import psutil

from .metrics import record_error
from .records import Lease
from .stores import Runs

__all__ = ["AlreadyRunningError", "Held", "LeaseLostError", "hold", "is_gone", "new_holder"]

TTL_S = 60.0
EXTEND_EVERY_S = 5.0
_RELEASE_TIMEOUT_S = 5.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROCESS_IDS = Path("/proc/self/ns/pid")
_LONGEST_HOST = 40


class AlreadyRunningError(Exception):
    """Another run has the lease."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(f"the maintenance is under way: {lease.holder} has the lease until {lease.until:%H:%M:%S} UTC")
        self.lease = lease


class LeaseLostError(Exception):
    """The lease ran out, or somebody else has it now."""


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
        self._holder = holder
        self._now = now
        self._began_s = began_s
        self._ttl_s = ttl_s
        self._good_until_s = began_s + ttl_s
        self._lost_to: str | None = None

    @property
    def now(self) -> datetime:
        """Return the moment: when the run was asked for, and the time since."""
        return self._now + timedelta(seconds=time.monotonic() - self._began_s)

    def check(self) -> None:
        """Raise `LeaseLostError` when the lease is not had any more."""
        if self._lost_to is not None:
            raise LeaseLostError(f"{self._lost_to} has the lease now")
        if time.monotonic() >= self._good_until_s:
            raise LeaseLostError("the lease ran out before it was extended")

    async def extend(self) -> None:
        """Extend it once."""
        # What counts is when it was asked for, not when the answer came.
        asked_s = time.monotonic()
        lease = await self._runs.lease(self._holder, self.now, self._ttl_s)
        if lease.holder != self._holder:
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


@asynccontextmanager
async def hold(
    runs: Runs, now: datetime, *, ttl_s: float = TTL_S, extend_every_s: float = EXTEND_EVERY_S
) -> AsyncIterator[Held]:
    """Have the lease for the length of a block, or raise `AlreadyRunningError`."""
    holder, began_s = new_holder(), time.monotonic()
    lease = await runs.lease(holder, now, ttl_s)
    if lease.holder != holder and is_gone(lease.holder):
        lease = await runs.lease(holder, now, ttl_s, instead_of=lease.holder)
    if lease.holder != holder:
        raise AlreadyRunningError(lease)
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
