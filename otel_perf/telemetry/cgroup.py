"""What the control group of this process may use, read from files of version 1 and version 2.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["cpu_limit", "memory_limit_bytes"]

# Version 1 says "no limit" by the largest number of pages.
_NO_LIMIT_BYTES = 1 << 60
_DEEPEST = 64


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """The memory that this process may use, of its group and of those above it; None without a limit."""
    files = [*_files(root, "", "memory.max"), *_files(root, "memory", "memory.limit_in_bytes")]
    limits = [number for number in map(_number, files) if number is not None and number < _NO_LIMIT_BYTES]
    return min(limits, default=None)


def cpu_limit(root: Path = Path("/")) -> float | None:
    """How many cores' time this process may use; None without a limit."""
    limits: list[float] = []
    for file in _files(root, "", "cpu.max"):
        quota, _, period = _text(file).partition(" ")
        if quota.isdigit() and period.isdigit():
            limits.append(int(quota) / max(1, int(period)))
    for file in _files(root, "cpu", "cpu.cfs_quota_us"):
        quota_us, period_us = _number(file), _number(file.with_name("cpu.cfs_period_us"))
        if quota_us is not None and quota_us > 0 and period_us:
            limits.append(quota_us / period_us)
    return min(limits, default=None)


def _files(root: Path, controller: str, name: str) -> Iterator[Path]:
    """The files of this name, from the group of this process up: in a container only the top one may be seen."""
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(",") or ".." in path:
            continue
        # Version 2 is mounted there itself, or below it beside version 1; controllers of version 1 by their names.
        for top in (mounted / (controllers or "unified"), mounted / controller):
            parts = [part for part in path.split("/") if part][:_DEEPEST]
            for depth in range(len(parts), -1, -1):
                file = top.joinpath(*parts[:depth], name)
                if file.is_file():
                    yield file


def _number(file: Path) -> int | None:
    with suppress(ValueError):  # "max", or nothing
        return int(_text(file))
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
