"""Event loops that no web framework runs are watched on request."""

from __future__ import annotations

import asyncio

import otel_perf
from otel_perf import conventions as c
from otel_perf import instrument
from otel_perf.telemetry import loops


def test_a_loop_is_watched_until_undone(telemetry, monkeypatch):
    """A running loop is taken by `instrument`, twice without harm, and let go when the first is undone."""
    monkeypatch.setattr(loops, "_EVERY_S", 0.01)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with instrument(loop):
            instrument(loop).undo()
            assert loop in loops._watches
            await asyncio.sleep(0.05)
        assert loop not in loops._watches

    asyncio.run(main())
    assert telemetry.points(c.LOOP_LAG.name)[0].count > 0


def test_a_closed_loop(telemetry):
    """A loop that is closed already is nothing to watch, and no error."""
    loop = asyncio.new_event_loop()
    loop.close()
    instrument(loop).undo()
    assert not loops._watches


def test_before_configure():
    """Without `configure()` nothing is watched."""
    loop = asyncio.new_event_loop()
    instrument(loop).undo()
    assert not loops._watches
    loop.close()


def test_a_loop_that_was_asked_for_is_watched_under_each_configuration(telemetry):
    """Asked for before `configure()`, its lag is told, and told again after the next; undo ends that."""
    otel_perf.shutdown()

    async def main() -> list[bool]:
        loop = asyncio.get_running_loop()
        told = []
        handle = instrument(loop)
        for _ in range(2):
            await asyncio.to_thread(telemetry.restart)  # in a thread of its own it finds no loop by itself
            for _ in range(100):
                await asyncio.sleep(0.05)
                if telemetry.points(c.LOOP_LAG.name):
                    break
            told.append(bool(telemetry.points(c.LOOP_LAG.name)))
        handle.undo()
        await asyncio.to_thread(telemetry.restart)
        return [*told, loop in loops._watches]

    assert asyncio.run(main()) == [True, True, False]
