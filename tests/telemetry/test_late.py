"""Late rules: what was not sampled is held until its local root ends, within bounds, and kept where a rule fits."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import propagate
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

import otel_perf
from otel_perf import api, guard, instrument, measure
from otel_perf import conventions as c
from otel_perf.settings import Settings
from otel_perf.telemetry import runtime
from otel_perf.telemetry.late import Bounds, Keep, Late, late
from otel_perf.testing import FakeCollector, attributes
from tests.asking import ask, ask_all
from tests.benchmarks.asgi import PLAIN, Kind, request
from tests.benchmarks.counting import count_async

ERRORS = Keep(errors=True)
RESOURCE = Resource({})


def span(
    trace_id: int, span_id: int, parent: int | None = None, *, remote: bool = False, failed: bool = False,
    sampled: bool = False, seconds: float = 0.0, **more: Any,
) -> ReadableSpan:  # fmt: skip
    above = None if parent is None else SpanContext(trace_id, parent, remote)
    status = Status(StatusCode.ERROR) if failed else Status()
    return ReadableSpan(
        **{"name": f"{trace_id}.{span_id}", **more},
        context=SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(int(sampled))),
        parent=above, resource=RESOURCE, status=status, start_time=10**18, end_time=10**18 + int(seconds * 1e9),
    )  # fmt: skip


class Put(list[ReadableSpan]):
    """What was handed on."""

    @property
    def names(self) -> list[str]:
        return [each.name for each in self]


# Which root is kept --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "root", "why"),
    [
        ({"keep_errors": True}, span(1, 1, failed=True), "error"),
        ({"keep_errors": True}, span(1, 1, seconds=99), None),
        ({"keep_slower_than_s": 0.5}, span(1, 1, seconds=0.5), "slow"),
        ({"keep_slower_than_s": 0.5}, span(1, 1, seconds=0.499, failed=True), None),
        ({"keep_routes": ("/pay*", "/x")}, span(1, 1, attributes={"http.route": "/pay/{id}"}), "route"),
        ({"keep_routes": ("/pay*", "/x")}, span(1, 1, attributes={"http.route": "/x/y"}), None),
        ({"keep_routes": ("nightly.*",)}, span(1, 1, attributes={"background.job.name": "nightly.clean"}), "route"),
        ({"keep_routes": ("work",)}, span(1, 1, name="work"), "route"),
        ({"keep_routes": ("work",)}, span(1, 1, name="work", attributes={"http.route": "/w"}), None),
        ({"keep_errors": True, "keep_slower_than_s": 1.0}, span(1, 1, failed=True, seconds=2), "error"),
        ({"keep_errors": True, "keep_slower_than_s": 1.0}, span(1, 1, seconds=2), "slow"),
    ],
)
def test_rules_of_a_local_root(asked, root, why):
    """A root is kept when it failed, took at least so long, or its route or name fits; the first rule is named."""
    keep = Keep.of(Settings(**asked))
    assert keep is not None
    assert keep.why(root) == why


def test_without_rules_there_is_nothing_late():
    """Where no rule is set, nothing stands between a span and the sender."""
    assert late(Settings(), lambda span: None) is None


# What is kept with it ------------------------------------------------------------------------------------------------


def test_all_that_descends_from_a_kept_root_leaves():
    """The spans of a failed request leave with it, those of a good one do not; a sampled span goes straight on."""
    put = Put()
    rules = Late(ERRORS, put.append)
    rules.on_end(span(1, 3, 2))
    rules.on_end(span(2, 5, 4))
    rules.on_end(span(1, 2, 1))
    rules.on_end(span(9, 1, sampled=True))
    assert put.names == ["9.1"]
    assert rules.held == 3
    rules.on_end(span(1, 1, 77, remote=True, failed=True))
    rules.on_end(span(2, 4))
    assert sorted(put.names) == ["1.1", "1.2", "1.3", "9.1"]
    assert rules.held == 0
    assert rules.kept == {"error": 1}


def test_the_root_says_why_it_was_kept():
    """The root that leaves has all that it had, and the rule; the ended span itself is as it was."""
    put = Put()
    event, link = Event("e", {"a": 1}, 5), Link(SpanContext(5, 6, True))
    root = span(
        1, 1, 7, remote=True, failed=True, attributes={"http.route": "/x"}, events=[event], links=[link],
        kind=SpanKind.SERVER,
    )  # fmt: skip
    Late(ERRORS, put.append).on_end(root)
    (left,) = put
    assert dict(left.attributes or {}) == {"http.route": "/x", c.KEPT_BY: "error"}
    assert dict(root.attributes or {}) == {"http.route": "/x"}
    assert isinstance(left, ReadableSpan)
    for name in (
        "name", "context", "parent", "resource", "kind", "events", "links", "status", "start_time", "end_time",
        "instrumentation_scope", "dropped_attributes", "dropped_events", "dropped_links",
    ):  # fmt: skip
        assert getattr(left, name) == getattr(root, name), name


def test_each_request_decides_for_its_own():
    """Where a process asks itself, the inner request decides for what is below it, and the outer one for the rest."""
    put = Put()
    rules = Late(ERRORS, put.append)
    rules.on_end(span(1, 30, 20))  # within the inner request
    rules.on_end(span(1, 20, 10, remote=True))  # which is good
    rules.on_end(span(1, 10, 1))  # the outer one's call
    assert rules.held == 1
    rules.on_end(span(1, 1, failed=True))
    assert sorted(put.names) == ["1.1", "1.10"]


def test_what_ends_late_follows_for_a_while():
    """A span that ends after its root shares its fate; after the time for that, it waits in vain."""
    put = Put()
    now = [100.0]
    rules = Late(ERRORS, put.append, Bounds(follow_s=30), clock=lambda: now[0])
    for trace_id, failed in ((1, True), (2, False)):
        rules.on_end(span(trace_id, 3, 2))  # its parent goes on
        rules.on_end(span(trace_id, 1, failed=failed))
    assert put.names == ["1.1"]
    now[0] += 29
    for trace_id in (1, 2):
        rules.on_end(span(trace_id, 2, 1))
        rules.on_end(span(trace_id, 4, 3))
    assert sorted(put.names) == ["1.1", "1.2", "1.3", "1.4"]
    assert rules.held == 0
    now[0] += 2
    rules.on_end(span(3, 1))
    rules.on_end(span(1, 5, 1))
    assert rules.held == 1
    assert "1.5" not in put.names


@st.composite
def _families(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], list[int], set[int]]:
    """Trees of spans in one trace (id, parent, root), an order of their ends, and the roots that fail."""
    spans: list[tuple[int, int, int]] = []
    for _ in range(draw(st.integers(1, 3))):
        root = len(spans) + 1
        # Further local roots have a remote parent among the spans that are there: the process asks itself.
        spans.append((root, draw(st.sampled_from([0, *(each[0] for each in spans)])), root))
        for _ in range(draw(st.integers(0, 5))):
            parent = draw(st.sampled_from([each[0] for each in spans if each[2] == root]))
            spans.append((len(spans) + 1, parent, root))
    order = draw(st.permutations([each[0] for each in spans]))
    return spans, order, draw(st.sets(st.sampled_from([each[2] for each in spans])))


@settings(max_examples=150, deadline=None)
@given(_families())
def test_the_order_of_ends_does_not_matter(family):
    """Whatever order spans end in, exactly those leave, once each, whose local root fits a rule."""
    spans, order, failing = family
    put = Put()
    rules = Late(ERRORS, put.append)
    by_id = {each[0]: each for each in spans}
    for number in order:
        span_id, parent, root = by_id[number]
        is_root = span_id == root
        rules.on_end(span(1, span_id, parent or None, remote=is_root, failed=is_root and root in failing))
    assert sorted(put.names) == sorted(f"1.{span_id}" for span_id, _, root in spans if root in failing)
    assert rules.held == 0
    assert not rules.lost


# Bounds --------------------------------------------------------------------------------------------------------------


def test_the_oldest_trace_is_given_up_first():
    """Where there is no room, the trace that waits longest is given up and counted; its root decides for itself."""
    put = Put()
    rules = Late(ERRORS, put.append, Bounds(traces=2, spans_per_trace=2, spans=3))
    rules.on_end(span(1, 2, 1))
    rules.on_end(span(1, 3, 1))
    rules.on_end(span(1, 4, 1))
    assert rules.lost == {"late_trace_full": 1}
    rules.on_end(span(2, 2, 1))
    assert rules.held == 3
    rules.on_end(span(3, 2, 1))
    assert (rules.held, rules.lost) == (2, {"late_trace_full": 1, "late_full": 2})
    rules.on_end(span(1, 1, failed=True))
    rules.on_end(span(2, 1, failed=True))
    assert put.names == ["1.1", "2.2", "2.1"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 4), st.integers(1, 4), st.integers(1, 8))
def test_memory_is_bounded_under_any_program(seed, traces, per_trace, spans):
    """Whatever ends, what is held stays within every bound, and each span is put, held, counted or decided against."""
    chance = random.Random(seed)
    put = Put()
    bounds = Bounds(traces=traces, spans_per_trace=per_trace, spans=spans, decisions=traces)
    rules = Late(ERRORS, put.append, bounds)
    seen = set()
    for number in range(1, 150):
        trace_id = chance.randint(1, 6)
        parent = chance.choice([None, *range(max(1, number - 12), number)])
        each = span(trace_id, number, parent, remote=chance.random() < 0.2, failed=chance.random() < 0.5)
        seen.add(each.name)
        rules.on_end(each)
        assert rules.held <= spans
        assert len(rules._held) <= traces
        assert len(rules._decided) <= traces
        assert all(held.count <= per_trace for held in rules._held.values())
        assert all(len(known) <= per_trace for _, known in rules._decided.values())
        assert rules.held == sum(len(waiting) for held in rules._held.values() for waiting in held.children.values())
        assert rules.held == sum(held.count for held in rules._held.values())
    assert len(set(put.names)) == len(put) <= len(seen)
    assert rules.held + len(put) + sum(rules.lost.values()) <= len(seen)


def test_threads_may_end_spans_at_once():
    """Spans of many traces that end in many threads lose none of a kept trace, and keep none of another."""
    put = Put()
    rules = Late(ERRORS, put.append)

    def work(first: int) -> None:
        for trace_id in range(first, first + 50):
            for number in range(2, 6):
                rules.on_end(span(trace_id, number, number - 1))
            rules.on_end(span(trace_id, 1, failed=trace_id % 2 == 0))

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(1, 5)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    expected = [f"{1000 * n + t}.{s}" for n in range(1, 5) for t in range(0, 50, 2) for s in range(1, 6)]
    assert sorted(put.names) == sorted(expected)
    assert rules.held == 0


def test_a_sampled_span_meets_no_lock():
    """Sampled spans go on while the lock is held elsewhere."""
    put = Put()
    rules = Late(ERRORS, put.append)
    with rules._lock:
        thread = threading.Thread(target=rules.on_end, args=(span(1, 1, sampled=True),))
        thread.start()
        thread.join(5)
        assert put.names == ["1.1"]


def test_a_forked_child_holds_nothing_of_its_parent():
    """After a fork there is a lock of its own and nothing held, decided or counted."""
    put = Put()
    rules = Late(ERRORS, put.append, Bounds(spans=1))
    for number in (2, 3):
        rules.on_end(span(number, number, 1))
    rules.on_end(span(5, 1, failed=True))
    rules._lock.acquire()
    rules.after_fork()
    assert (rules.held, rules.lost, rules.kept) == (0, {}, {})
    rules.on_end(span(3, 1, failed=True))
    assert put.names == ["5.1", "3.1"]


def test_a_fault_stays_here(monkeypatch):
    """Whatever goes wrong when a span ends is noted, and the application goes on."""
    monkeypatch.setattr(guard, "strict", False)

    def broken(_: ReadableSpan) -> None:
        raise RuntimeError

    Late(ERRORS, broken).on_end(span(1, 1, failed=True))
    assert guard.errors == 1
    Late(ERRORS, broken).on_end(ReadableSpan("without a context"))
    assert guard.errors == 1


class Record(Sampler):
    """Records everything, unsampled."""

    def should_sample(  # noqa: PLR0917  # the SDK's signature
        self, parent_context: Any, trace_id: int, name: str, kind: Any = None, attributes: Any = None,
        links: Any = None, trace_state: Any = None,
    ) -> SamplingResult:  # fmt: skip
        return SamplingResult(Decision.RECORD_ONLY, attributes)

    def get_description(self) -> str:
        return "record"


class Passing(SpanProcessor):
    """Passes what ends to late rules."""

    def __init__(self, rules: Late) -> None:
        self.on_end = rules.on_end  # type: ignore[method-assign]


def test_spans_of_the_stock_sdk_are_taken():
    """A stock provider's recorded spans are held and kept like ours, with the counts of what was dropped."""
    put = Put()
    provider = TracerProvider(Record(), shutdown_on_exit=False, span_limits=SpanLimits(max_span_attributes=1))
    provider.add_span_processor(Passing(Late(ERRORS, put.append)))
    tracer = provider.get_tracer("t")
    with tracer.start_as_current_span("outer", attributes={"a": 1, "b": 2}) as outer:
        tracer.start_span("inner").end()
        outer.set_status(StatusCode.ERROR)
    assert put.names == ["inner", "outer"]
    assert put[1].dropped_attributes == 1
    assert dict(put[1].attributes or {}) == {"b": 2, c.KEPT_BY: "error"}


