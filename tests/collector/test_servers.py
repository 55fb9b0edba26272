"""The servers that the whole suite starts, started once to see that they are what they say."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from collector import process, readback, servers, tools
from tests.servers import find_or_skip


def test_redis_answers(redis_server: servers.Redis) -> None:
    """The fixture's Redis takes and gives back a value."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("collector:test", "1", ex=10)
        assert client.get("collector:test") == b"1"


def test_redis_can_ask_for_a_password() -> None:
    """With a password the URL holds it, and a client without it is turned away."""
    find_or_skip("redis-server")
    with servers.redis(password="open-sesame") as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        with (
            redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.exceptions.AuthenticationError),
        ):
            stranger.ping()


def test_postgresql_answers(postgresql_server: servers.PostgreSQL) -> None:
    """The fixture's PostgreSQL has one empty database, in UTF-8."""

    async def ask() -> tuple[str, int]:
        connection = await asyncpg.connect(postgresql_server.dsn)
        try:
            encoding = await connection.fetchval("SHOW server_encoding")
            return encoding, await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        finally:
            await connection.close()

    encoding, tables = asyncio.run(ask())
    assert encoding == "UTF8"
    assert tables >= 0
    assert postgresql_server.url.startswith("postgresql+asyncpg://")


def test_a_stopped_server_leaves_nothing() -> None:
    """After the context neither process, port nor folder is there."""
    find_or_skip("redis-server")
    with servers.redis() as server:
        assert process.tcp_open(server.port)()
    assert not server.process.alive
    assert not process.port_in_use(server.port)
    assert not server.directory.exists()


@pytest.mark.parametrize(
    ("program", "begin"),
    [
        ("redis-server", servers.redis),
        ("postgres", servers.postgresql),
        ("firestore-emulator", servers.firestore),
        ("prometheus", servers.prometheus),
        ("jaeger", servers.jaeger),
        ("otelcol", servers.otelcol),
    ],
)
def test_a_server_ends_when_it_is_asked_to(program: str, begin: Callable[[], servers.Server]) -> None:
    """Each server takes the polite signal: it is never killed, so it can hand on what it holds."""
    find_or_skip(program)
    with begin() as server:
        pass
    assert server.process.exit_code == 0


def test_a_server_that_cannot_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that is taken is told with the server's own words, and the folder goes."""
    find_or_skip("redis-server")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with servers.redis() as first, pytest.raises(process.StartError, match="exit code"):
        servers.prometheus(port=first.port) if _has("prometheus") else servers.redis(port=first.port)
    assert list(tmp_path.iterdir()) == []


def test_prometheus_scrapes_the_collector(otelcol_binary: Path, prometheus_binary: Path) -> None:
    """The Collector's own metrics reach Prometheus through the target file."""
    metrics = process.free_port()
    targets = {"collector": [f"127.0.0.1:{metrics}"]}
    with (
        servers.otelcol(env={"OTELCOL_METRICS_PORT": str(metrics)}) as otelcol,
        servers.prometheus(targets=targets) as prometheus,
    ):
        with urllib.request.urlopen(otelcol.metrics_url, timeout=10) as answer:
            assert b"otelcol_process_uptime" in answer.read()
        give_up_at = time.monotonic() + 30
        while not readback.query(prometheus.url, 'up{job="otelcol"} == 1') and time.monotonic() < give_up_at:
            time.sleep(0.2)
        [(_, up)] = readback.query(prometheus.url, 'up{job="otelcol"}')
        assert up == 1


def _has(name: str) -> bool:
    try:
        tools.find(name)
    except tools.MissingToolError:
        return False
    return True


def test_a_missing_program_skips_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is nowhere skips the test with the remedy, and fails it where all are required."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("OTEL_PERF_TOOLS", str(tmp_path))
    monkeypatch.delenv("OTEL_PERF_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"tools\.py install otelcol"):
        find_or_skip("otelcol")
    monkeypatch.setenv("OTEL_PERF_REQUIRE", "all")
    with pytest.raises(pytest.fail.Exception, match="OTEL_PERF_REQUIRE=all"):
        find_or_skip("otelcol")
