"""The life of a process, in processes of their own: exit, fork, and an application that has providers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import otel_perf
from otel_perf import conventions as c
from otel_perf import measure
from otel_perf.testing import FakeCollector, attributes, behaviour

ROOT = Path(__file__).parent.parent


def run(script: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end; a fault in it fails the test with its traceback."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "COV_"))}
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True, text=True, timeout=50, check=False, cwd=cwd,
        env={**env, "OTEL_PERF_STRICT": "true", "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran


def answer(ran: subprocess.CompletedProcess[str]) -> Any:
    """What the script printed as its last line."""
    return json.loads(ran.stdout.splitlines()[-1])


# Exit -----------------------------------------------------------------------------------------------------------------

SCRIPT = """
    import sys
    from otel_perf import configure, measure, catalogue
    configure(service_name="script", span_interval_s=60, metric_interval_s=60)
    sold = catalogue.counter("shop.sold")
    for _ in range(700):
        with measure("work"):
            pass
        sold.add(2)
    if "fail" in sys.argv:
        raise SystemExit("on purpose") from None
"""


@pytest.mark.parametrize("end", ["return", "fail"])
def test_a_plain_script_loses_nothing_at_its_end(tmp_path, end):
    """Exit flushes what it recorded, nobody has to call anything, also when it ends by an error."""
    with FakeCollector() as collector:
        script = SCRIPT if end == "return" else f"try:\n{textwrap.indent(SCRIPT, ' ')}\nexcept SystemExit:\n    pass\n"
        ran = run(textwrap.dedent(script), end, cwd=tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert Counter((each.resource["service.name"], each.name) for each in collector.spans) == {("script", "work"): 700}
    assert collector.metric(c.STEP_DURATION.name).points[0].count == 700
    assert collector.metric("shop.sold").points[0].as_int == 1400
    assert (ran.stdout, ran.stderr) == ("", "")


def test_a_script_without_an_endpoint_ends_quietly(tmp_path):
    """Nothing is sent, and nothing is written anywhere."""
    ran = run(SCRIPT, "return", cwd=tmp_path)
    assert (ran.stdout, ran.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [behaviour.refuse(), behaviour.hang(), behaviour.drip()], ids=["dead", "hang", "drip"])
def test_a_script_ends_although_nobody_takes_its_spans(tmp_path, bad):
    """It comes back whatever the endpoint does, says in a line what was lost, and its exit status is its own."""
    with FakeCollector(bad) as collector:
        told = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_PERF_FLUSH_TIMEOUT_S": "0.3"}
        ran = run(SCRIPT, "return", cwd=tmp_path, **told)
    assert "Traceback" not in ran.stderr
    said = ran.stderr.splitlines()
    lost = [line for line in said if "could not be delivered" in line]
    assert [line.split(" could")[0] for line in lost] in ([], ["otel_perf: 700 spans"])
    assert len(said) - len(lost) <= 1  # why the endpoint took nothing


@pytest.mark.parametrize("bad", [behaviour.hang(), behaviour.drip(), behaviour.slow(60)], ids=["hang", "drip", "slow"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_flush_and_shutdown_keep_their_time(protocol, bad):
    """Whatever the collector does they come back, say that it was not delivered, and no thread stays behind."""
    with FakeCollector(bad) as collector:
        endpoint = collector.grpc_endpoint if protocol == "grpc" else collector.url
        otel_perf.configure("shop", endpoint=endpoint, protocol=protocol, handle_signals=False)
        with measure("work"):
            pass
        began = time.monotonic()
        assert otel_perf.flush(0.3) is False
        assert otel_perf.shutdown(0.3) is False
        assert time.monotonic() - began < 5  # generous: it is about 60 seconds, not about milliseconds
        assert collector.spans == []


LATE_EXIT = """
    import atexit, sys
    import otel_perf
    from otel_perf import measure

    def last():
        with measure("too late"):
            pass

    atexit.register(last)
    otel_perf.configure("script", endpoint=sys.argv[1])
    with measure("work"):
        pass
    atexit.register(last)