# Real apps -----------------------------------------------------------------------------------------------------------


def app() -> FastAPI:
    made = FastAPI()

    async def tidy(fail: bool) -> None:
        with measure("tidy"):
            await asyncio.sleep(0)

    @made.get("/ask/{number}")
    async def answer(number: int, background: BackgroundTasks, fail: bool = False) -> dict[str, str]:
        background.add_task(tidy, fail)
        async with measure("outer"):
            await asyncio.gather(*(step(number) for _ in range(3)))
        if fail:
            raise RuntimeError("no")
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return carrier

    async def step(number: int) -> None:
        with measure("step"):
            await asyncio.sleep(0.001 * (number % 3))

    @made.get("/slow")
    def slow() -> None:
        time.sleep(0.02)

    return made


TIDY = f"{__name__}.app.tidy"


def names(kept: FakeCollector) -> list[str]:
    return sorted(each.name for each in kept.spans)


def test_a_failed_request_leaves_whole():
    """Of requests that nobody sampled the failed ones leave with all of their spans, and say why."""
    with FakeCollector() as kept:
        otel_perf.configure(service_name="t", endpoint=kept.url, sampler="always_off", keep_errors=True)
        with instrument(made := app()):
            answers = ask_all(made, ("GET", "/ask/1"), ("GET", "/ask/2?fail=true"), ("GET", "/ask/3"))
        assert otel_perf.flush()
        assert [each.status_code for each in answers] == [200, 500, 200]
        assert names(kept) == ["GET /ask/{number}", "outer", "step", "step", "step"]
        root = next(each for each in kept.spans if not each.parent_id)
        assert root.attributes[c.KEPT_BY] == "error"
        assert root.attributes["url.path"] == "/ask/2"
        assert len({each.trace_id for each in kept.spans}) == 1
        # Nobody downstream is told that it is sampled: nobody knows yet.
        assert not int(answers[0].json()["traceparent"].rpartition("-")[2], 16) & 1
        kept_by = kept.metric("otel_perf.late.kept").points
        assert [(attributes(each), each.as_int) for each in kept_by] == [({c.KEPT_BY: "error"}, 1)]


