"""Log records carry the ids of the work they were written in, and the application's logging goes on as before."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest

import otel_perf
from otel_perf import measure
from otel_perf.telemetry import logs

log = logging.getLogger("app")


@pytest.fixture
def lines():
    kept: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(self.format(record))

        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the library's name
            raise AssertionError(f"{record.msg!r} could not be formatted")

    handler = Handler()
    handler.setFormatter(logging.Formatter("%(message)s %(request_id)s %(trace_id)s %(span_id)s"))
    log.addHandler(handler)
    yield kept
    log.removeHandler(handler)


def test_records_carry_the_ids(telemetry, lines):
    """Within an operation the trace's, within a request the request's, elsewhere none: formatters can rely on them."""
    log.warning("outside")
    token = logs.request_id.set("r-1")
    with measure("work"):
        log.warning("inside")
    logs.request_id.reset(token)
    context = telemetry.span("work").context
    assert lines == ["outside None None None", f"inside r-1 {context.trace_id:032x} {context.span_id:016x}"]


def test_an_application_may_use_the_same_names(telemetry, lines):
    """`extra=` with one of our fields is the application's own, and logging does not raise."""
    with measure("work"):
        log.warning("mine", extra={"request_id": "own", "trace_id": "own", "span_id": "own", "other": 1})
    assert lines == ["mine own own own"]
    with pytest.raises(KeyError, match="Attempt to overwrite 'lineno'"):
        log.warning("x", extra={"lineno": 1})  # noqa: G101  # on purpose


def test_records_can_be_copied_and_sent(telemetry):
    """Queue and socket handlers copy and pickle records; what arrives needs nothing of ours."""
    record = logging.getLogRecordFactory()("n", 30, "f", 1, "m", (), None)
    for other in (copy.copy(record), pickle.loads(pickle.dumps(record))):
        assert type(other.__dict__) is dict
        assert "request_id" in other.__dict__
        assert other.getMessage() == "m"


def test_switched_off(telemetry, caplog):
    """The setting leaves records alone, and shutdown puts the factory back."""
    telemetry.restart(log_correlation=False)
    log.warning("plain")
    assert not hasattr(caplog.records[-1], "trace_id")
    telemetry.restart()
    log.warning("with ids")
    assert hasattr(caplog.records[-1], "trace_id")
    otel_perf.shutdown()
    assert logging.getLogRecordFactory() is logging.LogRecord


def test_a_factory_on_top_of_ours_stays(telemetry, caplog):
    """Where another library wrapped ours, ours stays below it, does nothing while off, and works again when on."""
    ours = logging.getLogRecordFactory()

    def theirs(*args, **kwargs):
        record = ours(*args, **kwargs)
        record.theirs = True
        return record

    logging.setLogRecordFactory(theirs)
    try:
        otel_perf.shutdown()
        log.warning("off")
        assert caplog.records[-1].theirs
        assert not hasattr(caplog.records[-1], "trace_id")
        telemetry.restart()
        log.warning("on")
        assert hasattr(caplog.records[-1], "trace_id")
    finally:
        logging.setLogRecordFactory(ours)
