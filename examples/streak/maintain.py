"""Runs the daily maintenance from a terminal, or from whatever starts programs each day.

python -m examples.streak.maintain --help
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

from otel_perf import SettingsError, configure, flush, instrument

from .cache import ReadCache, make_cache
from .complaints import BAD_INPUT, DONE, FAILED, RUNNING_ELSEWHERE, complaint_of
from .identity import identity_of
from .logs import configure_logging
from .maintain_report import ProgressLine, error_json, history_json, history_table, summary_json, summary_text
from .maintenance import Maintenance, NothingToResumeError, Summary
from .profiling import profiled
from .push import PushClient
from .records import Run
from .settings import BadSettingError, Settings
from .stores import Database, open_database
from .stores.sql_versions import require_newest

__all__ = ["BAD_INPUT", "DONE", "FAILED", "RUNNING_ELSEWHERE", "main"]

_MAX_HISTORY = 1_000

_EPILOG = """\
examples:
  DATABASE_URL=postgresql://... python -m examples.streak.maintain
      what a scheduler runs each day after 04:00 UTC; it may do so twice, the second time does nothing
  python -m examples.streak.maintain --dry-run
      what a run would do now: nothing when today's is completed, what is left when it ended half-way;
      writes nothing, makes no tables, and may run beside a real run
  python -m examples.streak.maintain --resume
      takes up the run of today that failed or was killed: what it has accounted for is not done again
  python -m examples.streak.maintain --history 7
      the last seven runs, and how they ended
  python -m examples.streak.maintain --profile profile --batch-size 500
      where the time and the memory go; the run takes up to ten times as long

settings:
  those of the service, from the same environment: DATABASE_URL (required), REDIS_URL, PUSH_URL, STREAK_BATCH_SIZE,
  STREAK_BATCHES_IN_FLIGHT. Without REDIS_URL the service keeps its cache to itself: what it shows of a streak that
  ended may be 15 minutes old. Without PUSH_URL nobody is notified.

tuning:
  A batch is one transaction. Larger ones (500) need fewer of them, and keep users waiting longer who do something
  just then; memory grows with batch size times batches in flight, not with the number of users. More in flight than
  the database has to spare connections only makes batches wait; SQLite has one writer, so 1 or 2 do.

exit codes:
  0    the maintenance of today is completed, by this run or by one before it; for --resume too
  1    it failed: the log says why, and --resume goes on where it was; or there is no run of today to resume
  2    an option or a setting cannot be used, the database has no tables yet, or this host's clock is wrong
  3    another run is under way
  130  interrupted (Ctrl-C); 143 by SIGTERM. The lease is given back, and --resume goes on where it was
"""


def _number(least: int, most: int) -> object:
    def parse(value: str) -> int:
        if not value.isascii() or not value.isdecimal() or not least <= int(value) <= most:
            raise argparse.ArgumentTypeError(f"{value[:20]!r} is no whole number from {least} to {most}")
        return int(value)

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.streak.maintain",
        description="Run the daily maintenance: who missed a day spends a freeze or loses the streak.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="count what a run would do, and write nothing")
    what.add_argument("--resume", action="store_true", help="take up the run of today that was ended half-way")
    what.add_argument(
        "--history",
        nargs="?",
        type=_number(1, _MAX_HISTORY),  # type: ignore[arg-type]  # argparse takes any callable
        const=10,
        metavar="N",
        help="show the last N runs (default: 10), newest first",
    )
    parser.add_argument(
        "--profile",
        nargs="?",
        const="",
        metavar="DIR",
        help="write a profile of CPU and memory into a folder (default: a new one, which is named at the end)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--batch-size", type=_number(1, 10_000), metavar="N", help="users in a batch (1 to 10000)")  # type: ignore[arg-type]  # see above
    parser.add_argument("--in-flight", type=_number(1, 100), metavar="N", help="batches at once (1 to 100)")  # type: ignore[arg-type]  # see above
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run it, and return the exit code."""
    options = _parser().parse_args(argv)
    try:
        settings = _settings(options)
        identity = identity_of(os.environ, "streak")
        configure(**asdict(identity))
        # Stdout has the result, and nothing else.
        configure_logging(settings, service=identity.service_name, stream=sys.stderr)
        folder = _profile_folder(options.profile)
    except (BadSettingError, SettingsError, OSError) as problem:
        return _complain(options, BAD_INPUT, str(problem))
    try:
        return asyncio.run(_interruptible(options, settings, folder))
    finally:
        flush()