def test_requests_at_once_are_kept_apart():
    """Of many requests on one event loop those that failed leave, each with its own spans and no other's."""
    with FakeCollector() as kept:
        otel_perf.configure(service_name="t", endpoint=kept.url, sample_rules="/ask/*=0", keep_errors=True)
        with instrument(made := app()):

            async def run() -> None:
                transport = httpx.ASGITransport(made, raise_app_exceptions=False)
                async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                    paths = [f"/ask/{n}?fail={'true' if n % 4 == 0 else 'false'}" for n in range(24)]
                    await asyncio.gather(*(client.get(path) for path in paths))

            asyncio.run(run())
        assert otel_perf.flush()
        # What runs in the background is a trace of its own, for which the sampler decides anew.
        asked = [each for each in kept.spans if "tidy" not in each.name]
        assert sorted(each.name for each in asked) == sorted(6 * ["GET /ask/{number}", "outer", "step", "step", "step"])
        by_trace: dict[str, set[str]] = {}
        for each in asked:
            by_trace.setdefault(each.trace_id, set()).add(each.span_id)
        assert [len(each) for each in by_trace.values()] == [5] * 6
        assert all(not e.parent_id or e.parent_id in by_trace[e.trace_id] for e in asked)


def test_a_slow_request_and_a_route_leave():
    """Duration and route keep a request as well, of an unsampled caller too; a job's name is its route."""
    with FakeCollector() as kept:
        otel_perf.configure(
            service_name="t", endpoint=kept.url, sampler="always_off", keep_slower_than_s=0.02,
            keep_routes=["/ask/*", "night*"],
        )  # fmt: skip
        with instrument(made := app()):
            ask(made, "/slow", headers={"traceparent": f"00-{7:032x}-{8:016x}-00"})
            ask(made, "/ask/0")
            ask(made, "/nowhere")
            with measure.job("nightly"), measure("part"):
                pass
            with measure.job("daily"):
                pass
        assert otel_perf.flush()
        roots = {each.name: each.attributes.get(c.KEPT_BY) for each in kept.spans}
        assert roots.pop("GET /slow") == "slow"
        assert roots.pop("GET /ask/{number}") == "route"
        assert [why for name, why in roots.items() if "night" in name] == ["route"]
        assert "part" in roots
        assert "tidy" not in roots  # it ran in the background, in a trace of its own that nobody wanted
        assert not [name for name in roots if "daily" in name or name == "GET"]


