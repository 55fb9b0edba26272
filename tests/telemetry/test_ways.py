"""The two ways out: over HTTP by our encoder, over gRPC by the stock exporter, both with the same promises."""

from __future__ import annotations

import logging
import random
import threading
import time

import pytest
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext

from otel_perf.conventions import SCOPE, Metric
from otel_perf.settings import Settings
from otel_perf.telemetry import delivery, sdk, transport, ways
from otel_perf.telemetry.delivery import LOST, Answer
from otel_perf.telemetry.meter import metrics_data
from otel_perf.telemetry.series import Registry
from otel_perf.testing import FakeCollector, behaviour

PROTOCOLS = ["http/protobuf", "grpc"]


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch):
    monkeypatch.setattr(delivery, "_said", {})
    monkeypatch.setattr(ways._quiet, "_next", 0.0)


def span(scope: str = SCOPE, **attributes: object) -> ReadableSpan:
    return ReadableSpan(
        "s", SpanContext(1, 1, False), attributes=attributes, resource=Resource({}),
        instrumentation_scope=InstrumentationScope(scope),
    )  # fmt: skip


def numbers() -> MetricsData:
    registry = Registry()
    cursor = registry.cursor(sdk.Preferences(frozenset(), {}).cell)
    registry.instrument(Metric("m", "1", "counter", ""), InstrumentationScope("t")).of({}).record(3)
    data = metrics_data(cursor.collect(), Resource({}))
    assert data is not None
    return data


def address(collector: FakeCollector, protocol: str, signal: str, timeout_s: float = 5) -> tuple[Settings, str]:
    base = collector.grpc_endpoint if protocol == "grpc" else collector.url
    settings = Settings(endpoint=base, protocol=protocol, export_timeout_s=timeout_s)
    return settings, base if protocol == "grpc" else f"{base}/v1/{signal}"


def send_spans(way: ways.SpanWay, spans: list[ReadableSpan]) -> Answer:
    with ways.unobserved():
        return way.send(way.join([way.encode(spans)[0]])[0])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_deliver_and_redact(protocol):
    """Spans and metrics arrive; what other libraries put on spans arrives without its secrets."""
    with FakeCollector() as collector:
        way = transport.span_way(*address(collector, protocol, "traces"))()
        query = {"url.query": "token=geheim"}
        assert send_spans(way, [span(n=1), span("theirs", **query), span(**query)]) == Answer(True)
        way.close()
        way.close()
        metrics = transport.metric_way(*address(collector, protocol, "metrics"))()
        assert metrics.send(numbers()) == Answer(True)
        metrics.close()
    found = sorted(str(dict(each.attributes)) for each in collector.spans)
    assert found == ["{'n': 1}", "{'url.query': 'token=REDACTED'}", "{'url.query': 'token=geheim'}"]
    assert collector.metric("m").points[0].as_int == 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_say_what_was_not_taken(protocol):
    """A refusal is no delivery."""
    with FakeCollector(behaviour.status(400)) as collector:
        way = transport.span_way(*address(collector, protocol, "traces"))()
        assert send_spans(way, [span()]) == LOST
        way.close()
        metrics = transport.metric_way(*address(collector, protocol, "metrics"))()
        assert metrics.send(numbers()) == LOST
        metrics.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_say_what_was_rejected(protocol, caplog):
    """What a partial success rejects is told with its answer only, and logged without secrets."""
    with FakeCollector(behaviour.partial(2, "password=geheim is too long")) as collector:
        way = transport.span_way(*address(collector, protocol, "traces"))()
        assert send_spans(way, [span(), span(), span()]) == Answer(True, 2)
        collector.behaviour = behaviour.ok()
        assert send_spans(way, [span()]) == Answer(True)
        way.close()
        collector.behaviour = behaviour.partial(1)
        metrics = transport.metric_way(*address(collector, protocol, "metrics"))()
        assert metrics.send(numbers()) == Answer(True, 1)
        metrics.close()
    assert "rejected 2 of the spans" in caplog.text
    assert "geheim" not in caplog.text


