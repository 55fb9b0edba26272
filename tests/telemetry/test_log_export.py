"""Log records leave by OTLP: which ones, what becomes of each, and that logging itself goes on as before."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler

import otel_perf
from collector import process
from otel_perf import SettingsError, measure
from otel_perf import conventions as c
from otel_perf.telemetry import log_export, runtime, ways
from otel_perf.testing import FakeCollector, behaviour
from tests.reliability.processes import started

log = logging.getLogger("app")
original = logging.Logger.callHandlers


@pytest.fixture
def collector() -> Iterator[FakeCollector]:
    with FakeCollector() as running:
        yield running
        otel_perf.shutdown(1)
    assert logging.Logger.callHandlers is original


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    log.setLevel(logging.DEBUG)
    yield
    log.setLevel(logging.NOTSET)


def configure(collector: FakeCollector, **settings: Any) -> None:
    otel_perf.configure("app", endpoint=collector.url, logs_exporter="otlp", **settings)


def texts(collector: FakeCollector) -> list[str]:
    return [each.name for each in collector.logs]


def sender() -> log_export.LogSender:
    found = log_export._sender
    assert found is not None
    return found


def test_off_by_default(collector):
    """Without `logs_exporter`, and with it but without an endpoint, nothing of `logging` is touched."""
    otel_perf.configure("app", endpoint=collector.url)
    assert logging.Logger.callHandlers is original
    otel_perf.configure("app", logs_exporter="otlp")
    assert logging.Logger.callHandlers is original
    assert log_export._sender is None


def test_a_record_arrives(collector):
    """With its level, logger, fields, place, trace and resource; flush says that all was delivered."""
    configure(collector)
    with measure("work"):
        log.warning("%d items", 3, extra={"user": "u-1", "token": "geheim"})
    assert otel_perf.flush()
    (record,) = collector.logs
    (span,) = collector.spans
    assert (record.name, record.data.severity_text, record.scope) == ("3 items", "WARN", "app")
    assert record.attributes["user"] == "u-1"
    assert record.attributes["token"] == "REDACTED"
    assert record.attributes["code.function.name"] == "test_a_record_arrives"
    assert (record.data.trace_id.hex(), record.data.span_id.hex()) == (span.trace_id, span.span_id)
    assert record.resource["service.name"] == "app"
    assert collector.errors == []


def test_from_a_level_on(collector):
    """Records below `logs_level` are not sent, and those of loggers that do not propagate are."""
    configure(collector, logs_level="warning")
    aside = logging.getLogger("app.aside")
    aside.propagate = False
    try:
        log.info("too low")
        log.warning("one")
        aside.error("two")
    finally:
        aside.propagate = True
    assert otel_perf.flush()
    assert texts(collector) == ["one", "two"]


def test_ours_are_not_sent(collector):
    """What otel_perf logs itself is not sent, but for slow queries, whose logger does not propagate."""
    configure(collector)
    logging.getLogger("otel_perf").warning("about us")
    slow = logging.getLogger("otel_perf.slow_query")
    propagates, slow.propagate = slow.propagate, False
    try:
        slow.warning("slow", extra={"db.query.text": "SELECT 'geheim'"})
    finally:
        slow.propagate = propagates
    with ways.unobserved():
        log.warning("by what sends")
    assert otel_perf.flush()
    assert texts(collector) == ["slow"]
    assert collector.logs[0].attributes["db.query.text"] == "SELECT ?"


def test_slow_queries_are_there_at_the_end(collector):
    """A slow query is a log record of its own trace, and one flush or shutdown is enough for the last one."""
    configure(collector, slow_query_s=0.01, span_interval_s=60)
    for ended in (otel_perf.flush, otel_perf.shutdown):
        with measure.query("find", collection="trips", system="mongodb"):
            time.sleep(0.02)
        assert ended()
    first, last = collector.logs
    assert first.scope == last.scope == "otel_perf.slow_query"
    assert first.attributes["db.collection.name"] == "trips"
    assert [each.data.trace_id.hex() for each in collector.logs] == [span.trace_id for span in collector.spans]


def test_what_is_handed_on_at_the_end_is_sent(collector):
    """Records that come only when their origin is flushed are still taken, by a flush and by the shutdown."""
    configure(collector, span_interval_s=60)

    def first(_: float) -> bool:
        log.warning("handed on")
        return True

    sender().first = first
    assert otel_perf.flush()
    assert texts(collector) == ["handed on"]
    assert otel_perf.shutdown()
    assert texts(collector) == ["handed on"] * 2


def test_what_hangs_first_costs_its_half(collector):
    """Where that which hands on records hangs, the others are sent all the same, and flush says no in time."""
    configure(collector)
    go = threading.Event()
    sender().first = lambda _: go.wait(30)
    log.warning("one")
    assert not otel_perf.flush(1)
    assert texts(collector) == ["one"]
    go.set()
    sender().first = None


def test_logging_goes_on_as_before(collector, capsys):
    """There is no handler of ours: `basicConfig` works after `configure`, and records go where they went."""
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        configure(collector)
        log.warning("by the last resort")
        logging.basicConfig(format="formatted %(message)s")
        log.warning("by a handler")
        assert len(root.handlers) == 1
    finally:
        root.handlers = before
    assert capsys.readouterr().err.splitlines()[-2:] == ["by the last resort", "formatted by a handler"]
    assert otel_perf.flush()
    assert texts(collector) == ["by the last resort", "by a handler"]


def test_a_wrapper_around_ours_stays(collector):
    """Where somebody wrapped the method after us, ours stays below, does nothing while off, and works again when on."""
    configure(collector)
    ours = logging.Logger.callHandlers

    def theirs(self: logging.Logger, record: logging.LogRecord) -> None:
        ours(self, record)

    logging.Logger.callHandlers = theirs
    try:
        otel_perf.shutdown()
        assert logging.Logger.callHandlers is theirs
        log.warning("off")
        configure(collector)
        log.warning("on")
        assert otel_perf.flush()
        assert texts(collector) == ["on"]
    finally:
        logging.Logger.callHandlers = ours
        otel_perf.shutdown()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_application_that_sends_them_itself(collector):
    """Where OpenTelemetry's own handler is there, before us or later, records are not sent twice."""
    configure(collector)
    log.warning("one")
    provider = LoggerProvider(shutdown_on_exit=False)
    handler = LoggingHandler(logger_provider=provider)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        log.warning("theirs")
    finally:
        root.removeHandler(handler)
    log.warning("two")
    assert otel_perf.flush()
    assert texts(collector) == ["one", "two"]
    provider.shutdown()


