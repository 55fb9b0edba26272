"""Head sampling: the standard samplers, rules by method and path, and what leaves of real apps under them."""

from __future__ import annotations

import fnmatch
import random
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.span import TraceState

import otel_perf
from otel_perf import api, instrument, measure
from otel_perf.settings import Settings, SettingsError
from otel_perf.telemetry import runtime, sampling
from otel_perf.telemetry.sampling import Rules
from otel_perf.testing import FakeCollector
from tests.asking import ask, ask_all

WHOLE = 1 << 64


def app() -> FastAPI:
    made = FastAPI()

    @made.api_route("/{path:path}", methods=["GET", "POST"])
    def answer(path: str) -> dict[str, Any]:
        with measure("inner"):
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            return carrier

    return made


def sampled(response: Any) -> bool:
    return bool(int(response.json()["traceparent"].rpartition("-")[2], 16) & 1)


def within(parent: SpanContext) -> otel_context.Context:
    return trace.set_span_in_context(NonRecordingSpan(parent), otel_context.Context())


def request(made: Any, context: otel_context.Context | None = None, trace_id: int = 1, **attributes: str) -> Any:
    known = {"http.request.method": "GET", "url.path": "/health", **attributes}
    context = otel_context.Context() if context is None else context
    return made.should_sample(context, trace_id, "GET", SpanKind.SERVER, known)


# What a rule fits ----------------------------------------------------------------------------------------------------


def test_the_first_rule_that_fits_counts():
    """Method and path decide, in the order of the rules; without a method or with `*` any method fits."""
    rules = Rules(["GET /health*=0", "POST /pay*=1", "* /search*=0.25", "/any=0.5", "get  /lower = 1", "*/end=0"])
    assert rules.bound("GET", "/health") == rules.bound("GET", "/healthz/deep") == 0
    assert rules.bound("HEAD", "/health") is None
    assert rules.bound("POST", "/pay/now") == WHOLE
    assert rules.bound("GET", "/pay/now") is None
    assert rules.bound("_OTHER", "/search?") == WHOLE // 4
    assert rules.bound("DELETE", "/any") == WHOLE // 2
    assert rules.bound("DELETE", "/any/") is None
    assert rules.bound("GET", "/lower") == WHOLE
    assert rules.bound("PUT", "/a/b/end") == 0
    assert rules.bound("PUT", "/a\n/end") == 0
    assert Rules(["/x=y=1", "/x*=0"]).bound("GET", "/x=y") == WHOLE


_PATHS = st.text("/ab*", max_size=8).map("/".__add__)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["*", "GET", "POST"]), _PATHS), min_size=1, max_size=5), _PATHS)
def test_rules_fit_as_a_simple_model_says(patterns, path):
    """Whatever the rules, the compiled expression finds the first one that a plain matcher finds."""
    rules = Rules([f"{method} {pattern}={number / 8}" for number, (method, pattern) in enumerate(patterns)])
    expected = next(
        (
            number * WHOLE // 8
            for number, (method, pattern) in enumerate(patterns)
            if method in {"*", "GET"} and fnmatch.fnmatchcase(path, pattern)
        ),
        None,
    )
    assert rules.bound("GET", path) == expected


