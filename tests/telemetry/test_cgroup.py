"""Limits of control groups, read from trees of files as version 1 and version 2 have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_perf.telemetry import cgroup

TOP = "sys/fs/cgroup"
NONE = "9223372036854771712"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "536870912\n"}, 536870912),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", f"{TOP}/a/memory.max": "7000", f"{TOP}/a/b/memory.max": "max"}, 7000),
        ({"proc/self/cgroup": "0::/a\n", f"{TOP}/memory.max": "9000", f"{TOP}/a/memory.max": "9500"}, 9000),
        ({"proc/self/cgroup": "4:memory:/\n0::/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000"}, 1000),
        ({"proc/self/cgroup": "4:cpu,memory:/x\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "2000"}, 2000),
        ({"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": NONE}, None),
        # A container sees its own group at the top, whatever path is told.
        ({"proc/self/cgroup": "4:memory:/docker/abc\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000"}, 3000),
        ({"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/memory.max": "1"}, None),
        ({"proc/self/cgroup": "nonsense\n:\n::\n", "sys/fs/cgroup/memory.max": "what"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_memory(tmp_path, files, limit):
    """The smallest limit of the group and of those above it counts; without one there is none."""
    assert cgroup.memory_limit_bytes(tree(tmp_path, files)) == limit


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            1.5,
        ),
        ({"proc/self/cgroup": "3:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}, None),
        ({}, None),
    ],
)
def test_cpu(tmp_path, files, limit):
    """A quota is so many cores' time; without one there is none."""
    assert cgroup.cpu_limit(tree(tmp_path, files)) == limit


def test_this_machine():
    """Whatever this system has, it is a number above 0 or nothing."""
    assert (cgroup.memory_limit_bytes() or 1) > 0
    assert (cgroup.cpu_limit() or 1) > 0
