"""What SQL drivers share: statements that are read once, bounded, and where a transaction begins and ends."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from otel_perf.integrations import statement
from otel_perf.integrations.statement import Server, Session
from otel_perf.telemetry import operation
from tests.conftest import Telemetry

_DURATION, _TRANSACTION = "db.client.operation.duration", "db.client.transaction.duration"


def _transactions(telemetry: Telemetry) -> list[tuple[str, str | None]]:
    points = telemetry.points(_TRANSACTION)
    return [
        (each.attributes["db.transaction.outcome"], each.attributes.get("error.type"))
        for each in points
        for _ in range(each.count)
    ]


def _do(session: Session, text: str, *, inside: bool, error: BaseException | None = None) -> None:
    begun = statement.begin(session.server, text)
    assert begun is not None
    statement.finish(session, begun, error, inside=inside)


def test_a_statement_is_read_once() -> None:
    """What is known of a statement is made once for a database, with its literals masked and the server told."""
    server = Server("postgresql", "shop", "db.test", 5433)
    prepared = server.prepared("SELECT * FROM users WHERE name = 'alice'")

    assert server.prepared("SELECT * FROM users WHERE name = 'alice'") is prepared
    assert prepared.labels == ("postgresql", "SELECT", "users", "shop")
    assert prepared.known == {
        "db.system.name": "postgresql", "db.operation.name": "SELECT", "db.collection.name": "users",
        "db.namespace": "shop", "server.address": "db.test", "server.port": 5433, "db.query.summary": "SELECT users",
        "db.query.text": "SELECT * FROM users WHERE name = ?",
    }  # fmt: skip
    assert server.name == "db.test:5433/shop"
    assert Server("sqlite", "app.db").name == "sqlite/app.db"
    assert Server("postgresql", "shop", "/run/postgresql").name == "/run/postgresql/shop"


def test_many_statements_and_long_ones_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 different statements stay within a bound, and one of 1 MB is cut and not kept."""
    server = Server("sqlite", None)
    assert len(server.prepared("SELECT '" + "x" * 1_000_000).known["db.query.text"]) <= 2048
    assert not server.statements
    monkeypatch.setattr(statement, "Prepared", lambda _of, text: text)  # reading them is not the subject
    most = 0
    for number in range(100_000):
        server.prepared(f"SELECT {number}")
        most = max(most, len(server.statements))
    assert most == statement._MAX_STATEMENTS


def test_the_same_database_is_one_server() -> None:
    """Connections to one database share what is known of it."""
    assert statement.server("sqlite", "a.db") is statement.server("sqlite", "a.db")
    assert statement.server("sqlite", "a.db") is not statement.server("sqlite", "b.db")


def test_a_span_does_not_change_what_is_kept(telemetry: Telemetry) -> None:
    """Attributes that one span gets later are not those of the next."""
    session = Session(Server("sqlite", None))
    begun = statement.begin(session.server, "SELECT 1", batch=3)
    assert begun is not None
    statement.finish(session, begun, LookupError(), inside=False, rows=7)
    _do(session, "SELECT 1", inside=False)

    first, second = telemetry.spans
    assert (first.attributes or {})["db.operation.batch.size"] == 3
    assert set(second.attributes or {}) == {
        "db.system.name", "db.operation.name", "db.query.text", "db.query.summary"
    }  # fmt: skip


def test_control_shows_nowhere_and_is_seen_from_below(telemetry: Telemetry) -> None:
    """BEGIN makes no span and no duration, but what is below leaves it alone."""
    session = Session(Server("sqlite", None))
    begun = statement.begin(session.server, "BEGIN IMMEDIATE")
    assert begun is not None
    assert statement.nested()
    assert statement.begin(session.server, "BEGIN IMMEDIATE") is None
    statement.finish(session, begun, inside=True)
    assert operation.current() is None
    assert not telemetry.spans
    assert not telemetry.points(_DURATION)


