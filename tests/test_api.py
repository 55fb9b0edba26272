"""`configure`, `flush` and `shutdown`: the parts wired together, in this process and in others."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

import otel_perf
from otel_perf import api, guard, measure
from otel_perf import conventions as c
from otel_perf.settings import Settings, SettingsError
from otel_perf.telemetry import runtime, sampling, sdk
from otel_perf.testing import FakeCollector, behaviour

ROOT = Path(__file__).parent.parent


def run(program: str, **variables: str) -> Any:
    """Runs a program in a fresh interpreter, in an empty directory's view of the world; answers its JSON."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    environment |= {"OTEL_PERF_STRICT": "true", "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env=environment, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


# In this process ------------------------------------------------------------------------------------------------------


def test_configure_answers_the_settings_in_force(telemetry):
    """No argument is required beyond what the environment says."""
    assert otel_perf.configure(service_name="x") == Settings.load(service_name="x")
    assert runtime.current.settings.service_name == "x"


def test_a_bad_setting_leaves_what_was_there(telemetry):
    """The error comes before anything is torn down."""
    before = runtime.current
    with pytest.raises(SettingsError, match="did you mean 'service_name'"):
        otel_perf.configure(service_nam="x")
    assert runtime.current is before
    with measure("still measured"):
        pass
    assert telemetry.span("still measured")


def test_disabled_nothing_is_measured():
    """The switch stops what ran; code under measurement runs on."""
    otel_perf.configure(disabled=True)
    assert runtime.current is None
    with measure("work") as op:
        pass
    assert op.seconds >= 0
    assert otel_perf.flush()
    assert otel_perf.shutdown()


def test_configured_again_counts_start_anew(telemetry):
    """New settings hold, old counts are gone, and what libraries hold goes on working."""
    held_counter = metrics.get_meter("library").create_counter("held.total")
    held_tracer = trace.get_tracer("library")
    with measure("first"):
        held_counter.add(5)
    with FakeCollector() as kept:
        otel_perf.configure(service_name="second", endpoint=kept.url)
        with measure("second"), held_tracer.start_as_current_span("held"):
            held_counter.add(2)
        assert otel_perf.flush()
        otel_perf.shutdown()
        assert {span.name for span in kept.spans} == {"second", "held"}
        assert kept.metric("held.total").points[0].as_int == 2
        assert [each.count for each in kept.metric("operation.duration").points] == [1]


def test_the_resource_says_who_and_where():
    """Service, version, environment, more attributes, and an instance id of its own or the given one."""
    made = api._resource(
        Settings(service_name="s", service_version="1", environment="prod", resource_attributes={"team": "a"}), None
    ).attributes
    assert made["service.name"] == "s"
    assert made["service.version"] == "1"
    assert made["deployment.environment.name"] == "prod"
    assert made["team"] == "a"
    assert len(made["service.instance.id"]) == 36
    given = {"service.name": "from-attributes", "service.instance.id": "me"}
    named = api._resource(Settings(resource_attributes=given), None).attributes
    assert (named["service.name"], named["service.instance.id"]) == ("from-attributes", "me")
    both = api._resource(Settings(service_name="s", resource_attributes=given), None).attributes
    assert both["service.name"] == "s"


@pytest.mark.parametrize(
    ("name", "kind", "sampled"),
    [
        ("always_on", "AlwaysOnSampler", True), ("always_off", "AlwaysOffSampler", False),
        ("traceidratio", "TraceIdRatioBased", False), ("parentbased_always_on", "ParentBased", True),
        ("parentbased_always_off", "ParentBased", False), ("parentbased_traceidratio", "ParentBased", False),
    ],
)  # fmt: skip
def test_samplers(name, kind, sampled):
    """Each name is the sampler that the specification means by it."""
    made = sampling.sampler(Settings(sampler=name, sample_ratio=0.0))
    assert isinstance(made, (ParentBased, TraceIdRatioBased)) or "Static" in type(made).__name__
    decision = made.should_sample(None, 1, "n").decision
    assert decision.is_sampled() is sampled
    assert (kind == "ParentBased") == isinstance(made, ParentBased)


def dead() -> str:
    """An address where nobody listens."""
    with FakeCollector() as collector:
        pass
    return collector.url


def test_flush_and_shutdown_are_in_time_and_truthful():
    """An endpoint that hangs: no, and in time; a dead one: no, counted; without any: yes."""
    with FakeCollector(behaviour.hang()) as silent:
        otel_perf.configure(service_name="t", endpoint=silent.url, export_timeout_s=1)
        with measure("work"):
            pass
        began = time.monotonic()
        assert not otel_perf.flush(0.2)
        assert not otel_perf.shutdown(0.2)
        assert time.monotonic() - began < 10
    otel_perf.configure(service_name="t", endpoint=dead(), export_timeout_s=0.2)
    with measure("work"):
        pass
    assert not otel_perf.flush()
    sender = runtime.current.sender
    assert sender.tally() == (1, 0, 1, 0)
    assert not otel_perf.shutdown()
    otel_perf.configure(service_name="t")
    assert otel_perf.flush()
    assert otel_perf.shutdown()


