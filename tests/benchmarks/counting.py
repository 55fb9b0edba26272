"""Counts Python calls exactly, with `sys.setprofile`: the same on every run of one interpreter."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Count", "count", "count_async", "names"]

_WARM_UP = 40
_TIMES = 200


@dataclass(frozen=True, slots=True)
class Count:
    """Calls of one turn: `usual` is what nearly all turns take, `mean` holds the rare ones too (a fold, a flush)."""

    usual: int
    mean: float
    #: The share of turns that took exactly `usual`.
    share: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Calls:
    """Counts calls of Python functions in this thread while it is the profiler; a coroutine resumed counts again."""

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, _frame: Any, event: str, _argument: Any) -> None:
        if event == "call":
            self.made += 1


def _told(each: list[int]) -> Count:
    usual, times = Counter(each).most_common(1)[0]
    return Count(usual, sum(each) / len(each), times / len(each))


def count(do: Callable[[], object], times: int = _TIMES) -> Count:
    """Calls of one `do()`, itself among them; what is compared is counted alike, so the difference is exact."""
    calls, each = _Calls(), []
    for turn in range(_WARM_UP + times):
        before = calls.made
        sys.setprofile(calls)
        do()
        sys.setprofile(None)
        if turn >= _WARM_UP:
            each.append(calls.made - before)
    return _told(each)


async def count_async(do: Callable[[], Awaitable[object]], times: int = _TIMES) -> Count:
    """The same for a coroutine function, in the running loop; what the loop calls meanwhile counts too."""
    calls, each = _Calls(), []
    for turn in range(_WARM_UP + times):
        before = calls.made
        sys.setprofile(calls)
        await do()
        sys.setprofile(None)
        if turn >= _WARM_UP:
            each.append(calls.made - before)
        await asyncio.sleep(0)
    return _told(each)


async def names(do: Callable[[], Awaitable[object]]) -> list[str]:
    """The functions that one `await do()` calls, in their order: for whoever wants to have fewer."""
    found: list[str] = []

    def hook(frame: Any, event: str, _argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            where = code.co_filename.rpartition("site-packages/")[2].rpartition("/otel_perf/")
            found.append(f"{'otel_perf/' if where[1] else ''}{where[2]}:{code.co_firstlineno} {code.co_name}")

    for _ in range(_WARM_UP):
        await do()
    sys.setprofile(hook)
    await do()
    sys.setprofile(None)
    return found