def test_transactions(telemetry: Telemetry) -> None:
    """One begins with the first statement after which the connection is in it, and ends when it is not any more."""
    session = Session(Server("sqlite", "app.db"))
    _do(session, "SELECT 1", inside=False)  # autocommit
    assert not _transactions(telemetry)
    _do(session, "INSERT INTO a VALUES (1)", inside=True)
    _do(session, "SAVEPOINT x", inside=True)
    _do(session, "RELEASE x", inside=True)
    _do(session, "COMMIT", inside=False)
    assert _transactions(telemetry) == [("commit", None)]
    _do(session, "COMMIT", inside=False)  # there is none
    assert _transactions(telemetry) == [("commit", None)]


@pytest.mark.parametrize(
    ("last", "error", "expected"),
    [
        ("COMMIT", None, ("commit", None)),
        ("END", None, ("commit", None)),
        ("ROLLBACK", None, ("rollback", "LookupError")),
        ("ABORT", None, ("rollback", "LookupError")),
        ("COMMIT", ValueError(), ("commit", "ValueError")),
        ("SELECT 1", ValueError(), ("rollback", "ValueError")),  # the connection broke
        ("CREATE TABLE a", None, ("commit", None)),  # some databases commit before it
    ],
)
def test_how_a_transaction_ends(
    telemetry: Telemetry, last: str, error: BaseException | None, expected: tuple[str, str | None]
) -> None:
    """The outcome is that of what ended it; what failed last in it is the error of a rollback."""
    session = Session(Server("sqlite", None))
    _do(session, "BEGIN", inside=True)
    _do(session, "INSERT INTO a VALUES (1)", inside=True, error=LookupError())
    _do(session, last, inside=False, error=error)
    assert _transactions(telemetry) == [expected]


def test_a_prepared_transaction_is_not_counted(telemetry: Telemetry) -> None:
    """After the first phase of two nobody knows how it ends."""
    session = Session(Server("postgresql", None))
    _do(session, "BEGIN", inside=True)
    _do(session, "PREPARE TRANSACTION 'x'", inside=False)
    _do(session, "COMMIT PREPARED 'x'", inside=False)
    assert not _transactions(telemetry)


def test_what_drivers_say_of_an_error() -> None:
    """SQLSTATE under either name, SQLite's name, or nothing."""
    assert statement.status_code(_error(sqlstate="23505")) == "23505"
    assert statement.status_code(_error(sqlstate=None, pgcode="42P01")) == "42P01"
    assert statement.status_code(_error(sqlite_errorname="SQLITE_BUSY")) == "SQLITE_BUSY"
    assert statement.status_code(_error(sqlstate=7)) is None


def _error(**values: Any) -> BaseException:
    error = Exception()
    vars(error).update(values)
    return error


def test_who_else_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream instrumentor counts when it is active; that it records durations is an opt-in of its own."""
    assert statement.upstream("asyncpg", "AsyncPGInstrumentor") is None
    monkeypatch.delitem(sys.modules, "opentelemetry.instrumentation._semconv", raising=False)
    assert not statement.records_durations()
    monkeypatch.undo()
    instrumentor = SimpleNamespace(is_instrumented_by_opentelemetry=False)
    module = SimpleNamespace(AsyncPGInstrumentor=lambda: instrumentor)
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asyncpg", module)
    assert statement.upstream("asyncpg", "AsyncPGInstrumentor") is None
    instrumentor.is_instrumented_by_opentelemetry = True
    assert statement.upstream("asyncpg", "AsyncPGInstrumentor") == "opentelemetry-instrumentation-asyncpg"

    semconv = pytest.importorskip("opentelemetry.instrumentation._semconv")
    kind = semconv._OpenTelemetrySemanticConventionStability
    for mode, expected in (("DATABASE", True), ("DATABASE_DUP", True), ("DEFAULT", False), ("HTTP", False)):
        modes = {semconv._OpenTelemetryStabilitySignalType.DATABASE: semconv._StabilityMode[mode]}
        monkeypatch.setattr(kind, "_OTEL_SEMCONV_STABILITY_SIGNAL_MAPPING", modes)
        assert statement.records_durations() is expected
