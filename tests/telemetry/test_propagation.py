"""Trace context of callers: what our own reader makes of headers is what OpenTelemetry's propagators make of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_perf.telemetry import propagation, sdk

USUAL = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def hexadecimal(length: int) -> st.SearchStrategy[str]:
    return st.one_of(
        st.text("0123456789abcdef", min_size=length, max_size=length), st.just("0" * length), st.just("f" * length),
        st.text("0123456789abcdefABCDEFg-", max_size=length + 1),
    )  # fmt: skip


spaces = st.text(" \t", max_size=2)
traceparents = st.builds(
    lambda before, version, trace_id, span_id, flags, rest, after: (
        f"{before}{version}-{trace_id}-{span_id}-{flags}{rest}{after}"
    ),
    spaces, hexadecimal(2), hexadecimal(32), hexadecimal(16), hexadecimal(2),
    st.sampled_from(["", "-", "-what"]), spaces,
)  # fmt: skip
members = st.builds(
    lambda a, key, b, c, value, rest, d: f"{a}{key}{b}={c}{value}{rest}{d}",
    spaces, st.text('abz09_-*@/%+"é', max_size=6), spaces, spaces, st.text('abz09%2 +;,=\\"é', max_size=10),
    st.sampled_from(["", ";p", ";p=1", " ; p = 1 ;q", ";", ";=1"]), spaces,
)  # fmt: skip
lists = st.lists(st.one_of(members, st.just("")), max_size=5).map(",".join)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(traceparents, st.text(max_size=60), st.just(TRACEPARENT)),
    st.one_of(st.none(), lists),
    st.one_of(st.none(), lists),
)
def test_headers_read_as_upstream_reads_them(traceparent, tracestate, entries):
    """Any headers give the same parent, flags, trace state and baggage as OpenTelemetry's own propagators."""
    given_headers = {"traceparent": traceparent, "tracestate": tracestate, "baggage": entries}
    carrier = {name: value for name, value in given_headers.items() if value is not None}
    theirs = USUAL.extract(carrier, Context())
    parent, ours = propagation.Extractor()(carrier, Context())
    expected = trace.get_current_span(theirs).get_span_context()
    assert (parent or trace.INVALID_SPAN_CONTEXT) == expected
    assert trace.get_current_span(ours).get_span_context() == expected
    if parent is not None:
        assert (parent.is_remote, parent.trace_flags, dict(parent.trace_state)) == (
            True, expected.trace_flags, dict(expected.trace_state)
        )  # fmt: skip
    assert dict(baggage.get_all(ours)) == dict(baggage.get_all(theirs))


def test_what_is_in_the_context_already_stays():
    """Other values of the context go on, and baggage of before is joined by the caller's."""
    around = baggage.set_baggage("mine", "1", Context({"other": 2}))
    _, context = propagation.Extractor()({"traceparent": TRACEPARENT, "baggage": "theirs=3"}, around)
    assert context["other"] == 2
    assert dict(baggage.get_all(context)) == {"mine": "1", "theirs": "3"}


@pytest.mark.parametrize("header", ["a=" + " \t" * 4000 + "x", "a=b" + ";p" * 2000 + " " * 2000, "=" * 8000])
def test_hostile_baggage_is_read_in_one_pass(header):
    """Runs that regular expressions stumble over are read or refused at once: the count of steps is linear."""
    assert len(propagation.members(header)) <= 1


def test_too_much_is_refused():
    """Headers beyond the limits of the standards are not believed, and a batch of entries is cut at 180."""
    assert propagation.parent(TRACEPARENT + "-" + "x" * 600, None) is None
    assert propagation.members("a=" + "b" * 8192) == {}
    assert len(propagation.members(",".join(f"k{n}=v" for n in range(300)))) == 180
    long_state = ",".join(f"k{n}={'v' * 200}" for n in range(41))
    parent = propagation.parent(TRACEPARENT, long_state)
    assert parent is not None
    assert not parent.trace_state


def test_the_usual_pair_is_read_by_our_own_code():
    """The default propagators are replaced by ours, any other is asked, subclasses of the usual ones included."""

    class Own(TraceContextTextMapPropagator):
        pass

    assert isinstance(propagation.extractor(USUAL), propagation.Extractor)
    assert isinstance(propagation.extractor(propagate.get_global_textmap()), propagation.Extractor)
    for other in (Own(), CompositePropagator([Own(), W3CBaggagePropagator()]), CompositePropagator([])):
        assert not isinstance(propagation.extractor(other), propagation.Extractor)


def test_other_propagators_are_asked():
    """What the application's own propagator finds is the parent; where it finds nothing there is none."""
    extract = propagation.extractor(TraceContextTextMapPropagator())
    assert extract.fields == {"traceparent", "tracestate"}
    parent, context = extract({"traceparent": TRACEPARENT}, Context())
    assert parent is not None
    assert trace.get_current_span(context).get_span_context() == parent
    assert extract({"traceparent": "what"}, context)[0] is None


def test_the_keys_are_the_apis_own():
    """A span and baggage put in under our keys are found by the API."""
    span = trace.NonRecordingSpan(trace.SpanContext(1, 2, True))
    context = Context({sdk.SPAN_KEY: span, propagation.BAGGAGE_KEY: {"a": "b"}})
    assert trace.get_current_span(context) is span
    assert baggage.get_baggage("a", context) == "b"


@given(
    st.integers(min_value=0, max_value=2**128 - 1), st.integers(min_value=0, max_value=2**64 - 1),
    st.integers(min_value=0, max_value=255), st.dictionaries(st.sampled_from("abc"), st.just("1"), max_size=3),
    st.dictionaries(st.text("abz%+ \u00e9=,;", max_size=4), st.text("abz%+ \u00e9=,;", max_size=8), max_size=3),
)  # fmt: skip
@settings(max_examples=200)
def test_headers_written_as_upstream_writes_them(trace_id, span_id, flags, state, entries):
    """Trace context and baggage leave as the usual propagators write them."""
    span_context = trace.SpanContext(trace_id, span_id, False, trace.TraceFlags(flags), trace.TraceState(state.items()))
    context = trace.set_span_in_context(trace.NonRecordingSpan(span_context), Context())
    for name, value in entries.items():
        context = baggage.set_baggage(name, value, context)
    written: dict[str, str] = {}
    USUAL.inject(written, context)
    if not span_context.is_valid:  # upstream writes half an id, which nobody reads
        written = {name: value for name, value in written.items() if name == "baggage"}
    assert propagation.injector(USUAL)(context) == written
    assert propagation.injector(USUAL)(Context()) == {}


def test_other_propagators_write_themselves():
    """Where the application has set others, they say what leaves."""

    class Own(TraceContextTextMapPropagator):
        def inject(self, carrier, context=None, setter=None):
            carrier["x-own"] = str(baggage.get_baggage("a", context))

    context = baggage.set_baggage("a", "1", Context())
    assert propagation.injector(Own())(context) == {"x-own": "1"}
