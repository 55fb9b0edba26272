"""What the command lines of the maintenance and the migrations say when it does not work: a sentence, and a code."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from examples.streak import maintain, migrate, rules
from examples.streak.complaints import complaint_of
from examples.streak.leases import ClockError
from examples.streak.stores import LeaseLostError, StoreBusyError, StoreUnavailableError, open_database
from tests.streak.seeding import seed_users

Main = Callable[[list[str]], int]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes an address the one of the environment."""
    for name in ("REDIS_URL", "PUSH_URL", "STREAK_BATCH_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return lambda url: monkeypatch.setenv("DATABASE_URL", url)


def _url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def _prepare(url: str, users: int = 0) -> None:
    async def prepare() -> None:
        database = open_database(url)
        await database.prepare()
        await seed_users(database, users, rules.day_of(datetime.now(timezone.utc)))
        await database.close()

    asyncio.run(prepare())


def test_resume_without_a_run_is_no_success(use: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of today to take up is 1, with what to do; when today is completed it is 0. JSON is always an object."""
    use(_url(tmp_path / "a.db"))
    _prepare(_url(tmp_path / "a.db"), 6)
    assert maintain.main(["--resume", "--json"]) == 1
    shown = capsys.readouterr()
    assert "run without --resume" in shown.err
    assert json.loads(shown.out)["run"] is None
    assert maintain.main([]) == 0
    capsys.readouterr()
    assert maintain.main(["--resume", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["run"]["state"], document["exit_code"]) == ("completed", 0)


@pytest.mark.parametrize("arguments", [["--dry-run"], ["--history"]])
def test_who_only_looks_makes_nothing(
    arguments: list[str], use: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is no file, or no tables, a dry run and the history say so, and there is none afterwards."""
    path = tmp_path / "typo.db"
    use(_url(path))
    assert maintain.main([*arguments, "--json"]) == 2
    shown = capsys.readouterr()
    assert "no tables yet" in shown.err
    assert json.loads(shown.out)["exit_code"] == 2
    assert not path.exists()
    sqlite3.connect(path).close()
    path.touch()
    assert maintain.main(arguments) == 2
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize("main", [maintain.main, migrate.main])
def test_files_that_are_no_database(main: Main, use: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of something else, and a folder that is not there, are a sentence and 2."""
    (tmp_path / "junk.db").write_bytes(b"no database " * 1_000)
    for name, told in (("junk.db", "not an SQLite database"), ("none/a.db", "cannot be opened")):
        use(_url(tmp_path / name))
        assert main([]) == 2
        shown = capsys.readouterr()
        assert told in shown.err
        assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize("main", [maintain.main, migrate.main])
def test_locked_database(
    main: Main,
    use: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A database that somebody keeps locked is a sentence and 1."""
    monkeypatch.setattr("examples.streak.stores.sql_session._LOCK_TIMEOUT_S", 0.05)
    path = tmp_path / "a.db"
    use(_url(path))
    if main is maintain.main:
        _prepare(_url(path))
    locking = sqlite3.connect(path, isolation_level=None)
    locking.execute("PRAGMA journal_mode=WAL")
    locking.execute("BEGIN IMMEDIATE")
    try:
        assert main([]) == 1
    finally:
        locking.close()
    assert "locked by somebody else" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("main", [maintain.main, migrate.main])
def test_postgresql_without_the_database(
    main: Main, use: Any, fresh_postgresql: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A database that does not exist is 2; a server that is not there is 1. Neither says where it is."""
    use(fresh_postgresql + "_typo")
    assert main([]) == 2
    assert "does not exist: create it" in capsys.readouterr().err
    use("postgresql://streak:hunter2@127.0.0.1:9/streak")
    assert main([]) == 1
    shown = capsys.readouterr()
    assert "does not answer" in shown.err
    assert "hunter2" not in shown.err


@pytest.mark.parametrize("arguments", [["--to", ""], ["--current", "--to", "0001"], ["--to", "base"]])
def test_migrations_that_nobody_means(
    arguments: list[str], use: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No version, a version where none is wanted, and the end of all tables without --yes are refused by 2."""
    path = tmp_path / "a.db"
    use(_url(path))
    _prepare(_url(path))
    with pytest.raises(SystemExit) as end:
        migrate.main(arguments)
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err
    assert migrate.main(["--to", "base", "--yes"]) == 0


def test_what_is_said_of_each_failure() -> None:
    """Each failure that is foreseen has its code; what nobody foresaw is left to whoever looks for its cause."""
    codes = {
        ClockError("x"): 2,
        LeaseLostError("x"): 3,
        StoreBusyError("x"): 1,
        StoreUnavailableError("x"): 1,
        ConnectionRefusedError("at 10.0.0.1"): 1,
    }
    for error, code in codes.items():
        complaint = complaint_of(error)
        assert complaint is not None
        assert complaint.code == code
        assert "10.0.0.1" not in complaint.text
    assert complaint_of(KeyError("x")) is None
