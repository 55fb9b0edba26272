"""What every integration keeps to, whatever its library is; `tests/contract/cases` has a file for each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor

import otel_perf
from otel_perf import guard, instrument, redaction
from otel_perf.integrations import registry
from otel_perf.telemetry import leaf, operation
from tests.conftest import Telemetry
from tests.contract import cases
from tests.contract.cases import AsyncCase, Case

CASES = cases.found()


def _made(kind: type[Case], request: pytest.FixtureRequest) -> Iterator[Any]:
    made = kind(cases.Servers(request))
    yield made
    made.error, made.hangs = None, False
    made.close()


@pytest.fixture(params=CASES, ids=lambda each: each.__name__)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """Each library in turn."""
    yield from _made(request.param, request)


@pytest.fixture(params=[each for each in CASES if issubclass(each, AsyncCase)], ids=lambda each: each.__name__)
def async_case(request: pytest.FixtureRequest) -> Iterator[AsyncCase]:
    """Each async library in turn."""
    yield from _made(request.param, request)


def _count(telemetry: Telemetry, case: Case, **attributes: Any) -> int:
    return sum(point.count for point in telemetry.points(case.metric, **attributes))


def test_every_client_library_has_a_case() -> None:
    """A new integration comes with a case, or with the reason why not."""
    assert {each.name for each in CASES} | set(cases.EXEMPT) == {each.name for each in registry.INTEGRATIONS}


def test_success(telemetry: Telemetry, case: Case) -> None:
    """The result is the very same, one thing is counted once, and one span ended without an error."""
    plain = case.work()
    with instrument(case.target):
        measured = case.work()

    assert type(measured) is type(plain)
    assert measured is plain or measured == plain
    assert _count(telemetry, case) == 1
    (span,) = telemetry.spans
    assert "error.type" not in (span.attributes or {})


def test_an_exception_is_the_very_same(telemetry: Telemetry, case: Case) -> None:
    """What the library raises reaches the user as the same object; span and metric name its type."""
    case.error = LookupError("boom")
    with instrument(case.target), pytest.raises(LookupError) as caught:
        case.work()

    assert caught.value is case.error
    assert _count(telemetry, case, error__type="LookupError") == 1
    assert (telemetry.spans[0].attributes or {})["error.type"] == "LookupError"


class _Begun(SpanProcessor):
    """Tells when a span has begun."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.event.set()


def test_cancelled(telemetry: Telemetry, async_case: AsyncCase) -> None:
    """A task that is cancelled while it waits leaves nothing current, and is counted as cancelled."""
    case = async_case
    case.hangs = True
    left: list[Any] = []
    begun = _Begun()
    telemetry.runtime.tracer_provider.add_span_processor(begun)  # type: ignore[attr-defined]  # the SDK's, and ours

    async def main() -> None:
        async def run() -> None:
            try:
                await case.do()
            finally:
                left.append(operation.current())

        task = asyncio.ensure_future(run())
        await asyncio.wait_for(begun.event.wait(), 10)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with instrument(case.target):
        case.loop.run_until_complete(main())
    assert left == [None]
    assert _count(telemetry, case, error__type="asyncio.exceptions.CancelledError") == 1


def test_twice(telemetry: Telemetry, case: Case) -> None:
    """Instrumented twice, and as a whole where that can be, one thing is still counted once."""
    whole = next(each.whole for each in registry.INTEGRATIONS if each.name == case.name)
    with contextlib.ExitStack() as stack:
        for target in [case.target, case.target, *([case.name] if whole else [])]:
            stack.enter_context(instrument(target))
        case.work()

    assert _count(telemetry, case) == 1
    assert len(telemetry.spans) == 1


def test_undo(telemetry: Telemetry, case: Case) -> None:
    """Undo puts back exactly what was there, in whichever order, and a second undo changes nothing."""
    before = case.state()
    first, second = instrument(case.target), instrument(case.target)
    for handle in (first, second, first, second):
        handle.undo()

    assert all(one is other for one, other in zip(before, case.state(), strict=True))
    case.work()
    assert _count(telemetry, case) == 0


def test_configured_afterwards_and_again(case: Case, telemetry: Telemetry) -> None:
    """Instrumenting comes before `configure()` as well as after; a second `configure()` counts anew."""
    otel_perf.shutdown()
    with instrument(case.target):
        case.work()
        telemetry.restart()
        case.work()
        assert _count(telemetry, case) == 1
        telemetry.restart()
        case.work()
        case.work()
        assert _count(telemetry, case) == 2
        assert len(telemetry.spans) == 2


def test_hostile_input(telemetry: Telemetry, case: Case) -> None:
    """Odd input has the outcome that it has without us, and spans stay bounded and printable."""

    def outcome() -> Any:
        try:
            return type(case.hostile())
        except Exception as error:
            return type(error)

    plain = outcome()
    with instrument(case.target):
        assert outcome() is plain
    for span in telemetry.spans:
        assert span.name.isprintable()
        values = [value for value in (span.attributes or {}).values() if isinstance(value, str)]
        assert all(len(value) <= 2048 and "\x1b" not in value for value in values)


@pytest.mark.parametrize(
    ("where", "what"),
    [(operation, "start"), (operation, "current"), (redaction, "redact"), (operation.Operation, "_record")],
)
def test_our_faults_stay_ours(
    telemetry: Telemetry, case: Case, monkeypatch: pytest.MonkeyPatch, where: Any, what: str
) -> None:
    """A fault of ours is counted and kept from the user, whose results and exceptions stay what they are."""
    plain = case.work()

    def fault(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")

    with instrument(case.target), monkeypatch.context() as patch:
        patch.setattr(guard, "strict", False)
        patch.setattr(where, what, fault)
        if what == "start":  # some kinds of operation start themselves
            patch.setattr(operation, "open_span", fault)
            patch.setattr(leaf, "start", fault)
        measured = case.work()
        case.error = LookupError("boom")
        with pytest.raises(LookupError) as caught:
            case.work()

    assert measured is plain or measured == plain
    assert caught.value is case.error
    assert guard.errors > 0


@pytest.mark.parametrize("each", [each for each in registry.INTEGRATIONS if each.whole], ids=lambda each: each.name)
def test_a_missing_library(
    each: registry.Integration, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A library that is not installed is no exception: a warning names the extra to install."""
    monkeypatch.setattr(registry.Integration, "found", lambda _self: None)
    instrument(each.name).undo()
    assert f"pip install 'otel-perf[{each.name}]'" in caplog.text
