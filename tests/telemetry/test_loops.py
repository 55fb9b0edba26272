"""Event loops: their lag, the pools of their threads, and that nothing of the watching stays."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import anyio
import anyio.to_thread
import httpx
import pytest
from starlette.applications import Starlette

import otel_perf
from otel_perf import conventions as c
from otel_perf import instrument
from otel_perf.telemetry import loops


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(loops, "_EVERY_S", 0.02)


def test_a_blocked_loop_shows(telemetry):
    """Code that holds the loop for 0.3 s is a lag of more than 0.1 s; the same loop at rest is not."""

    async def main() -> None:
        with instrument(asyncio.get_running_loop()):
            await asyncio.sleep(0.05)
            time.sleep(0.3)  # noqa: ASYNC251  # on purpose
            await asyncio.sleep(0.05)

    asyncio.run(main())
    (point,) = telemetry.points(c.LOOP_LAG.name)
    late = sum(
        count for bound, count in zip(point.explicit_bounds, point.bucket_counts[1:], strict=True) if bound >= 0.1
    )
    assert late >= 1
    assert point.count > late


def test_undo_cancels_the_timer(telemetry):
    """After undo, and after shutdown, nothing more is recorded and the timer is gone."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for end in (instrument(loop).undo, otel_perf.shutdown):
            loops._watch(loop)
            (watch,) = [known() for known in loops._watches.values()]
            end()
            assert not loops._watches
            assert watch._handle.cancelled()

    asyncio.run(main())


def test_from_another_thread(telemetry):
    """A loop that runs in another thread, or does not run yet, is watched and let go."""
    loop = asyncio.new_event_loop()
    handle = instrument(loop)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    while not telemetry.points(c.LOOP_LAG.name):
        time.sleep(0.01)
    watch = loops._watches[loop]()
    handle.undo()
    while not watch._handle.cancelled():
        time.sleep(0.01)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_loop_may_close_with_the_timer_pending(telemetry, recwarn):
    """A loop that ends is let go without a warning, keeps nothing alive, and undo after that does nothing."""
    loop = asyncio.new_event_loop()
    handle = instrument(loop)
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()
    gone = weakref.ref(loop)
    handle.undo()
    del loop, handle
    gc.collect()
    assert gone() is None
    assert not recwarn.list


def test_the_timer_keeps_nothing_current(telemetry):
    """The request in which the timer was set is not kept by it."""

    class Held:
        pass

    async def main() -> weakref.ref[Held]:
        from contextvars import ContextVar

        variable: ContextVar[Held] = ContextVar("variable")
        held = Held()
        token = variable.set(held)
        loops.watch_running()
        variable.reset(token)
        gone = weakref.ref(held)
        del held, token
        await asyncio.sleep(0.05)
        gc.collect()
        return gone

    assert asyncio.run(main())() is None


def test_an_app_is_watched(telemetry):
    """A measured app has its loop watched from its first request on, and each process once."""
    app = Starlette()
    instrument(app)

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            assert loops.wanted
            await client.get("/")
            assert not loops.wanted
            assert len(loops._watches) == 1

    asyncio.run(main())


def test_configure_in_a_loop_watches_it(telemetry):
    """Programs that call `configure()` in their loop need nothing more; those that want no figures are left alone."""

    async def main(wanted: bool) -> int:
        telemetry.restart(runtime_metrics=wanted)
        return len(loops._watches)

    assert asyncio.run(main(True)) == 1
    assert asyncio.run(main(False)) == 0
    assert not loops.wanted


def test_the_pools(telemetry):
    """Threads of asyncio's executor and of anyio's limit: the most, those at work, and what waits."""
    go = threading.Event()

    async def main() -> dict[tuple[str, str], int]:
        from concurrent.futures import ThreadPoolExecutor

        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2))
        loops._watch(loop)
        work = [asyncio.create_task(asyncio.to_thread(go.wait)) for _ in range(3)]
        anyio.to_thread.current_default_thread_limiter().total_tokens = 1
        work += [asyncio.create_task(anyio.to_thread.run_sync(go.wait)) for _ in range(3)]
        await asyncio.sleep(0.1)
        told = {
            (metric.name, point.attributes[c.THREAD_POOL]): point.value
            for metric in (c.THREAD_POOL_MAX, c.THREAD_POOL_USED, c.THREAD_POOL_WAITING)
            for point in telemetry.points(metric.name)
        }
        go.set()
        await asyncio.gather(*work)
        return told

    assert asyncio.run(main()) == {
        ("thread_pool.threads.max", "asyncio"): 2, ("thread_pool.threads.max", "anyio"): 1,
        ("thread_pool.threads.used", "asyncio"): 2, ("thread_pool.threads.used", "anyio"): 1,
        ("thread_pool.tasks.waiting", "asyncio"): 1, ("thread_pool.tasks.waiting", "anyio"): 2,
    }  # fmt: skip


def test_no_pool_no_figures(telemetry):
    """Before an executor is used there is nothing to tell of it."""

    async def main() -> list[str]:
        loops.watch_running()
        return [point.attributes[c.THREAD_POOL] for point in telemetry.points(c.THREAD_POOL_MAX.name)]

    assert "asyncio" not in asyncio.run(main())


def test_after_a_fork(telemetry):
    """A child knows none of its parent's loops, and looks for its own."""
    import os

    async def main() -> int:
        loops.watch_running()
        child = os.fork()
        if not child:
            os._exit(0 if loops.wanted and not loops._watches else 1)
        return os.waitpid(child, 0)[1]  # noqa: ASYNC222  # nothing else runs

    assert asyncio.run(main()) == 0
