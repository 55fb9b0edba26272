"""The scanner walks what is left of the users, a batch at a time, and never holds more than one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.streak.records import Range
from examples.streak.scanner import FIRST, Gap, gaps, scan
from examples.streak.walk import GIVE_UP_AFTER, walk

NAMES = st.text(alphabet="abcß\U0001f600", min_size=1, max_size=3)


@st.composite
def _disjoint(draw: st.DrawFn) -> list[Range]:
    """Ranges as `Runs.done` gives them: in order, disjoint, adjacent ones made one."""
    ends = sorted(draw(st.sets(NAMES, max_size=9)))
    if draw(st.booleans()):
        ends = [FIRST, *ends]
    return [Range(after, until) for after, until in zip(ends[::2], ends[1::2], strict=False)]


@settings(max_examples=200)
@given(done=_disjoint(), users=st.sets(NAMES, max_size=30), size=st.integers(1, 5))
def test_each_user_is_in_a_range_that_is_done_or_in_one_that_comes(
    done: list[Range], users: set[str], size: int
) -> None:
    """Whatever was done before, the ranges that come have each other user once, and nobody a second time."""
    ordered = sorted(users)

    async def due(after: str, until: str | None) -> list[str]:
        return [user for user in ordered if after < user and (until is None or user <= until)][:size]

    async def ranges() -> list[Range]:
        return [part async for part in scan(list(gaps(done)), due)]

    come = asyncio.run(ranges())
    for user in ordered:
        assert sum(part.after < user <= part.until for part in [*done, *come]) == 1
    for part in come:
        assert part.after < part.until
        assert 1 <= sum(part.after < user <= part.until for user in ordered) <= size


def test_gaps() -> None:
    """Nothing done leaves everybody; what is done to the first and the last is not left."""
    assert list(gaps([])) == [Gap("", None)]
    assert list(gaps([Range("", "c"), Range("f", "k")])) == [Gap("c", "f"), Gap("k", None)]
    assert list(gaps([Range("b", "c")])) == [Gap("", "b"), Gap("c", None)]


async def _numbers(count: int, seen: list[int]) -> AsyncGenerator[Range, None]:
    for number in range(count):
        seen.append(number)
        yield Range(str(number), str(number + 1))


def test_walk_reads_no_further_ahead_than_its_workers() -> None:
    """While all workers are busy the scanner stands still, however many ranges there are."""

    async def go() -> None:
        seen: list[int] = []
        release, busy = asyncio.Event(), asyncio.Event()
        under_way = 0

        async def work(_: Range) -> None:
            nonlocal under_way
            under_way += 1
            if under_way == 3:
                busy.set()
            await release.wait()

        walking = asyncio.create_task(walk(_numbers(1_000, seen), work, workers=3))
        await busy.wait()
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(seen) <= 3 + 3 + 1
        release.set()
        await walking
        assert (len(seen), under_way) == (1_000, 1_000)

    asyncio.run(go())


def test_walk_goes_on_behind_a_range_that_fails() -> None:
    """One range that fails keeps none behind it waiting; its failure is raised at the end."""

    async def go() -> None:
        done: list[str] = []

        async def work(part: Range) -> None:
            if part.after in {"0", "7"}:
                raise ValueError(part.after)
            done.append(part.after)

        with pytest.raises(ValueError, match="0"):
            await walk(_numbers(100, []), work, workers=3)
        assert len(done) == 98
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(go())


@pytest.mark.parametrize(("failure", "begun"), [(ValueError, GIVE_UP_AFTER), (KeyError, 1)])
def test_walk_ends_where_it_makes_no_sense(failure: type[Exception], begun: int) -> None:
    """After ten failures in a row, or one that ends it at once, nothing more is begun but what was under way."""

    async def go() -> None:
        calls = 0

        async def work(_: Range) -> None:
            nonlocal calls
            calls += 1
            raise failure

        with pytest.raises(failure):
            await walk(_numbers(1_000, []), work, workers=3, ends_at_once=(KeyError,))
        assert begun <= calls <= begun + 2

    asyncio.run(go())


def test_walk_raises_what_the_scanner_raises() -> None:
    """A scanner that fails ends the walk after what it gave before."""

    async def go() -> None:
        done: list[str] = []

        async def ranges() -> AsyncGenerator[Range, None]:
            yield Range("", "a")
            raise ValueError("the scanner")

        async def work(part: Range) -> None:
            done.append(part.until)

        with pytest.raises(ValueError, match="the scanner"):
            await walk(ranges(), work, workers=2)

    asyncio.run(go())


def test_cancelled_walk_leaves_nothing_running() -> None:
    """Cancelled from outside, all workers end, and the scanner is closed."""

    async def go() -> None:
        closed = False
        busy = asyncio.Event()

        async def ranges() -> AsyncGenerator[Range, None]:
            nonlocal closed
            try:
                while True:
                    yield Range("", "a")
            finally:
                closed = True

        async def work(_: Range) -> None:
            busy.set()
            await asyncio.Event().wait()

        walking = asyncio.create_task(walk(ranges(), work, workers=2))
        await busy.wait()
        walking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await walking
        assert closed
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(go())
