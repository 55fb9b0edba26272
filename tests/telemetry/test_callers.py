"""The place in the application that a call came from: sync, in tasks, in threads, and through greenlets."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

import otel_perf
from otel_perf.telemetry import callers
from otel_perf.telemetry.callers import Place, caller


def here(offset: int = 0) -> Place:
    """The line of the test that asks."""
    frame = inspect.currentframe().f_back
    return Place(__file__, frame.f_lineno + offset)


def asked() -> Place | None:
    return caller()


def test_the_first_line_of_the_application():
    """The frame nearest to the call that is neither ours nor a library's."""
    found = asked()
    assert found == Place(__file__, asked.__code__.co_firstlineno + 1)
    assert str(found) == f"{__file__}:{found.line}"


def test_a_call_through_libraries(telemetry):
    """What lies between, here SQLAlchemy and its event handlers, is passed over: sync."""
    telemetry.restart(slow_query_s=0.01)
    engine = create_engine("sqlite://")
    _slow_function(engine)
    with otel_perf.instrument(engine), engine.connect() as connection:
        connection.execute(text("SELECT nap(30)"))
        place = here(-1)
    engine.dispose()
    [query] = telemetry.runtime.slow_queries.recent()
    assert query.caller == place


def test_a_call_through_a_greenlet(telemetry):
    """SQLAlchemy's async API runs its sync half in a greenlet; the coroutine that waits for it is found."""
    telemetry.restart(slow_query_s=0.01)

    async def ask(connection) -> Place:
        await connection.execute(text("SELECT nap(30)"))
        return here(-1)

    async def main() -> list[Place]:
        engine = create_async_engine("sqlite+aiosqlite://")
        _slow_function(engine.sync_engine)
        with otel_perf.instrument(engine):
            async with engine.connect() as connection:
                direct = await ask(connection)
                in_task = await asyncio.create_task(ask(connection))
        await engine.dispose()
        return [direct, in_task]

    places = asyncio.run(main())
    assert [query.caller for query in telemetry.runtime.slow_queries.recent()] == places


def _slow_function(engine) -> None:
    def define(connection, _record):
        connection.create_function("nap", 1, lambda ms: time.sleep(ms / 1000))

    event.listen(engine, "connect", define)


def test_a_call_in_a_thread():
    """A thread's stack begins in the standard library, which is not the application."""
    found: list[Place | None] = []
    thread = threading.Thread(target=lambda: found.append(caller()))
    place = here(-1)
    thread.start()
    thread.join()
    assert found == [place]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(caller).result() is None  # nothing of the application is on that stack


@pytest.mark.parametrize(
    ("filename", "kind"),
    [
        (__file__, callers._APPLICATION),
        (callers.__file__, callers._OTHER),
        (threading.__file__, callers._OTHER),
        ("<frozen importlib._bootstrap>", callers._OTHER),
        ("/srv/venv/lib/python3.12/site-packages/sqlalchemy/engine/base.py", callers._OTHER),
        ("/usr/lib/python3/dist-packages/redis/client.py", callers._OTHER),
        ("/srv/venv/lib/python3.12/site-packages/otel_perf/api.py", callers._OTHER),
        ("/srv/venv/lib/python3.12/site-packages/shop/orders.py", callers._PACKAGE),
        ("/srv/app/shop/orders.py", callers._APPLICATION),
    ],
)
def test_whose_a_file_is(filename, kind):
    """Ours, Python's and the drivers' are passed over; an application may be installed like a library."""
    assert callers._kind(filename) is kind


def test_an_application_that_is_installed_is_found(tmp_path):
    """Its frame counts where no other is an application's."""
    folder = tmp_path / "site-packages" / "shop"
    folder.mkdir(parents=True)
    file = folder / "orders.py"
    file.write_text("def ask(found, caller):\n    found.append(caller())\n", encoding="utf-8")
    program: dict[str, object] = {}
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), program)
    found: list[Place | None] = []
    # In a thread, since this test is an application itself, and nearer.
    thread = threading.Thread(target=program["ask"], args=(found, caller))
    thread.start()
    thread.join()
    assert found == [Place(str(file), 2)]