def test_grpc_is_refused():
    """Log records go over HTTP alone, which is said with a remedy."""
    with pytest.raises(SettingsError, match="logs_protocol='http/protobuf' and logs_endpoint"):
        otel_perf.configure(endpoint="http://localhost:4317", protocol="grpc", logs_exporter="otlp")


def test_an_endpoint_of_their_own(collector):
    """Log records can go where nothing else goes, with headers of their own."""
    otel_perf.configure(logs_exporter="otlp", logs_endpoint=f"{collector.url}/x/v1/logs", logs_headers={"key": "k"})
    log.warning("one")
    assert otel_perf.flush()
    assert texts(collector) == ["one"]
    assert [(each.path, each.headers["key"]) for each in collector.requests] == [("/x/v1/logs", "k")]


@pytest.mark.parametrize(
    ("act", "delivered", "lost"),
    [
        (behaviour.status(503).times(1), 3, {}),
        (behaviour.partial(2, "no"), 1, {"rejected": 2}),
        (behaviour.status(400), 0, {"export_failed": 3}),
    ],
    ids=["tried again", "partly taken", "refused"],
)
def test_what_becomes_of_each(collector, act, delivered, lost):
    """What was taken, what was rejected and what failed is counted, and told as `otel_perf.dropped`."""
    otel_perf.configure(logs_exporter="otlp", logs_endpoint=f"{collector.url}/v1/logs")
    collector.behaviour = act
    for _ in range(3):
        log.warning("m")
    assert otel_perf.flush() == (not lost)
    assert sender().tally()[:3] == (3, delivered, sum(lost.values()))
    assert sender().lost == lost
    assert runtime.current is not None
    told = {labels["reason"]: n for n, labels in runtime.current.instrument(c.DROPPED).observed()}
    assert told == lost