def _settings(options: argparse.Namespace) -> Settings:
    settings = Settings.from_environment(os.environ)
    if settings.database_url is None:
        raise BadSettingError("DATABASE_URL is not set: give it the address of the service's database")
    given = {"batch_size": options.batch_size, "batches_in_flight": options.in_flight}
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def _profile_folder(given: str | None) -> Path | None:
    if given is None:
        return None
    folder = Path(given or tempfile.mkdtemp(prefix="streak-profile-"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _complain(options: argparse.Namespace, code: int, text: str, run: Run | None = None) -> int:
    print(f"streak: {text}", file=sys.stderr)
    if options.json:
        print(error_json(text, code, run))
    return code


async def _interruptible(options: argparse.Namespace, settings: Settings, folder: Path | None) -> int:
    """Run it until it is done or a signal ends it; a second signal does not wait for the lease to be given back."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    caught: list[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        for each in _SIGNALS:
            loop.remove_signal_handler(each)
        task.cancel()

    for each in _SIGNALS:
        loop.add_signal_handler(each, stop, each)
    try:
        return await _carry_out(options, settings, folder)
    except asyncio.CancelledError:
        if not caught:
            raise
        return _complain(options, 128 + caught[0], "interrupted: --resume goes on where it was")
    except NothingToResumeError as problem:
        if problem.completed is not None:
            return _complain(options, DONE, f"nothing to resume: {problem}", problem.completed)
        return _complain(options, FAILED, "there is no run of today to take up: run without --resume")
    except Exception as problem:
        complaint = complaint_of(problem)
        if complaint is None:
            raise
        return _complain(options, complaint.code, complaint.text)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def _carry_out(options: argparse.Namespace, settings: Settings, folder: Path | None) -> int:
    assert settings.database_url is not None
    async with AsyncExitStack() as stack:
        database = open_database(settings.database_url)
        stack.push_async_callback(database.close)
        cashews = make_cache(settings.redis_url)
        cache = ReadCache(cashews)
        stack.push_async_callback(cache.close)
        push = PushClient(settings.push_url)
        stack.push_async_callback(push.close)
        for target in (*database.measured, cashews):
            instrument(target)
        await _prepare(database, options, settings.database_url)
        maintenance = Maintenance(database.runs, cache, push, settings)
        if options.history is not None:
            runs = await maintenance.history(options.history)
            print(history_json(runs) if options.json else history_table(runs))
            return DONE
        with profiled(folder) if folder is not None else nullcontext():
            summary = await _run(maintenance, options)
    print(summary_json(summary) if options.json else summary_text(summary))
    if folder is not None:
        print(f"streak: the profile is in {folder}: cpu.html, cpu.txt, memory.txt", file=sys.stderr)
    return DONE if summary.run is None or summary.run.error is None else FAILED


async def _prepare(database: Database, options: argparse.Namespace, url: str) -> None:
    if options.history is None and not options.dry_run:
        await database.prepare()
    elif not url.startswith("firestore:"):
        # Whoever only looks makes no tables, and no file.
        await require_newest(database.measured[0])


async def _run(maintenance: Maintenance, options: argparse.Namespace) -> Summary:
    now = datetime.now(timezone.utc)
    with ProgressLine(sys.stderr) as progress:
        if options.resume:
            return await maintenance.resume(now, "cli", progress=progress)
        return await maintenance.run(now, "cli", dry_run=options.dry_run, progress=progress)


if __name__ == "__main__":
    sys.exit(main())