def test_a_hostile_path_takes_no_time():
    """Many stars and a long path that almost fits do not make the expression try every way to split it."""
    rules = Rules([f"/{'*a' * 20}=1"])
    assert rules.bound("GET", "/" + "a" * 19 + "b" * 5000) is None
    assert rules.bound("GET", "/" + "ab" * 3000) is None
    assert rules.bound("GET", "/" + "ba" * 3000) == WHOLE


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("GET /health", "it is not METHOD PATH=SHARE"),
        ("health=0", "it is not METHOD PATH=SHARE"),
        ("GET /a=0.5 x", "it is not METHOD PATH=SHARE"),
        ("GTE /health=0", "GTE is no method"),
        ("/health=often", "often is no share from 0 to 1"),
        ("/health=1.5", "1.5 is no share from 0 to 1"),
        ("/health=nan", "nan is no share from 0 to 1"),
        ("/health=-1", "-1 is no share from 0 to 1"),
    ],
)
def test_a_bad_rule_is_refused_at_the_start(rule, why):
    """`configure` names the rule, what is wrong with it and how one is written, and leaves what was in force."""
    otel_perf.configure(service_name="before")
    before = runtime.current
    with pytest.raises(SettingsError) as refused:
        otel_perf.configure(sample_rules=["/good=1", rule])
    assert repr(rule) in str(refused.value)
    assert why in str(refused.value)
    assert "Write it as `GET /health*=0`" in str(refused.value)
    assert runtime.current is before


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]))
def test_a_share_is_that_share_of_the_traces(seed, share):
    """Of 2,000 trace ids a rule samples its share within six deviations, and the very ones of `TraceIdRatioBased`."""
    bound = Rules([f"/x={share}"]).bound("GET", "/x")
    assert bound is not None
    stock = TraceIdRatioBased(share)
    ids = [random.Random(seed + n).getrandbits(128) for n in range(2000)]
    chosen = [each for each in ids if each % WHOLE < bound]
    assert chosen == [each for each in ids if stock.should_sample(None, each, "n").decision.is_sampled()]
    assert abs(len(chosen) - 2000 * share) <= 6 * (2000 * share * (1 - share)) ** 0.5


# Who is asked --------------------------------------------------------------------------------------------------------


def test_without_rules_the_sampler_is_the_sdks_own():
    """The cheap path knows the SDK's samplers: nothing of ours stands in front of them."""
    assert type(sampling.sampler(Settings())) is ParentBased
    assert type(sampling.sampler(Settings(sampler="traceidratio"))) is TraceIdRatioBased


def test_rules_are_for_requests_that_start_a_trace():
    """A remote parent's decision stands, a local one's too; other kinds of spans go to the sampler."""
    made = sampling.sampler(Settings(sample_rules=("/health=0", "/pay=1"), sampler="parentbased_always_on"))
    assert request(made).decision is Decision.DROP
    assert request(made, **{"url.path": "/other"}).decision is Decision.RECORD_AND_SAMPLE
    state = TraceState([("a", "b")])
    for remote in (True, False):
        yes = within(SpanContext(1, 2, remote, TraceFlags(1), state))
        no = within(SpanContext(1, 2, remote, TraceFlags(0), state))
        result = request(made, yes)
        assert (result.decision, result.trace_state) == (Decision.RECORD_AND_SAMPLE, state)
        assert result.attributes["url.path"] == "/health"
        result = request(made, no, **{"url.path": "/pay"})
        assert (result.decision, result.trace_state) == (Decision.DROP, state)
        assert not result.attributes
    plain = made.should_sample(otel_context.Context(), 1, "GET", SpanKind.CLIENT, {"url.path": "/health"})
    assert plain.decision is Decision.RECORD_AND_SAMPLE
    assert made.should_sample(otel_context.Context(), 1, "n").decision is Decision.RECORD_AND_SAMPLE


def test_a_sampler_that_looks_at_no_parent_leaves_each_request_to_the_rules():
    """Under `always_on` a rule counts for requests with a remote parent as well; spans inside follow their request."""
    made = sampling.sampler(Settings(sample_rules=("/health=0",), sampler="always_on"))
    remote = within(SpanContext(1, 2, True, TraceFlags(1)))
    assert request(made, remote).decision is Decision.DROP
    assert request(made, remote, **{"url.path": "/x"}).decision is Decision.RECORD_AND_SAMPLE
    local = within(SpanContext(1, 2, False, TraceFlags(0)))
    assert made.should_sample(local, 1, "inner").decision is Decision.DROP