def test_a_full_queue(collector):
    """With a Collector that hangs the queue is bounded, logging is not held up, and each lost record is counted."""
    configure(collector, queue_size=64, queue_size_bytes=65_536)
    collector.behaviour = behaviour.hang()
    found = sender()
    for _ in range(5000):
        log.warning("x" * 1000)
    made = found.tally()
    assert made.made == 5000
    assert made.queued <= 64
    assert found.waiting_bytes <= 65_536
    assert found.lost["queue_full"] == made.lost > 4000
    otel_perf.shutdown(0.2)
    assert found.tally()[1:] == (0, 5000, 0)


def test_whatever_is_logged_harms_nobody(collector):
    """An odd object as message, argument or field costs at most itself, and raises nothing into the application."""

    class Loud:
        def __str__(self) -> str:
            log.warning("from within")
            return "loud"

    configure(collector)
    handlers, log.handlers, log.propagate = log.handlers, [logging.NullHandler()], False
    try:
        log.warning("%d", "no number")
        log.warning(Loud(), extra={"field": Loud()})
    finally:
        log.handlers, log.propagate = handlers, True
    assert otel_perf.flush()
    assert {"%d", "loud", "from within"} == set(texts(collector))


def test_a_forked_child_sends_its_own(collector):
    """What the child logs is sent once, and what waited in its parent is not sent again; so are its losses its own."""
    configure(collector, span_interval_s=60)
    log.warning("before")
    child = os.fork()
    if not child:
        log.warning("in the child")
        os._exit(0 if otel_perf.shutdown() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert texts(collector) == ["in the child"]
    assert otel_perf.flush()
    assert texts(collector) == ["in the child", "before"]
    ids = {each.resource["service.instance.id"] for each in collector.logs}
    assert len(ids) == 2


@pytest.mark.parametrize(("end", "code"), [("", 0), ("os.kill(os.getpid(), 15); time.sleep(30)", -15)])
def test_the_end_of_a_process(collector, tmp_path, end, code):
    """What was logged last arrives, whether the program ends or SIGTERM ends it."""
    script = f"""
        import logging, os, time, otel_perf
        otel_perf.configure("app", span_interval_s=60)
        logging.warning("the last words")
        {end}
    """
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_LOGS_EXPORTER": "otlp"}
    with started(cwd=tmp_path, script=script, **told) as running:
        assert running.exit_code() == code, running.text
    assert texts(collector) == ["the last words"]


def test_through_a_real_collector(collector, otelcol_binary: Path, tmp_path):
    """The real Collector understands what is sent, and hands on the same record."""
    port = process.free_port()
    (tmp_path / "config.yaml").write_text(f"""
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters: {{otlp_http: {{endpoint: "{collector.url}", compression: none}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{logs: {{receivers: [otlp], exporters: [otlp_http]}}}}
""")
    command = [str(otelcol_binary), "--config", str(tmp_path / "config.yaml")]
    with process.start("otelcol", command, log_path=tmp_path / "log", healthy=process.tcp_open(port)):
        otel_perf.configure("app", logs_exporter="otlp", logs_endpoint=f"http://127.0.0.1:{port}/v1/logs")
        with measure("work"):
            log.error("hello", extra={"user": "u-1", "n": [1, {"a": True}]})
        assert otel_perf.flush()
        collector.wait_for(requests=1)
    (record,) = collector.logs
    assert (record.name, record.data.severity_number, record.scope) == ("hello", 17, "app")
    assert record.attributes["n"] == [1, {"a": True}]
    assert len(record.data.trace_id) == 16
