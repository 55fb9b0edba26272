"""A queue of jobs in an SQLite file: a job that was taken and not finished is given out again."""

from __future__ import annotations

import random
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from otel_perf import measure

__all__ = ["Job", "Queue"]

_MAX_ATTEMPTS = 3
_MAX_PAUSE_S = 3_600.0
_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, payload TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', attempts INTEGER NOT NULL DEFAULT 0,
    free_at REAL NOT NULL DEFAULT 0, result TEXT
);
CREATE INDEX IF NOT EXISTS jobs_waiting ON jobs (state, free_at, id);
"""


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to do."""

    id: int
    kind: str
    payload: str
    attempt: int = 1
    """Which one this is."""


class Queue:
    """Jobs of one file, for one thread. Several processes may work on it at once."""

    def __init__(self, path: Path, *, lease_s: float = 60.0, retry_s: float = 1.0) -> None:
        self._lease_s = lease_s
        self._retry_s = retry_s
        # Transactions are begun by hand, where there are any.
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._connection.executescript(f"PRAGMA journal_mode = WAL; {_TABLES}")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def add(self, kind: str, payload: str) -> int:
        """Write a job that waits, and return its id."""
        with measure.query("INSERT", collection="jobs", system="sqlite"):
            written = self._connection.execute("INSERT INTO jobs (kind, payload) VALUES (?, ?)", (kind, payload))
        return written.lastrowid or 0

    def take(self) -> Job | None:
        """Take the oldest job that waits, for the length of a lease.

        It is not measured: an idle worker would tell of nothing else.
        """
        now = time.time()
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            row = self._connection.execute(
                "SELECT id, kind, payload, attempts + 1 FROM jobs WHERE state = 'waiting' AND free_at <= ?"
                " ORDER BY id LIMIT 1",
                (now,),
            ).fetchone()
            if row is None:
                return None
            self._connection.execute(
                "UPDATE jobs SET attempts = attempts + 1, free_at = ? WHERE id = ?", (now + self._lease_s, row[0])
            )
        return Job(*row)

    def finish(self, job: Job, result: str) -> None:
        """Write what a job came to."""
        with measure.query("UPDATE", collection="jobs", system="sqlite"):
            self._connection.execute("UPDATE jobs SET state = 'done', result = ? WHERE id = ?", (result, job.id))

    def give_back(self, job: Job) -> bool:
        """Have a job that failed wait for another attempt, and tell whether there is one left.

        It is due after a pause, which doubles each time, by chance half as long or half as much again: jobs that failed
        together do not come back together.
        """
        pause_s = min(_MAX_PAUSE_S, self._retry_s * 2 ** (job.attempt - 1)) * random.uniform(0.5, 1.5)
        with measure.query("UPDATE", collection="jobs", system="sqlite"):
            self._connection.execute(
                "UPDATE jobs SET free_at = ?, state = iif(attempts < ?, 'waiting', 'failed') WHERE id = ?",
                (time.time() + pause_s, _MAX_ATTEMPTS, job.id),
            )
            (state,) = self._connection.execute("SELECT state FROM jobs WHERE id = ?", (job.id,)).fetchone()
        return bool(state == "waiting")

    def due_in_s(self) -> float | None:
        """Return how long it is until a job can be taken, or the lease of one is over; None when no job waits."""
        (free_at,) = self._connection.execute("SELECT min(free_at) FROM jobs WHERE state = 'waiting'").fetchone()
        return None if free_at is None else max(0.0, free_at - time.time())

    def states(self) -> dict[str, int]:
        """Return how many jobs there are in each state: waiting (also those in hand), done and failed."""
        return dict(self._connection.execute("SELECT state, count(*) FROM jobs GROUP BY state"))
