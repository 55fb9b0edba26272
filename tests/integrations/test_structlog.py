"""structlog: its events carry the ids of the work, and leave by OTLP where log records do."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

import otel_perf
from otel_perf import instrument, measure
from otel_perf.integrations.structlog import add_ids
from otel_perf.telemetry import log_export, logs
from otel_perf.testing import FakeCollector


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    configure = structlog.configure
    yield
    structlog.reset_defaults()
    assert structlog.configure is configure


@pytest.fixture
def output() -> io.StringIO:
    """Structlog writes JSON lines there, at once."""
    written = io.StringIO()
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(written), cache_logger_on_first_use=True,
    )  # fmt: skip
    return written


def last(output: io.StringIO) -> dict[str, Any]:
    return json.loads(output.getvalue().splitlines()[-1])


def test_events_carry_the_ids(telemetry, output):
    """Within an operation the trace's, within a request the request's; elsewhere the event is left as it is."""
    log = structlog.get_logger()
    with instrument("structlog"):
        log.info("outside")
        assert last(output) == {"event": "outside", "level": "info"}
        token = logs.request_id.set("r-1")
        with measure("work"):
            log.info("inside", n=1)
            bound = log.bind(trace_id="own")
            inside = last(output)
            bound.info("mine")
        logs.request_id.reset(token)
    context = telemetry.span("work").context
    assert inside == {
        "event": "inside", "level": "info", "n": 1, "request_id": "r-1", "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
    }  # fmt: skip
    assert last(output)["trace_id"] == "own"


def test_undo_puts_back_the_same(telemetry, output):
    """The configured list is the same one with the same processors, as often as it is done."""
    processors = structlog.get_config()["processors"]
    before = list(processors)
    first, second = instrument("structlog"), instrument(structlog)
    assert processors == [before[0], add_ids, before[1]]
    first.undo()
    assert add_ids in processors
    second.undo()
    second.undo()
    assert structlog.get_config()["processors"] is processors
    assert processors == before


def test_loggers_that_were_cached_before(telemetry, output):
    """A bound logger that was cached before has the ids while it is on, and none after."""
    log = structlog.get_logger().bind(n=1)
    log.info("cached")
    with measure("work"):
        with instrument("structlog"):
            log.info("on")
            assert "trace_id" in last(output)
        log.info("off")
        assert "trace_id" not in last(output)


def test_configured_after(telemetry, output):
    """An application that configures structlog later has the ids too, and gets its own list back."""
    later = [structlog.processors.JSONRenderer()]
    handle = instrument("structlog")
    structlog.configure(processors=later)
    with measure("work"):
        structlog.get_logger().info("later")
    assert "trace_id" in last(output)
    handle.undo()
    assert later == structlog.get_config()["processors"]
    assert add_ids not in later


def test_processors_that_are_no_list(telemetry, output):
    """A tuple is replaced by a list, and put back by undo."""
    given = (structlog.processors.JSONRenderer(),)
    structlog.configure(processors=given)
    with instrument("structlog"), measure("work"):
        structlog.get_logger().info("one")
        assert "trace_id" in last(output)
    assert structlog.get_config()["processors"] is given


def test_the_processor_by_hand(telemetry, output):
    """Whoever puts it into his list himself has the ids once, with `instrument` or without."""
    structlog.configure(processors=[add_ids, structlog.processors.JSONRenderer()])
    with measure("work"):
        structlog.get_logger().info("one")
        assert "trace_id" in last(output)
        with instrument("structlog"):
            assert structlog.get_config()["processors"].count(add_ids) == 1
        assert structlog.get_config()["processors"].count(add_ids) == 1


def test_capturing_works(telemetry, output):
    """Structlog's own way of testing is not in the way, nor we in its."""
    with instrument("structlog"):
        with structlog.testing.capture_logs() as captured:
            structlog.get_logger().info("one")
        assert add_ids in structlog.get_config()["processors"]
    assert captured == [{"event": "one", "log_level": "info"}]


def test_a_fault_of_ours_costs_no_event(telemetry, output, monkeypatch):
    """Where adding the ids fails the event is written all the same, and the fault is counted."""
    telemetry.restart(strict=False)
    monkeypatch.setattr(log_export, "export_event", lambda *_: 1 / 0)
    with instrument("structlog"):
        structlog.get_logger().info("one")
    assert last(output)["event"] == "one"
    assert otel_perf.guard.errors == 1


def test_events_leave_by_otlp(output):
    """An event that no logging record is made of is sent from here, with its level, fields and ids, from a level on."""
    with FakeCollector() as collector:
        otel_perf.configure("app", endpoint=collector.url, logs_exporter="otlp")
        with instrument("structlog"), measure("work"):
            structlog.get_logger().debug("too low")
            structlog.get_logger().warning("bought", user="u-1", password="geheim")  # on purpose
        assert otel_perf.flush()
        (record,) = collector.logs
        assert (record.name, record.data.severity_text, record.data.severity_number) == ("bought", "WARN", 13)
        assert {key: record.attributes[key] for key in ("user", "password")} == {"user": "u-1", "password": "REDACTED"}
        assert record.data.trace_id.hex() == collector.spans[0].trace_id
        assert record.scope == "structlog"
        otel_perf.shutdown()


@pytest.mark.parametrize(
    "last_one", [structlog.stdlib.ProcessorFormatter.wrap_for_formatter, structlog.stdlib.render_to_log_kwargs]
)
def test_events_that_end_in_logging_leave_once(telemetry, last_one):
    """Where structlog hands its events to `logging` they are sent as records of that, once, with the same fields."""
    structlog.configure(
        processors=[structlog.stdlib.add_logger_name, last_one], logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )  # fmt: skip
    logging.getLogger("shop").setLevel(logging.INFO)
    with FakeCollector() as collector:
        otel_perf.configure("app", endpoint=collector.url, logs_exporter="otlp")
        with instrument("structlog"), measure("work"):
            structlog.get_logger("shop").info("bought", user="u-1")
        assert otel_perf.flush()
        (record,) = collector.logs
        otel_perf.shutdown()
    logging.getLogger("shop").setLevel(logging.NOTSET)
    assert (record.name, record.scope, record.attributes["user"]) == ("bought", "shop", "u-1")
    assert record.data.trace_id


def test_somebody_wrapped_configure(telemetry, output):
    """Where another wrapped `structlog.configure` ours stays below: it passes on after undo, and works again."""
    original, handle = structlog.configure, instrument("structlog")
    ours = structlog.configure

    def theirs(*args: Any, **settings: Any) -> None:
        ours(*args, **settings)

    structlog.configure = theirs
    try:
        handle.undo()
        structlog.configure(processors=[structlog.processors.JSONRenderer()])
        assert add_ids not in structlog.get_config()["processors"]
        with instrument("structlog"):
            structlog.configure(processors=[structlog.processors.JSONRenderer()])
            assert structlog.get_config()["processors"].count(add_ids) == 1
        assert add_ids not in structlog.get_config()["processors"]
        assert structlog.configure is theirs
    finally:
        structlog.configure = ours
        instrument("structlog").undo()
    assert structlog.configure is original