"""


def test_what_ends_after_the_end_is_said(tmp_path):
    """Exit functions that were registered before `configure()` run after ours: what they make is lost, and told."""
    with FakeCollector() as collector:
        ran = run(LATE_EXIT, collector.url, cwd=tmp_path)
    assert Counter(each.name for each in collector.spans) == {"work": 1, "too late": 1}
    assert ran.stderr.splitlines() == ["otel_perf: 1 spans could not be delivered: 1 closed"]


def test_a_shutdown_after_an_interrupted_one_tells_the_truth(caplog):
    """It waits for what the first one began, says what was lost, and answers no."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    usual = signal.getsignal(signal.SIGTERM)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with FakeCollector(behaviour.hang()) as collector:
            otel_perf.configure("shop", endpoint=collector.url)
            with measure("work"):
                pass
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                otel_perf.shutdown(1)
            assert signal.getsignal(signal.SIGTERM) is not usual
            assert not otel_perf.shutdown(1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert signal.getsignal(signal.SIGTERM) is usual
    assert [each for each in caplog.messages if "could not be delivered" in each] == [
        "otel_perf: 1 spans could not be delivered: 1 export_failed"
    ]


# Fork -----------------------------------------------------------------------------------------------------------------

FORK = """
    import json, os, sys, threading, warnings
    warnings.simplefilter("ignore")
    import otel_perf
    from otel_perf import measure
    from otel_perf.telemetry import runtime
    from opentelemetry import trace

    otel_perf.configure(service_name="forking", endpoint=sys.argv[1], span_interval_s=60, metric_interval_s=60)
    of = runtime.current
    tracer = trace.get_tracer("held by a library")

    def spans(name, count):
        for _ in range(count):
            with measure(name):
                pass
        tracer.start_span(name + " of a library").end()

    def fork_while_locked():
        # Another thread holds every lock of ours at the moment of the fork.
        held, done = threading.Event(), threading.Event()

        def hold():
            with of.registry.fold_lock, of.sender._changed, of.registry._lock, of.meter_provider._bound_lock:
                held.set()
                done.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        pid = os.fork()
        if pid:
            done.set()
            thread.join()
        return pid

    def told():
        return {"tally": of.sender.tally(), "id": of.resource.attributes["service.instance.id"]}

    spans("parent", 3)
    read, write = os.pipe()
    pid = fork_while_locked()
    if pid == 0:
        first = told()
        spans("child", 2)
        done = otel_perf.flush(10)
        os.write(write, json.dumps({"first": first, "done": done, **told()}).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    child = json.loads(os.read(read, 65536))
    before = told()
    spans("parent", 1)
    print(json.dumps({"child": child, "before": before, "done": otel_perf.shutdown(10), **told()}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_and_its_parent_send_their_own(tmp_path):
    """Own queue, counts from zero, an instance id of its own, no lock that nobody gives back; nothing twice."""
    with FakeCollector() as collector:
        ran = run(FORK, collector.url, cwd=tmp_path)
    told = answer(ran)
    child = told["child"]
    assert child["first"]["tally"] == [0, 0, 0, 0]
    assert child["done"]
    assert child["tally"] == [3, 3, 0, 0]
    assert child["id"] != told["id"]
    assert told["before"]["tally"] == [4, 0, 0, 4]
    assert told["done"]
    assert told["tally"] == [6, 6, 0, 0]
    assert Counter((each.resource["service.instance.id"], each.name) for each in collector.spans) == {
        (child["id"], "child"): 2,
        (child["id"], "child of a library"): 1,
        (told["id"], "parent"): 4,
        (told["id"], "parent of a library"): 2,
    }
    calls = {
        each.resource["service.instance.id"]: {
            attributes(point)["operation.name"]: point.count for point in each.points
        }
        for each in collector.metrics
        if each.name == c.STEP_DURATION.name
    }
    assert calls == {child["id"]: {"child": 2}, told["id"]: {"parent": 4}}
    assert ran.stderr == ""


FORK_LATE = """
    import os, signal, sys, threading, warnings
    warnings.simplefilter("ignore")
    import otel_perf
    from otel_perf import measure
    from otel_perf.telemetry import runtime

    otel_perf.configure(service_name="forking", endpoint=sys.argv[1], export_timeout_s=2)
    of = runtime.current
    with measure("parent"):
        pass
    ending = threading.Thread(target=otel_perf.shutdown, args=(1,))
    ending.start()
    while not of.pipeline._closed:
        pass
    held, done = threading.Event(), threading.Event()

    def hold():
        with of.registry.fold_lock, of.sender._changed:
            held.set()
            done.wait()

    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    pid = os.fork()
    if pid == 0:
        signal.alarm(15)
        with measure("child"):
            pass
        of.registry.fold_all()
        os._exit(3 if otel_perf.shutdown(1) else 4)
    done.set()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ending.join()
    print(code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_in_the_middle_of_a_shutdown_hangs_nobody(tmp_path):
    """The child's work goes on, and no lock that another thread of the parent held stands in its way."""
    with FakeCollector(behaviour.hang()) as collector:
        ran = run(FORK_LATE, collector.url, cwd=tmp_path)
    assert answer(ran) in {3, 4}


# An application that has providers ------------------------------------------------------------------------------------

JOIN = """
    import json
    from collections import Counter
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(meters)

    import otel_perf
    from otel_perf import catalogue, measure

    catalogue.gauge("shop.open", observe=lambda: 7)
    for _ in range(2):
        otel_perf.configure(service_name="ours")
        with tracers.get_tracer("app").start_as_current_span("theirs"):
            with measure("ours"):
                pass
        otel_perf.flush()
        otel_perf.flush()
    assert trace.get_tracer_provider() is tracers
    assert metrics.get_meter_provider() is meters
    otel_perf.shutdown()
    tracers.get_tracer("app").start_span("later").end()
    counts = Counter()
    for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics:
        for metric in scope.metrics:
            for point in metric.data.data_points:
                counts[metric.name] += getattr(point, "count", None) or point.value
    finished = spans.get_finished_spans()
    print(json.dumps({
        "spans": [s.name for s in finished],
        "within": [bool(s.parent) for s in finished],
        "counts": counts,
    }))
"""


def test_an_applications_own_providers_are_joined(tmp_path):
    """One trace, each value once in its metrics, also when it is configured again; its providers live on."""
    ran = run(JOIN, cwd=tmp_path)
    told = answer(ran)
    assert told["spans"] == ["ours", "theirs", "ours", "theirs", "later"]
    assert told["within"] == [True, False, True, False, False]
    assert told["counts"][c.STEP_DURATION.name] == 2
    assert told["counts"]["shop.open"] == 7
    assert ran.stderr == ""


OTHERS = """
    import json
    from opentelemetry import trace
    from opentelemetry.trace import NoOpTracerProvider

    class Foreign(NoOpTracerProvider):
        "Neither of the SDK nor of ours, and without a flush."

    trace.set_tracer_provider(Foreign())
    import otel_perf
    from otel_perf import measure
    from otel_perf.telemetry import runtime

    otel_perf.configure()
    with measure("ours") as op:
        pass
    [found] = [each for each in runtime.current.registry.instruments() if each.metric.name == "operation.duration"]
    series = len(found.series)
    print(json.dumps({"flushed": otel_perf.flush(), "stopped": otel_perf.shutdown(), "series": series}))
"""


def test_a_provider_of_another_kind_is_used_as_it_is(tmp_path):
    """One that records no spans and cannot be flushed is no failure, and everything is measured."""
    ran = run(OTHERS, cwd=tmp_path)
    assert answer(ran) == {"flushed": True, "stopped": True, "series": 1}
    assert ran.stderr == ""
