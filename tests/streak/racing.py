"""Processes that do things to one database at the same moment. Run as a program, this is one of them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any

# Enough for all of them to have heard when it begins.
_HEAD_START_S = 0.1
ROOT = Path(__file__).resolve().parents[2]


class Racers:
    """So many processes, started once; each of them waits until all of them are ready."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def race(self, url: str, *calls: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """Let each process do its calls, all of them at once, and return what each came to, by process."""
        taking_part = self._processes[: len(calls)]
        assert len(taking_part) == len(calls), "there are not so many processes"
        for process, some in zip(taking_part, calls, strict=True):
            self._tell(process, {"url": url, "calls": some})
        assert [self._hear(process) for process in taking_part] == ["ready"] * len(calls)
        start = time.time() + _HEAD_START_S
        for process in taking_part:
            self._tell(process, start)
        answers = [self._hear(process) for process in taking_part]
        failed = [answer for answer in answers if isinstance(answer, str)]
        assert not failed, failed
        return answers

    @staticmethod
    def _tell(process: subprocess.Popen[str], what: Any) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()

    @staticmethod
    def _hear(process: subprocess.Popen[str]) -> Any:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "a process has ended before its time"
        return json.loads(line)


@contextmanager
def racers(count: int) -> Iterator[Racers]:
    """Start so many processes, and end them."""
    processes = [
        subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(count)
    ]
    try:
        yield Racers(processes)
    finally:
        for process in processes:
            process.communicate(timeout=30)


async def _do(database: Any, name: str, *given: Any) -> Any:
    from examples.streak.records import Activity, Range

    store, runs = database.store, database.runs
    if name == "prepare":
        return await database.prepare()
    if name == "freeze":
        return (await store.apply_freeze(given[0], date.fromisoformat(given[1]))).applied
    if name == "recover":
        return (await store.recover(given[0], date.fromisoformat(given[1]))).recovered
    if name == "log":
        user, category, key, at = given
        receipt = await store.log_activity(user, Activity(category, 10, client_key=key), datetime.fromisoformat(at))
        logged = receipt.logged
        told = [logged.grew, logged.bonus_earned, logged.xp] if logged else None
        return {"user": user, "id": receipt.entry.id, "logged": told}
    if name == "settle":
        run_id, after, until, day = given
        batch = await runs.settle(run_id, Range(after, until), date.fromisoformat(day))
        return {"processed": batch.tally.processed, "changed": sorted(batch.changed)}
    assert name == "lease"
    holder, at, ttl_s = given
    return (await runs.lease(holder, datetime.fromisoformat(at), ttl_s)).holder


def _say(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def _take_part(url: str, calls: Sequence[Sequence[Any]]) -> Any:
    from examples.streak.stores import open_database

    database = open_database(url)
    try:
        # The connections are made before the race begins.
        await asyncio.gather(*(database.store.ping() for _ in range(5)))
        _say("ready")
        start = json.loads(await asyncio.to_thread(sys.stdin.readline))
        await asyncio.sleep(start - time.time())
        return await asyncio.gather(*(_do(database, *call) for call in calls))
    finally:
        await database.close()


def _run() -> None:
    while line := sys.stdin.readline():
        told = json.loads(line)
        try:
            answer = asyncio.run(_take_part(told["url"], told["calls"]))
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        _say(answer)


if __name__ == "__main__":
    _run()