def test_older_conventions_are_understood():
    """An instrumentation that says `http.method` and `http.target` falls under the rules as well."""
    made = sampling.sampler(Settings(sample_rules=("GET /health=0",)))
    given_then = {"http.method": "GET", "http.target": "/health?deep=1"}
    context = otel_context.Context()
    assert made.should_sample(context, 1, "GET", SpanKind.SERVER, given_then).decision is Decision.DROP
    given_then["http.method"] = "POST"
    assert made.should_sample(context, 1, "GET", SpanKind.SERVER, given_then).decision is Decision.RECORD_AND_SAMPLE


def test_what_is_recorded_for_late_rules_keeps_its_attributes():
    """With `record`, a dropped span is recorded and stays unsampled; a sampled one is left as it is."""
    made = sampling.sampler(Settings(sample_rules=("/health=0",)), record=True)
    result = request(made)
    assert result.decision is Decision.RECORD_ONLY
    assert result.attributes["url.path"] == "/health"
    assert request(made, **{"url.path": "/x"}).decision is Decision.RECORD_AND_SAMPLE


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["always_on", "always_off", "traceidratio"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, (1 << 128) - 1),
    st.none()
    | st.builds(SpanContext, st.integers(0, 2), st.integers(0, 2), st.booleans(), st.integers(0, 3).map(TraceFlags)),
)
def test_where_no_rule_fits_it_samples_as_the_sdk(name, parent_based, record, trace_id, parent):
    """With any standard sampler, parent and trace id, a span that no rule knows is sampled as the SDK's own would."""
    chosen = f"{'parentbased_' * parent_based}{name}"
    context = otel_context.Context() if parent is None else within(parent)
    stock = sampling.sampler(Settings(sampler=chosen, sample_ratio=0.5))
    late = sampling.sampler(Settings(sampler=chosen, sample_ratio=0.5), record=True)
    ruled = sampling.sampler(Settings(sampler=chosen, sample_ratio=0.5, sample_rules=("/other=1",)), record=record)
    expected = request(stock, context, trace_id)
    for made in [late] if parent is not None and parent.is_valid and not parent.is_remote else [late, ruled]:
        result = request(made, context, trace_id)
        assert result.decision.is_sampled() == expected.decision.is_sampled()
        assert result.trace_state == expected.trace_state
        if result.decision.is_recording():
            assert result.attributes["url.path"] == "/health"


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("rules", [(), ("/x=0.5",)])
@pytest.mark.parametrize("name", ["always_on", "always_off", "traceidratio"])
def test_spans_are_what_the_sampler_says(monkeypatch, name, rules, record):
    """Our tracers, which decide most by themselves, do so as the sampler would, under every parent."""
    otel_perf.configure(service_name="t")
    in_force = runtime.current
    assert in_force is not None
    tracer = in_force.tracer_provider.get_tracer("t")
    known = {"http.request.method": "GET", "url.path": "/x"}
    parents = [SpanContext(7 << 60, 8, remote, TraceFlags(flag)) for remote in (True, False) for flag in (0, 1)]
    for chosen in (name, f"parentbased_{name}"):
        made = sampling.sampler(Settings(sampler=chosen, sample_ratio=0.5, sample_rules=rules), record=record)
        monkeypatch.setattr(api._sampler, "target", made)
        for context in [otel_context.Context()] * 8 + [within(parent) for parent in parents]:
            span = tracer.start_span("GET", context, SpanKind.SERVER, known)
            expected = made.should_sample(context, span.get_span_context().trace_id, "GET", SpanKind.SERVER, known)
            assert span.is_recording() == expected.decision.is_recording()
            assert span.get_span_context().trace_flags.sampled == expected.decision.is_sampled()
            span.end()


def test_samplers_say_what_they_are():
    """The description names what decides, for whoever debugs it."""
    made = sampling.sampler(Settings(sample_rules=("/health=0",), sampler="always_off"), record=True)
    assert made.get_description() == "Ruled{1 rules,otherwise:AlwaysOffSampler,recorded}"
    made = sampling.sampler(Settings(sample_rules=("/health=0",), sampler="parentbased_traceidratio"))
    assert made.get_description() == "Ruled{1 rules,otherwise:TraceIdRatioBased{1.0},parentBased}"


