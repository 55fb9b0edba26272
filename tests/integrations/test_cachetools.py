"""cachetools: caches that are given counts, and decorated functions that have them."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from typing import Any

import cachetools
import cachetools.func
import pytest

from otel_perf import instrument
from otel_perf.integrations import counted
from tests.conftest import Telemetry

_KINDS = [
    lambda: cachetools.Cache(4),
    lambda: cachetools.LRUCache(4),
    lambda: cachetools.LFUCache(4),
    lambda: cachetools.FIFOCache(4),
    lambda: cachetools.RRCache(4),
    lambda: cachetools.TTLCache(4, 60),
    lambda: cachetools.TLRUCache(4, lambda _key, _value, now: now + 60),
]


@pytest.fixture(autouse=True)
def _nothing_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted, "_past", {})


def _requests(telemetry: Telemetry, strategy: str = "RATES") -> tuple[int, int]:
    found = {
        point.attributes["cache.result"]: point.value
        for point in telemetry.points("cache.requests", cache__strategy=strategy)
    }
    return found["hit"], found["miss"]


@pytest.mark.parametrize("make", _KINDS)
def test_lookups(telemetry: Telemetry, make: Any) -> None:
    """Every way to look up is a hit or a miss; evictions, `pop` and `in` are neither; the answers are the same."""
    cache = make()
    kind = type(cache)
    with instrument(cache, strategy="RATES"):
        for key in "abcdef":
            cache[key] = key
        kept = sorted(cache)
        assert len(kept) == 4
        assert cache[kept[0]] == kept[0]
        assert cache.get(kept[1]) == kept[1]
        assert cache.get("gone", 7) == 7
        with pytest.raises(KeyError):
            cache["gone"]
        assert cache.get(kept[2], 0) == kept[2]
        assert cache.setdefault(kept[2], 0) == kept[2]
        assert cache.get("new") is None
        assert cache.setdefault("new", 0) == 0
        assert "new" in cache
        assert cache.pop("new") == 0
        assert _requests(telemetry) == (3, 3)
        assert [point.value for point in telemetry.points("cache.entry.count")] == [len(cache)]
        assert [point.value for point in telemetry.points("cache.entry.max")] == [4]
        assert isinstance(cache, kind)
        assert type(cache).__name__ == kind.__name__
    assert type(cache) is kind
    assert cache.get("gone") is None
    assert telemetry.points("cache.requests") == []


def test_twice_and_undo(telemetry: Telemetry) -> None:
    """Two handles count once; the class is back when both are undone, in whichever order."""
    cache: Any = cachetools.LRUCache(4)
    first, second = instrument(cache, strategy="RATES"), instrument(cache, strategy="RATES")
    cache.get("a")
    first.undo()
    cache.get("a")
    assert _requests(telemetry) == (0, 2)
    second.undo()
    assert type(cache) is cachetools.LRUCache


def test_a_cache_that_makes_what_is_missing(telemetry: Telemetry) -> None:
    """What `__missing__` makes was not there, also where making it looks up other keys."""

    class Squares(cachetools.LRUCache[int, int]):
        def __missing__(self, key: int) -> int:
            value = key if key < 2 else self[key - 1] + 2 * key - 1
            self[key] = value
            return value

    cache = Squares(100)
    with instrument(cache, strategy="RATES"):
        assert cache[5] == 25
        assert cache[5] == 25
        assert _requests(telemetry) == (1, 5)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_copies_are_caches_as_before(protocol: int) -> None:
    """A copy, and what comes back from a pickle, have the cache's own class where that is asked for."""
    cache: Any = cachetools.LRUCache(4)
    cache["a"] = [1]
    with instrument(cache, strategy="RATES"):
        if protocol >= 2:
            back = pickle.loads(pickle.dumps(cache, protocol))
            assert (type(back), dict(back.items())) == (cachetools.LRUCache, {"a": [1]})
        assert dict(copy.copy(cache).items()) == {"a": [1]}
        assert dict(copy.deepcopy(cache).items()) == {"a": [1]}


def test_decorated_functions(telemetry: Telemetry) -> None:
    """A function that keeps count is read; one over a cache that is counted is counted there."""

    @cachetools.cached(cachetools.TTLCache(10, 60), info=True)
    def load(number: int) -> int:
        return number

    @cachetools.func.lru_cache(maxsize=8)
    def rate(number: int) -> int:
        return number

    shared: Any = cachetools.LRUCache(4)

    @cachetools.cached(shared)
    def plain(number: int) -> int:
        return number

    with instrument(load), instrument(rate, strategy="RATES"), instrument(shared, strategy="SHARED"):
        for function in (load, rate, plain):
            assert [function(number) for number in (1, 1, 2)] == [1, 1, 2]
        assert _requests(telemetry) == (1, 2)
        assert _requests(telemetry, "SHARED") == (1, 2)
        assert _requests(telemetry, f"{__name__}.test_decorated_functions.<locals>.load") == (1, 2)
        systems = {point.attributes["cache.system"] for point in telemetry.points("cache.requests")}
        assert systems == {"cachetools"}


_WAYS: list[tuple[str, dict[str, Any]]] = [
    (what, {**way, **info})
    for what in ("cached", "cachedmethod")
    for way in ({}, {"lock": threading.Lock}, {"condition": threading.Condition}, {"lock": threading.RLock})
    for info in ({}, {"info": True})
]


@pytest.mark.parametrize(("what", "way"), _WAYS)
def test_decorators_in_every_way(telemetry: Telemetry, what: str, way: dict[str, Any]) -> None:
    """A call is one look-up, with or without a lock or a condition, with counts of its own or not; nested ones too."""
    decorator = getattr(cachetools, what)
    if not set(way) <= set(inspect.signature(decorator).parameters):
        pytest.skip("this cachetools does not have it")
    cache: Any = cachetools.TTLCache(100, 60)
    method = what == "cachedmethod"
    options = {key: make() if callable(make) else make for key, make in way.items()}
    if method:
        options = {key: value if value is True else (lambda _, v=value: v) for key, value in options.items()}

    def add(*given: int) -> int:
        number = given[-1]
        return number if number < 1 else number + load(number - 1)

    if method:

        class Sums:
            total = decorator(lambda _self: cache, **options)(lambda _self, number: add(number))

        sums = Sums()

        def load(number: int) -> int:
            return sums.total(number)
    else:
        load = decorator(cache, **options)(add)

    with instrument(cache, strategy="RATES"):
        assert [load(4) for _ in range(3)] == [10, 10, 10]
        assert _requests(telemetry) == (2, 5)


def test_sizes_of_ones_own(telemetry: Telemetry) -> None:
    """Where a cache counts in units of its own, its entries are reported and no limit."""
    cache: Any = cachetools.LRUCache(1000, getsizeof=len)
    with instrument(cache, strategy="RATES"):
        cache["a"] = "x" * 100
        assert [point.value for point in telemetry.points("cache.entry.count")] == [1]
        assert telemetry.points("cache.entry.max") == []
