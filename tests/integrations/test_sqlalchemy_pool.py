"""The pools of SQLAlchemy's engines: waiting, giving up, sharing, and what is left when nobody measures any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from otel_perf import guard, instrument
from otel_perf.integrations import pool, sqlalchemy_pool
from otel_perf.telemetry import operation
from tests.conftest import Telemetry

_NAME = "db.client.connection.pool.name"


def _value(telemetry: Telemetry, name: str, **attributes: Any) -> float:
    found = telemetry.points(f"db.client.connection.{name}", **attributes)
    return sum(getattr(each, "count", None) or getattr(each, "value", 0) for each in found)


def test_waiting_in_tasks(telemetry: Telemetry, postgresql_server: Any) -> None:
    """Of three tasks at a pool of one, two wait, one of them is cancelled, and both that got it are counted."""

    async def main() -> None:
        engine = create_async_engine(postgresql_server.url, pool_size=1, max_overflow=0)

        async def work() -> None:
            async with engine.connect() as connection:
                await connection.execute(sa.text("SELECT 1"))

        with instrument(engine):
            async with engine.connect():
                tasks = [asyncio.ensure_future(work()) for _ in range(2)]
                for _ in range(500):
                    await asyncio.sleep(0.01)
                    if _value(telemetry, "pending_requests") == 2:
                        break
                assert _value(telemetry, "pending_requests") == 2
                assert _value(telemetry, "count", db__client__connection__state="used") == 1
                tasks[1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert operation.current() is None
            assert _value(telemetry, "pending_requests") == 0
            assert _value(telemetry, "wait_time") == 2
        await engine.dispose()

    asyncio.run(main())
    (point,) = telemetry.points("db.client.connection.wait_time")
    assert point.attributes[_NAME] == f"127.0.0.1:{postgresql_server.port}/otel_perf"
    assert _value(telemetry, "timeouts") == 0


def test_every_request_that_gives_up_is_counted(telemetry: Telemetry, tmp_path: Path) -> None:
    """N requests that got no connection are N timeouts and N failed operations, and no wait that was worth it."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db", pool_size=1, max_overflow=0, pool_timeout=0.01)
    with instrument(engine), engine.connect():
        for _ in range(5):
            with pytest.raises(sa.exc.TimeoutError):
                engine.connect()
        assert _value(telemetry, "timeouts") == 5
        assert _value(telemetry, "wait_time") == 1
        assert _value(telemetry, "pending_requests") == 0
    (point,) = telemetry.points("db.client.operation.duration", error__type="sqlalchemy.exc.TimeoutError")
    assert (point.count, point.attributes["db.operation.name"]) == (5, "CONNECT")
    engine.dispose()


def test_a_database_that_is_not_there_is_a_failure(telemetry: Telemetry) -> None:
    """A refused connection is a failed operation, though no query was ever sent."""
    engine = sa.create_engine("postgresql+psycopg://127.0.0.1:1/nowhere")
    with instrument("sqlalchemy"), pytest.raises(sa.exc.OperationalError):
        engine.connect()
    (point,) = telemetry.points("db.client.operation.duration")
    assert point.attributes["error.type"].endswith("OperationalError")
    assert point.attributes["db.namespace"] == "nowhere"


def test_two_engines_with_one_pool(telemetry: Telemetry, tmp_path: Path) -> None:
    """A pool that engines share is counted once, whoever asks it."""
    first = sa.create_engine(f"sqlite:///{tmp_path}/shared.db", pool_size=3, max_overflow=2)
    second, third = sa.create_engine("sqlite://", pool=first.pool), first.execution_options(tag="x")
    with instrument(first), instrument(second), instrument("sqlalchemy"):
        with first.connect(), second.connect(), third.connect():
            assert _value(telemetry, "count", db__client__connection__state="used") == 3
            assert _value(telemetry, "max", db__client__connection__pool__name="sqlite/shared.db") == 5
        assert _value(telemetry, "wait_time") == 3
    first.dispose()


def test_an_engine_that_is_not_measured_is_left_alone(telemetry: Telemetry, tmp_path: Path) -> None:
    """Only the engine that was handed over is watched, and that of its options."""
    wanted, other = (sa.create_engine(f"sqlite:///{tmp_path}/{name}.db") for name in "ab")
    with instrument(wanted):
        wanted.connect().close()
        wanted.execution_options(tag="x").connect().close()
        other.connect().close()
    wanted.connect().close()
    assert _value(telemetry, "wait_time") == 2
    wanted.dispose()
    other.dispose()


def test_a_pool_without_limits(telemetry: Telemetry, tmp_path: Path) -> None:
    """What has no limit says none."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db", pool_size=1, max_overflow=-1)
    with instrument(engine), engine.connect():
        assert _value(telemetry, "count") == 1
        assert not telemetry.points("db.client.connection.max")
    engine.dispose()


def test_undo_in_any_order(tmp_path: Path) -> None:
    """The method that was wrapped is put back by the last who lets go."""
    before = sa.Engine.raw_connection
    engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db")
    first, second, third = instrument(engine), instrument("sqlalchemy"), instrument(engine)
    for handle in (second, first, second):
        handle.undo()
        assert sa.Engine.raw_connection is not before
    third.undo()
    assert sa.Engine.raw_connection is before
    engine.dispose()


def test_our_faults_stay_ours(telemetry: Telemetry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails of ours, the engine connects, and who gives up gets SQLAlchemy's own exception."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/a.db", pool_size=1, max_overflow=0, pool_timeout=0.01)

    def fault(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(guard, "strict", False)
    for owner, name in ((sqlalchemy_pool, "_learn"), (pool.Pool, "got"), (pool.Pool, "timed_out")):
        with monkeypatch.context() as patch, instrument(engine):
            patch.setattr(owner, name, fault)
            with engine.connect(), pytest.raises(sa.exc.TimeoutError):
                engine.connect()
    assert guard.errors >= 3
    engine.dispose()