# Real apps -----------------------------------------------------------------------------------------------------------


def test_rules_decide_what_leaves_of_an_app():
    """Of an app's requests those leave whose rule says so, whole, and nobody downstream is told otherwise."""
    with FakeCollector() as kept:
        rules = "GET /health*=0, POST /pay*=1, * /search*=0"
        otel_perf.configure(service_name="t", endpoint=kept.url, sample_rules=rules, excluded_routes=["/none"])
        with instrument(made := app()):
            asked = [("GET", "/healthz"), ("POST", "/healthz"), ("POST", "/pay/1"), ("GET", "/search"), ("GET", "/x")]
            answers = ask_all(made, *asked)
        assert otel_perf.flush()
        assert [sampled(each) for each in answers] == [False, True, True, False, True]
        paths = [span.attributes["url.path"] for span in kept.spans if "url.path" in span.attributes]
        assert sorted(paths) == ["/healthz", "/pay/1", "/x"]
        assert len(kept.spans) == 6
        points = kept.metric("http.server.request.duration").points
        assert sum(point.count for point in points) == 5


def test_a_share_decides_by_trace_id():
    """Exactly those requests leave whose trace id is below the bound of their rule."""
    with FakeCollector() as kept:
        otel_perf.configure(service_name="t", endpoint=kept.url, sample_rules="/search*=0.5", sampler="always_off")
        with instrument(made := app()):
            answers = ask_all(made, *[("GET", "/search")] * 40)
        assert otel_perf.flush()
    ids = [each.json()["traceparent"].split("-")[1] for each in answers]
    expected = {each for each in ids if int(each, 16) % WHOLE < WHOLE // 2}
    assert {span.trace_id for span in kept.spans} == expected
    assert len(kept.spans) == 2 * len(expected)


@pytest.mark.parametrize(("flag", "left"), [("01", 2), ("00", 0)])
def test_a_callers_decision_stands(flag, left):
    """A request of a sampled trace is sampled though its rule says 0, of an unsampled one not though it says 1."""
    share = 0 if flag == "01" else 1
    with FakeCollector() as kept:
        otel_perf.configure(service_name="t", endpoint=kept.url, sample_rules=f"/x={share}")
        with instrument(made := app()):
            headers = {"traceparent": f"00-{7:032x}-{8:016x}-{flag}"}
            answer = ask(made, "/x", headers=headers)
        otel_perf.flush()
        assert sampled(answer) is (flag == "01")
        assert len(kept.spans) == left


@pytest.mark.parametrize("engine", ["native", "upstream"])
def test_rules_hold_for_other_engines(engine):
    """Where FastAPI itself or its upstream instrumentation makes the span, the same rules decide."""
    otel_perf.configure(service_name="t", sample_rules="GET /x*=0")
    made = app()
    with instrument(made, engine=engine):
        answers = ask_all(made, ("GET", "/x?y=1"), ("POST", "/x"), ("GET", "/z"))
    assert [sampled(each) for each in answers] == [False, True, True]


def test_rules_follow_each_configuration():
    """An app that was instrumented before is under the rules of the newest `configure`."""
    otel_perf.configure(service_name="t", sample_rules="/x=0")
    with instrument(made := app()):
        assert not sampled(ask(made, "/x"))
        otel_perf.configure(service_name="t", sample_rules="/x=1", sampler="always_off")
        assert sampled(ask(made, "/x"))
        assert not sampled(ask(made, "/y"))


def test_a_joined_provider_keeps_its_own_sampler(caplog):
    """Where the application's provider is joined, rules do nothing, which is said."""
    theirs = TracerProvider()
    for asked in (Settings(sample_rules=("/x=0",)), Settings(keep_errors=True)):
        caplog.clear()
        api._tracer_provider(asked, theirs.resource, theirs)
        assert "sample_rules and keep_* do nothing there" in caplog.text
    caplog.clear()
    api._tracer_provider(Settings(), theirs.resource, theirs)
    assert "sample_rules" not in caplog.text
    theirs.shutdown()
