"""Real processes of the maintenance, killed half-way, and two at a time: each user is accounted for exactly once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select

from examples.streak import rules
from examples.streak.leases import is_gone
from examples.streak.push import create_push_app
from examples.streak.stores import Database, tables
from tests.serving import served
from tests.streak.maintaining import assert_each_once
from tests.streak.seeding import expected, seed_users

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)]

ROOT = Path(__file__).parents[2]
COUNT = 1_500
SMALL = ("--batch-size", "10", "--in-flight", "3")


@contextmanager
def _started(database_url: str, push_url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "DATABASE_URL": database_url, "PUSH_URL": push_url}
    command = [sys.executable, "-m", "examples.streak.maintain", "--json", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def _ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = await asyncio.to_thread(process.communicate, timeout=120)
    return process.returncode, out, err


async def _batches(database: Database) -> int:
    async with database.measured[0].connect() as connection:
        count: int = (await connection.execute(select(func.count()).select_from(tables.batches))).scalar_one()
    return count


async def _half_way(database: Database, process: subprocess.Popen[str], batches: int) -> None:
    while await _batches(database) < batches:
        assert process.poll() is None, process.communicate()
        await asyncio.sleep(0.01)


@asynccontextmanager
async def _push_api(database: Database) -> AsyncIterator[tuple[FastAPI, str]]:
    """A push API that takes a moment, so that a run takes several."""
    # The day begins at four: a test that runs across it would seed one day and settle another.
    await seed_users(database, COUNT, _today())
    app = create_push_app(delay_s=0.01, keep=100_000)
    with served(app) as url:
        yield app, url


def _today() -> Any:
    return rules.day_of(datetime.now(timezone.utc))


def _assert_all_told(app: FastAPI) -> None:
    """Everybody whom a run is about was told at least once, and of one thing only."""
    told = {(message.user, message.kind) for message in app.state.recent}
    assert len(told) == len({user for user, _ in told}) == expected(COUNT, _today())[0].processed


async def test_kill_and_resume(database: Database, database_url: str) -> None:
    """Killed twice in the middle, then taken up: each user once, each message at least once, the lease free at once."""
    async with _push_api(database) as (app, url):
        for go, batches in enumerate((15, 40)):
            with _started(database_url, url, *SMALL, *(("--resume",) if go else ())) as process:
                await _half_way(database, process, batches)
                process.send_signal(signal.SIGKILL)
                process.wait()
            (run,) = await database.runs.history(10)
            assert (run.state, run.resumed) == ("running", go)
            assert 0 < run.tally.processed < expected(COUNT, _today())[0].processed
            # A kill gives nothing back: the next one finds out that the holder is gone.
            lease = await database.runs.lease("asks", datetime.now(timezone.utc), 60)
            assert is_gone(lease.holder)
        with _started(database_url, url, *SMALL, "--resume") as process:
            code, out, err = await _ended(process)
        assert code == 0, err
        summary = json.loads(out)
        assert (summary["run"]["id"], summary["run"]["state"], summary["run"]["resumed"]) == (run.id, "completed", 2)
        total = await assert_each_once(database, COUNT, _today())
        assert (summary["tally"]["processed"], summary["tally"]["notified"]) == (total.processed, total.processed)
        _assert_all_told(app)


async def test_terminated_and_run_again(database: Database, database_url: str) -> None:
    """SIGTERM ends it with 143, the lease given back and the run interrupted; plain `run` goes on where it was."""
    async with _push_api(database) as (app, url):
        with _started(database_url, url, *SMALL) as process:
            await _half_way(database, process, 25)
            process.send_signal(signal.SIGTERM)
            code, out, err = await _ended(process)
        assert (code, json.loads(out)["exit_code"]) == (143, 143), err
        assert "--resume goes on where it was" in err
        (run,) = await database.runs.history(10)
        assert (run.state, run.error) == ("failed", "interrupted")
        now = datetime.now(timezone.utc)
        assert (await database.runs.lease("asks", now, 60)).holder == "asks"
        await database.runs.release("asks")
        with _started(database_url, url, *SMALL) as process:
            code, _, err = await _ended(process)
        assert code == 0, err
        await assert_each_once(database, COUNT, _today())
        _assert_all_told(app)


async def test_two_at_once(database: Database, database_url: str) -> None:
    """While one process is at it, another one ends with 3, says who has the lease, and has done nothing."""
    async with _push_api(database) as (app, url):
        with _started(database_url, url, *SMALL) as first:
            await _half_way(database, first, 5)
            # It stands still, so that the other one comes in time, and has the lease for a minute more.
            first.send_signal(signal.SIGSTOP)
            with _started(database_url, url, *SMALL) as second:
                code, _, refused = await _ended(second)
            first.send_signal(signal.SIGCONT)
            assert code == 3, refused
            assert "the maintenance is under way" in refused
            code, _, err = await _ended(first)
            assert code == 0, err
        (run,) = await database.runs.history(10)
        assert (run.state, run.resumed) == ("completed", 0)
        total = await assert_each_once(database, COUNT, _today())
        # Whoever stood still may have missed an answer, and sent those messages once more.
        told = [message.user for message in app.state.recent]
        assert len(told) >= len(set(told)) == total.processed