def test_what_is_sampled_is_not_touched():
    """With rules for late, what the head sampled leaves as ever, in whatever way it ends, without a reason on it."""
    with FakeCollector() as kept:
        otel_perf.configure(service_name="t", endpoint=kept.url, keep_errors=True)
        with instrument(made := app()):
            ask_all(made, ("GET", "/ask/1"), ("GET", "/ask/2?fail=true"))
        assert otel_perf.flush()
        assert names(kept) == sorted(2 * ["GET /ask/{number}", "outer", "step", "step", "step"] + [TIDY, "tidy"])
        assert not [each for each in kept.spans if c.KEPT_BY in each.attributes]
        in_force = runtime.current
        assert in_force is not None
        assert in_force.late is not None
        assert in_force.late.held == 0


def test_late_rules_cost_a_sampled_request_nothing():
    """A request that the head sampled takes no more than two calls with late rules that it does not take without."""
    found = []
    with FakeCollector() as kept:
        for more in ({}, {"keep_errors": True}):
            otel_perf.configure(service_name="t", endpoint=kept.url, **more)
            with instrument(made := app()):
                found.append(asyncio.run(count_async(partial(request, made, Kind(PLAIN)), 50)).usual)
            otel_perf.shutdown()
    assert found[1] - found[0] <= 2


