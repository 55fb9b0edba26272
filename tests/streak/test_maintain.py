"""The command line of the maintenance: what it does, what it says, and what it ends with."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from examples.streak import rules
from examples.streak.maintain import main
from examples.streak.maintain_report import ProgressLine, history_table, summary_text
from examples.streak.maintenance import Summary
from examples.streak.records import Run, Tally
from examples.streak.stores import open_database
from tests.streak.seeding import expected, read_states, seed_users

ROOT = Path(__file__).parents[2]
COUNT = 60


def _today() -> Any:
    return rules.day_of(datetime.now(timezone.utc))


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The address of an SQLite file with some users in it."""
    address = f"sqlite+aiosqlite:///{tmp_path}/streak.db"

    async def fill() -> None:
        database = open_database(address)
        await database.prepare()
        await seed_users(database, COUNT, _today())
        await database.close()

    asyncio.run(fill())
    return address


def _states(url: str) -> Any:
    async def read() -> Any:
        database = open_database(url)
        try:
            return await read_states(database)
        finally:
            await database.close()

    return asyncio.run(read())


def _run(url: str | None, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    environment.update(more if url is None else {"DATABASE_URL": url, **more})
    command = [sys.executable, "-m", "examples.streak.maintain", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_from_dry_run_to_history(url: str) -> None:
    """A dry run, the run, nothing to resume, and the history, as somebody would do it."""
    tally = expected(COUNT, _today())[0]
    before = _states(url)
    dry = _run(url, "--dry-run")
    assert (dry.returncode, dry.stdout.splitlines()[0]) == (0, "dry run: nothing was written"), dry.stderr
    assert _states(url) == before
    first = _run(url, "--json", "--batch-size", "7", "--in-flight", "2")
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert (document["dry_run"], document["repeated"], document["run"]["state"]) == (False, False, "completed")
    assert document["tally"]["processed"] == tally.processed
    assert document["tally"]["broken"] == tally.broken
    # The log is one JSON object a line, on stderr, so that stdout is the result alone.
    (line,) = [json.loads(line) for line in first.stderr.splitlines() if line.startswith("{")]
    assert (line["severity"], line["message"]) == ("INFO", "Daily streak maintenance completed")
    assert (line["users_processed"], line["errors"]) == (tally.processed, 0)
    assert _states(url) == expected(COUNT, _today())[1]
    resume = _run(url, "--resume")
    assert (resume.returncode, resume.stdout) == (0, "")
    assert "nothing to resume" in resume.stderr
    again = json.loads(_run(url, "--dry-run", "--json").stdout)
    assert again["tally"]["processed"] == 0
    history = _run(url, "--history", "5", "--json")
    assert history.returncode == 0, history.stderr
    assert [run["id"] for run in json.loads(history.stdout)["runs"]] == [document["run"]["id"]]


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        ((), {}, "DATABASE_URL is not set"),
        ((), {"DATABASE_URL": "mysql://u:hunter2@h/d"}, "postgresql://"),
        ((), {"DATABASE_URL": "sqlite:///a.db", "STREAK_BATCH_SIZE": "0"}, "STREAK_BATCH_SIZE"),
    ],
)
def test_bad_settings(
    arguments: tuple[str, ...],
    variables: dict[str, str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A setting that cannot be used ends it with 2 and what would do, without what might be secret."""
    for name in ("DATABASE_URL", "STREAK_BATCH_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert told in shown.err
    assert "hunter2" not in shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--batch-size", "0"],
        ["--batch-size", "ten"],
        ["--in-flight", "101"],
        ["--history", "0"],
        ["--dry-run", "--resume"],
        ["--dry-run", "--history"],
        ["all"],
    ],
)
def test_bad_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An option that cannot be used ends it with 2 and names it."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """The help has examples, the settings and all exit codes."""
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for part in ("examples:", "settings:", "tuning:", "exit codes:", "--dry-run", "--resume", "130", "143"):
        assert part in shown


def test_database_that_is_not_there(tmp_path: Path) -> None:
    """A database that does not answer ends it with 1, and without its password."""
    done = _run("postgresql://streak:hunter2@127.0.0.1:9/streak")
    assert done.returncode == 1
    assert "hunter2" not in done.stderr
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_profile_is_named(url: str, tmp_path: Path) -> None:
    """With a profile the run is the same, and its files are named at the end."""
    folder = tmp_path / "profile"
    done = _run(url, "--profile", str(folder))
    assert done.returncode == 0, done.stderr
    assert str(folder) in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["cpu.html", "cpu.txt", "memory.txt"]
    # What the workers did is in it, not only that somebody waited for them.
    assert "settle" in (folder / "cpu.txt").read_text()
    assert _states(url) == expected(COUNT, _today())[1]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal progress stays on one line; elsewhere there is a whole line now and then."""
    now_s = 100.0
    monkeypatch.setattr("examples.streak.maintain_report.time.monotonic", lambda: now_s)
    for stream, shown in (
        (_Terminal(), "\rstreak: 1,500 users, 1,500 a second, 0 streaks ended\x1b[K\n"),
        (io.StringIO(), ""),
    ):
        now_s = 100.0
        with ProgressLine(stream) as progress:
            progress(Tally(processed=100))
            now_s = 101.0
            progress(Tally(processed=1_500))
        assert stream.getvalue() == shown
    now_s = 100.0
    with ProgressLine(stream) as progress:
        now_s = 110.0
        progress(Tally(processed=1_500, missed=3))
    assert stream.getvalue() == "streak: 1,500 users, 150 a second, 3 streaks ended\n"


def test_what_a_run_is_called() -> None:
    """The first line says how the run ended, and the table lines up its columns."""
    now = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
    run = Run("1" * 32, now.date(), "cli", "completed", now, now + timedelta(seconds=2), tally=Tally(1_234))
    failed = Run("2" * 32, now.date(), "http", "failed", now, None, 2, "StoreUnavailableError")

    def head(run: Run, *, repeated: bool = False) -> str:
        return summary_text(Summary(run, run.tally, dry_run=False, repeated=repeated, seconds=1)).splitlines()[0]

    assert head(run).endswith("completed")
    assert head(run, repeated=True).endswith("was completed before")
    assert head(failed).endswith("failed (StoreUnavailableError): --resume goes on where it was")
    lines = history_table([run, failed]).splitlines()
    assert len({line.rindex("  ") for line in lines[1:]}) == 1
    assert "failed: StoreUnavailableError" in lines[2]
    assert history_table([]) == "no run of the maintenance yet"
