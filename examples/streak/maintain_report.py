"""What `maintain` shows: how far it is, what a run came to, and the runs before, as text or as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

from .maintenance import Summary
from .records import Run, Tally

__all__ = ["ProgressLine", "error_json", "history_json", "history_table", "summary_json", "summary_text"]

_ON_A_TERMINAL_EVERY_S = 0.2
_ELSEWHERE_EVERY_S = 5.0
_COUNTS = ("resumed", "users", "freezes", "broken", "at risk", "told", "unsent")
_COLUMNS = ("day", "began", "took", "state", "by", *_COUNTS, "id")


class ProgressLine:
    """Says how many users there were so far, and how many in a second: on one line, or on one now and then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._every_s = _ON_A_TERMINAL_EVERY_S if self._terminal else _ELSEWHERE_EVERY_S
        self._began_s = self._shown_s = time.monotonic()
        self._on_a_line = False

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_a_line:
            self._stream.write("\n")
            self._stream.flush()

    def __call__(self, tally: Tally) -> None:
        """Take note of what a run came to so far."""
        now_s = time.monotonic()
        if now_s - self._shown_s < self._every_s:
            return
        self._shown_s = now_s
        rate = tally.processed / (now_s - self._began_s)
        text = f"streak: {tally.processed:,} users, {rate:,.0f} a second, {tally.broken:,} streaks ended"
        self._on_a_line = self._terminal
        self._stream.write(f"\r{text}\x1b[K" if self._terminal else f"{text}\n")
        self._stream.flush()


def summary_text(summary: Summary) -> str:
    """Return what a run came to, for people."""
    tally, run = summary.tally, summary.run
    if run is None:
        head = "dry run: nothing was written"
    elif run.error is not None:
        left = f", {summary.users_left:,} users or more are left" if summary.users_left else ""
        head = f"run {run.id} of {run.day} failed ({run.error}{left}): --resume goes on where it was"
    elif summary.repeated:
        head = f"run {run.id} of {run.day} was completed before"
    else:
        times = f", taken up {run.resumed} times" if run.resumed > 1 else ", taken up once" if run.resumed else ""
        head = f"run {run.id} of {run.day} completed{times}"
    rows = (
        ("users processed", tally.processed),
        ("freezes applied", tally.freezes_spent),
        ("streaks broken", tally.broken),
        ("at risk", tally.at_risk),
        ("notified", tally.notified),
        ("unsent", summary.unsent),
        ("errors", summary.errors),
    )
    lines = [head, *(f"  {name:<16}{count:>12,}" for name, count in rows), f"  {'seconds':<16}{summary.seconds:>12.2f}"]
    return "\n".join(lines)


def summary_json(summary: Summary) -> str:
    """Return what a run came to, for programs."""
    document = {
        "run": None if summary.run is None else _run_document(summary.run),
        "tally": _tally_document(summary.tally),
        "dry_run": summary.dry_run,
        "repeated": summary.repeated,
        "unsent": summary.unsent,
        "users_left": summary.users_left,
        "errors": summary.errors,
        "seconds": round(summary.seconds, 3),
    }
    return json.dumps(document, indent=2)


def history_table(runs: Sequence[Run]) -> str:
    """Return the runs as a table."""
    if not runs:
        return "no run of the maintenance yet"
    rows = [_COLUMNS, *map(_row, runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    numbers = range(_COLUMNS.index("resumed"), _COLUMNS.index("id"))
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def history_json(runs: Sequence[Run]) -> str:
    """Return the runs for programs."""
    return json.dumps({"runs": [_run_document(run) for run in runs]}, indent=2)


def error_json(text: str, code: int, run: Run | None = None) -> str:
    """Return why there is no result, for programs."""
    document = {"run": None if run is None else _run_document(run), "told": text, "exit_code": code}
    return json.dumps(document, indent=2)


def _row(run: Run) -> tuple[str, ...]:
    took = "-" if run.ended_at is None else f"{(run.ended_at - run.started_at).total_seconds():.1f} s"
    state = run.state if run.error is None else f"{run.state}: {run.error}"
    tally = run.tally
    users = (tally.processed, tally.freezes_spent, tally.broken, tally.at_risk)
    counts = (run.resumed, *users, tally.notified, run.unsent)
    began = run.started_at.strftime("%H:%M:%S")
    return (run.day.isoformat(), began, took, state, run.trigger, *(f"{count:,}" for count in counts), run.id)


def _run_document(run: Run) -> dict[str, Any]:
    return {
        **asdict(run),
        "day": run.day.isoformat(),
        "started_at": run.started_at.isoformat(),
        "ended_at": None if run.ended_at is None else run.ended_at.isoformat(),
        "tally": _tally_document(run.tally),
    }


def _tally_document(tally: Tally) -> dict[str, int]:
    return {**asdict(tally), "broken": tally.broken}
