"""Faults injected at every seam: the application's results and exceptions stay what they are without us."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import Sampler

import otel_perf
from otel_perf import catalogue, conventions, guard, measure
from otel_perf import conventions as c
from otel_perf.telemetry import operation, runtime, transport
from otel_perf.telemetry.delivery import Answer

CALLS = 1000


class FaultError(Exception):
    """What is injected; it must not be seen."""


class Hostile:
    """A value that fails at whatever is asked of it."""

    def _fail(self, *_: object) -> Any:
        raise FaultError

    __bool__ = __eq__ = __ge__ = __hash__ = __iter__ = __len__ = __lt__ = __repr__ = __str__ = _fail


class FailingText(str):
    """Text whose own methods fail."""

    __slots__ = ()

    def __len__(self) -> int:
        raise FaultError

    def isprintable(self) -> bool:
        raise FaultError


class FailingSampler(Sampler):
    def should_sample(self, *_: Any, **__: Any) -> Any:
        raise FaultError

    def get_description(self) -> str:
        return "failing"


class FailingProcessor(SpanProcessor):
    def __init__(self, where: str) -> None:
        self._where = where

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self._where == "start":
            raise FaultError

    def on_end(self, span: Any) -> None:
        if self._where == "end":
            raise FaultError


class FailingWay:
    """A way for spans that fails where it is told to."""

    def __init__(self, where: str) -> None:
        self._where = where

    def encode(self, spans: Sequence[ReadableSpan]) -> tuple[Any, int]:
        if self._where == "encode":
            raise FaultError
        return spans, 1

    def join(self, parts: Sequence[Any]) -> tuple[Any, int]:
        return parts, len(parts)

    def send(self, encoded: Any) -> Answer:
        assert self._where == "send"
        raise FaultError

    def stop(self, deadline: float) -> None:
        """Nothing is under way."""

    abort = close = lambda self: None


class TheirsError(Exception):
    """The application's own exception."""


class HostileError(TheirsError):
    """The application's own exception, whose text cannot be had."""

    def __str__(self) -> str:
        raise FaultError

    __repr__ = __str__


@pytest.fixture(autouse=True)
def _lenient(telemetry, monkeypatch) -> None:
    # After `configure`, which reads OTEL_PERF_STRICT.
    monkeypatch.setattr(guard, "strict", False)
    monkeypatch.setattr(guard, "_last_logged", {})
    monkeypatch.setattr(conventions, "_declared", dict(conventions._declared))
    monkeypatch.setattr(catalogue, "_observed", [])


# The uses: each answers what it was given, or raises what it was given. -----------------------------------------------


def _raise_or_answer(index: int, error: type[TheirsError] | None) -> int:
    if error is not None:
        raise error(index)
    return index


def by_function(index: int, error: type[TheirsError] | None, labels: dict[str, Any]) -> int:
    return measure("work", **labels)(_raise_or_answer)(index, error)


def by_block(index: int, error: type[TheirsError] | None, labels: dict[str, Any]) -> int:
    with measure("work", **labels):
        return _raise_or_answer(index, error)


def by_generator(index: int, error: type[TheirsError] | None, labels: dict[str, Any]) -> int:
    @measure("work", **labels)
    def source() -> Iterator[int]:
        yield 0
        yield _raise_or_answer(index, error)

    return list(source())[-1]


async def _answer_later(index: int, error: type[TheirsError] | None) -> int:
    return _raise_or_answer(index, error)


def by_coroutine(index: int, error: type[TheirsError] | None, labels: dict[str, Any]) -> int:
    running = measure("work", **labels)(_answer_later)(index, error)
    try:  # no event loop: it waits for nothing
        running.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError


def by_client(index: int, error: type[TheirsError] | None, labels: dict[str, Any]) -> int:
    class Store:
        find = staticmethod(_raise_or_answer)

    hostile = labels.get("category", "zerodb")
    return measure.client(Store(), system=hostile, methods={"find": "search"}).find(index, error)


USES = [by_function, by_block, by_generator, by_coroutine, by_client]


def drive(labels: Callable[[], dict[str, Any]]) -> None:
    """A thousand calls: three of four succeed, the others raise one of two exceptions."""
    for index in range(CALLS):
        use = USES[index % len(USES)]
        error = {3: TheirsError, 7: HostileError}.get(index % 8)
        if error is None:
            assert use(index, None, labels()) == index
        else:
            with pytest.raises(TheirsError) as caught:
                use(index, error, labels())
            assert type(caught.value) is error
            assert caught.value.args == (index,)
            assert not isinstance(caught.value.__context__, FaultError)
        assert not isinstance(operation.current(), operation.Operation)
        assert trace.get_current_span() is trace.INVALID_SPAN


def logged(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "otel_perf"]


def assert_quiet(caplog) -> None:
    """At most one line for each place: the whole test takes less than the minute."""
    lines = logged(caplog)
    assert lines
    assert len(lines) == len(set(lines)) == len(guard._last_logged)