def test_what_is_rejected_on_a_new_connection_is_told():
    """The stock gRPC exporter connects anew after a failure; that answer is heard too."""
    with FakeCollector(behaviour.partial(1)) as collector:
        way = transport.span_way(*address(collector, "grpc", "traces"))()
        way._exporter._channel.close()
        way._exporter._initialize_channel_and_stub()
        assert send_spans(way, [span(), span()]) == Answer(True, 1)
        way.close()


def test_without_its_private_names_the_stock_exporter_sends_all_the_same():
    """Then what was rejected is not known."""

    class Exporter:
        def export(self, spans: object) -> SpanExportResult:
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            """Nothing to do."""

    way = ways.StockSpans(Exporter())  # type: ignore[arg-type]
    assert send_spans(way, [span()]) == Answer(True)
    way.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_can_be_given_up(protocol):
    """What hangs ends at once."""
    with FakeCollector(behaviour.hang()) as collector:
        way = transport.span_way(*address(collector, protocol, "traces", 60))()
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(send_spans(way, [span()])))
        thread.start()
        collector.wait_for(requests=1)
        way.stop(time.monotonic() + 0.1)
        way.abort()
        thread.join(10)
        assert answers == [LOST]
        way.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_say_what_waits(protocol):
    """In bytes, more for spans that hold more."""
    with FakeCollector() as collector:
        way = transport.span_way(*address(collector, protocol, "traces"))()
        part, small = way.encode([span()])
        more, large = way.encode([span(text=random.Random(1).randbytes(900).hex())])
        assert 50 < small < 2000
        assert large > small + 900
        joined, both = way.join([part, more])
        assert small + 500 < both <= small + large
        assert way.send(joined) == Answer(True)
        way.close()


def many_numbers(points: int) -> MetricsData:
    registry = Registry()
    cursor = registry.cursor(sdk.Preferences(frozenset(), {}).cell)
    instrument = registry.instrument(Metric("m", "1", "counter", ""), InstrumentationScope("t"))
    for number in range(points):
        instrument.of({"n": number}).record(number)
    data = metrics_data(cursor.collect(), Resource({}))
    assert data is not None
    return data


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_part_what_is_too_large(protocol, monkeypatch):
    """Metrics arrive in several requests, each point once; what one of them loses is told, and no more."""
    monkeypatch.setattr(ways, "LARGEST_REQUEST_BYTES", 3000)
    with FakeCollector() as collector:
        metrics = transport.metric_way(*address(collector, protocol, "metrics"))()
        with ways.unobserved():
            assert metrics.send(many_numbers(100)) == Answer(True)
            requests = len(collector.requests)
            assert requests > 1
            assert sorted(point.as_int for each in collector.metrics for point in each.points) == list(range(100))
            collector.behaviour = behaviour.status(400).times(1)
            answer = metrics.send(many_numbers(100))
            assert answer.delivered
            assert 0 < answer.failed < 60
            collector.behaviour = behaviour.partial(2)
            assert metrics.send(many_numbers(100)).rejected == 2 * requests
            collector.behaviour = behaviour.status(400)
            assert metrics.send(many_numbers(100)) == LOST
            assert len(collector.requests) == 4 * requests
            assert metrics.send(many_numbers(100), within_s=0) == LOST
            assert len(collector.requests) <= 4 * requests + 1
        metrics.close()


def test_the_log_of_the_stock_exporter_is_one_line_a_minute(caplog):
    """While we send; what the application logs by the same libraries is left alone."""
    log = logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter")
    with FakeCollector() as collector:
        transport.span_way(*address(collector, "grpc", "traces"))().close()
    with ways.unobserved():
        for text in ("one", "two", "three"):  # it lets no text through twice itself
            log.warning(text)
    for text in ("four", "five"):
        log.warning(text)
    assert caplog.messages == ["one", "four", "five"]


def test_a_minute_later_one_more_line():
    """The limit is a rate, not an end."""
    limit = ways._OncePerMinute()
    record = logging.makeLogRecord({})
    with ways.unobserved():
        assert [limit.filter(record) for _ in range(3)] == [True, False, False]
        limit._next -= 61
        assert limit.filter(record)
    assert limit.filter(record)
