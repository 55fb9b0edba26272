"""Lean tracers: processors, threads, ids, and the short way to a span."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import signal
import sys
import threading
import time
import tracemalloc
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    ReadableSpan,
    SpanLimits,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
)
from opentelemetry.sdk.trace import TracerProvider as Stock
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, Sampler, SamplingResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

from otel_perf.telemetry import span as span_module
from otel_perf.telemetry.provider import TracerProvider
from otel_perf.telemetry.span import LeanSpan
from otel_perf.telemetry.tracer import LeanTracer, entry

PARENT = SpanContext(5, 6, True, TraceFlags(1))


class Told(SpanProcessor):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.contexts: list[Context | None] = []
        self.threads: set[threading.Thread] = set()

    def on_start(self, span, parent_context=None) -> None:
        self.told.append(("start", span.name))
        self.contexts.append(parent_context)

    def _on_ending(self, span) -> None:
        self.told.append(("ending", span.name))

    def on_end(self, span) -> None:
        self.told.append(("end", span.name))
        self.threads.add(threading.current_thread())


def provider(**arguments: Any) -> TracerProvider:
    return TracerProvider(shutdown_on_exit=False, **arguments)


def tracer_of(made: Stock) -> Any:
    found = made.get_tracer("t")
    assert type(found) is LeanTracer
    return found


ALL_THREE = [("start", "s"), ("ending", "s"), ("end", "s")]


@pytest.mark.parametrize("hub", [None, SynchronousMultiSpanProcessor, ConcurrentMultiSpanProcessor])
def test_processors_are_told_in_their_order(hub):
    """Also those that were added after the tracer was made, and by whichever hub the provider was made with."""
    active = None if hub is None else hub()
    made = provider(active_span_processor=active)
    tracer = tracer_of(made)
    first, second = Told(), Told()
    made.add_span_processor(first)
    tracer.start_span("s").end()
    made.add_span_processor(second)
    tracer.start_span("s").end()
    assert (first.told, second.told) == (ALL_THREE * 2, ALL_THREE)
    assert (threading.current_thread() in first.threads) is (hub is not ConcurrentMultiSpanProcessor)
    if isinstance(active, ConcurrentMultiSpanProcessor):
        active._executor.shutdown()


def test_processors_that_were_taken_away_are_told_nothing_more():
    """As `configure` does when it is called again: libraries hold the tracer."""
    made, told = provider(), Told()
    tracer = tracer_of(made)
    made.add_span_processor(told)
    span = tracer.start_span("s")
    made._active_span_processor._span_processors = ()
    span.end()
    assert told.told == [("start", "s")]


def test_what_a_processor_leaves_empty_is_not_called():
    """Nothing is called that would do nothing; whatever else there is, a generator or a callable object, is called."""

    class Called:
        def __init__(self) -> None:
            self.times = 0

        def __call__(self, *_: Any, **__: Any) -> None:
            self.times += 1

    class Odd(SpanProcessor):
        def on_start(self, span, parent_context=None) -> None:
            """Says nothing."""

    odd = Odd()
    odd.on_end = called = Called()  # type: ignore[method-assign]
    made = provider()
    for processor in (odd, SimpleSpanProcessor(InMemorySpanExporter()), SpanProcessor()):
        made.add_span_processor(processor)
    tracer = tracer_of(made)
    tracer.start_span("s").end()
    assert called.times == 1
    assert (tracer.starts, tracer.endings) == ((), ())
    assert len(tracer.ends) == 2


def test_the_sdks_processors_export_lean_spans():
    """Batch and simple, with what an exporter reads of a span."""
    made, batch, simple = provider(), InMemorySpanExporter(), InMemorySpanExporter()
    made.add_span_processor(BatchSpanProcessor(batch))
    made.add_span_processor(SimpleSpanProcessor(simple))
    tracer_of(made).start_span("s", attributes={"a": 1}).end()
    assert made.force_flush(5000)
    assert batch.get_finished_spans() == simple.get_finished_spans()
    made.shutdown()
    tracer_of(made).start_span("t").end()
    assert len(simple.get_finished_spans()) == 1


# The short way -----------------------------------------------------------------------------------------------------


class Asked(Sampler):
    """Keeps the context that it is asked with."""

    def __init__(self) -> None:
        self.parents: list[SpanContext] = []
        self.attributes: list[Any] = []

    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None) -> Any:  # noqa: PLR0917  # the SDK's
        self.parents.append(trace.get_current_span(parent_context).get_span_context())
        self.attributes.append(attributes)
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)

    def get_description(self) -> str:
        return "asked"


def test_the_short_way_takes_the_attributes_as_they_are():
    """One call starts a span, with the dict that it is given, and one ends it."""
    made, exporter = provider(), InMemorySpanExporter()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    attributes = {"a": 1}
    short = entry(tracer_of(made))
    span = short.begin("s", SpanKind.SERVER, PARENT, attributes)
    assert isinstance(span, LeanSpan)
    assert span._attributes is attributes
    short.finish(span, 7)
    (ended,) = exporter.get_finished_spans()
    assert (ended.name, ended.kind, ended.parent, ended.end_time) == ("s", SpanKind.SERVER, PARENT, 7)


@pytest.mark.parametrize("parent", [None, trace.INVALID_SPAN_CONTEXT])
def test_the_short_way_makes_roots(parent):
    """Without a parent, or with one that is not valid, whatever is current."""
    tracer = tracer_of(provider())
    with tracer.start_as_current_span("current") as current:
        root = tracer.begin("root", SpanKind.INTERNAL, parent, {})
    assert root.parent is None
    assert root.get_span_context().trace_id != current.get_span_context().trace_id


def test_the_short_way_unsampled():
    """There is a context to send on, and finishing it is nothing."""
    tracer = tracer_of(provider(sampler=ALWAYS_OFF))
    span = tracer.begin("s", SpanKind.SERVER, PARENT, {"a": 1})
    assert not span.is_recording()
    assert span.get_span_context().trace_id == PARENT.trace_id
    assert span.get_span_context().is_valid
    assert not span.get_span_context().trace_flags.sampled
    span.set_attribute("a", 2)
    tracer.finish(span)


@pytest.mark.parametrize("sampler", [Asked(), ALWAYS_ON])
def test_samplers_and_processors_are_told_of_the_parent_that_counts(sampler):
    """Where the context has another span, or none, they get one that has the parent."""
    told = Told()
    made = provider(sampler=sampler)
    made.add_span_processor(told)
    tracer = tracer_of(made)
    with tracer.start_as_current_span("current") as current:
        tracer.begin("s", SpanKind.SERVER, PARENT, {"a": 1})
        tracer.begin("s", SpanKind.SERVER, None, {})
        tracer.begin("s", SpanKind.SERVER, current.get_span_context(), {})
    invalid = trace.INVALID_SPAN_CONTEXT
    if isinstance(sampler, Asked):
        assert sampler.parents == [invalid, PARENT, invalid, current.get_span_context()]
        assert sampler.attributes[1] == {"a": 1}
    parents = [trace.get_current_span(each).get_span_context() for each in told.contexts[1:3]]
    assert parents == [PARENT, invalid]
    assert told.contexts[3] is None


def test_the_short_way_over_any_other_tracer():
    """The same over a tracer that is not lean."""
    made, exporter = Stock(shutdown_on_exit=False), InMemorySpanExporter()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    short = entry(made.get_tracer("t"))
    short.finish(short.begin("s", SpanKind.CLIENT, PARENT, {"a": 1}), 7)
    (ended,) = exporter.get_finished_spans()
    assert not isinstance(ended, LeanSpan)
    assert (ended.parent, ended.end_time, dict(ended.attributes)) == (PARENT, 7, {"a": 1})


def test_a_tracer_that_is_switched_off_makes_nothing():
    """By the provider's configurator, as it is or as it becomes; the parent's context goes through."""
    off, on = (type("Config", (), {"is_enabled": enabled}) for enabled in (False, True))
    made = provider(_tracer_configurator=lambda scope: off)
    tracer = tracer_of(made)
    above = trace.set_span_in_context(NonRecordingSpan(PARENT), Context())
    assert tracer.start_span("s", above).get_span_context() == PARENT
    assert tracer.start_span("s").get_span_context() == trace.INVALID_SPAN_CONTEXT
    made._set_tracer_configurator(tracer_configurator=lambda scope: on)
    assert tracer.start_span("s").is_recording()


# Threads -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_switches():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def together(*functions: Any) -> None:
    failed: list[BaseException] = []

    def run(function: Any) -> None:
        try:
            function()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


def test_one_of_many_threads_ends_a_span(monkeypatch, caplog):
    """The processors are told once, the others are logged."""
    made, told = provider(), Told()
    made.add_span_processor(told)
    span = tracer_of(made).start_span("s")

    def slow() -> int:
        time.sleep(0.05)  # all four have asked by then whether it has ended
        return 7

    monkeypatch.setattr(span_module, "time_ns", slow)
    together(*(span.end,) * 4)
    assert told.told.count(("end", "s")) == 1
    assert [record.getMessage() for record in caplog.records] == ["Calling end() on an ended span."] * 3


def test_counts_and_limits_hold_among_threads(quick_switches):
    """Nothing that was dropped goes uncounted, and no limit is passed."""
    limits = SpanLimits(max_span_attributes=3, max_events=3, max_links=3)
    logging.getLogger("opentelemetry.attributes").disabled = True
    span = tracer_of(provider(span_limits=limits)).start_span("s")

    def write(thread: int) -> None:
        for number in range(1000):
            span.set_attribute(f"{thread} {number}", number)
            span.add_event("e")
            span.add_link(PARENT)

    together(*(lambda thread=thread: write(thread) for thread in range(4)))
    logging.getLogger("opentelemetry.attributes").disabled = False
    assert (len(span.attributes), len(span.events), len(span.links)) == (3, 3, 3)
    assert (span.dropped_attributes, span.dropped_events, span.dropped_links) == (3997, 3997, 3997)


@pytest.mark.parametrize("ended", [True, False])
def test_a_late_write_does_not_meet_a_reader(quick_switches, ended):
    """Who iterates over attributes while another thread writes finishes: late writes that slip in do no harm."""
    span: Any = tracer_of(provider()).start_span("s", attributes={str(number): number for number in range(50)})
    if ended:
        span.end()
    going = True

    def write() -> None:
        number = 0
        while going:  # as one does that had seen the span live just before it ended
            number += 1
            if number % 600 < 300:
                span._attributes[f"late {number % 300}"] = number
            else:
                span._attributes.pop(f"late {number % 300}", None)

    def read() -> None:
        nonlocal going
        try:
            for _ in range(3000):
                for _key in span.attributes:
                    pass
            for _ in range(50):
                dict(span.attributes.copy())
                span.to_json()
        finally:
            going = False

    together(write, read)


# What is made of a span --------------------------------------------------------------------------------------------


def test_a_span_is_copied_into_what_the_sdk_has_for_it():
    """A copy, also a deep one, can be changed without changing the span; pickling is refused, as by the SDK."""
    span: Any = tracer_of(provider(resource=Resource({"r": 1}))).start_span("s", attributes={"a": (1, 2)})
    span.add_event("e", {"x": 1})
    span.add_link(PARENT)
    span.set_status(StatusCode.ERROR, "bad")
    for made in (copy.copy(span), copy.deepcopy(span), span._readable_span()):
        assert type(made) is ReadableSpan
        assert json.loads(made.to_json()) == json.loads(span.to_json())
        assert made.instrumentation_scope == span.instrumentation_scope
        made._name = "changed"
    assert span.name == "s"
    assert span._readable_span()._instrumentation_info.name == "t"
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(span)


def test_a_span_keeps_the_resource_that_it_started_with():
    """One that starts after the provider got another has that one."""
    made = provider(resource=Resource({"r": 1}))
    tracer = tracer_of(made)
    before = tracer.start_span("s")
    made._update_resource(Resource({"r": 2}))
    after = tracer.start_span("s")
    assert (before.resource.attributes["r"], after.resource.attributes["r"]) == (1, 2)
    assert tracer.resource.attributes["r"] == 2


def test_a_live_span_is_small():
    """Without attributes it takes a fifth of what the SDK's takes."""
    sizes = []
    for made in (provider(), Stock(shutdown_on_exit=False)):
        tracer = made.get_tracer("t")
        kept = [tracer.start_span("s") for _ in range(20)]
        tracemalloc.start()
        kept += [tracer.start_span("s") for _ in range(200)]
        sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert sizes[0] * 5 < sizes[1], sizes


def exit_code(child: int) -> int:
    """How a child ended; one that hangs is made to say where, and ends."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    # A signal that faulthandler, which pytest switches on, answers with the stack: what hangs may be a handler of
    # forks, before the child could set an alarm of its own.
    os.kill(child, signal.SIGABRT)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_writes_does_no_harm():
    """What guards the rare things is new in the child, whoever held it."""
    span = tracer_of(provider()).start_span("s")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with span_module._rare:
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    child = os.fork()
    if not child:
        try:  # or else the child would go on as a second run of all tests
            span.add_event("in the child")
            os._exit(len(span.events))
        finally:
            os._exit(99)
    try:
        assert exit_code(child) == 1
    finally:
        done.set()
        thread.join()
