"""The part of `conventions` that is about processes: our own, and the Redis servers that it talks to.

Names are those of the semantic conventions (`process.*`, `cpython.gc.*`) and of the Collector's Redis receiver
(`redis.*`); event loops and thread pools have none.
"""

from __future__ import annotations

from otel_perf.metric import Metric

__all__ = [
    "CPU_MODE", "GC_COLLECTED", "GC_COLLECTIONS", "GC_GENERATION", "GC_UNCOLLECTABLE", "LOOP_LAG", "PROCESS_CPU",
    "PROCESS_CPU_UTILIZATION", "PROCESS_DESCRIPTORS", "PROCESS_MEMORY", "PROCESS_MEMORY_LIMIT", "PROCESS_METRICS",
    "PROCESS_THREADS", "PROCESS_UPTIME", "PROCESS_VIRTUAL", "REDIS_CLIENTS", "REDIS_COMMANDS", "REDIS_EVICTED",
    "REDIS_HITS", "REDIS_MEMORY", "REDIS_MEMORY_PEAK", "REDIS_MISSES", "REDIS_RATE", "REDIS_SERVER", "REDIS_UPTIME",
    "REDIS_VERSION", "THREAD_POOL", "THREAD_POOL_MAX", "THREAD_POOL_USED", "THREAD_POOL_WAITING",
]  # fmt: skip

CPU_MODE = "cpu.mode"
GC_GENERATION = "cpython.gc.generation"
THREAD_POOL = "thread_pool.name"
REDIS_SERVER = "server.address"
REDIS_VERSION = "redis.version"

_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_AT = (REDIS_SERVER, "server.port")

PROCESS_CPU = Metric("process.cpu.time", "s", "counter", "CPU time of the process.", (CPU_MODE,))
PROCESS_CPU_UTILIZATION = Metric(
    "process.cpu.utilization", "1", "gauge", "CPU time over elapsed time since the last look, per usable core.",
    (CPU_MODE,),
)  # fmt: skip
PROCESS_MEMORY = Metric("process.memory.usage", "By", "updowncounter", "Physical memory in use.")
PROCESS_VIRTUAL = Metric("process.memory.virtual", "By", "updowncounter", "Virtual memory committed.")
PROCESS_MEMORY_LIMIT = Metric(
    "process.memory.limit", "By", "gauge", "Memory that the process's control group may use.", experimental=True
)
PROCESS_THREADS = Metric("process.thread.count", "{thread}", "updowncounter", "Threads of the process.")
PROCESS_DESCRIPTORS = Metric("process.unix.file_descriptor.count", "{file_descriptor}", "updowncounter", "Open files.")
PROCESS_UPTIME = Metric("process.uptime", "s", "gauge", "Time since the process began.")
GC_COLLECTIONS = Metric("cpython.gc.collections", "{collection}", "counter", "Runs of the collector.", (GC_GENERATION,))
GC_COLLECTED = Metric("cpython.gc.collected_objects", "{object}", "counter", "Objects collected.", (GC_GENERATION,))
GC_UNCOLLECTABLE = Metric(
    "cpython.gc.uncollectable_objects", "{object}", "counter", "Objects that could not be collected.", (GC_GENERATION,)
)
LOOP_LAG = Metric(
    "asyncio.eventloop.lag", "s", "histogram", "How late event loops ran a timer.", (), _LAG_S, experimental=True
)
THREAD_POOL_MAX = Metric(
    "thread_pool.threads.max", "{thread}", "updowncounter", "Threads that a pool may have.", (THREAD_POOL,),
    experimental=True,
)  # fmt: skip
THREAD_POOL_USED = Metric(
    "thread_pool.threads.used", "{thread}", "updowncounter", "Threads of a pool at work.", (THREAD_POOL,),
    experimental=True,
)  # fmt: skip
THREAD_POOL_WAITING = Metric(
    "thread_pool.tasks.waiting", "{task}", "updowncounter", "Work that waits for a thread of a pool.", (THREAD_POOL,),
    experimental=True,
)  # fmt: skip

REDIS_UPTIME = Metric("redis.uptime", "s", "gauge", "Time since the server began.", (*_AT, REDIS_VERSION))
REDIS_MEMORY = Metric("redis.memory.used", "By", "gauge", "Memory of the server.", _AT)
REDIS_MEMORY_PEAK = Metric("redis.memory.peak", "By", "gauge", "The most memory that it had.", _AT)
REDIS_CLIENTS = Metric("redis.clients.connected", "{client}", "updowncounter", "Clients of the server.", _AT)
REDIS_COMMANDS = Metric("redis.commands.processed", "{command}", "counter", "Commands that it ran.", _AT)
REDIS_RATE = Metric("redis.commands", "{ops}/s", "gauge", "Commands in a second.", _AT)
REDIS_HITS = Metric("redis.keyspace.hits", "{hit}", "counter", "Keys that were found.", _AT)
REDIS_MISSES = Metric("redis.keyspace.misses", "{miss}", "counter", "Keys that were not found.", _AT)
REDIS_EVICTED = Metric("redis.keys.evicted", "{key}", "counter", "Keys that were removed to get memory.", _AT)

PROCESS_METRICS = (
    PROCESS_CPU, PROCESS_CPU_UTILIZATION, PROCESS_MEMORY, PROCESS_VIRTUAL, PROCESS_MEMORY_LIMIT, PROCESS_THREADS,
    PROCESS_DESCRIPTORS, PROCESS_UPTIME, GC_COLLECTIONS, GC_COLLECTED, GC_UNCOLLECTABLE, LOOP_LAG, THREAD_POOL_MAX,
    THREAD_POOL_USED, THREAD_POOL_WAITING, REDIS_UPTIME, REDIS_MEMORY, REDIS_MEMORY_PEAK, REDIS_CLIENTS,
    REDIS_COMMANDS, REDIS_RATE, REDIS_HITS, REDIS_MISSES, REDIS_EVICTED,
)  # fmt: skip