def test_losses_are_a_metric(telemetry):
    """What was made, delivered and lost, by signal and reason, and our own faults, are on every reader."""
    telemetry.restart(endpoint=dead(), export_timeout_s=0.2, metric_interval_s=3600)
    with measure("work"):
        pass
    assert not otel_perf.flush()
    told = {name: telemetry.points(name) for name in telemetry.metrics() if name.startswith("otel_perf.")}
    assert told[c.SPANS_MADE.name][0].value == 1
    assert told[c.SPANS_DELIVERED.name][0].value == 0
    assert told[c.QUEUE_SIZE.name][0].value == 0
    assert told[c.QUEUE_CAPACITY.name][0].value == 4096
    assert told[c.INTERNAL_ERRORS.name][0].value == 0
    dropped = {tuple(point.attributes.values()): point.value for point in told[c.DROPPED.name]}
    assert dropped["traces", "export_failed"] == 1
    assert dropped["metrics", "export_failed"] > 0


def test_our_own_faults_are_counted_as_a_metric(telemetry, monkeypatch):
    """A fault that was kept from the application is not kept from the operator."""
    monkeypatch.setattr(guard, "strict", False)
    measure.record("x", seconds=-1)
    assert telemetry.points(c.INTERNAL_ERRORS.name)[0].value == 1


def test_the_temporality_that_the_standard_variable_asks_for(monkeypatch):
    """The stock exporter's own variables hold for what we send."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    with FakeCollector() as kept:
        otel_perf.configure(service_name="t", endpoint=kept.url, metric_interval_s=3600)
        for _ in range(2):
            with measure("work"):
                pass
            assert otel_perf.flush()
            histogram = kept.metric("operation.duration").data.histogram
            assert (histogram.aggregation_temporality, histogram.data_points[0].count) == (1, 1)
        otel_perf.shutdown()


def test_a_reader_of_the_applications_is_stopped_with_us(telemetry):
    """It is flushed and shut down within the deadline, once, without a warning."""
    stopped = []

    class Reader(InMemoryMetricReader):
        def shutdown(self, timeout_millis=30_000, **kwargs):
            stopped.append(timeout_millis)

    runtime.current.meter_provider.add_metric_reader(Reader())
    otel_perf.shutdown(2)
    assert len(stopped) == 1
    assert 0 < stopped[0] <= 2000


def test_force_flush_of_the_global_provider_reaches_our_sender():
    """Serverless hosts and test tools flush by the OpenTelemetry API."""
    with FakeCollector() as kept:
        otel_perf.configure(service_name="t", endpoint=kept.url, span_interval_s=60)
        with measure("work"):
            pass
        assert runtime.current.tracer_provider.force_flush(10_000)
        assert [span.name for span in kept.spans] == ["work"]
        otel_perf.shutdown()
    assert api._Relay().force_flush()


# Fork -----------------------------------------------------------------------------------------------------------------

forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def in_a_child() -> None:
    with measure("child"):
        pass


@forks
def test_a_child_of_multiprocessing_loses_nothing_at_its_end():
    """It leaves without `atexit`, and sends what it has all the same."""
    with FakeCollector() as kept:
        otel_perf.configure(service_name="t", endpoint=kept.url, span_interval_s=60, metric_interval_s=3600)
        process = multiprocessing.get_context("fork").Process(target=in_a_child)
        process.start()
        process.join()
        assert process.exitcode == 0
        assert [span.name for span in kept.spans] == ["child"]
        assert kept.metric("operation.duration").points[0].count == 1
        otel_perf.shutdown()


# Other processes ------------------------------------------------------------------------------------------------------


def test_without_an_endpoint_nothing_is_sent_and_nothing_logged():
    """No connection, no log record; exit is clean."""
    seen, errors = run("""
        import json, logging, sys
        logging.basicConfig(level=logging.DEBUG)
        seen = []
        sys.addaudithook(lambda event, args: seen.append(event) if event.startswith("socket.") else None)
        import otel_perf
        otel_perf.configure()
        with otel_perf.measure("work"): pass
        print(json.dumps([otel_perf.flush(), otel_perf.shutdown(), seen]))
    """)
    assert seen == [True, True, []]
    assert "otel_perf" not in errors


FOREIGN = """
    import json, logging
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    kept, reader = InMemorySpanExporter(), InMemoryMetricReader()
    def set_tracer_provider():
        provider = TracerProvider(resource=Resource({"service.name": "theirs"}))
        provider.add_span_processor(SimpleSpanProcessor(kept))
        trace.set_tracer_provider(provider)
    def set_meter_provider():
        metrics.set_meter_provider(MeterProvider([reader]))
    def spans():
        return [[span.name, span.resource.attributes["service.name"]] for span in kept.get_finished_spans()]
    def points():
        data = reader.get_metrics_data()
        return {
            metric.name: [getattr(p, "value", None) or getattr(p, "count", None) for p in metric.data.data_points]
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics for metric in scope.metrics
        }