def test_what_is_given_up_is_counted_as_dropped():
    """Spans that had to be given up undecided are on `otel_perf.dropped`, with their reason."""
    with FakeCollector() as kept:
        otel_perf.configure(service_name="t", endpoint=kept.url, sampler="always_off", keep_errors=True)
        in_force = runtime.current
        assert in_force is not None
        assert in_force.late is not None
        in_force.late._bounds = Bounds(spans_per_trace=2)
        with measure("outer"):
            for _ in range(5):
                with measure("inner"):
                    pass
            assert in_force.late.held == 2
        otel_perf.flush()
        assert not kept.spans
        points = kept.metric("otel_perf.dropped").points
        assert ("late_trace_full", 3) in [(attributes(each)["reason"], each.as_int) for each in points]


def test_a_forked_child_starts_with_nothing_held():
    """What a fork makes anew in the child holds for late rules as well."""
    with FakeCollector() as kept:
        otel_perf.configure(service_name="t", endpoint=kept.url, sampler="always_off", keep_errors=True)
        in_force = runtime.current
        assert in_force is not None
        assert in_force.late is not None
        with measure("outer"):
            with measure("inner"):
                pass
            assert in_force.late.held == 1
            api._after_fork(in_force)
            assert in_force.late.held == 0


def test_without_an_endpoint_nothing_is_recorded_for_late_rules():
    """Where nothing is sent, late rules cost nothing: what is not sampled is not recorded."""
    otel_perf.configure(service_name="t", sampler="always_off", keep_errors=True)
    in_force = runtime.current
    assert in_force is not None
    assert in_force.late is None
    with measure("work") as work:
        assert work.span is None or not work.span.is_recording()
