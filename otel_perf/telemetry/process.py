"""Figures of this process: CPU, memory, threads, files, uptime and the garbage collector.

They are observed: nothing runs between two looks, and readers that come shortly after one another share one. A forked
child looks at itself, and does not tell again what the garbage collector did in its parent.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from otel_perf import conventions as c
from otel_perf.telemetry import cgroup
from otel_perf.telemetry.runtime import Runtime
from otel_perf.telemetry.series import Observe

__all__ = ["Look", "Process", "observe"]

# Longer than the second in which workers publish: who does nothing else has nothing new to tell each time.
_FRESH_S = 5.0
_LIMITS_FRESH_S = 60.0

_PLAIN: Mapping[str, str] = {}

# What the collector of the parent did until the fork: `gc.get_stats` of a child goes on from there.
_inherited: list[dict[str, int]] = []
# When this process was forked; the system tells that in whole seconds at best.
_forked_at_s: float | None = None


def _after_fork_in_child() -> None:
    global _forked_at_s
    _inherited[:] = gc.get_stats()
    _forked_at_s = time.monotonic()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment; None is what this system does not tell."""

    pid: int
    at_s: float
    user_s: float
    system_s: float
    memory_bytes: int
    virtual_bytes: int
    threads: int
    descriptors: int | None
    uptime_s: float
    memory_limit_bytes: int | None
    #: CPU time over elapsed time since the look before, per usable core, by mode.
    utilization: Mapping[str, float]


class Process:
    """The process that this runs in, whatever was forked since it was made."""

    __slots__ = ("_last", "_limits", "_limits_at_s", "_process", "fresh_s")

    def __init__(self, fresh_s: float = _FRESH_S) -> None:
        self.fresh_s = fresh_s
        self._process: psutil.Process | None = None
        self._last: Look | None = None
        self._limits: tuple[int | None, float] = (None, 1.0)
        self._limits_at_s = 0.0

    def look(self) -> Look:
        """The newest look, a new one where it is older than some seconds. Takes no lock: two at a time do no harm."""
        now, pid, last = time.monotonic(), os.getpid(), self._last
        if last is not None and last.pid != pid:
            last = self._last = self._process = None
        if last is not None and now - last.at_s < self.fresh_s:
            return last
        process = self._process
        if process is None:
            process = self._process = psutil.Process(pid)
            self._limits_at_s = 0.0
        seen = self._last = self._look(process, now, last)
        return seen

    def _look(self, process: psutil.Process, now: float, last: Look | None) -> Look:
        if not self._limits_at_s or now - self._limits_at_s >= _LIMITS_FRESH_S:
            self._limits, self._limits_at_s = (cgroup.memory_limit_bytes(), _usable_cores()), now
        limit_bytes, cores = self._limits
        with process.oneshot():
            cpu, memory = process.cpu_times(), process.memory_info()
            threads, created_s = process.num_threads(), process.create_time()
        descriptors: int | None = None
        with suppress(psutil.Error, AttributeError):  # of another system, or not allowed
            descriptors = process.num_fds()
        utilization: dict[str, float] = {}
        if last is not None and now > last.at_s:
            for mode, used_s in (("user", cpu.user - last.user_s), ("system", cpu.system - last.system_s)):
                utilization[mode] = max(0.0, used_s / (now - last.at_s) / cores)
        return Look(
            process.pid, now, cpu.user, cpu.system, memory.rss, memory.vms, threads, descriptors,
            max(0.0, time.time() - created_s if _forked_at_s is None else now - _forked_at_s), limit_bytes, utilization,
        )  # fmt: skip


def _usable_cores() -> float:
    """The cores that this process may run on, or so much of their time as its control group gives it."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity is not None else os.cpu_count() or 1)
    allowed = cgroup.cpu_limit()
    return max(0.01, min(cores, allowed)) if allowed is not None else cores


def _collector(what: str) -> Observe:
    """What the garbage collector of this process did, by generation."""

    def told() -> Sequence[tuple[int, Mapping[str, str]]]:
        before = [each[what] for each in _inherited] or [0] * 3
        return [
            (max(0, now[what] - earlier), {c.GC_GENERATION: str(generation)})
            for generation, (now, earlier) in enumerate(zip(gc.get_stats(), before, strict=False))
        ]

    return told


def observe(to: Runtime, process: Process | None = None) -> None:
    """Connects the figures to the instruments of a runtime."""
    look = (process or Process()).look

    def one(read: Callable[[Look], float | None]) -> Observe:
        def told() -> Sequence[tuple[float, Mapping[str, str]]]:
            value = read(look())
            return [] if value is None else [(value, _PLAIN)]

        return told

    def cpu() -> Sequence[tuple[float, Mapping[str, str]]]:
        seen = look()
        return [(seen.user_s, {c.CPU_MODE: "user"}), (seen.system_s, {c.CPU_MODE: "system"})]

    observed: list[tuple[c.Metric, Observe]] = [
        (c.PROCESS_CPU, cpu),
        (
            c.PROCESS_CPU_UTILIZATION,
            lambda: [(share, {c.CPU_MODE: mode}) for mode, share in look().utilization.items()],
        ),
        (c.PROCESS_MEMORY, one(lambda seen: seen.memory_bytes)),
        (c.PROCESS_VIRTUAL, one(lambda seen: seen.virtual_bytes)),
        (c.PROCESS_MEMORY_LIMIT, one(lambda seen: seen.memory_limit_bytes)),
        (c.PROCESS_THREADS, one(lambda seen: seen.threads)),
        (c.PROCESS_DESCRIPTORS, one(lambda seen: seen.descriptors)),
        (c.PROCESS_UPTIME, one(lambda seen: seen.uptime_s)),
        (c.GC_COLLECTIONS, _collector("collections")),
        (c.GC_COLLECTED, _collector("collected")),
        (c.GC_UNCOLLECTABLE, _collector("uncollectable")),
    ]
    for metric, told in observed:
        to.instrument(metric).observers.append(_unless_told(to, metric, told))


def _unless_told(to: Runtime, metric: c.Metric, told: Observe) -> Observe:
    """The same, as long as nobody else tells this metric to our registry (system-metrics of OpenTelemetry's does)."""

    def unless() -> Any:
        for each in to.registry.instruments():
            if each.metric.name == metric.name and each.scope.name != c.SCOPE and each.observers:
                return ()
        return told()

    return unless