"""


def test_joined_twice_metrics_still_arrive_once():
    """A second `configure()` hands on what comes after it, not what came before again."""
    seen, _ = run(
        FOREIGN
        + """
    set_meter_provider()
    import otel_perf
    for _ in range(2):
        otel_perf.configure(service_name="ours")
        with otel_perf.measure("work"): pass
        otel_perf.flush()
    print(json.dumps(points()["operation.duration"]))
    """
    )
    assert seen == [2]


def test_our_providers_are_the_global_ones_where_there_are_none():
    """Libraries that ask OpenTelemetry get ours, also those that asked before `configure()`."""
    with FakeCollector() as kept:
        run(
            """
            from opentelemetry import metrics, trace
            early = trace.get_tracer("early")
            counter = metrics.get_meter("early").create_counter("early.total")
            import otel_perf
            otel_perf.configure(service_name="ours")
            with early.start_as_current_span("theirs"), otel_perf.measure("ours"): counter.add(1)
            print("{}")
            """,
            OTEL_EXPORTER_OTLP_ENDPOINT=kept.url,
        )
        spans = {span.name: span for span in kept.spans}
        assert spans["ours"].parent_id == spans["theirs"].span_id
        assert kept.metric("early.total").points[0].as_int == 1


# Joining, with providers that stand where an application's own would: the real ones are set once a process -----------


@pytest.fixture
def foreign(monkeypatch):
    """A tracer and a meter provider of the SDK, with what they keep."""
    kept, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider(resource=Resource({"service.name": "theirs"}), shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(kept))
    meters = MeterProvider([reader], Resource({}), shutdown_on_exit=False)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracers)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: meters)

    def counts() -> dict[str, list[int]]:
        [resource] = reader.get_metrics_data().resource_metrics
        return {
            metric.name: [each.count if hasattr(each, "count") else each.value for each in metric.data.data_points]
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    yield kept, counts
    otel_perf.shutdown()
    tracers.shutdown()
    meters.shutdown()


def test_both_providers_are_joined(foreign, caplog):
    """Each value is there once, however often it is flushed and configured; what is not sent by us is said."""
    kept, counts = foreign
    for _ in range(3):
        otel_perf.configure(endpoint=dead())
        assert runtime.current.sender is None
        with measure("work"):
            pass
        assert otel_perf.flush()
        assert otel_perf.flush()
    assert otel_perf.shutdown()
    assert [span.name for span in kept.get_finished_spans()] == ["work"] * 3
    assert counts()["operation.duration"] == [3]
    assert counts()[c.INTERNAL_ERRORS.name] == [0]
    assert {record.message.split(" and not")[0] for record in caplog.records} == {
        "otel_perf: spans go to the application's own TracerProvider"
    }


def test_a_child_of_an_application_with_providers(foreign, monkeypatch):
    """Our resource has another instance id then; the application's provider is left as it is."""
    otel_perf.configure()
    monkeypatch.setattr(sdk, "instance_id", lambda: "child")
    api._after_fork(runtime.current)
    assert runtime.current.resource.attributes["service.instance.id"] == "child"
    assert dict(trace.get_tracer_provider().resource.attributes) == {"service.name": "theirs"}


def test_a_child_goes_on_with_the_same_objects(telemetry, monkeypatch):
    """A tracer that a library holds makes spans of the child's instance; counts are at zero."""
    tracer = runtime.current.tracer_provider.get_tracer("held")
    with measure("parent"):
        pass
    monkeypatch.setattr(sdk, "instance_id", lambda: "child")
    api._after_fork(runtime.current)
    tracer.start_span("child").end()
    for holder in (telemetry.span("child"), runtime.current, runtime.current.meter_provider):
        assert holder.resource.attributes["service.instance.id"] == "child"
    assert not telemetry.points("operation.duration")


def test_a_span_that_ends_amid_a_configuration_blinds_no_tracer(monkeypatch):
    """A tracer that looks while nobody wants spans yet looks again: those of the new configuration are sent."""
    with FakeCollector() as collector:
        otel_perf.configure(service_name="t", endpoint=collector.url)
        tracer = runtime.current.tracer_provider.get_tracer("held")
        across = tracer.start_span("across")
        late = otel_perf.api.late.late

        def ends_a_span(*args, **more):
            across.end()
            return late(*args, **more)

        monkeypatch.setattr(otel_perf.api.late, "late", ends_a_span)
        otel_perf.configure(service_name="t", endpoint=collector.url)
        tracer.start_span("wanted").end()
        assert otel_perf.flush()
        assert [each.name for each in collector.spans] == ["wanted"]
