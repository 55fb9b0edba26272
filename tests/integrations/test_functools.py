"""Functions whose cache counts: `functools.lru_cache` and what is like it."""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from typing import Any

import pytest

from otel_perf import guard, instrument
from otel_perf.integrations import counted
from otel_perf.integrations import functools as observed
from otel_perf.integrations.rising import Rising
from tests.conftest import Telemetry


@pytest.fixture(autouse=True)
def _nothing_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted, "_past", {})


def _requests(telemetry: Telemetry) -> dict[tuple[str, str], int]:
    return {
        (point.attributes["cache.strategy"], point.attributes["cache.result"]): point.value
        for point in telemetry.points("cache.requests")
    }


def _made(maxsize: int | None = 4) -> Any:
    @functools.lru_cache(maxsize=maxsize)
    def load(number: int) -> int:
        return number

    return load


def test_hits_misses_and_entries(telemetry: Telemetry) -> None:
    """What `cache_info()` says is what is reported, by the function's name; the function is the very same."""
    load = _made()
    called = load.__wrapped__
    with instrument(load):
        for number in (1, 1, 2, 1):
            load(number)
        name = f"{__name__}._made.<locals>.load"
        assert _requests(telemetry) == {(name, "hit"): 2, (name, "miss"): 2}
        (entries,) = telemetry.points("cache.entry.count")
        assert (entries.value, entries.attributes["cache.system"]) == (2, "functools")
        assert [point.value for point in telemetry.points("cache.entry.max")] == [4]
    assert load.__wrapped__ is called
    assert telemetry.points("cache.requests") == []
    assert telemetry.spans == []


def test_a_name_of_ones_own_and_no_limit(telemetry: Telemetry) -> None:
    """`strategy=` names it; several caches of one name are summed; one without a limit has none."""
    first, second = _made(None), _made(None)
    with instrument(first, strategy="RATES"), instrument(second, strategy="RATES"):
        first(1)
        second(1)
        second(1)
        assert _requests(telemetry) == {("RATES", "hit"): 1, ("RATES", "miss"): 2}
        assert telemetry.points("cache.entry.max") == []


def test_the_counts_never_fall(telemetry: Telemetry) -> None:
    """`cache_clear()` begins anew and a function may be gone: what was counted stays counted."""
    load, kept = _made(), _made()
    with instrument(load, strategy="RATES"), instrument(kept, strategy="RATES"):
        for number in range(3):
            load(number)
        kept(1)
        assert _requests(telemetry)["RATES", "miss"] == 4
        load.cache_clear()
        assert _requests(telemetry)["RATES", "miss"] == 4
        load(7)
        assert _requests(telemetry)["RATES", "miss"] == 5
        assert sum(point.value for point in telemetry.points("cache.entry.count")) == 2
        gone = weakref.ref(load)
        del load
        gc.collect()
        assert gone() is None
        assert _requests(telemetry)["RATES", "miss"] == 5


def test_methods(telemetry: Telemetry) -> None:
    """A method, bound or not, is one function."""

    class Rates:
        @functools.lru_cache  # noqa: B019 -- as people write it
        def of(self, currency: str) -> int:
            return len(currency)

    rates = Rates()
    with instrument(rates.of, strategy="RATES"), instrument(Rates.of, strategy="RATES"):
        rates.of("eur")
        assert _requests(telemetry) == {("RATES", "hit"): 0, ("RATES", "miss"): 1}


def test_a_function_that_cannot_say(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache whose `cache_info()` fails costs nobody anything."""

    class Broken:
        def __call__(self) -> None: ...

        def cache_clear(self) -> None: ...

        def cache_info(self) -> Any:
            raise RuntimeError("no")

    broken, load = Broken(), _made()
    with monkeypatch.context() as patch, instrument(broken), instrument(load, strategy="RATES"):
        patch.setattr(guard, "strict", False)
        load(1)
        assert _requests(telemetry) == {("RATES", "hit"): 0, ("RATES", "miss"): 1}
        assert guard.errors > 0


def test_thousands_of_functions(telemetry: Telemetry) -> None:
    """Functions that come and go leave their sums under a bounded number of names."""
    for number in range(1500):
        load = _made()
        handle = observed.instrument(load, strategy=f"S{number}")
        del load, handle
    assert len(counted._observed) == 0
    assert len(counted._past) == 1000
    assert telemetry.points("cache.entry.count") == []


def test_two_readers(telemetry: Telemetry) -> None:
    """Readers at the same time see counts that only grow."""
    load = _made(None)
    with instrument(load, strategy="RATES"):
        threads = [
            threading.Thread(target=lambda: [load(number % 10) for number in range(20_000)]),
            *(threading.Thread(target=lambda: [telemetry.points("cache.requests") for _ in range(20)]) for _ in "ab"),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = _requests(telemetry)
    assert (found["RATES", "hit"], found["RATES", "miss"]) == (load.cache_info().hits, load.cache_info().misses)


def test_a_count_that_begins_anew() -> None:
    """The total goes on from where it was."""
    rising = Rising()
    assert [rising.total(count) for count in (0, 3, 5, 1, 1, 4, 0)] == [0, 3, 5, 6, 6, 9, 9]


def test_what_has_no_counts_is_refused() -> None:
    """A plain function is nothing that can be observed."""
    with pytest.raises(TypeError):
        instrument(len, strategy="X")
