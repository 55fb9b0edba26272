"""Says where the time and the memory of a run went: `--profile` of the maintenance.

CPU comes from pyinstrument, which looks a thousand times a second at what the event loop's thread does: what the
drivers of SQLite do in threads of their own, and what a database does, is not in it but as waiting. Memory comes from
tracemalloc, which follows each allocation that Python makes; what C libraries allocate by themselves shows in the
resident size alone.

It costs: a run of 6,000 users on SQLite took nine times as long with it, and tracemalloc needs memory of its
own, which is named. So the figures tell where to look; how long a run takes is measured without a profile.
"""

from __future__ import annotations

import platform
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from pyinstrument import Profiler

__all__ = ["Profile", "profiled"]

_FRAMES = 5
_ROWS = 25
_MIB = 2**20
_OWN = (
    tracemalloc.Filter(inclusive=False, filename_pattern=tracemalloc.__file__),
    tracemalloc.Filter(inclusive=False, filename_pattern="*pyinstrument*"),
)


@dataclass(slots=True)
class Profile:
    """Where a profile was written, and its chief figures, once it has ended."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    peak_bytes: int = 0
    """The most that Python had allocated at once."""
    rss_growth_bytes: int = 0
    """How much larger the process is than before."""


@contextmanager
def profiled(folder: Path) -> Iterator[Profile]:
    """Profile a block, in whichever way it ends, and write `cpu.html`, `cpu.txt` and `memory.txt` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    profile = Profile(folder)
    process = psutil.Process()
    tracemalloc.start(_FRAMES)
    before = tracemalloc.take_snapshot().filter_traces(_OWN)
    rss_before = process.memory_info().rss
    tracemalloc.reset_peak()
    profiler = Profiler(async_mode="enabled")
    profiler.start()
    try:
        yield profile
    finally:
        profiler.stop()
        _, profile.peak_bytes = tracemalloc.get_traced_memory()
        rss_after = process.memory_info().rss
        profile.rss_growth_bytes = rss_after - rss_before
        own_bytes = tracemalloc.get_tracemalloc_memory()
        after = tracemalloc.take_snapshot().filter_traces(_OWN)
        tracemalloc.stop()
        sizes = {
            "Python, at most": profile.peak_bytes,
            "resident, before": rss_before,
            "resident, after": rss_after,
            "of which for following allocations": own_bytes,
        }
        profile.files += [
            _write(folder / "cpu.html", profiler.output_html()),
            _write(folder / "cpu.txt", profiler.output_text(unicode=False, color=False, show_all=False)),
            _write(folder / "memory.txt", _memory_text(before, after, sizes)),
        ]


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _memory_text(before: tracemalloc.Snapshot, after: tracemalloc.Snapshot, sizes: dict[str, int]) -> str:
    lines = [f"Memory of {platform.python_implementation()} {platform.python_version()}, {Path(sys.argv[0]).name}", ""]
    lines += [f"{size / _MIB:10.1f} MiB  {what}" for what, size in sizes.items()]
    growth = after.compare_to(before, "lineno")
    lines += ["", "What grew between the start and the end, by line:", ""]
    lines += _rows([(row.size_diff, row.count_diff, row.traceback) for row in growth if row.size_diff > 0])
    lines += ["", "What is largest at the end, by line:", ""]
    lines += _rows([(row.size, row.count, row.traceback) for row in after.statistics("lineno")])
    return "\n".join(lines) + "\n"


def _rows(rows: Sequence[tuple[int, int, tracemalloc.Traceback]]) -> list[str]:
    largest = sorted(rows, key=lambda row: -row[0])[:_ROWS]
    return [
        f"{size / 1024:12.1f} KiB  {count:8,} blocks  {trace[-1].filename}:{trace[-1].lineno}"
        for size, count, trace in largest
    ]