def break_sampler(monkeypatch) -> None:
    assert runtime.current is not None
    monkeypatch.setattr(runtime.current.tracer, "sampler", FailingSampler())


def break_start(monkeypatch) -> None:
    runtime.current.tracer_provider.add_span_processor(FailingProcessor("start"))


def break_end(monkeypatch) -> None:
    runtime.current.tracer_provider.add_span_processor(FailingProcessor("end"))


def break_redaction(monkeypatch) -> None:
    def fail(*_: object) -> Any:
        raise FaultError

    monkeypatch.setattr(operation.redaction, "redact", fail)


def break_series(monkeypatch) -> None:
    def fail(*_: object) -> Any:
        raise FaultError

    monkeypatch.setattr(runtime.Runtime, "at", fail)


@pytest.mark.parametrize("breakage", [break_sampler, break_start, break_end, break_redaction, break_series])
def test_a_seam_that_fails(telemetry, monkeypatch, caplog, breakage):
    """Every call has its fault; results and exceptions are the application's own, and each fault is counted."""
    breakage(monkeypatch)
    drive(lambda: {"category": "x"})
    assert guard.errors >= CALLS
    assert_quiet(caplog)


@pytest.mark.parametrize("value", [Hostile(), FailingText("x")], ids=["object", "text"])
def test_a_label_that_fails(caplog, value):
    """A label that cannot be hashed, compared or shown costs its own measurement only."""
    drive(lambda: {"category": value})
    assert guard.errors >= CALLS
    assert_quiet(caplog)


@pytest.mark.parametrize("value", [Hostile(), [Hostile()], FailingText("x")], ids=["object", "list", "text"])
def test_an_attribute_that_fails(telemetry, value):
    """An attribute that cannot be shown is no reason to lose the duration."""
    for _ in range(CALLS):
        with measure("work", attributes={"a": value}) as op:
            op.set("b", value)
        assert op.seconds is not None
    assert sum(point.count for point in telemetry.points(c.STEP_DURATION.name)) == CALLS


def test_what_the_block_leaves_on_the_operation(caplog):
    """Wrong items, hits, labels and failures are kept from the block's caller."""
    for index in range(CALLS):
        with measure.cache("get") as op:
            op.hit = Hostile()
            op.fail(Hostile())
        with measure("work") as op:
            op.items = Hostile()
            op.label("no such label", index)
        with measure.job("nightly") as op:
            op.labels.clear()
    assert guard.errors >= 4 * CALLS
    assert_quiet(caplog)


def test_recording_what_cannot_be_recorded(caplog):
    """The catalogue and `record` raise nothing into the application, whatever they are given."""
    counter = catalogue.counter("fault.counter", attributes=("a",))
    gauge = catalogue.gauge("fault.gauge", attributes=("a",))
    histogram = catalogue.histogram("fault.histogram", attributes=("a",))
    for _ in range(CALLS):
        counter.add(1, a=Hostile())
        gauge.set(Hostile())
        histogram.record(1, b=1)
        measure.record("work", seconds=Hostile())
    assert guard.errors == 4 * CALLS
    assert_quiet(caplog)


def test_a_callback_that_fails(telemetry, caplog):
    """An observer of the application's that raises costs its own metric at each collect."""

    def observe() -> float:
        raise FaultError

    catalogue.gauge("fault.observed", observe=observe)
    with measure("work"):
        pass
    for _ in range(50):
        assert telemetry.points(c.STEP_DURATION.name)
    assert guard.errors == 50
    assert_quiet(caplog)


@pytest.mark.parametrize(("where", "reason"), [("encode", "encoding"), ("send", "export_failed")])
def test_an_exporter_that_fails(telemetry, monkeypatch, caplog, where, reason):
    """What it raises stays in our thread; the spans are counted as lost, and flush says so."""
    monkeypatch.setattr(transport, "span_way", lambda *_: lambda: FailingWay(where))
    telemetry.restart(endpoint="http://127.0.0.1:9", metrics_exporter="none", span_interval_s=60)
    monkeypatch.setattr(guard, "strict", False)
    drive(lambda: {"category": "x"})
    otel_perf.flush()  # of what was lost before it was asked it says nothing
    with measure("work"):
        pass
    assert otel_perf.flush() is False
    in_force = runtime.current
    assert in_force is not None
    tally = in_force.sender.tally()
    assert (tally.made, tally.delivered, tally.lost, tally.queued) == (CALLS + 1, 0, CALLS + 1, 0)
    assert in_force.sender.lost == {reason: CALLS + 1}
    assert guard.errors >= 1
    assert_quiet(caplog)
    otel_perf.shutdown()


def test_a_cancelled_task_under_faults(monkeypatch):
    """Cancellation is no exception of ours to keep."""
    break_series(monkeypatch)

    @measure("work")
    async def work() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert guard.errors == 1
