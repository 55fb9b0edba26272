"""Figures of the process: those of this one, of a forked child its own, and sensible sums over workers."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from opentelemetry import metrics
from opentelemetry.metrics import Observation

from otel_perf import conventions as c
from otel_perf.telemetry import cgroup, process, runtime
from otel_perf.telemetry.process import Process
from otel_perf.telemetry.series import Registry
from otel_perf.telemetry.summing import Tally

PROCESS = [
    c.PROCESS_CPU,
    c.PROCESS_MEMORY,
    c.PROCESS_VIRTUAL,
    c.PROCESS_THREADS,
    c.PROCESS_DESCRIPTORS,
    c.PROCESS_UPTIME,
]
GC = [c.GC_COLLECTIONS, c.GC_COLLECTED, c.GC_UNCOLLECTABLE]


def in_a_child(do: Callable[[], Any]) -> Any:
    """What a function answers in a forked child."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, json.dumps(do()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as opened:
        told = opened.read()
    os.waitpid(child, 0)
    return json.loads(told)


def test_what_is_told(telemetry):
    """CPU time by mode, memory, threads, files, uptime and the collector by generation are there and plausible."""
    metrics = telemetry.metrics()
    assert {each.name for each in (*PROCESS, *GC)} <= metrics.keys()
    modes = {point.attributes[c.CPU_MODE]: point.value for point in telemetry.points(c.PROCESS_CPU.name)}
    assert modes.keys() == {"user", "system"}
    assert modes["user"] > 0
    (rss,), (virtual,) = telemetry.points(c.PROCESS_MEMORY.name), telemetry.points(c.PROCESS_VIRTUAL.name)
    assert 1 << 20 < rss.value <= virtual.value
    assert telemetry.points(c.PROCESS_THREADS.name)[0].value >= threading.active_count() - 1
    assert telemetry.points(c.PROCESS_DESCRIPTORS.name)[0].value > 2
    assert {point.attributes[c.GC_GENERATION] for point in telemetry.points(c.GC_COLLECTIONS.name)} == {"0", "1", "2"}


def test_the_limit_of_memory(telemetry, monkeypatch):
    """It is told where there is one, and nothing is told where there is none."""
    monkeypatch.setattr(cgroup, "memory_limit_bytes", lambda: None)
    telemetry.restart()
    assert not telemetry.points(c.PROCESS_MEMORY_LIMIT.name)
    monkeypatch.setattr(cgroup, "memory_limit_bytes", lambda: 123)
    telemetry.restart()
    assert [point.value for point in telemetry.points(c.PROCESS_MEMORY_LIMIT.name)] == [123]


def test_switched_off(telemetry):
    """Without `runtime_metrics` nothing of it is told."""
    telemetry.restart(runtime_metrics=False)
    assert not {each.name for each in (*PROCESS, *GC)} & telemetry.metrics().keys()


def test_what_another_tells_is_told_once(telemetry):
    """Where system-metrics of OpenTelemetry's tells a figure to our provider it is left to that; the others stay."""
    theirs = metrics.get_meter("opentelemetry.instrumentation.system_metrics")
    theirs.create_observable_up_down_counter("process.memory.usage", [lambda _: [Observation(7)]], "By")
    try:
        assert [point.value for point in telemetry.points(c.PROCESS_MEMORY.name)] == [7]
        assert telemetry.points(c.PROCESS_VIRTUAL.name)
    finally:  # the registry is for the life of the process
        for each in runtime.current.registry.instruments():
            if each.scope.name.endswith("system_metrics"):
                each.observers.clear()


def test_readers_share_a_look():
    """Two readers shortly after one another cost one look; an older one is not used again."""
    seen = Process(fresh_s=60)
    assert seen.look() is seen.look()
    always = Process(fresh_s=0)
    assert always.look() is not always.look()


