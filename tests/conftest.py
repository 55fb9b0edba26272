"""What every test gets: a strict guard, nothing left current, and captured telemetry on request."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace

import otel_perf
from otel_perf import guard
from otel_perf.telemetry import operation
from otel_perf.testing import Captured

pytest_plugins = ["tests.servers"]


def pytest_configure() -> None:
    """Signals that whoever started us ignores (nohup, a background job) are ignored by what we start, unless undone."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No span, operation or thread of ours survives a test, and no fault of ours is swallowed in one."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_PERF_STRICT", "true")
    monkeypatch.setattr(guard, "strict", True)
    monkeypatch.setattr(guard, "errors", 0)
    before = set(threading.enumerate())  # those of fixtures that serve a whole module
    yield
    otel_perf.shutdown()
    assert operation.current() is None, "an operation was left current"
    assert trace.get_current_span(otel_context.get_current()) is trace.INVALID_SPAN, "a span was left current"
    left = _threads(before)
    assert not left, f"threads were left running: {left}"


def _threads(before: set[threading.Thread]) -> list[str]:
    left: list[str] = []
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = [t.name for t in threading.enumerate() if t.name.startswith("otel_perf") and t not in before]
        if not left:
            break
        time.sleep(0.01)
    return left


class Telemetry(Captured):
    """What `otel_perf.testing.capture` gives, and a way to configure anew."""

    def restart(self, **settings: Any) -> None:
        """Configures anew, with other settings."""
        self._start(**settings)


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    yield Telemetry()
    otel_perf.shutdown()
