"""One has the lease at a time; a dead holder of this host is found out, one of another host is waited for."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest

from examples.streak.leases import AlreadyRunningError, LeaseLostError, hold, is_gone, new_holder
from examples.streak.stores import Database

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
on_sql = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


def _holder(pid: int, host: str | None = None) -> str:
    own, _, rest = new_holder().partition(":")
    return f"{host or own}:{pid}:{rest.rpartition(':')[2]}"


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_who_is_gone() -> None:
    """Only a process of this very host and boot that has ended is gone; whatever cannot be told is not."""
    dead = _dead_pid()
    assert is_gone(_holder(dead))
    assert not is_gone(new_holder())
    assert not is_gone(_holder(dead, "elsewhere-12345678"))
    for odd in ("", ":", "a:b:c", new_holder().partition(":")[0], _holder(dead).replace(str(dead), "-1")):
        assert not is_gone(odd)


def test_a_zombie_is_gone() -> None:
    """A process that was killed, and whose parent has not heard of it yet, is no holder any more."""
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(_holder(process.pid))
    process.wait()
    process.stdout.close()


@on_sql
async def test_one_at_a_time(database: Database) -> None:
    """While one has it, no other gets it; then the next does."""
    async with hold(database.runs, NOW):
        with pytest.raises(AlreadyRunningError) as refusal:
            async with hold(database.runs, NOW + timedelta(days=1)):
                pass
        assert 50 < refusal.value.retry_after_s <= 60
    async with hold(database.runs, NOW):
        pass


@on_sql
async def test_dead_holder_is_replaced_at_once(database: Database) -> None:
    """The lease of a process of this host that is gone is taken over; that of another host has to run out."""
    await database.runs.lease(_holder(_dead_pid()), None, 60)
    async with hold(database.runs, NOW) as held:
        held.check()
    elsewhere = _holder(_dead_pid(), "elsewhere-12345678")
    await database.runs.lease(elsewhere, None, 60)
    with pytest.raises(AlreadyRunningError, match="elsewhere"):
        async with hold(database.runs, NOW):
            pass
    await database.runs.lease(elsewhere, datetime.now(timezone.utc) - timedelta(seconds=61), 60)
    async with hold(database.runs, NOW):
        pass


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_it_is_extended(database: Database) -> None:
    """It is had for longer than it was taken for, and whoever asks later is refused still."""
    async with hold(database.runs, NOW, ttl_s=0.5, extend_every_s=0.05) as held:
        await asyncio.sleep(0.8)
        held.check()
        with pytest.raises(AlreadyRunningError):
            async with hold(database.runs, held.now):
                pass


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_stopped_process_has_lost_it(database: Database) -> None:
    """Whoever could not extend it in time does not believe to have it, though nobody told them."""
    async with hold(database.runs, NOW, ttl_s=0.05, extend_every_s=10) as held:
        await asyncio.sleep(0.1)
        with pytest.raises(LeaseLostError, match="ran out"):
            held.check()