def test_utilization_is_of_the_time_between_two_looks():
    """There is none at the first look; later it is what was used since the last, by mode, of the usable cores."""
    seen = Process(fresh_s=0)
    first = seen.look()
    assert not first.utilization
    sum(range(3_000_000))
    second = seen.look()
    assert second.utilization.keys() == {"user", "system"}
    assert 0 <= second.utilization["user"] <= 1.5  # the system counts in ticks
    used_s = second.user_s - first.user_s
    assert second.utilization["user"] == pytest.approx(used_s / (second.at_s - first.at_s) / process._usable_cores())


def test_a_child_is_looked_at_itself():
    """After a fork it is the child's own id, and its own short life."""
    seen = Process(fresh_s=60)
    parent = seen.look()

    def child() -> list[Any]:
        look = seen.look()
        return [look.pid == os.getpid(), look.user_s < parent.user_s, bool(look.utilization)]

    assert parent.pid == os.getpid()
    assert in_a_child(child) == [True, True, False]


def test_a_child_does_not_tell_what_its_parent_collected():
    """`gc.get_stats` of a child goes on from its parent's; what is told begins anew."""
    for _ in range(40):  # a busy machine's child may run a few of its own
        gc.collect()

    def child() -> list[int]:
        before = sum(value for value, _ in process._collector("collections")())
        gc.collect()
        return [before, sum(value for value, _ in process._collector("collections")())]

    before, after = in_a_child(child)
    assert before < 40
    assert after > before
    assert sum(value for value, _ in process._collector("collections")()) > 40


def test_what_a_system_does_not_tell(monkeypatch):
    """Without a count of files there is no point, and the others stay."""

    def refused(_: object) -> int:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "num_fds", refused)
    look = Process().look()
    assert look.descriptors is None
    assert look.threads > 0


def _figures(cpu: float, memory: int, uptime: float, limit: int) -> list[Any]:
    registry = Registry()
    told = [
        (c.PROCESS_CPU, cpu, {c.CPU_MODE: "user"}), (c.PROCESS_CPU_UTILIZATION, cpu / 10, {c.CPU_MODE: "user"}),
        (c.PROCESS_MEMORY, memory, {}), (c.PROCESS_UPTIME, uptime, {}), (c.PROCESS_MEMORY_LIMIT, limit, {}),
    ]  # fmt: skip
    for metric, value, labels in told:
        instrument = registry.instrument(metric, runtime._SCOPE)
        instrument.observers.append(lambda value=value, labels=labels: [(value, labels)])
    from otel_perf.telemetry.workers import Cells

    return list(registry.cursor(Cells()).collect())


def test_over_workers():
    """CPU and memory add up; uptime, utilization and the limit are the largest; CPU time stays when one ends."""
    sums: list[dict[str, float]] = []
    for living in (True, False):
        whole = Tally(0, living=0)
        for figures, alive in ((_figures(1.0, 100, 50.0, 1000), True), (_figures(2.0, 200, 9.0, 1000), living)):
            one = Tally(0)
            one.take(figures, "all")
            whole.add(one, living=alive)
        sums.append(
            {family.metric.name: point.value for family in whole.families.values() for point in family.points.values()}
        )
    both, one_ended = sums
    assert both == {
        "process.cpu.time": 3.0, "process.cpu.utilization": 0.2, "process.memory.usage": 300, "process.uptime": 50.0,
        "process.memory.limit": 1000,
    }  # fmt: skip
    assert one_ended == {
        "process.cpu.time": 3.0, "process.cpu.utilization": 0.1, "process.memory.usage": 100, "process.uptime": 50.0,
        "process.memory.limit": 1000,
    }  # fmt: skip


def test_the_uptime_of_a_child(monkeypatch):
    """It is counted from the fork, not from what the system knows in whole seconds."""
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: 1.0)
    assert Process().look().uptime_s > 1e6
    assert in_a_child(lambda: Process().look().uptime_s) < 1e5
