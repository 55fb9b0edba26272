"""Settings, tokens, the push API, and how the processes start and do not start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from examples.streak.auth import NotTrustedError, User, mint, verify
from examples.streak.push import MAX_MESSAGES, Message, PushClient, create_push_app
from examples.streak.settings import BadSettingError, Settings
from tests.streak.conftest import SECRET, Start

ROOT = Path(__file__).parents[2]


def test_defaults() -> None:
    """Without any variable there is an own database, no Redis, no push API, and a secret that nobody knows."""
    one, other = Settings.from_environment({}), Settings.from_environment({"DATABASE_URL": " "})
    assert (one.database_url, one.redis_url, one.push_url, one.demo) == (None, None, None, False)
    assert len(one.secret) >= 32
    assert one.secret != other.secret
    assert one.secret not in repr(one)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
        ("sqlite+aiosqlite:////tmp/a.db", "sqlite+aiosqlite:////tmp/a.db"),
        ("postgres://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql+asyncpg://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
    ],
)
def test_database_urls(given: str, used: str) -> None:
    """The usual addresses of a database are taken, whatever driver they name or not."""
    assert Settings.from_environment({"DATABASE_URL": given}).database_url == used


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("DATABASE_URL", "mysql://u:hunter2@h/d", "postgresql://"),
        ("DATABASE_URL", "hunter2", "sqlite:///"),
        ("REDIS_URL", "http://h", "redis://"),
        ("REDIS_URL", "redis://", "redis://"),
        ("REDIS_URL", "redis://:hunter2@h:port", "redis://"),
        ("PUSH_URL", "h:8001", "http://"),
        ("STREAK_SECRET", "hunter2", "16 characters"),
        ("STREAK_DEMO", "yes", "use 1"),
    ],
)
def test_bad_setting_names_the_remedy(name: str, value: str, remedy: str) -> None:
    """A bad setting is refused with its name and what would do, and without what might be secret."""
    with pytest.raises(BadSettingError) as refusal:
        Settings.from_environment({name: value})
    assert name in str(refusal.value)
    assert remedy in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_tokens() -> None:
    """A token speaks for the user and role that it was made for, and only under its own secret."""
    assert verify(SECRET, mint(SECRET, "ada")) == User("ada")
    assert verify(SECRET, mint(SECRET, "root", admin=True)) == User("root", admin=True)
    for token in ("", ".", "a.b.c", mint(SECRET, "ada")[:-1], mint(SECRET, "ada") + "0", "user.ada.\ud800"):
        with pytest.raises(NotTrustedError):
            verify(SECRET, token)


@pytest.mark.parametrize("name", ["", "Ada", "a.b", "a b", "é", "x" * 33, "a\n"])
def test_names_that_are_none(name: str) -> None:
    """No token is made for what is not a user's name."""
    with pytest.raises(ValueError, match="not a user's name"):
        mint(SECRET, name)


@pytest.mark.anyio
async def test_push_api() -> None:
    """The push API takes up to a hundred messages of known kinds, and refuses the rest."""
    app = create_push_app(delay_s=0)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://push") as http:
        one = {"user": "ada", "kind": "bonus"}
        assert (await http.post("/api/push", json={"messages": [one] * MAX_MESSAGES})).json() == {"accepted": 100}
        for bad in ([], [one] * (MAX_MESSAGES + 1), [{"user": "ada", "kind": "spam"}], [{"kind": "bonus"}]):
            assert (await http.post("/api/push", json={"messages": bad})).status_code == 422
        assert (await http.get("/api/health")).json() == {"status": "ok"}
    assert len(app.state.recent) == MAX_MESSAGES


@pytest.mark.anyio
async def test_push_client_without_an_address() -> None:
    """Without a push API nobody is told, and nothing fails."""
    client = PushClient(None)
    assert not await client.send(Message(user="ada", kind="bonus"))
    await client.close()


def test_database_of_ones_own_goes_with_the_service(start: Start) -> None:
    """Without DATABASE_URL the database is a file that is gone when the service is."""

    async def use() -> Path:
        async with start(database_url=None) as service:
            await service.log()
            file = Path(service.engine.url.database or "")
            assert await asyncio.to_thread(file.exists)
            return file

    file = asyncio.run(use())
    assert file.is_relative_to(tempfile.gettempdir())
    assert not file.parent.exists()


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("module", ["examples.streak", "examples.streak.push"])
def test_busy_port(module: str) -> None:
    """A port that is taken is named together with the remedy, and the exit code is 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = _run(module, "--port", str(port))
    assert ended.returncode == 1
    assert f"port {port} of 127.0.0.1 is taken" in ended.stderr
    assert "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["examples.streak", "--port", "0"], {"DATABASE_URL": "mysql://x"}, "DATABASE_URL"),
        (["examples.streak", "--port", "70000"], {}, "--port"),
        (["examples.streak.auth", "ada"], {"STREAK_SECRET": ""}, "STREAK_SECRET"),
        (["examples.streak.auth", "A"], {"STREAK_SECRET": SECRET}, "not a user's name"),
        (["examples.streak.traffic"], {"STREAK_SECRET": ""}, "STREAK_SECRET"),
        (["examples.streak.traffic", "--base-url", "http://h"], {"STREAK_SECRET": SECRET}, "not on this machine"),
    ],
)
def test_bad_start(arguments: Sequence[str], environment: dict[str, str], said: str) -> None:
    """What cannot be started with is said in one line, with exit code 2."""
    ended = _run(*arguments, **environment)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_serves_until_a_signal(tmp_path: Path) -> None:
    """The service takes a free port, says which, works, and ends in order on SIGINT, its database with it."""
    environment = {**os.environ, "STREAK_SECRET": SECRET, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "examples.streak", "--port", "0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip().removeprefix("streak: ")
        with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
            headers = {"Authorization": f"Bearer {mint(SECRET, 'ada')}"}
            answer = client.post("/api/activities", headers=headers, json={"category": "move"})
        assert answer.status_code == 201
        assert any(tmp_path.iterdir())
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    assert not any(tmp_path.iterdir())


def test_prints_a_token() -> None:
    """The token that is printed is one that the service trusts."""
    printed = _run("examples.streak.auth", "ada", "--admin", STREAK_SECRET=SECRET).stdout.strip()
    assert verify(SECRET, printed) == User("ada", admin=True)
