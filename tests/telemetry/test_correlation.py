"""Ids on log records where the application has some of its own: in its record factory, in `extra=`, in `in`."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

import otel_perf
from otel_perf import measure
from otel_perf.telemetry import logs

log = logging.getLogger("app.correlation")


@pytest.fixture
def own_factory() -> Iterator[dict[str, object]]:
    """A record factory of the application's, below ours, that sets these fields."""
    otel_perf.shutdown()
    fields: dict[str, object] = {}
    before = logging.getLogRecordFactory()

    def make(*args, **kwargs):
        record = before(*args, **kwargs)
        record.__dict__.update(fields)
        return record

    logging.setLogRecordFactory(make)
    otel_perf.configure(service_name="test")
    yield fields
    otel_perf.shutdown()
    assert logging.getLogRecordFactory() is make
    logging.setLogRecordFactory(before)


def test_the_ids_of_the_applications_own_factory_stay(own_factory, caplog):
    """Ours are set only where the application's factory set none, or None."""
    own_factory.update(request_id="own", trace_id=None)
    token = logs.request_id.set("ours")
    with measure("work"):
        log.warning("mixed")
    logs.request_id.reset(token)
    record = caplog.records[-1]
    assert record.request_id == "own"
    assert len(record.trace_id) == 32
    assert len(record.span_id) == 16


def test_extra_wins_over_the_applications_own_factory(own_factory, caplog):
    """`extra=` with a name that factory and we both set is neither lost nor an error."""
    own_factory.update(request_id="factory")
    log.warning("mine", extra={"request_id": "extra"})
    assert caplog.records[-1].request_id == "extra"


class Custom(logging.Logger):
    """A logger of the application's that adds to what is asked for."""

    def makeRecord(self, *args, **kwargs):  # noqa: N802  # logging's own name
        record = super().makeRecord(*args, **kwargs)
        record.custom = True
        return record


def test_the_fields_are_there_for_whoever_looks(telemetry, caplog):
    """`in record.__dict__` tells the truth everywhere but where logging refuses `extra=`."""
    log.warning("plain")
    record = caplog.records[-1]
    for name in ("request_id", "trace_id", "span_id"):
        assert name in record.__dict__
        assert name in vars(record)
    assert "other" not in record.__dict__


def test_a_logger_class_of_the_applications_takes_extra(telemetry, caplog):
    """Subclasses of Logger that make records by way of logging's own are served as well."""
    mine = Custom("app.custom")
    mine.addHandler(caplog.handler)
    mine.warning("mine", extra={"request_id": "extra"})
    assert caplog.records[-1].request_id == "extra"
    assert caplog.records[-1].custom
    assert "request_id" in caplog.records[-1].__dict__
