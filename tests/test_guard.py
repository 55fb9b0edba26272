"""The error boundary."""

from __future__ import annotations

import logging

import pytest

from otel_perf import guard


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "strict", False)
    monkeypatch.setattr(guard, "_last_logged", {})


def broken() -> None:
    raise RuntimeError("ours")


def fail(where: str = "a test") -> None:
    try:
        broken()
    except Exception:
        guard.note(where)


def test_a_fault_is_counted_and_logged_once(lenient, caplog):
    """Many faults of one place are one log record with a traceback, and all are counted."""
    for _ in range(5):
        fail()
    fail("another place")
    assert guard.errors == 6
    assert [record.message for record in caplog.records] == [
        "otel_perf: a fault in a test was kept from the application",
        "otel_perf: a fault in another place was kept from the application",
    ]
    assert caplog.records[0].exc_info


def test_a_minute_later_it_is_logged_again(lenient, caplog, monkeypatch):
    """The rate is one record a minute for each place."""
    now = [1.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    fail()
    now[0] = 60.9
    fail()
    now[0] = 61.0
    fail()
    assert len(caplog.records) == 2


def test_strict_raises():
    """Our own suite sees every fault."""
    with pytest.raises(RuntimeError, match="ours"):
        fail()


def test_a_failing_log_is_kept_from_the_application_too(lenient):
    """A filter of the application's that raises does not get through either."""

    class Broken(logging.Filter):
        def filter(self, record):
            raise ValueError("theirs")

    broken = Broken()
    logging.getLogger("otel_perf").addFilter(broken)
    try:
        fail()
    finally:
        logging.getLogger("otel_perf").removeFilter(broken)
    assert guard.errors == 1


def test_safe_answers_instead_of_raising(lenient):
    """A guarded function gives its answer, or the fallback."""

    @guard.safe("dividing", fallback=-1.0)
    def divide(a: float, b: float) -> float:
        """Divides."""
        return a / b

    assert divide(4, b=2) == 2
    assert divide(1, 0) == -1.0
    assert divide.__doc__ == "Divides."
    assert guard.errors == 1
