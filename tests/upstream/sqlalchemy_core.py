"""SQLAlchemy measured, whichever version this interpreter has; says as JSON what came of it.

Run by test_sqlalchemy_versions on SQLAlchemy 2.1 and, in the environment of upstream.lock, on 2.0.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import threading
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool, StaticPool

import otel_perf.integrations
from otel_perf import guard, instrument
from otel_perf.testing import Captured, capture


def _points(telemetry: Captured, name: str) -> list[list[Any]]:
    found = []
    for each in telemetry.points(name):
        value = getattr(each, "count", None)
        found.append([value if value is not None else each.value, *sorted(map(str, each.attributes.values()))])
    return sorted(found, key=str)


def _statements(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT UNIQUE)"))
        connection.execute(sa.text("INSERT INTO users (name) VALUES (:name)"), [{"name": "a"}, {"name": "b"}])
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT name FROM users WHERE name = 'a'")).all()
        with contextlib.suppress(sa.exc.IntegrityError):
            connection.execute(sa.text("INSERT INTO users (name) VALUES ('a')"))
    with engine.begin() as connection:
        with contextlib.suppress(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(sa.text("INSERT INTO users (name) VALUES ('a')"))
        connection.execute(sa.text("DELETE FROM users"))
    with engine.begin():
        pass  # nothing was sent
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("SELECT 1"))
        connection.commit()
    with contextlib.suppress(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE parents (id INTEGER PRIMARY KEY)"))
        reference = "REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED"
        connection.execute(sa.text(f"CREATE TABLE children (parent INTEGER {reference})"))
        connection.execute(sa.text("INSERT INTO children VALUES (7)"))  # which only the COMMIT finds out


def _pools(folder: str, telemetry: Captured) -> dict[str, Any]:
    """One who gives up, one who waits, a pool after `dispose()`, and kinds of pools that let nobody wait."""
    said: dict[str, Any] = {}
    impatient = sa.create_engine(f"sqlite:///{folder}/short.db", pool_size=1, max_overflow=0, pool_timeout=0.01)
    with instrument(impatient), impatient.connect(), contextlib.suppress(sa.exc.TimeoutError):
        impatient.connect()
    patient = sa.create_engine(f"sqlite:///{folder}/long.db", pool_size=1, max_overflow=0, pool_timeout=30)
    with instrument(patient):
        first = patient.connect()

        def give_back() -> None:
            while not said.get("waiting", [[0]])[0][0]:
                said["waiting"] = _points(telemetry, "db.client.connection.pending_requests")
            first.close()

        thread = threading.Thread(target=give_back)
        thread.start()
        patient.connect().close()  # it waits
        thread.join()
        patient.dispose()
        with patient.connect():  # from another pool
            said["counts"] = _points(telemetry, "db.client.connection.count")
            said["limits"] = _points(telemetry, "db.client.connection.max")
    for kind in (NullPool, StaticPool):
        other = sa.create_engine("sqlite://", poolclass=kind)
        with instrument(other), other.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
        other.dispose()
    impatient.dispose()
    patient.dispose()
    said["waits"] = _points(telemetry, "db.client.connection.wait_time")
    said["timeouts"] = _points(telemetry, "db.client.connection.timeouts")
    said["failures"] = _points(telemetry, "db.client.operation.duration")
    return said


def _beside_upstream() -> dict[str, Any] | None:
    """One query where upstream's instrumentor is at work on one engine and we on two; None where there is no such."""
    try:
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
    except ImportError:
        return None
    theirs, ours = sa.create_engine("sqlite://"), sa.create_engine("sqlite://")
    with capture() as telemetry, instrument(theirs), instrument(ours):
        SQLAlchemyInstrumentor().instrument(engine=theirs)
        for engine in (theirs, ours):
            with engine.connect() as connection:
                connection.execute(sa.text("SELECT 1"))
        states = [each.state for each in otel_perf.integrations.report() if each.library == "sqlalchemy"]
        SQLAlchemyInstrumentor().uninstrument()
        scopes = [each.instrumentation_scope.name for each in telemetry.spans if each.name.startswith("SELECT")]
        durations = _points(telemetry, "db.client.operation.duration")
    for engine in (theirs, ours):
        engine.dispose()
    return {"scopes": scopes, "durations": durations, "states": states}


def main() -> dict[str, Any]:
    """Everything on SQLite; answers what was measured."""
    said: dict[str, Any] = {"sqlalchemy": sa.__version__}
    before = sa.Engine.raw_connection, sa.Connection._commit_impl, sa.Connection._rollback_impl
    with tempfile.TemporaryDirectory() as folder:
        engine = sa.create_engine(f"sqlite:///{folder}/app.db")
        sa.event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys = ON").close())
        with capture() as telemetry, instrument(engine):
            _statements(engine)
            said["spans"] = [[each.name, dict(each.attributes or {})] for each in telemetry.spans]
            said["durations"] = _points(telemetry, "db.client.operation.duration")
            said["transactions"] = _points(telemetry, "db.client.transaction.duration")
        engine.dispose()
        with capture() as telemetry:
            said["pools"] = _pools(folder, telemetry)
    said["upstream"] = _beside_upstream()
    said["undone"] = before == (sa.Engine.raw_connection, sa.Connection._commit_impl, sa.Connection._rollback_impl)
    said["errors"] = guard.errors
    return said


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main()))
