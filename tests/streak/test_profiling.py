"""A profile says where the time and the memory went, in whichever way the run ended."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path

import pytest

from examples.streak.profiling import profiled

_MIB = 2**20


def test_both_profiles(tmp_path: Path) -> None:
    """CPU of tasks that the block starts, the line that kept memory, and the peak of what it gave back."""

    async def burn() -> int:
        return sum(number * number for number in range(50_000))

    async def go() -> list[bytes]:
        with profiled(tmp_path / "new" / "folder") as profile:
            await asyncio.gather(*(asyncio.create_task(burn()) for _ in range(3)))
            kept = [bytes(_MIB) for _ in range(4)]
            given_back = bytes(16 * _MIB)
            del given_back
        assert [path.name for path in profile.files] == ["cpu.html", "cpu.txt", "memory.txt"]
        assert all(path.exists() for path in profile.files)
        assert profile.peak_bytes >= 20 * _MIB
        assert "burn" in profile.files[1].read_text()
        text = profile.files[2].read_text()
        growth = text.partition("What grew")[2].partition("What is largest")[0]
        first = growth.splitlines()[2]
        assert "test_profiling.py" in first
        assert "4096" in first
        return kept

    assert len(asyncio.run(go())) == 4
    assert not tracemalloc.is_tracing()


def test_profile_of_a_run_that_fails(tmp_path: Path) -> None:
    """The profile is written all the same, what went wrong is raised, and nothing is left switched on."""

    async def go() -> None:
        with profiled(tmp_path):
            raise ValueError("the run")

    with pytest.raises(ValueError, match="the run"):
        asyncio.run(go())
    assert len(list(tmp_path.iterdir())) == 3
    assert not tracemalloc.is_tracing()
