"""Who hears of slow queries: a logger on purpose, hooks, and Sentry, each once and none on stderr."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import otel_perf
from otel_perf import conventions as c
from otel_perf import guard
from otel_perf.telemetry import query_listeners
from otel_perf.telemetry.operation import QUERY, start
from otel_perf.telemetry.query_listeners import LOGGER

ROOT = Path(__file__).parents[2]


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def listening():
    handler = Kept()
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    yield handler.records
    logger.removeHandler(handler)


@pytest.fixture
def hooked():
    before = list(query_listeners.hooks)
    heard: list[object] = []
    otel_perf.on_critical_query(heard.append)
    yield heard
    query_listeners.hooks[:] = before


def slow(seconds: float, text: str = "SELECT * FROM users WHERE id = 42"):
    op = start(QUERY, "SELECT users", ("sqlite", "SELECT", "users"), {c.DB_QUERY_TEXT: text})
    op.set(c.DB_ROWS, 3)
    op.stop(ended_ns=op.started_ns + int(seconds * 1e9))
    return op


def test_records_for_those_who_ask_for_the_logger(telemetry, listening):
    """A warning for a slow one, an error for a critical one, with the attributes of the query and its ids."""
    op = slow(0.25)
    slow(1.5)
    assert otel_perf.flush()
    warning, error = listening
    assert (warning.levelno, error.levelno) == (logging.WARNING, logging.ERROR)
    assert warning.getMessage() == "slow query took 0.250 s: SELECT users"
    assert warning.pathname == __file__
    told = vars(warning)
    assert told[c.DB_QUERY_TEXT] == "SELECT * FROM users WHERE id = ?"
    assert (told[c.DB_THRESHOLD], told[c.DB_ROWS], told[c.DB_SYSTEM]) == ("slow", 3, "sqlite")
    assert told[c.DB_CALLER_FILE] == __file__
    context = op.span.get_span_context()
    assert (told["trace_id"], told["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")


def test_handlers_that_read_the_current_span(telemetry):
    """They find the query's, though they run in another thread."""
    from opentelemetry import trace

    seen: list[object] = []

    class Reads(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(trace.get_current_span().get_span_context())

    handler = Reads()
    logging.getLogger(LOGGER).addHandler(handler)
    op = slow(0.25)
    otel_perf.flush()
    logging.getLogger(LOGGER).removeHandler(handler)
    context = op.span.get_span_context()
    [found] = seen
    assert (found.trace_id, found.span_id, found.trace_flags) == (
        context.trace_id,
        context.span_id,
        context.trace_flags & 1,
    )


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=50, check=False, cwd=ROOT,
    )  # fmt: skip


PROGRAM = """
import logging, otel_perf
from otel_perf.telemetry.operation import QUERY, start
{before}
otel_perf.configure("x", workers_dir="none")
op = start(QUERY, "SELECT users", ("sqlite", "SELECT", "users"))
op.stop(ended_ns=op.started_ns + 2_000_000_000)
otel_perf.shutdown()
"""


@pytest.mark.parametrize("before", ["", "logging.basicConfig()", "logging.basicConfig(level=0)"])
def test_nothing_is_printed_by_default(before):
    """Neither by Python's last resort nor by a handler of the root logger."""
    done = run(PROGRAM.format(before=before))
    assert done.returncode == 0, done.stderr
    assert "users" not in done.stdout + done.stderr


def test_an_application_may_pass_them_on():
    """`propagate` sends them where all the others go."""
    done = run(PROGRAM.format(before=f"logging.basicConfig(); logging.getLogger({LOGGER!r}).propagate = True"))
    assert done.stderr == f"ERROR:{LOGGER}:critical query took 2.000 s: SELECT users\n"


def test_hooks_hear_of_critical_ones(telemetry, hooked):
    """Each once, however often it was given; a slow one is not critical."""
    assert otel_perf.on_critical_query(hooked.append) == hooked.append
    slow(0.3)
    slow(1.5)
    assert otel_perf.flush()
    [query] = hooked
    assert (query.threshold, query.statement) == ("critical", "SELECT * FROM users WHERE id = ?")


def test_a_hook_that_fails_keeps_nobody_from_hearing(telemetry, hooked, monkeypatch):
    """Its fault is noted, and the others are told."""
    monkeypatch.setattr(guard, "strict", False)

    def broken(_):
        raise RuntimeError("theirs")

    query_listeners.hooks.insert(0, broken)
    slow(1.5)
    assert otel_perf.flush()
    assert len(hooked) == 1
    assert guard.errors == 1


def test_a_hook_that_is_slow_at_the_database_does_not_hear_of_itself(telemetry, hooked):
    """What it asks is kept, but told to nobody: it would go on for ever."""

    def stores(_):
        slow(1.5, "INSERT INTO alerts VALUES (1)")

    otel_perf.on_critical_query(stores)
    slow(1.5)
    assert otel_perf.flush()
    assert len(hooked) == 1
    assert len(telemetry.runtime.slow_queries.recent()) == 2


SENTRY = """
import json, logging, sentry_sdk
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.transport import Transport

events = []

class Memory(Transport):
    def capture_envelope(self, envelope):
        event = envelope.get_event()
        if event is not None:
            events.append(event)

sentry_sdk.init("https://key@example.com/1", transport=Memory, default_integrations=False, integrations={integrations})
import otel_perf
from otel_perf import conventions as c
from otel_perf.telemetry.operation import QUERY, start
otel_perf.configure("x", workers_dir="none")
logging.getLogger("otel_perf.slow_query").addHandler(logging.NullHandler())
for seconds, text in ((0.3, "SELECT 'a@b.c'"), (1.5, "SELECT 1 FROM users WHERE a = 'a@b.c'"), (2, "SELECT 1 FROM users WHERE a = 'x'")):
    op = start(QUERY, "SELECT users", ("sqlite", "SELECT", "users"), {{c.DB_QUERY_TEXT: text}})
    op.stop(ended_ns=op.started_ns + int(seconds * 1e9))
otel_perf.shutdown()
sentry_sdk.flush(5)
print(json.dumps(events, default=str))
"""  # noqa: E501


@pytest.mark.parametrize("integrations", ["[LoggingIntegration()]", "[]"])
def test_sentry_gets_critical_queries(integrations):
    """One event each, grouped by template, also where Sentry makes events of log records; values are not in it."""
    pytest.importorskip("sentry_sdk")
    done = run(SENTRY.format(integrations=integrations))
    assert done.returncode == 0, done.stderr
    events = json.loads(done.stdout.splitlines()[-1])
    assert [event["message"] for event in events] == ["Critical query: SELECT users"] * 2
    assert {tuple(event["fingerprint"]) for event in events} == {(LOGGER, "SELECT ? FROM users WHERE a = ?")}
    assert events[0]["contexts"]["query"][c.DB_THRESHOLD] == "critical"
    assert events[0]["tags"]["trace_id"]
    assert "a@b.c" not in done.stdout


def test_sentry_that_is_not_initialised_is_left_alone(telemetry):
    """It may be imported all the same."""
    pytest.importorskip("sentry_sdk")
    assert query_listeners._sentry() is None
